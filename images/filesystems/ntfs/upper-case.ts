/**
 * $UpCase: the upper case of each of the 65,536 units of UTF-16, by which names are ordered in directories, and found there.
 */
import { invalid } from './format.ts'

export const UPPER_CASE_BYTES = 131_072

export class UpperCase {
  readonly #units: Uint16Array

  /** @param bytes content of $UpCase @throws VarveError FORMAT_INVALID */
  constructor(bytes: Buffer) {
    if (bytes.length !== UPPER_CASE_BYTES) throw invalid(`$UpCase has ${bytes.length} bytes instead of ${UPPER_CASE_BYTES}`)
    this.#units = Uint16Array.from({ length: UPPER_CASE_BYTES / 2 }, (_, unit) => bytes.readUInt16LE(2 * unit))
  }

  /** Order of two names, in which case does not count. @returns below 0, 0, above 0 */
  compare(one: string, other: string): number {
    const length = Math.min(one.length, other.length)
    for (let at = 0; at < length; at++) {
      const difference = this.#units[one.charCodeAt(at)] - this.#units[other.charCodeAt(at)]
      if (difference !== 0) return difference
    }
    return one.length - other.length
  }
}
