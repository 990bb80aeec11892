/**
 * TreeBuilder: collects entries, inodes and chunks in any order and gives the canonical Tree.
 */
import { Kind, HOLE, Tree } from './tree.ts'
import type { Xattr } from './tree.ts'
import { VarveError } from '../errors.ts'

export interface InodeInit {
  kind: Kind
  /** 0 .. 07777 */
  mode: number
  uid: number
  gid: number
  mtimeSeconds: number
  mtimeNanoseconds: number
  /** Directories only. */
  opaque?: boolean
  /** Character and block devices only. */
  deviceMajor?: number
  deviceMinor?: number
  /** Symlinks and links only. */
  target?: Uint8Array
  xattrs?: readonly Xattr[]
}

/** Longest name that any reader accepts, bytes (NAME_MAX). */
export const NAME_BYTES_MAX = 255

const EMPTY: readonly number[] = []

export class TreeBuilder {
  readonly #entryParent: number[] = [0]
  readonly #entryInode: number[] = [0]
  readonly #entryName: string[] = ['']
  readonly #inodes: InodeInit[] = []
  readonly #inodeSet: number[] = []
  readonly #contentChunks: ArrayLike<number>[] = []
  readonly #contentBytes: ArrayLike<number>[] = []
  readonly #chunkByDigest = new Map<string, number>()
  readonly #chunkDigests: Uint8Array[] = []
  readonly #chunkBytes: number[] = []
  readonly #xattrSets: Xattr[][] = [[]]
  readonly #setByKey = new Map<string, number>()

  /** @param root the root directory's own metadata */
  constructor(root: InodeInit) {
    if (root.kind !== Kind.directory) throw new TypeError('the root of a tree is a directory')
    this.addInode(root)
  }

  /** @returns the number of the inode, for addEntry and setContent */
  addInode(init: InodeInit): number {
    this.#inodes.push(init)
    this.#inodeSet.push(init.xattrs === undefined || init.xattrs.length === 0 ? 0 : this.#xattrSet(init.xattrs))
    this.#contentChunks.push(EMPTY)
    this.#contentBytes.push(EMPTY)
    return this.#inodes.length - 1
  }

  /** Metadata as given to addInode. */
  inode(inode: number): InodeInit {
    return this.#inodes[inode]
  }

  /**
   * Adds a name; 0 is the root's entry.
   * @param name bytes in latin1
   * @returns the number of the entry, to be used as a parent
   * @throws VarveError SOURCE_INVALID for a name that no filesystem allows
   */
  addEntry(parent: number, name: string, inode: number): number {
    if (name === '' || name === '.' || name === '..' || name.length > NAME_BYTES_MAX || name.includes('/') || name.includes('\0')) {
      throw new VarveError('SOURCE_INVALID', `${JSON.stringify(name.slice(0, 300))} is not a file name`)
    }
    this.#entryParent.push(parent)
    this.#entryInode.push(inode)
    this.#entryName.push(name)
    return this.#entryParent.length - 1
  }

  /** @returns the number of the chunk; the same digest gives the same number */
  addChunk(digest: Uint8Array, bytes: number): number {
    const key = Buffer.from(digest.buffer, digest.byteOffset, 32).toString('latin1')
    let chunk = this.#chunkByDigest.get(key)
    if (chunk === undefined) {
      chunk = this.#chunkBytes.length
      this.#chunkByDigest.set(key, chunk)
      this.#chunkDigests.push(digest)
      this.#chunkBytes.push(bytes)
    }
    return chunk
  }

  /**
   * Content of a file, in file order.
   * @param chunks chunk numbers, or HOLE
   * @param bytes length of each piece, bytes, at least 1
   */
  setContent(inode: number, chunks: ArrayLike<number>, bytes: ArrayLike<number>): void {
    this.#contentChunks[inode] = chunks
    this.#contentBytes[inode] = bytes
  }

  /**
   * The tree. Inodes and chunks that no entry uses are left out.
   * @throws VarveError SOURCE_INVALID if a directory holds a name twice
   */
  build(): Tree {
    const order = this.#breadthFirst()
    const entryCount = order.entries.length
    const parent = new Uint32Array(entryCount)
    const inode = new Uint32Array(entryCount)
    const names = new Array<string>(entryCount)
    const newEntry = new Uint32Array(this.#entryParent.length)
    const newInode = new Uint32Array(this.#inodes.length).fill(HOLE)
    const inodes: number[] = []
    for (let index = 0; index < entryCount; index++) {
      const old = order.entries[index]
      newEntry[old] = index
      parent[index] = newEntry[this.#entryParent[old]]
      names[index] = this.#entryName[old]
      const oldInode = this.#entryInode[old]
      if (newInode[oldInode] === HOLE) {
        newInode[oldInode] = inodes.length
        inodes.push(oldInode)
      }
      inode[index] = newInode[oldInode]
    }
    return new Tree({ parent, inode, names, firstChild: order.firstChild, childCount: order.childCount, ...this.#inodeColumns(inodes) })
  }

  #breadthFirst(): { entries: Uint32Array; firstChild: Uint32Array; childCount: Uint32Array } {
    const total = this.#entryParent.length
    const children = new Map<number, number[]>()
    for (let entry = 1; entry < total; entry++) {
      const list = children.get(this.#entryParent[entry])
      if (list === undefined) children.set(this.#entryParent[entry], [entry])
      else list.push(entry)
    }
    const names = this.#entryName
    const entries = new Uint32Array(total)
    const firstChild = new Uint32Array(total)
    const childCount = new Uint32Array(total)
    let filled = 1
    for (let index = 0; index < filled; index++) {
      const list = children.get(entries[index])
      firstChild[index] = filled
      if (list === undefined) continue
      if (this.#inodes[this.#entryInode[entries[index]]].kind !== Kind.directory) {
        throw new VarveError('SOURCE_INVALID', `${JSON.stringify(names[entries[index]])} has entries but is not a directory`)
      }
      list.sort((a, b) => (names[a] < names[b] ? -1 : names[a] > names[b] ? 1 : 0))
      childCount[index] = list.length
      for (let at = 0; at < list.length; at++) {
        if (at > 0 && names[list[at]] === names[list[at - 1]]) {
          throw new VarveError('SOURCE_INVALID', `the name ${JSON.stringify(names[list[at]])} stands twice in one directory`)
        }
        entries[filled++] = list[at]
      }
    }
    if (filled !== total) throw new RangeError('an entry names a parent that is not in the tree')
    return { entries, firstChild, childCount }
  }

  #inodeColumns(inodes: number[]) {
    const count = inodes.length
    let pieces = 0
    for (const old of inodes) pieces += this.#contentChunks[old].length
    const columns = {
      kind: new Uint8Array(count),
      mode: new Uint16Array(count),
      uid: new Uint32Array(count),
      gid: new Uint32Array(count),
      mtimeSeconds: new Float64Array(count),
      mtimeNanoseconds: new Uint32Array(count),
      opaque: new Uint8Array(count),
      sizeBytes: new Float64Array(count),
      deviceMajor: new Uint32Array(count),
      deviceMinor: new Uint32Array(count),
      xattrSet: new Uint32Array(count),
      targets: new Map<number, Uint8Array>(),
      firstPiece: new Uint32Array(count),
      pieceCount: new Uint32Array(count),
      pieceChunk: new Uint32Array(pieces),
      pieceBytes: new Float64Array(pieces),
      xattrSets: [[]] as Xattr[][],
    }
    const newChunk = new Uint32Array(this.#chunkBytes.length).fill(HOLE)
    const chunks: number[] = []
    const newSet = new Map<number, number>([[0, 0]])
    let piece = 0
    for (let index = 0; index < count; index++) {
      const old = inodes[index]
      const init = this.#inodes[old]
      columns.kind[index] = init.kind
      columns.mode[index] = init.mode
      columns.uid[index] = init.uid
      columns.gid[index] = init.gid
      columns.mtimeSeconds[index] = init.mtimeSeconds
      columns.mtimeNanoseconds[index] = init.mtimeNanoseconds
      columns.opaque[index] = init.opaque === true ? 1 : 0
      columns.deviceMajor[index] = init.deviceMajor ?? 0
      columns.deviceMinor[index] = init.deviceMinor ?? 0
      if (init.target !== undefined) columns.targets.set(index, init.target)
      const oldSet = this.#inodeSet[old]
      let set = newSet.get(oldSet)
      if (set === undefined) {
        set = columns.xattrSets.length
        newSet.set(oldSet, set)
        columns.xattrSets.push(this.#xattrSets[oldSet])
      }
      columns.xattrSet[index] = set
      columns.firstPiece[index] = piece
      const contentChunks = this.#contentChunks[old]
      const contentBytes = this.#contentBytes[old]
      columns.pieceCount[index] = contentChunks.length
      let size = 0
      for (let at = 0; at < contentChunks.length; at++, piece++) {
        const chunk = contentChunks[at]
        if (chunk === HOLE) {
          columns.pieceChunk[piece] = HOLE
        } else {
          if (newChunk[chunk] === HOLE) {
            newChunk[chunk] = chunks.length
            chunks.push(chunk)
          }
          columns.pieceChunk[piece] = newChunk[chunk]
          if (this.#chunkBytes[chunk] !== contentBytes[at]) throw new RangeError('a piece is not the whole of its chunk')
        }
        columns.pieceBytes[piece] = contentBytes[at]
        size += contentBytes[at]
      }
      columns.sizeBytes[index] = size
    }
    const chunkDigests = new Uint8Array(chunks.length * 32)
    const chunkBytes = new Uint32Array(chunks.length)
    for (let index = 0; index < chunks.length; index++) {
      chunkDigests.set(this.#chunkDigests[chunks[index]], index * 32)
      chunkBytes[index] = this.#chunkBytes[chunks[index]]
    }
    return { ...columns, chunkDigests, chunkBytes }
  }

  #xattrSet(xattrs: readonly Xattr[]): number {
    const sorted = [...xattrs].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
    const key = sorted.map(({ name, value }) => `${name}\0${value.length}\0${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('latin1')}`).join('\0')
    let set = this.#setByKey.get(key)
    if (set === undefined) {
      set = this.#xattrSets.length
      this.#setByKey.set(key, set)
      this.#xattrSets.push(sorted)
    }
    return set
  }
}
