/**
 * Up-case table of exFAT: by which letters names are compared. Each volume brings its own.
 * Specified by Microsoft's "exFAT file system specification", section 7.2.
 */
import { VarveError } from '../../errors.ts'
import { addToSum32 } from './boot-region.ts'

const UNITS = 1 << 16
/** Of a table without compression. */
export const UP_CASE_BYTES_MAX = 2 * UNITS
/** What follows is a number of units that are their own upper case. */
const IDENTITY_RUN = 0xffff

export class UpCaseTable {
  readonly #upper: Uint16Array

  private constructor(upper: Uint16Array) {
    this.#upper = upper
  }

  /** @param bytes whole units @throws VarveError FORMAT_INVALID */
  static read(bytes: Buffer, checksum: number): UpCaseTable {
    let sum = 0
    for (const byte of bytes) sum = addToSum32(sum, byte)
    if (sum !== checksum) throw new VarveError('FORMAT_INVALID', 'exFAT: the checksum of the up-case table is wrong')
    const upper = Uint16Array.from({ length: UNITS }, (_, unit) => unit)
    let unit = 0
    for (let at = 0; at < bytes.length; at += 2) {
      const value = bytes.readUInt16LE(at)
      // In a table of all units, the last is 0xffff and stands for itself.
      if (value === IDENTITY_RUN && at + 2 < bytes.length) {
        unit += bytes.readUInt16LE(at + 2)
        at += 2
      } else if (unit < UNITS) {
        upper[unit++] = value
      } else {
        unit++
      }
      if (unit > UNITS) throw new VarveError('FORMAT_INVALID', 'exFAT: the up-case table has more than 65536 characters')
    }
    return new UpCaseTable(upper)
  }

  fold(name: string): string {
    let fold = ''
    for (let index = 0; index < name.length; index++) fold += String.fromCharCode(this.#upper[name.charCodeAt(index)])
    return fold
  }

  /** As it stands beside a name (section 7.6.4). */
  hash(name: string): number {
    let sum = 0
    for (let index = 0; index < name.length; index++) {
      const unit = this.#upper[name.charCodeAt(index)]
      sum = addToSum16(sum, unit & 0xff)
      sum = addToSum16(sum, unit >> 8)
    }
    return sum
  }
}

/** One byte more in a checksum of 16 bits: of names and entry sets. */
export function addToSum16(sum: number, byte: number): number {
  return ((((sum >>> 1) | (sum << 15)) & 0xffff) + byte) & 0xffff
}
