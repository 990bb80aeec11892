/**
 * TreeFilesystem: the files of a layer, from its tree and the chunks of a store. Bytes of trees: docs/formats/tree.md.
 * What a layer says about those below it is shown as it stands there: whiteouts, and links to their paths (Kind.link), whose target is a path without a leading slash.
 */
import type { ChunkCache } from '../device/chunk-cache.ts'
import { ChunkTickets } from '../device/chunk-cache.ts'
import { settled } from '../device/settled.ts'
import { digestWords } from '../chunk/chunk-table.ts'
import { digestToHex } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import type { ChunkStore } from '../store/chunk-store.ts'
import { HOLE, Kind } from '../tree/tree.ts'
import type { Tree, Xattr } from '../tree/tree.ts'
import type { DirectoryEntry, FileExtent, FileNode, Filesystem } from './filesystem.ts'

const BLOCK_BYTES = 4096
/** Chunks that one read waits for at a time. */
const CHUNKS_AWAITED_MAX = 64
/** Files of fewer pieces are gone through from their start. */
const PIECES_COUNTED_MIN = 256

/** Ids are numbers of inodes, from 1 on. */
export class TreeFilesystem implements Filesystem {
  readonly type = 'tree'
  readonly blockBytes = BLOCK_BYTES
  readonly sizeBytes: number
  readonly root = 1
  readonly #tree: Tree
  readonly #store: ChunkStore
  readonly #cache: ChunkCache
  readonly #links: Uint32Array
  readonly #digests: Uint32Array
  readonly #tickets: ChunkTickets
  /** By inode, of directories: its entry. */
  readonly #entries: Uint32Array
  /** Where each piece of the long file that was read last starts. */
  #counted = { file: 0, starts: new Float64Array() }

  /** Store and cache are borrowed. */
  constructor(tree: Tree, store: ChunkStore, cache: ChunkCache) {
    this.#tree = tree
    this.#store = store
    this.#cache = cache
    this.sizeBytes = tree.contentBytes
    this.#links = tree.linkCounts()
    this.#digests = digestWords(tree.chunkDigests)
    this.#tickets = new ChunkTickets(tree.chunkCount)
    this.#entries = new Uint32Array(tree.inodeCount)
    tree.inode.forEach((inode, entry) => { this.#entries[inode] = entry })
  }

  node(id: number): FileNode {
    const tree = this.#tree
    const inode = this.#inode(id)
    const time = { seconds: tree.mtimeSeconds[inode], nanoseconds: tree.mtimeNanoseconds[inode] }
    return {
      id,
      kind: tree.kind[inode] as Kind,
      mode: tree.mode[inode],
      uid: tree.uid[inode],
      gid: tree.gid[inode],
      sizeBytes: tree.targets.get(inode)?.length ?? tree.sizeBytes[inode],
      links: this.#links[inode],
      modified: time,
      accessed: time,
      changed: time,
      deviceMajor: tree.deviceMajor[inode],
      deviceMinor: tree.deviceMinor[inode],
    }
  }

  list(directory: number): DirectoryEntry[] {
    const { names, inode, firstChild, childCount } = this.#tree
    const entry = this.#directory(directory)
    return Array.from({ length: childCount[entry] }, (_, index) => ({ name: names[firstChild[entry] + index], id: inode[firstChild[entry] + index] + 1 }))
  }

  child(directory: number, name: string): number | undefined {
    const found = this.#tree.child(this.#directory(directory), name)
    return found < 0 ? undefined : this.#tree.inode[found] + 1
  }

  target(symlink: number): Uint8Array {
    return this.#tree.targets.get(this.#inode(symlink)) ?? notOfKind(symlink, 'symlink')
  }

  xattrs(id: number): Xattr[] {
    return this.#tree.xattrSets[this.#tree.xattrSet[this.#inode(id)]]
  }

  extents(file: number): FileExtent[] {
    const { pieceBytes, pieceChunk } = this.#tree
    const extents: FileExtent[] = []
    const [first, end] = this.#pieces(file)
    for (let piece = first, fileOffset = 0; piece < end; fileOffset += pieceBytes[piece++]) {
      if (pieceChunk[piece] === HOLE) continue
      const last = extents.at(-1)
      if (last !== undefined && last.fileOffset + last.length === fileOffset) last.length += pieceBytes[piece]
      else extents.push({ fileOffset, length: pieceBytes[piece] })
    }
    return extents
  }

  /** Which chunks hold a file's content, in words: equal for equal pieces. */
  contentKey(file: number): string {
    const { pieceBytes } = this.#tree
    const [first, end] = this.#pieces(file)
    const words: string[] = []
    for (let piece = first; piece < end; piece++) {
      const digest = this.#tree.pieceDigest(piece)
      words.push(digest === undefined ? `hole ${pieceBytes[piece]}` : `${digestToHex(digest)} 0 ${pieceBytes[piece]}`)
    }
    return words.join(',')
  }

  read(file: number, into: Uint8Array, offset: number): void | Promise<void> {
    const [, end] = this.#pieces(file)
    if (!(offset >= 0 && offset + into.length <= this.#tree.sizeBytes[file - 1])) throw new RangeError(`range ${offset}+${into.length} is outside of file ${file}`)
    let pending: Promise<void>[] | undefined
    for (let { piece, start } = this.#pieceAt(file, offset); piece < end && start < offset + into.length; start += this.#tree.pieceBytes[piece++]) {
      const from = Math.max(offset, start)
      const to = Math.min(offset + into.length, start + this.#tree.pieceBytes[piece])
      if (from >= to) continue
      const done = this.#readPiece(piece, from - start, into.subarray(from - offset, to - offset))
      if (done === undefined) continue
      pending ??= []
      pending.push(done)
      if (pending.length === CHUNKS_AWAITED_MAX) return this.#readRest(file, into, offset, to - offset, pending)
    }
    return pending === undefined ? undefined : settled(pending)
  }

  async #readRest(file: number, into: Uint8Array, offset: number, done: number, pending: Promise<void>[]): Promise<void> {
    await settled(pending)
    await this.read(file, into.subarray(done), offset + done)
  }

  #readPiece(piece: number, from: number, into: Uint8Array): void | Promise<void> {
    const chunk = this.#tree.pieceChunk[piece]
    if (chunk === HOLE) {
      into.fill(0)
      return
    }
    const entry = this.#cache.pin(this.#digests, chunk, this.#tickets)
    if (entry >= 0) {
      const position = this.#cache.positionOf(entry) + from
      this.#cache.bytes.copy(into, 0, position, position + into.length)
      this.#cache.unpin(entry)
      return
    }
    const content = this.#store.get(this.#tree.chunkDigest(chunk))
    if (content instanceof Promise) return content.then((bytes) => into.set(this.#kept(chunk, bytes).subarray(from, from + into.length)))
    into.set(this.#kept(chunk, content).subarray(from, from + into.length))
  }

  /** @throws VarveError CHUNK_CORRUPT */
  #kept(chunk: number, content: Uint8Array): Uint8Array {
    if (content.length !== this.#tree.chunkBytes[chunk]) {
      throw new VarveError('CHUNK_CORRUPT', `chunk ${digestToHex(this.#tree.chunkDigest(chunk))} is ${content.length} bytes; the tree says ${this.#tree.chunkBytes[chunk]}`)
    }
    const room = this.#cache.room(content.length)
    if (room >= 0) {
      this.#cache.bytes.set(content, room)
      this.#cache.unpin(this.#cache.publish(this.#digests, chunk, content.length, this.#tickets))
    }
    return content
  }

  #inode(id: number): number {
    if (!(Number.isInteger(id) && id >= 1 && id <= this.#tree.inodeCount)) throw new RangeError(`no file has the id ${id}`)
    return id - 1
  }

  #directory(id: number): number {
    const inode = this.#inode(id)
    return this.#tree.kind[inode] === Kind.directory ? this.#entries[inode] : notOfKind(id, 'directory')
  }

  /** A piece of a file, before which all ends at `offset` or earlier, and where it starts. */
  #pieceAt(file: number, offset: number): { piece: number; start: number } {
    const [first, end] = this.#pieces(file)
    if (end - first < PIECES_COUNTED_MIN) return { piece: first, start: 0 }
    if (this.#counted.file !== file) {
      const starts = new Float64Array(end - first)
      for (let piece = first, start = 0; piece < end; start += this.#tree.pieceBytes[piece++]) starts[piece - first] = start
      this.#counted = { file, starts }
    }
    const { starts } = this.#counted
    let low = 0
    for (let high = starts.length; high - low > 1; ) {
      const middle = (low + high) >>> 1
      if (starts[middle] <= offset) low = middle
      else high = middle
    }
    return { piece: first + low, start: starts[low] }
  }

  /** First piece of a file, and the one after its last. */
  #pieces(id: number): [number, number] {
    const inode = this.#inode(id)
    if (this.#tree.kind[inode] !== Kind.file) return notOfKind(id, 'file')
    return [this.#tree.firstPiece[inode], this.#tree.firstPiece[inode] + this.#tree.pieceCount[inode]]
  }
}

function notOfKind(id: number, kind: string): never {
  throw new RangeError(`${id} is no ${kind}`)
}
