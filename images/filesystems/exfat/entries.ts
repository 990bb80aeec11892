/**
 * Directory entries of exFAT: sets of a file entry and what belongs to it, and the entries of the root that say where the volume's own structures are.
 * Specified by Microsoft's "exFAT file system specification", sections 6 and 7.
 */
import { VarveError } from '../../errors.ts'
import type { NodeRecord } from '../fat/cluster-filesystem.ts'
import { Attribute, DIRECTORY_ENTRY_BYTES, timeOfFat } from '../fat/directory.ts'
import type { Timestamp } from '../filesystem.ts'
import { addToSum16 } from './up-case-table.ts'

export const EntryType = { bitmap: 0x81, upCase: 0x82, label: 0x83, file: 0x85, stream: 0xc0, name: 0xc1 } as const

const IN_USE = 0x80
const SECONDARY = 0x40
/** Who does not know it may leave it out. */
const BENIGN = 0x20
const UNITS_PER_NAME_ENTRY = 15
const LABEL_UNITS_MAX = 11
const ALLOCATION_POSSIBLE = 0x01
const NO_FAT_CHAIN = 0x02
const OFFSET_VALID = 0x80

/** An entry that is in use, or a set of them. */
export interface EntrySet {
  type: number
  /** Primary entry first, then its secondary ones. */
  entries: Buffer[]
  /** Places of `entries`, in units of an entry. */
  places: number[]
}

/** Puts the entries of a directory together to sets, piece by piece. */
export class EntrySetReader {
  readonly #name: string
  /** Set that still lacks entries. */
  #open: EntrySet | undefined
  #atEnd = false

  /** @param name of the directory, for messages */
  constructor(name: string) {
    this.#name = name
  }

  /** Nothing more follows. */
  get isAtEnd(): boolean {
    return this.#atEnd
  }

  /** @param offset of `bytes` on the volume @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
  read(bytes: Buffer, offset: number): EntrySet[] {
    const sets: EntrySet[] = []
    for (let at = 0; at < bytes.length && !this.#atEnd; at += DIRECTORY_ENTRY_BYTES) {
      const set = this.#add(bytes.subarray(at, at + DIRECTORY_ENTRY_BYTES), (offset + at) / DIRECTORY_ENTRY_BYTES)
      if (set !== undefined) sets.push(set)
    }
    return sets
  }

  /** @throws VarveError FORMAT_INVALID if a set is not whole */
  end(): void {
    if (this.#open !== undefined) throw invalid(`${this.#name} ends within the entries of a file`)
  }

  #add(entry: Buffer, place: number): EntrySet | undefined {
    const type = entry[0]
    const open = this.#open
    if (open !== undefined) {
      if ((type & (IN_USE | SECONDARY)) !== (IN_USE | SECONDARY)) throw invalid(`${this.#name} has a file whose entries are not all there`)
      open.entries.push(entry)
      open.places.push(place)
      if (open.entries.length <= open.entries[0][1]) return undefined
      this.#open = undefined
      checkSetSum(open, this.#name)
      return open
    }
    if (type === 0) this.#atEnd = true
    // What is not in use, and secondary entries of primary ones that are left out.
    if ((type & IN_USE) === 0 || (type & SECONDARY) !== 0) return undefined
    const set = { type, entries: [entry], places: [place] }
    if (type === EntryType.file) {
      if (entry[1] < 2) throw invalid(`${this.#name} has a file without a name`)
      this.#open = set
      return undefined
    }
    if ((type & BENIGN) !== 0) return undefined
    if (type !== EntryType.bitmap && type !== EntryType.upCase && type !== EntryType.label) throw new VarveError('FORMAT_UNSUPPORTED', `exfat: ${this.#name} has entries of type 0x${type.toString(16)}, without which it must not be read`)
    return set
  }
}

/** Section 6.3.3. */
function checkSetSum({ entries }: EntrySet, name: string): void {
  let sum = 0
  for (const [index, entry] of entries.entries()) {
    for (let at = 0; at < DIRECTORY_ENTRY_BYTES; at++) if (index > 0 || (at !== 2 && at !== 3)) sum = addToSum16(sum, entry[at])
  }
  if (sum !== entries[0].readUInt16LE(2)) throw invalid(`${name} has a file whose entries have a wrong checksum`)
}

export interface SetName {
  /** UTF-16 */
  name: string
  hash: number
}

/** Name of a file's set. @param directory for messages @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
export function nameOfSet({ entries }: EntrySet, directory: string): SetName {
  const stream = entries[1]
  if (stream[0] !== EntryType.stream) throw invalid(`${directory} has a file that does not say where its content is`)
  const length = stream[3]
  const nameEntries = Math.ceil(length / UNITS_PER_NAME_ENTRY)
  let name = ''
  for (const [index, entry] of entries.slice(2).entries()) {
    if (index < nameEntries) {
      if (entry[0] !== EntryType.name) throw invalid(`${directory} has a file whose name is not whole`)
      name += entry.toString('utf16le', 2, 2 + 2 * Math.min(UNITS_PER_NAME_ENTRY, length - name.length))
    } else if ((entry[0] & BENIGN) === 0) {
      throw new VarveError('FORMAT_UNSUPPORTED', `exfat: ${directory} has a file with entries of type 0x${entry[0].toString(16)}, without which it must not be read`)
    }
  }
  if (length === 0 || name.length !== length) throw invalid(`${directory} has a file whose name is not whole`)
  return { name, hash: stream.readUInt16LE(4) }
}

/** @param sizeBytesMax of the volume @throws VarveError FORMAT_INVALID */
export function recordOf(file: Buffer, stream: Buffer, sizeBytesMax: number): NodeRecord {
  const attributes = file.readUInt16LE(4)
  const sizeBytes = Number(stream.readBigUInt64LE(24))
  const validBytes = Number(stream.readBigUInt64LE(8))
  if (validBytes > sizeBytes || sizeBytes > sizeBytesMax) throw invalid(`a file of ${sizeBytes} bytes, of which ${validBytes} were written, cannot be`)
  const isDirectory = (attributes & Attribute.directory) !== 0
  if ((stream[1] & ALLOCATION_POSSIBLE) === 0 && sizeBytes > 0) throw invalid('content is said to be impossible, and to be there')
  return {
    attributes,
    content: { first: stream.readUInt32LE(20), sizeBytes, validBytes: isDirectory ? sizeBytes : validBytes, isContiguous: (stream[1] & NO_FAT_CHAIN) !== 0 },
    created: timestamp(file.readUInt32LE(8), file[20], file[22]),
    modified: timestamp(file.readUInt32LE(12), file[21], file[23]),
    accessed: timestamp(file.readUInt32LE(16), 0, file[24]),
  }
}

/** Label of its entry. */
export function labelOf(entry: Buffer): string {
  return entry.toString('utf16le', 2, 2 + 2 * Math.min(entry[1], LABEL_UNITS_MAX))
}

/** Section 7.4.8 to 7.4.10. Without a valid offset, which is in quarters of an hour, local time is taken for UTC. */
function timestamp(stamp: number, hundredths: number, offset: number): Timestamp {
  const { seconds, nanoseconds } = timeOfFat(stamp >>> 16, stamp & 0xffff, hundredths)
  const quarters = (offset & OFFSET_VALID) === 0 ? 0 : ((offset & 0x7f) << 25) >> 25
  return { seconds: seconds - quarters * 15 * 60, nanoseconds }
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `exfat: ${what}`)
}
