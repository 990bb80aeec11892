/**
 * Directory entries of FAT, in bytes: short entries, long-name entries before them, times.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.
 */
import type { Timestamp } from '../filesystem.ts'
import { decodeCodePage437, lowerCodePage437 } from './code-page-437.ts'
import { LONG_ENTRIES_MAX, SHORT_NAME_BYTES, UNITS_PER_LONG_ENTRY } from './names.ts'
import type { FatName } from './names.ts'

export const DIRECTORY_ENTRY_BYTES = 32

export const Attribute = { readOnly: 0x01, hidden: 0x02, system: 0x04, volumeLabel: 0x08, directory: 0x10, archive: 0x20, longName: 0x0f } as const
/** Of the attributes that tell a long-name entry from others; the upper two bits are reserved. */
const LONG_NAME_MASK = 0x3f
/** In the first byte of an entry: this one and all that follow were never used; this one was deleted; the name begins with 0xe5. */
const END_OF_DIRECTORY = 0x00
const DELETED = 0xe5
const STANDS_FOR_DELETED = 0x05
/** In byte 12 of a short entry, as Windows NT writes it: base or extension are in lower case. */
const LOWER_BASE = 0x08
const LOWER_EXTENSION = 0x10

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

/** What a directory holds under a name. */
export interface FoundEntry {
  /** The short entry; of the buffer that was read. */
  bytes: Buffer
  /** Of the short entry in what was read, bytes. */
  at: number
  /** UTF-16; undefined if there is none, or what there is belongs to another short name. */
  long: string | undefined
  /** As it is shown: with its dot, in lower case where the entry says so. */
  short: string
}

/** Takes a directory apart, piece by piece: long-name entries and the short entry that they stand before may be in two pieces. */
export class EntryReader {
  /** Units of a long name, and how many of its entries are still to come; the short entry follows the last. */
  #units: number[] = []
  #toCome = 0
  #checksum = 0
  #atEnd = false

  /** Nothing more follows. */
  get isAtEnd(): boolean {
    return this.#atEnd
  }

  /** Entries in `bytes`, volume labels among them, without deleted ones, `.` and `..`. Nothing more after the end of the directory. */
  read(bytes: Buffer): FoundEntry[] {
    const found: FoundEntry[] = []
    for (let at = 0; at < bytes.length && !this.#atEnd; at += DIRECTORY_ENTRY_BYTES) {
      const entry = bytes.subarray(at, at + DIRECTORY_ENTRY_BYTES)
      if (entry[0] === END_OF_DIRECTORY) {
        this.#atEnd = true
      } else if (entry[0] !== DELETED && (entry[11] & LONG_NAME_MASK) === Attribute.longName) {
        this.#addLong(entry)
      } else {
        const long = this.#takeLong(entry)
        if (entry[0] === DELETED || isDotEntry(entry)) continue
        found.push({ bytes: entry, at, long, short: shownShortName(entry) })
      }
    }
    return found
  }

  /** The entries of a long name stand in falling order, the last of the name first; what breaks the row begins a new one, or is an orphan. */
  #addLong(entry: Buffer): void {
    const order = entry[0] & ~LAST_LONG_ENTRY
    if ((entry[0] & LAST_LONG_ENTRY) !== 0 && order >= 1 && order <= LONG_ENTRIES_MAX) {
      this.#units = []
      this.#checksum = entry[13]
    } else if (this.#toCome === 0 || order !== this.#toCome || entry[13] !== this.#checksum) {
      this.#dropLong()
      return
    }
    this.#toCome = order - 1
    this.#units.unshift(...UNIT_OFFSETS.map((offset) => entry.readUInt16LE(offset)))
  }

  /** The long name before a short entry, if it is whole and its own. */
  #takeLong(entry: Buffer): string | undefined {
    const units = this.#units
    const isOwn = units.length > 0 && this.#toCome === 0 && this.#checksum === shortNameChecksum(entry.toString('latin1', 0, SHORT_NAME_BYTES))
    this.#dropLong()
    if (!isOwn) return undefined
    const end = units.indexOf(0)
    return String.fromCharCode(...(end < 0 ? units : units.slice(0, end)))
  }

  #dropLong(): void {
    this.#units = []
    this.#toCome = 0
  }
}

/** `.` or `..` */
function isDotEntry(entry: Buffer): boolean {
  return /^\.\.? {9,10}$/.test(entry.toString('latin1', 0, SHORT_NAME_BYTES))
}

function shownShortName(entry: Buffer): string {
  const bytes = Buffer.from(entry.subarray(0, SHORT_NAME_BYTES))
  if (bytes[0] === STANDS_FOR_DELETED) bytes[0] = DELETED
  const part = (from: number, to: number, lower: number): string => {
    const text = decodeCodePage437(bytes.subarray(from, to)).replace(/ +$/, '')
    return (entry[12] & lower) === 0 ? text : lowerCodePage437(text)
  }
  const extension = part(8, SHORT_NAME_BYTES, LOWER_EXTENSION)
  return part(0, 8, LOWER_BASE) + (extension === '' ? '' : `.${extension}`)
}

/** Text of a volume label's entry. */
export function labelOf(entry: Buffer): string {
  const bytes = Buffer.from(entry.subarray(0, SHORT_NAME_BYTES))
  if (bytes[0] === STANDS_FOR_DELETED) bytes[0] = DELETED
  return decodeCodePage437(bytes).replace(/ +$/, '')
}

function shortNameChecksum(short: string): number {
  let sum = 0
  for (let index = 0; index < SHORT_NAME_BYTES; index++) sum = (((sum & 1) << 7) + (sum >> 1) + short.charCodeAt(index)) & 0xff
  return sum
}

/**
 * Date and time of FAT, taken for UTC. A month or day of 0 is taken for 1, as Linux does.
 * @param hundredths added, 0 .. 199: what creation has beside its two seconds
 */
export function timeOfFat(date: number, time: number, hundredths = 0): Timestamp {
  const day = Date.UTC(1980 + (date >> 9), Math.max(1, (date >> 5) & 0xf) - 1, Math.max(1, date & 0x1f)) / 1000
  const seconds = day + (time >> 11) * 3600 + ((time >> 5) & 0x3f) * 60 + (time & 0x1f) * 2
  return { seconds: seconds + Math.floor(hundredths / 100), nanoseconds: (hundredths % 100) * 10_000_000 }
}

/** Date and time of FAT, in UTC: two seconds are one. */
function fatTime(seconds: number): { date: number; time: number } {
  const at = new Date(Math.min(Math.max(seconds, SECONDS_1980), SECONDS_2108 - 1) * 1000)
  return {
    date: ((at.getUTCFullYear() - 1980) << 9) | ((at.getUTCMonth() + 1) << 5) | at.getUTCDate(),
    time: (at.getUTCHours() << 11) | (at.getUTCMinutes() << 5) | (at.getUTCSeconds() >> 1),
  }
}
