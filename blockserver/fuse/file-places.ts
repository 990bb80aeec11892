/**
 * Where the content of files lies, kept for those that were looked at lately: a read then asks the filesystem nothing.
 */
import type { Answer, FileExtent, FileNode, Filesystem } from '@varve/images/filesystems/filesystem.ts'

/** Of all files that are kept. One with more is kept by itself. */
const EXTENTS_KEPT_MAX = 1 << 18
const FILES_KEPT_MAX = 1 << 16

export interface FilePlace {
  sizeBytes: number
  extents: readonly FileExtent[]
  /** In whole blocks. */
  allocatedBytes: number
}

export class FilePlaces {
  readonly #files: Filesystem
  /** By id; the oldest comes first. */
  readonly #kept = new Map<number, FilePlace>()
  #extents = 0

  constructor(files: Filesystem) {
    this.#files = files
  }

  of(file: number): Answer<FilePlace> {
    const kept = this.#kept.get(file)
    if (kept !== undefined) return kept
    const node = this.#files.node(file)
    return node instanceof Promise ? node.then((found) => this.ofNode(found)) : this.ofNode(node)
  }

  /** Of a file whose node is at hand. */
  ofNode({ id, sizeBytes }: FileNode): Answer<FilePlace> {
    const kept = this.#kept.get(id)
    if (kept !== undefined) return kept
    const extents = this.#files.extents(id)
    return extents instanceof Promise ? extents.then((list) => this.#keep(id, sizeBytes, list)) : this.#keep(id, sizeBytes, extents)
  }

  #keep(file: number, sizeBytes: number, extents: readonly FileExtent[]): FilePlace {
    const before = this.#kept.get(file)
    if (before !== undefined) return before
    const place = { sizeBytes, extents, allocatedBytes: allocatedBytes(extents, this.#files.blockBytes) }
    this.#kept.set(file, place)
    this.#extents += extents.length
    for (const [oldest, { extents: given }] of this.#kept) {
      if (oldest === file || (this.#extents <= EXTENTS_KEPT_MAX && this.#kept.size <= FILES_KEPT_MAX)) break
      this.#kept.delete(oldest)
      this.#extents -= given.length
    }
    return place
  }
}

function allocatedBytes(extents: readonly FileExtent[], blockBytes: number): number {
  let bytes = 0
  let last = -1
  for (const { fileOffset, length } of extents) {
    const first = Math.max(last, Math.floor(fileOffset / blockBytes))
    last = Math.ceil((fileOffset + length) / blockBytes)
    bytes += (last - first) * blockBytes
  }
  return bytes
}
