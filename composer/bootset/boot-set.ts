/**
 * Boot set: what boots read, in the order in which they read it, and where it belongs: so that it means something on other disks too.
 * Immutable; a boot that was recorded gives a new one. Which chunks of a disk it stands for: translate.ts. Bytes: docs/formats/boot-set.md
 */
import { DIGEST_BYTES, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '@varve/images/chunk/limits.ts'
import { VarveError } from '@varve/images/errors.ts'

/** What of a disk a chunk is. */
export const Part = {
  /** Nothing with a name; found again by its digest alone. */
  content: 0,
  /** Content of the file at `path`, from `offset` on. */
  file: 1,
  /** Names in the directory at `path`, from `offset` on. */
  directory: 2,
  /** The part of an inode table that holds the inode of `path`, and what belongs to that besides content. */
  inode: 3,
  /** What has no path: `path` is the name of an area of the disk (disk-view.ts). */
  area: 4,
} as const
export type Part = (typeof Part)[keyof typeof Part]

export interface Place {
  part: Part
  /** Without a leading slash, bytes in latin1. */
  path: string
  /** Bytes into the file, directory or area. */
  offset: number
  /** Bytes of it, at least 1. Where the same content is cut otherwise, this says which chunks are meant. */
  length: number
}

export interface BootSetEntry extends Place {
  /** Of the chunk that was there in the last boot that used it. */
  digest: Digest
  /** Of the set's boots, those that used it; at least 1. */
  boots: number
  /** Mean place among the first uses of these boots, from 0. */
  rank: number
}

/** One chunk that a boot used, with all that is known to be in it. */
export interface PlacedChunk {
  digest: Digest
  places: readonly Place[]
}

export const BOOT_SET_ENTRIES_MAX = 1 << 16
/** Older boots count half from then on. */
export const BOOT_SET_BOOTS_MAX = 32
export const PATH_BYTES_MAX = 4096
const RANK_MAX = 2 ** 32

/** What fewer boots used comes after the rest. */
const SHARE_USUAL = 0.5
/** What no more boots used comes last. */
const SHARE_RARE = 0.1

const MAGIC = Buffer.from('VARVBOOT', 'latin1')
const VERSION = 1
const HEADER_BYTES = 20
/** In an entry. */
const DIGEST_AT = 27
/** Of an entry, without its path. */
const ENTRY_BYTES = DIGEST_AT + DIGEST_BYTES

export class BootSet {
  /** Boots that it was learned from; 0 for one that was guessed. */
  readonly boots: number
  /** In the order in which a boot wants them; nothing twice. */
  readonly entries: readonly BootSetEntry[]

  /** @param entries nothing twice, in any order; of more than BOOT_SET_ENTRIES_MAX those that come last are left out */
  constructor(boots: number, entries: readonly BootSetEntry[]) {
    this.boots = boots
    this.entries = entries.toSorted((a, b) => tierOf(a, boots) - tierOf(b, boots) || a.rank - b.rank || compareSubjects(a, b)).slice(0, BOOT_SET_ENTRIES_MAX)
  }

  static readonly empty = new BootSet(0, [])

  /** The set after one more boot. @param chunks in the order of their first use */
  with(chunks: Iterable<PlacedChunk & { rank: number }>): BootSet {
    const isFull = this.boots >= BOOT_SET_BOOTS_MAX
    const before = isFull ? Math.floor(this.boots / 2) : this.boots
    const entries = new Map<string, BootSetEntry>()
    for (const entry of this.entries) {
      const boots = isFull ? Math.floor(entry.boots / 2) : entry.boots
      if (boots > 0) entries.set(subjectKey(entry, entry.digest), { ...entry, boots })
    }
    const noted = new Set<string>()
    for (const { digest, places, rank } of chunks) {
      for (const place of places) {
        const key = subjectKey(place, digest)
        if (noted.has(key)) continue
        noted.add(key)
        const known = entries.get(key)
        const boots = known?.boots ?? 0
        entries.set(key, { ...place, digest, boots: boots + 1, rank: ((known?.rank ?? 0) * boots + rank) / (boots + 1) })
      }
    }
    return new BootSet(before + 1, [...entries.values()])
  }

  /** What several sets say together of a disk that each knows a part of. */
  static combine(sets: readonly BootSet[]): BootSet {
    const entries = new Map<string, BootSetEntry>()
    for (const set of sets) {
      for (const entry of set.entries) {
        const key = subjectKey(entry, entry.digest)
        const known = entries.get(key)
        const boots = Math.max(1, Math.round((entry.boots / Math.max(set.boots, 1)) * BOOT_SET_BOOTS_MAX))
        if (known === undefined || boots > known.boots) entries.set(key, { ...entry, boots })
      }
    }
    return new BootSet(BOOT_SET_BOOTS_MAX, [...entries.values()])
  }

  /** Canonical: the same set gives the same bytes. */
  encode(): Uint8Array {
    const parts: Buffer[] = []
    const header = Buffer.alloc(HEADER_BYTES)
    MAGIC.copy(header)
    header.writeUInt32LE(VERSION, 8)
    header.writeUInt32LE(this.boots, 12)
    header.writeUInt32LE(this.entries.length, 16)
    parts.push(header)
    for (const { part, path, offset, length, digest, boots, rank } of this.entries) {
      const entry = Buffer.alloc(ENTRY_BYTES + path.length)
      entry[0] = part
      entry.writeUInt16LE(path.length, 1)
      entry.writeBigUInt64LE(BigInt(offset), 3)
      entry.writeUInt32LE(length, 11)
      entry.writeUInt32LE(boots, 15)
      entry.writeDoubleLE(rank, 19)
      entry.set(digest, DIGEST_AT)
      entry.write(path, ENTRY_BYTES, 'latin1')
      parts.push(entry)
    }
    return Buffer.concat(parts)
  }

  /** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
  static decode(encoded: Uint8Array): BootSet {
    const bytes = Buffer.from(encoded.buffer, encoded.byteOffset, encoded.byteLength)
    if (bytes.length < HEADER_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) throw invalid('does not start with VARVBOOT')
    const version = bytes.readUInt32LE(8)
    if (version !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `boot set: version ${version} is not known; this is version ${VERSION}`)
    const boots = bytes.readUInt32LE(12)
    const count = bytes.readUInt32LE(16)
    if (boots > BOOT_SET_BOOTS_MAX || count > BOOT_SET_ENTRIES_MAX) throw new VarveError('LIMIT_EXCEEDED', `boot set: ${boots} boots and ${count} entries; at most ${BOOT_SET_BOOTS_MAX} and ${BOOT_SET_ENTRIES_MAX} are allowed`)
    const entries: BootSetEntry[] = []
    let at = HEADER_BYTES
    for (let index = 0; index < count; index++) {
      const entry = readEntry(bytes, at)
      if (entry.boots > Math.max(boots, 1)) throw invalid(`entry ${index} is of ${entry.boots} boots of ${boots}`)
      at += ENTRY_BYTES + entry.path.length
      entries.push(entry)
    }
    if (at !== bytes.length) throw invalid(`${bytes.length - at} bytes follow the last entry`)
    if (new Set(entries.map((entry) => subjectKey(entry, entry.digest))).size !== count) throw invalid('an entry stands in it twice')
    const set = new BootSet(boots, entries)
    if (set.entries.some((entry, index) => entry !== entries[index])) throw invalid('the entries are not in order')
    return set
  }
}

function readEntry(bytes: Buffer, at: number): BootSetEntry {
  if (at + ENTRY_BYTES > bytes.length) throw invalid('it ends inside an entry')
  const part = bytes[at]
  const pathBytes = bytes.readUInt16LE(at + 1)
  const offset = Number(bytes.readBigUInt64LE(at + 3))
  const length = bytes.readUInt32LE(at + 11)
  const boots = bytes.readUInt32LE(at + 15)
  const rank = bytes.readDoubleLE(at + 19)
  if (part > Part.area || pathBytes > PATH_BYTES_MAX || !Number.isSafeInteger(offset + length) || length < 1 || length > CHUNK_BYTES_MAX || boots === 0 || !(rank >= 0 && rank <= RANK_MAX) || at + ENTRY_BYTES + pathBytes > bytes.length) throw invalid(`the entry at ${at} is of no form`)
  return {
    part: part as Part,
    path: bytes.toString('latin1', at + ENTRY_BYTES, at + ENTRY_BYTES + pathBytes),
    offset,
    length,
    digest: Uint8Array.prototype.slice.call(bytes, at + DIGEST_AT, at + ENTRY_BYTES),
    boots,
    rank,
  }
}

/** 0: usual; 1: what fewer than half of the boots used; 2: what one in ten used, or fewer. */
export function tierOf({ boots }: Pick<BootSetEntry, 'boots'>, ofBoots: number): 0 | 1 | 2 {
  const share = boots / Math.max(ofBoots, 1)
  return share >= SHARE_USUAL ? 0 : share > SHARE_RARE ? 1 : 2
}

/** What tells two entries apart: where they are, or for what has no place, what they are. */
function compareSubjects(a: BootSetEntry, b: BootSetEntry): number {
  if (a.part !== b.part) return a.part - b.part
  if (a.part === Part.content) return Buffer.compare(a.digest, b.digest)
  if (a.path !== b.path) return a.path < b.path ? -1 : 1
  return a.offset - b.offset
}

/** The same as text. */
function subjectKey({ part, path, offset }: Place, digest: Digest): string {
  return part === Part.content ? digestToHex(digest) : `${part} ${offset} ${path}`
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `boot set: ${what}`)
}
