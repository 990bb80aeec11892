/**
 * Durations as people write them.
 */
const DURATION = /^(\d{1,6}(?:\.\d{1,6})?)\s*(s|m|h|d)$/
const UNITS_MS: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** `90s`, `30m`, `12h`, `1.5d`: milliseconds. Undefined if it is no duration. */
export function parseDuration(text: string): number | undefined {
  const [, digits, unit] = DURATION.exec(text) ?? []
  return digits === undefined ? undefined : Math.round(Number(digits) * UNITS_MS[unit])
}
