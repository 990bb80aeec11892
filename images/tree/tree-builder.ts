/**
 * TreeBuilder: collects entries, inodes and chunks in any order and gives the canonical tree.
 * It refuses what tree-format.ts would not read, when it is added, so that the error can say where it came from.
 * What it takes for each file is in columns of a workspace: some thirty bytes and the name in memory, the rest in a scratch file if there is one.
 */
import type { Digest } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { Column } from './column.ts'
import type { ScratchColumn } from './column.ts'
import { ContentColumns, ContentWriter } from './content-columns.ts'
import { InodeColumns } from './inode-columns.ts'
import type { InodeInit } from './inode-columns.ts'
import { NAME_BYTES_MAX } from './limits.ts'
import { NameColumn } from './name-column.ts'
import { Kind } from './tree.ts'
import type { Tree, Xattr } from './tree.ts'
import { TreeEncoder } from './tree-encoder.ts'
import type { EncodedTree } from './tree-encoder.ts'
import { decodeTree } from './tree-format.ts'
import { isTreeName } from './tree-path.ts'
import { OPAQUE_BIT } from './tree-sections.ts'
import { Workspace } from './workspace.ts'

export { NAME_BYTES_MAX }
export { REMOVED } from './tree-encoder.ts'
export type { EncodedTree, InodeInit }

/** How much a builder holds; see rollBack. */
export interface BuilderMark {
  entries: number
  inodes: number
}

export class TreeBuilder {
  readonly #space: Workspace
  // By entry; 0 is the root. A directory comes before what is in it.
  readonly #parent: Column<Uint32Array>
  readonly #inode: Column<Uint32Array>
  readonly #names: NameColumn
  readonly #inodes: InodeColumns
  readonly #contents: ContentColumns
  #isSpent = false

  /**
   * @param root the root directory's own metadata
   * @param space borrowed; by default memory
   */
  constructor(root: InodeInit, space = new Workspace()) {
    if (root.kind !== Kind.directory) throw new TypeError('the root of a tree is a directory')
    this.#space = space
    this.#parent = new Column(space, new Uint32Array())
    this.#inode = new Column(space, new Uint32Array())
    this.#names = new NameColumn(space)
    this.#inodes = new InodeColumns(space)
    this.#contents = new ContentColumns(space)
    this.addInode(root)
    this.#parent.push(0)
    this.#inode.push(0)
    this.#names.push('')
  }

  /**
   * @returns the number of the inode, for addEntry and setContent
   * @throws VarveError SOURCE_INVALID, LIMIT_EXCEEDED for a target or attributes that no tree holds; RangeError for numbers out of range
   */
  addInode(init: InodeInit): number {
    return this.#inodes.add(init)
  }

  /**
   * Gives an inode other metadata; its content, if any, goes.
   * @throws as addInode
   */
  replaceInode(inode: number, init: InodeInit): void {
    this.#inodes.replace(inode, init)
  }

  /** An inode's metadata, but for its target. */
  inodeInit(inode: number): InodeInit {
    return this.#inodes.init(inode)
  }

  /** What an inode is. */
  kind(inode: number): Kind {
    return this.#inodes.kindOf(inode)
  }

  /** Target of a symlink or link. */
  target(inode: number): Uint8Array {
    return this.#inodes.target(inode)
  }

  /** Number of the inode's set of attributes: the same for all inodes that have the same; 0 for none. */
  xattrSet(inode: number): number {
    return this.#inodes.xattrSet.get(inode)
  }

  /** Sets of attributes added, the empty one included. */
  get xattrSetCount(): number {
    return this.#inodes.setCount
  }

  /** Attributes of a set, sorted by name. */
  xattrs(set: number): Xattr[] {
    return this.#inodes.xattrs(set)
  }

  /** Makes a directory opaque, whatever it was added as. */
  setOpaque(inode: number): void {
    if (this.kind(inode) !== Kind.directory) throw new RangeError('only directories are opaque')
    this.#inodes.kind.values[inode] |= OPAQUE_BIT
  }

  /** Entries added, removed ones included. */
  get entryCount(): number {
    return this.#names.count
  }

  /**
   * Adds a name; 0 is the root's entry.
   * @param name bytes in latin1
   * @returns the number of the entry, to be used as a parent
   * @throws VarveError SOURCE_INVALID for a name that no filesystem allows
   */
  addEntry(parent: number, name: string, inode: number): number {
    if (!isTreeName(name)) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(name.slice(0, 300))} is not a file name`)
    if (!(parent < this.entryCount) || !(inode < this.#inodes.count)) throw new RangeError('an entry names a parent or an inode that is not in the tree')
    this.#inode.push(inode)
    this.#names.push(name)
    return this.#parent.push(parent)
  }

  /** The names, to be looked at. */
  get names(): NameColumn {
    return this.#names
  }

  /** The directory that holds a name. */
  parentOf(entry: number): number {
    return this.#parent.values[entry]
  }

  /** Inode that a name stands for, or REMOVED. */
  inodeOf(entry: number): number {
    return this.#inode.values[entry]
  }

  /** Gives a name another inode; with REMOVED, the tree will have neither it nor what is below it. */
  setInodeOf(entry: number, inode: number): void {
    this.#inode.values[entry] = inode
  }

  /** Path of an entry, without a leading slash, bytes in latin1; '' for the root. */
  path(entry: number): string {
    const names: string[] = []
    for (let at = entry; at !== 0; at = this.#parent.values[at]) names.push(this.#names.get(at))
    return names.reverse().join('/')
  }

  /**
   * @returns the number of the chunk; the same digest gives the same number. The caller may reuse `digest`.
   * @throws VarveError FORMAT_INVALID if the digest was added with another length
   */
  addChunk(digest: Digest, bytes: number): number {
    return this.#contents.addChunk(digest, bytes)
  }

  /** Chunks added. */
  get chunkCount(): number {
    return this.#contents.chunkCount
  }

  /** By chunk, eight words each: to be looked at. */
  get chunkDigests(): ScratchColumn<Uint32Array> {
    return this.#contents.chunkDigests
  }

  /** By chunk, bytes: to be looked at. */
  get chunkLengths(): ScratchColumn<Uint32Array> {
    return this.#contents.chunkBytes
  }

  /**
   * Content of a file, in file order. A hole that follows a hole becomes one with it.
   * @param chunks chunk numbers, or HOLE
   * @param bytes length of each piece, bytes, at least 1; that of the whole chunk
   */
  setContent(inode: number, chunks: ArrayLike<number>, bytes: ArrayLike<number>): void {
    const writer = this.contentWriter(inode)
    for (let at = 0; at < chunks.length; at++) writer.add(chunks[at], bytes[at])
    writer.end()
  }

  /** As setContent, piece by piece; the inode has the content when it ends. */
  contentWriter(inode: number): ContentWriter {
    if (this.kind(inode) !== Kind.file) throw new RangeError('only files have content')
    return new ContentWriter(this.#contents, (content) => void (this.#inodes.content.values[inode] = content))
  }

  /** Calls `visit` for each piece of a file's content, in file order, with its chunk or HOLE; and the bytes of a hole. */
  forEachPiece(inode: number, visit: (chunk: number, holeBytes: number) => void): void {
    this.#contents.forEachPiece(this.#inodes.content.values[inode], visit)
  }

  mark(): BuilderMark {
    return { entries: this.entryCount, inodes: this.#inodes.count }
  }

  /** Forgets the entries and inodes that were added since. */
  rollBack({ entries, inodes }: BuilderMark): void {
    this.#parent.truncate(entries)
    this.#inode.truncate(entries)
    this.#names.truncate(entries)
    this.#inodes.truncate(inodes)
  }

  /**
   * The bytes of the tree, in pieces that are valid during the call. Inodes and chunks that no entry uses are left out. The builder is spent afterwards.
   * @throws VarveError SOURCE_INVALID if a directory holds a name twice, or has two names; LIMIT_EXCEEDED if a path, the tree, or all files together are too long
   */
  encode(sink: (bytes: Uint8Array) => void): EncodedTree {
    if (this.#isSpent) throw new TypeError('this tree has been built')
    this.#isSpent = true
    return new TreeEncoder({ parent: this.#parent, inode: this.#inode, names: this.#names, inodes: this.#inodes, contents: this.#contents }, this.#space).encode(sink)
  }

  /** The tree in memory, for small ones. @throws as encode */
  build(): Tree {
    const pieces: Buffer[] = []
    this.encode((bytes) => void pieces.push(Buffer.from(bytes)))
    return decodeTree(Buffer.concat(pieces))
  }
}
