/** A LayoutSink that writes to a sparse file: for judging what a writer lays out without the rest of the house. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { LayoutSink } from '@varve/images/blockmap/layout-sink.ts'

export class FileSink implements LayoutSink, Disposable {
  readonly #descriptor: number
  readonly #content: TreeContent | undefined
  readonly #taken: [number, number][] = []

  constructor(path: string, sizeBytes: number, content?: TreeContent) {
    this.#descriptor = openSync(path, 'w')
    this.#content = content
    ftruncateSync(this.#descriptor, sizeBytes)
  }

  bytes(offset: number, bytes: Uint8Array): void {
    this.#taken.push([offset, offset + bytes.length])
    writeSync(this.#descriptor, bytes, 0, bytes.length, offset)
  }

  chunk(offset: number, length: number, chunk: number, chunkOffset: number): void {
    const bytes = this.#content!.bytes(chunk).subarray(chunkOffset, chunkOffset + length)
    if (bytes.length !== length) throw new RangeError('a chunk is shorter than what is laid out of it')
    this.bytes(offset, bytes)
  }

  /** @throws RangeError if anything was mentioned twice */
  checkDisjoint(): void {
    this.#taken.sort((a, b) => a[0] - b[0])
    for (let index = 1; index < this.#taken.length; index++) {
      if (this.#taken[index][0] < this.#taken[index - 1][1]) throw new RangeError(`offset ${this.#taken[index][0]} is laid out twice`)
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#descriptor)
  }
}

/** A tree with its chunks, built from paths. */
export class TreeContent {
  readonly #builder = new TreeBuilder(directory(0))
  readonly #entries = new Map<string, number>([['', 0]])
  readonly #chunks = new Map<string, Uint8Array>()
  #tree: Tree | undefined

  /** @param path slashes between names, names in UTF-8 text; missing directories are made */
  file(path: string, bytes: Uint8Array, options: { mtimeSeconds?: number; mode?: number; chunkBytes?: number } = {}): this {
    const slash = path.lastIndexOf('/')
    const parent = slash < 0 ? 0 : this.directory(path.slice(0, slash), options.mtimeSeconds)
    const inode = this.#builder.addInode({ ...directory(options.mtimeSeconds ?? 0), kind: Kind.file, mode: options.mode ?? 0o644 })
    const chunks: number[] = []
    const lengths: number[] = []
    for (let at = 0; at < bytes.length; at += options.chunkBytes ?? 65536) {
      const piece = bytes.subarray(at, at + (options.chunkBytes ?? 65536))
      const digest = digestOf(piece)
      this.#chunks.set(digestToHex(digest), piece)
      chunks.push(this.#builder.addChunk(digest, piece.length))
      lengths.push(piece.length)
    }
    this.#builder.setContent(inode, chunks, lengths)
    this.#builder.addEntry(parent, latin1(path.slice(slash + 1)), inode)
    return this
  }

  directory(path: string, mtimeSeconds = 0): number {
    const known = this.#entries.get(path)
    if (known !== undefined) return known
    const slash = path.lastIndexOf('/')
    const parent = slash < 0 ? 0 : this.directory(path.slice(0, slash), mtimeSeconds)
    const entry = this.#builder.addEntry(parent, latin1(path.slice(slash + 1)), this.#builder.addInode(directory(mtimeSeconds)))
    this.#entries.set(path, entry)
    return entry
  }

  /** Anything that is not a file or a directory. */
  special(name: string, kind: Kind, target?: Uint8Array): this {
    this.#builder.addEntry(0, name, this.#builder.addInode({ ...directory(0), kind, target }))
    return this
  }

  get tree(): Tree {
    this.#tree ??= this.#builder.build()
    return this.#tree
  }

  bytes(chunk: number): Uint8Array {
    return this.#chunks.get(digestToHex(this.tree.chunkDigest(chunk)))!
  }
}

function directory(mtimeSeconds: number) {
  return { kind: Kind.directory, mode: 0o755, uid: 0, gid: 0, mtimeSeconds, mtimeNanoseconds: 0 }
}

function latin1(name: string): string {
  return Buffer.from(name).toString('latin1')
}
