/**
 * Sizes as people write them.
 */
const SIZE = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i
const UNITS: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }

/** `40G`, `1.5GiB`, `65536`: bytes, in units of 1024. Undefined if it is no size. */
export function parseSize(text: string): number | undefined {
  const [, digits, unit] = SIZE.exec(text) ?? []
  return digits === undefined ? undefined : Number(digits) * UNITS[unit.toUpperCase()]
}
