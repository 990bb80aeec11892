/**
 * What the chunks of a disk are: which files, directories, inodes or areas they belong to. The other way round: translate.ts.
 */
import { isVarveError } from '@varve/images/errors.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import type { Found } from '@varve/images/filesystems/walk.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { Part, PATH_BYTES_MAX } from './boot-set.ts'
import type { Place, PlacedChunk } from './boot-set.ts'
import type { DiskView } from './disk-view.ts'

/** A chunk of inodes or directories holds many; so many of them stand for it, at most. */
const PLACES_MAX = 32
/** One inode in so many bytes of an inode table stands for its neighbours: another disk has them in other chunks. */
const INODE_STEP_BYTES = 16 << 10

/**
 * @param chunks numbers of chunks of the map
 * @returns what each of them is, in the same order; one that is nothing with a name is Part.content
 * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT
 */
export async function placeChunks(view: DiskView, chunks: Uint32Array): Promise<PlacedChunk[]> {
  const places = new Places(view, chunks)
  if (view.files !== undefined) await places.addFiles(view.files)
  for (const { name, segments } of view.areas) {
    let before = 0
    for (const { start, length } of segments) {
      places.addRange(start, length, Part.area, name, before)
      before += length
    }
  }
  return places.result()
}

class Places {
  readonly #view: DiskView
  readonly #chunks: Uint32Array
  /** By chunk of the map: its place in #chunks, or -1. */
  readonly #wanted: Int32Array
  readonly #places: Place[][]
  readonly #steps = new Set<number>()
  /** Inodes whose blocks have been added. */
  readonly #inodes = new Set<number>()

  constructor(view: DiskView, chunks: Uint32Array) {
    this.#view = view
    this.#chunks = chunks
    this.#wanted = new Int32Array(view.map.chunkCount).fill(-1)
    chunks.forEach((chunk, index) => (this.#wanted[chunk] = index))
    this.#places = Array.from(chunks, () => [])
  }

  /** Says what the chunks of a range are: of a file's, if nobody has said anything of them; of others, what else is in them. */
  addRange(start: number, length: number, part: Part, path: string, offset: number): void {
    this.#view.forEachChunk(start, length, (chunk, before, shown) => {
      const index = this.#wanted[chunk]
      if (index < 0) return
      const places = this.#places[index]
      const last = places.at(-1)
      const isNamed = part === Part.file ? last !== undefined : places.length === PLACES_MAX || (last?.part === part && last.path === path)
      if (!isNamed) places.push({ part, path, offset: offset + before, length: shown })
    })
  }

  /** What a damaged filesystem does not say, or is beyond a limit, stays without a name. */
  async addFiles(files: Ext4Filesystem): Promise<void> {
    for await (const found of walk(files, { damaged: () => {} })) {
      if (found.path.length > PATH_BYTES_MAX) continue
      try {
        await this.#addFound(found)
      } catch (error) {
        if (!isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
      }
    }
  }

  async #addFound({ path, node }: Found): Promise<void> {
    // By another name: its chunks have one.
    if (this.#inodes.has(node.id)) return
    this.#inodes.add(node.id)
    const { inode, metadata, pieces } = await this.#view.placesOf(node.id)
    const step = Math.floor(inode / INODE_STEP_BYTES)
    if (!this.#steps.has(step)) {
      this.#steps.add(step)
      metadata.push(this.#view.onDisk(inode, 1)[0].start)
    }
    for (const start of metadata) this.addRange(start, 1, Part.inode, path, 0)
    const part = node.kind === Kind.directory ? Part.directory : Part.file
    for (const { offset, start, length } of pieces) this.addRange(start, length, part, path, offset)
  }

  result(): PlacedChunk[] {
    return this.#places.map((places, index) => ({
      digest: this.#view.map.chunkDigest(this.#chunks[index]).slice(),
      places: places.length > 0 ? places : [{ part: Part.content, path: '', offset: 0, length: this.#view.map.chunkBytes[this.#chunks[index]] }],
    }))
  }
}
