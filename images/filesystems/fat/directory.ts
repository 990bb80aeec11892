/**
 * Directory entries of FAT, in bytes: short entries, long-name entries before them, times.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.
 */
import { SHORT_NAME_BYTES, UNITS_PER_LONG_ENTRY } from './names.ts'
import type { FatName } from './names.ts'

export const DIRECTORY_ENTRY_BYTES = 32

export const Attribute = { readOnly: 0x01, volumeLabel: 0x08, directory: 0x10, archive: 0x20, longName: 0x0f } as const

/** In the order number of a long-name entry: it is the first on disk, the last of the name. */
const LAST_LONG_ENTRY = 0x40
const SECONDS_1980 = Date.UTC(1980, 0, 1) / 1000
const SECONDS_2108 = Date.UTC(2108, 0, 1) / 1000
/** Offsets of the 13 units in a long-name entry. */
const UNIT_OFFSETS = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30]

export interface DirectoryEntry {
  /** 11 characters of ASCII. */
  short: string
  attributes: number
  cluster: number
  sizeBytes: number
  /** Since 1970; what FAT cannot hold (before 1980, after 2107) becomes the nearest that it can. */
  mtimeSeconds: number
}

/** Number of 32-byte entries that a name takes. */
export function entriesOf(name: FatName): number {
  return name.long === undefined ? 1 : 1 + Math.ceil(name.long.length / UNITS_PER_LONG_ENTRY)
}

/** Writes a short entry at `at`. */
export function writeShortEntry(into: Buffer, at: number, entry: DirectoryEntry): void {
  into.write(entry.short, at, SHORT_NAME_BYTES, 'latin1')
  into[at + 11] = entry.attributes
  const { date, time } = fatTime(entry.mtimeSeconds)
  into.writeUInt16LE(time, at + 14)
  into.writeUInt16LE(date, at + 16)
  into.writeUInt16LE(date, at + 18)
  into.writeUInt16LE(entry.cluster >>> 16, at + 20)
  into.writeUInt16LE(time, at + 22)
  into.writeUInt16LE(date, at + 24)
  into.writeUInt16LE(entry.cluster & 0xffff, at + 26)
  into.writeUInt32LE(entry.sizeBytes, at + 28)
}

/** Writes the long-name entries of a name at `at`, if it has any. @returns the offset behind them, where the short entry goes */
export function writeLongEntries(into: Buffer, at: number, name: FatName): number {
  const { long } = name
  if (long === undefined) return at
  const checksum = shortNameChecksum(name.short)
  const count = Math.ceil(long.length / UNITS_PER_LONG_ENTRY)
  for (let order = count; order >= 1; order--, at += DIRECTORY_ENTRY_BYTES) {
    into[at] = order === count ? order | LAST_LONG_ENTRY : order
    into[at + 11] = Attribute.longName
    into[at + 13] = checksum
    for (let unit = 0; unit < UNITS_PER_LONG_ENTRY; unit++) {
      const index = (order - 1) * UNITS_PER_LONG_ENTRY + unit
      into.writeUInt16LE(index < long.length ? long.charCodeAt(index) : index === long.length ? 0 : 0xffff, at + UNIT_OFFSETS[unit])
    }
  }
  return at
}

function shortNameChecksum(short: string): number {
  let sum = 0
  for (let index = 0; index < SHORT_NAME_BYTES; index++) sum = (((sum & 1) << 7) + (sum >> 1) + short.charCodeAt(index)) & 0xff
  return sum
}

/** Date and time of FAT, in UTC: two seconds are one. */
function fatTime(seconds: number): { date: number; time: number } {
  const at = new Date(Math.min(Math.max(seconds, SECONDS_1980), SECONDS_2108 - 1) * 1000)
  return {
    date: ((at.getUTCFullYear() - 1980) << 9) | ((at.getUTCMonth() + 1) << 5) | at.getUTCDate(),
    time: (at.getUTCHours() << 11) | (at.getUTCMinutes() << 5) | (at.getUTCSeconds() >> 1),
  }
}
