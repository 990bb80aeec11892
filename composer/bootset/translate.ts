/**
 * Translates a boot set for a disk: which of its chunks a boot will read, in order. What leads to a file (directories, inodes, extents) comes before it.
 */
import { digestWords } from '@varve/images/chunk/chunk-table.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Part } from './boot-set.ts'
import type { BootSet, BootSetEntry, Place } from './boot-set.ts'
import { AreaName } from './disk-view.ts'
import type { DiskView, Piece, Trail } from './disk-view.ts'

const DIGEST_WORDS = 8
/** Linux reads inode tables in aligned pieces of so many blocks (inode_readahead_blks). */
const INODE_READ_BLOCKS = 32
/** Subjects whose places are kept. */
const KNOWN_MAX = 256

/**
 * Chunks of the view's map, none twice, in the order in which a boot wants them.
 * What the disk does not have any more, or cannot say because it is damaged, is passed over: a boot set is a hint.
 * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT
 */
export async function translateBootSet(set: BootSet, view: DiskView): Promise<Uint32Array> {
  const translation = new Translation(view, chunksByDigest(set, view.map))
  if (set.entries.length > 0) translation.addHead()
  for (const entry of set.entries) {
    try {
      await translation.add(entry)
    } catch (error) {
      if (!isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
    }
  }
  return Uint32Array.from(translation.chunks)
}

class Translation {
  /** In order: a set keeps the order in which things came. */
  readonly chunks = new Set<number>()
  readonly #view: DiskView
  readonly #byDigest: ReadonlyMap<string, number>
  /** Inodes that have been added with all that belongs to them. */
  readonly #inodes = new Set<number>()
  /** Where subjects lie: a large file has many entries, between those of others. */
  readonly #known = new Map<string, readonly Piece[]>()

  constructor(view: DiskView, byDigest: ReadonlyMap<string, number>) {
    this.#view = view
    this.#byDigest = byDigest
  }

  /** What is read before anything can be found. */
  addHead(): void {
    for (const name of [AreaName.table, AreaName.head]) {
      for (const { start, length } of this.#view.segmentsOf(name)) this.#addRange(start, length)
    }
  }

  async add(entry: BootSetEntry): Promise<void> {
    const same = this.#byDigest.get(digestToHex(entry.digest))
    const segments = await this.#segments(entry)
    // What is where it was is that one chunk, however much of it the entry's bytes touch.
    if (same === undefined || !this.#begins(segments, entry.offset, same)) this.#addPart(segments, entry)
    if (same !== undefined) this.chunks.add(same)
  }

  /** Where the entry's subject lies. What leads there is added. */
  async #segments({ part, path }: BootSetEntry): Promise<readonly Piece[]> {
    const key = `${part} ${path}`
    let segments = this.#known.get(key)
    if (segments === undefined) {
      segments = await this.#find(part, path)
      if (this.#known.size === KNOWN_MAX) this.#known.delete(this.#known.keys().next().value!)
      this.#known.set(key, segments)
    }
    return segments
  }

  async #find(part: Part, path: string): Promise<readonly Piece[]> {
    if (part === Part.content) return []
    if (part === Part.area) {
      let offset = 0
      return this.#view.segmentsOf(path).map((segment) => ({ ...segment, offset: (offset += segment.length) - segment.length }))
    }
    const trail = await this.#view.trail(path)
    if (trail === undefined) return []
    await this.#addTrail(trail)
    if (part !== Part.file) return []
    return (await this.#view.placesOf(trail[trail.length - 1].node.id)).pieces
  }

  #addInode(inode: number): void {
    const { blockBytes, volume } = this.#view.files!
    const bytes = INODE_READ_BLOCKS * blockBytes
    const from = inode - (inode % bytes)
    for (const { start, length } of this.#view.onDisk(from, Math.min(bytes, volume.sizeBytes - from))) this.#addRange(start, length)
  }

  #begins(segments: readonly Piece[], at: number, chunk: number): boolean {
    const { map } = this.#view
    const piece = segments[indexFrom(segments, at)] as Piece | undefined
    return piece !== undefined && piece.offset <= at && map.refs[map.indexAt(piece.start + at - piece.offset)] === chunk
  }

  #addPart(segments: readonly Piece[], part: Place): void {
    const end = part.offset + part.length
    for (let index = indexFrom(segments, part.offset); index < segments.length && segments[index].offset < end; index++) {
      const { offset, start, length } = segments[index]
      const from = Math.max(offset, part.offset)
      this.#addRange(start + from - offset, Math.min(offset + length, end) - from)
    }
  }

  async #addTrail(trail: Trail): Promise<void> {
    for (const { node } of trail) {
      if (this.#inodes.has(node.id)) continue
      this.#inodes.add(node.id)
      const { inode, metadata, pieces } = await this.#view.placesOf(node.id)
      this.#addInode(inode)
      for (const start of metadata) this.#addRange(start, 1)
      if (node.kind !== Kind.file) for (const { start, length } of pieces) this.#addRange(start, length)
    }
  }

  #addRange(start: number, length: number): void {
    if (start < this.#view.map.sizeBytes) this.#view.forEachChunk(start, length, (chunk) => this.chunks.add(chunk))
  }
}

/** Of the first piece that ends behind `at`. A file may have a million, and as many entries. @param pieces by their offsets */
function indexFrom(pieces: readonly Piece[], at: number): number {
  let [low, high] = [0, pieces.length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if (pieces[middle].offset + pieces[middle].length > at) high = middle
    else low = middle + 1
  }
  return low
}

/** Chunks of the map that the set names by digest, by that. */
function chunksByDigest(set: BootSet, map: BlockMap): Map<string, number> {
  // Nearly all chunks of the map are told apart by their first word: only the others cost a string.
  const words = digestWords(map.chunkDigests)
  const beginnings = new Set(set.entries.map(({ digest }) => new DataView(digest.buffer, digest.byteOffset).getUint32(0, true)))
  const found = new Map<string, number>()
  for (let chunk = 0; chunk < map.chunkCount; chunk++) if (beginnings.has(words[chunk * DIGEST_WORDS])) found.set(digestToHex(map.chunkDigest(chunk)), chunk)
  return found
}
