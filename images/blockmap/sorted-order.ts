/**
 * Order of byte offsets, by radix sort: linear, stable, and several times faster than a comparator on the columns of a disk.
 */

const DIGIT_BITS = 11
const DIGITS = 1 << DIGIT_BITS

/**
 * Indexes of `keys` in ascending order of the keys; equal keys keep their order.
 * @param keys whole numbers, 0 .. 2^53 - 1
 */
export function sortedOrder(keys: Float64Array): Uint32Array {
  let order = new Uint32Array(keys.length)
  for (let index = 0; index < order.length; index++) order[index] = index
  if (isSorted(keys)) return order
  let spare = new Uint32Array(keys.length)
  const digits = new Uint16Array(keys.length)
  const counts = new Uint32Array(DIGITS)
  const low = new Uint32Array(keys.length)
  const high = new Uint32Array(keys.length)
  for (let index = 0; index < keys.length; index++) {
    const key = keys[index]
    high[index] = key / 0x1_0000_0000
    low[index] = key - high[index] * 0x1_0000_0000
  }
  for (const [half, shift] of [[low, 0], [low, DIGIT_BITS], [low, 2 * DIGIT_BITS], [high, 0], [high, DIGIT_BITS]] as const) {
    if (!countDigits(half, shift, digits, counts)) continue
    let at = 0
    for (let digit = 0; digit < DIGITS; digit++) {
      const count = counts[digit]
      counts[digit] = at
      at += count
    }
    for (let position = 0; position < order.length; position++) {
      const index = order[position]
      spare[counts[digits[index]]++] = index
    }
    const sorted = spare
    spare = order
    order = sorted
  }
  return order
}

function isSorted(keys: Float64Array): boolean {
  for (let index = 1; index < keys.length; index++) if (keys[index] < keys[index - 1]) return false
  return true
}

/** Fills in the digits of the numbers at a bit and counts them. @returns false if all are the same, so that there is nothing to sort */
function countDigits(numbers: Uint32Array, shift: number, digits: Uint16Array, counts: Uint32Array): boolean {
  counts.fill(0)
  for (let index = 0; index < numbers.length; index++) {
    const digit = (numbers[index] >>> shift) & (DIGITS - 1)
    digits[index] = digit
    counts[digit]++
  }
  return counts[digits[0]] !== numbers.length
}
