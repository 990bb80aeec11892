/**
 * MemoryTree: a tree and the content of its chunks, built in memory, for tests of what lays trees out.
 */
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'

/** A piece of a file: bytes, or the length of a hole. */
export type Piece = Uint8Array | number

const DEFAULTS: InodeInit = { kind: Kind.file, mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1_600_000_000, mtimeNanoseconds: 0 }

export class MemoryTree {
  readonly builder: TreeBuilder
  readonly #content = new Map<string, Uint8Array>()
  /** Names so far, without the root's. */
  entries = 0

  constructor(root: Partial<InodeInit> = {}) {
    this.builder = new TreeBuilder({ ...DEFAULTS, kind: Kind.directory, mode: 0o755, ...root })
  }

  /** Adds an inode with a name. @returns entry and inode */
  add(parent: number, name: string, init: Partial<InodeInit> & { kind: InodeInit['kind'] }): { entry: number; inode: number } {
    const inode = this.builder.addInode({ ...DEFAULTS, ...init })
    return { entry: this.link(parent, name, inode), inode }
  }

  /** Adds a name of an inode. @returns its entry */
  link(parent: number, name: string, inode: number): number {
    this.entries++
    return this.builder.addEntry(parent, name, inode)
  }

  /** Adds a directory. @returns its entry */
  directory(parent: number, name: string, init: Partial<InodeInit> = {}): number {
    return this.add(parent, name, { mode: 0o755, ...init, kind: Kind.directory }).entry
  }

  /** Adds a file of the pieces, each but the holes at most 1 MiB. @returns its inode */
  file(parent: number, name: string, pieces: readonly Piece[] = [], init: Partial<InodeInit> = {}): number {
    const { inode } = this.add(parent, name, { ...init, kind: Kind.file })
    const chunks = pieces.map((piece) => (typeof piece === 'number' ? HOLE : this.#chunk(piece)))
    const lengths = pieces.map((piece) => (typeof piece === 'number' ? piece : piece.length))
    this.builder.setContent(inode, chunks, lengths)
    return inode
  }

  symlink(parent: number, name: string, target: Uint8Array | string, init: Partial<InodeInit> = {}): number {
    return this.add(parent, name, { mode: 0o777, ...init, kind: Kind.symlink, target: Buffer.from(target as string) }).inode
  }

  build(): BuiltTree {
    const tree = this.builder.build()
    const contents = Array.from({ length: tree.chunkCount }, (_, chunk) => this.#content.get(digestToHex(tree.chunkDigest(chunk)))!)
    return { tree, content: (chunk) => contents[chunk] }
  }

  #chunk(bytes: Uint8Array): number {
    const digest = digestOf(bytes)
    const key = digestToHex(digest)
    if (!this.#content.has(key)) this.#content.set(key, bytes)
    return this.builder.addChunk(digest, bytes.length)
  }
}

export interface BuiltTree {
  tree: Tree
  /** Bytes of chunk number `chunk` of the tree. */
  content: (chunk: number) => Uint8Array
}
