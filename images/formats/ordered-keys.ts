/**
 * Search in ordered numbers: where parts of a disk or file begin.
 */

/** Place of the last key that is not above `key`, -1 if there is none. @param step keys are at every so many places, and are counted so */
export function lastUpTo(keys: Float64Array, key: number, step = 1): number {
  let low = -1
  let high = keys.length / step
  while (high - low > 1) {
    const middle = (low + high) >>> 1
    if (keys[middle * step] <= key) low = middle
    else high = middle
  }
  return low
}
