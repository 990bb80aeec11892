/**
 * TreeBuilder: collects entries, inodes and chunks in any order and gives the canonical Tree.
 * It refuses what tree-format.ts would not read again, when it is added, so that the error can say where it came from.
 */
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { CONTENT_BYTES_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX } from './limits.ts'
import { Kind, HOLE, Tree } from './tree.ts'
import type { Xattr } from './tree.ts'
import { checkDepth, isTreeName, isTreePath } from './tree-path.ts'
import { sortedXattrs, xattrSetKey } from './xattr-set.ts'

export { NAME_BYTES_MAX }

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
  /** Symlinks (as they are) and links (a path as Tree.path gives it) only: 1 .. TARGET_BYTES_MAX bytes. */
  target?: Uint8Array
  xattrs?: readonly Xattr[]
}

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

  /**
   * @returns the number of the inode, for addEntry and setContent
   * @throws VarveError SOURCE_INVALID, LIMIT_EXCEEDED for a target or attributes that no tree holds; RangeError for numbers out of range
   */
  addInode(init: InodeInit): number {
    checkInode(init)
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
    if (!isTreeName(name)) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(name.slice(0, 300))} is not a file name`)
    this.#entryParent.push(parent)
    this.#entryInode.push(inode)
    this.#entryName.push(name)
    return this.#entryParent.length - 1
  }

  /** @returns the number of the chunk; the same digest gives the same number */
  addChunk(digest: Uint8Array, bytes: number): number {
    const key = Buffer.from(digest.buffer, digest.byteOffset, DIGEST_BYTES).toString('latin1')
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
   * Content of a file, in file order. A hole that follows a hole becomes one with it.
   * @param chunks chunk numbers, or HOLE
   * @param bytes length of each piece, bytes, at least 1; that of the whole chunk
   */
  setContent(inode: number, chunks: ArrayLike<number>, bytes: ArrayLike<number>): void {
    if (this.#inodes[inode].kind !== Kind.file) throw new RangeError('only files have content')
    let size = 0
    let doubled = false
    for (let at = 0; at < chunks.length; at++) {
      if (!(bytes[at] >= 1)) throw new RangeError('a piece is not empty')
      size += bytes[at]
      if (chunks[at] !== HOLE) {
        if (this.#chunkBytes[chunks[at]] !== bytes[at]) throw new RangeError('a piece is not the whole of its chunk')
      } else if (at > 0 && chunks[at - 1] === HOLE) {
        doubled = true
      }
    }
    if (size > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a file is larger than ${CONTENT_BYTES_MAX} bytes`)
    const content = doubled ? withHolesJoined(chunks, bytes) : { chunks, bytes }
    this.#contentChunks[inode] = content.chunks
    this.#contentBytes[inode] = content.bytes
  }

  /**
   * The tree. Inodes and chunks that no entry uses are left out.
   * @throws VarveError SOURCE_INVALID if a directory holds a name twice, or has two names; LIMIT_EXCEEDED if a path or all files together are too long
   */
  build(): Tree {
    const order = this.#breadthFirst()
    const entryCount = order.entries.length
    const parent = new Uint32Array(entryCount)
    const inode = new Uint32Array(entryCount)
    const names = new Array<string>(entryCount)
    const newEntry = new Uint32Array(entryCount)
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
      } else if (this.#inodes[oldInode].kind === Kind.directory) {
        throw new VarveError('SOURCE_INVALID', `${JSON.stringify(names[index])} is a second name of a directory`)
      }
      inode[index] = newInode[oldInode]
    }
    checkDepth(names, parent)
    return new Tree({ parent, inode, names, firstChild: order.firstChild, childCount: order.childCount, ...this.#inodeColumns(inodes) })
  }

  /** Entries by parent and name: children are counted, dealt out to their directories, and sorted there unless they came sorted. */
  #breadthFirst(): { entries: Uint32Array; firstChild: Uint32Array; childCount: Uint32Array } {
    const { children, childrenAt } = this.#childrenByParent()
    const names = this.#entryName
    const total = names.length
    const entries = new Uint32Array(total)
    const firstChild = new Uint32Array(total)
    const childCount = new Uint32Array(total)
    let filled = 1
    for (let index = 0; index < filled; index++) {
      const old = entries[index]
      const count = childrenAt[old + 1] - childrenAt[old]
      firstChild[index] = filled
      if (count === 0) continue
      if (this.#inodes[this.#entryInode[old]].kind !== Kind.directory) {
        throw new VarveError('SOURCE_INVALID', `${JSON.stringify(names[old])} has entries but is not a directory`)
      }
      const list = children.subarray(childrenAt[old], childrenAt[old + 1])
      if (!ascends(list, names)) {
        list.sort((a, b) => (names[a] < names[b] ? -1 : names[a] > names[b] ? 1 : 0))
        for (let at = 1; at < count; at++) {
          if (names[list[at]] === names[list[at - 1]]) throw new VarveError('SOURCE_INVALID', `the name ${JSON.stringify(names[list[at]])} stands twice in one directory`)
        }
      }
      childCount[index] = count
      entries.set(list, filled)
      filled += count
    }
    if (filled !== total) throw new RangeError('an entry names a parent that is not in the tree')
    return { entries, firstChild, childCount }
  }

  /** Children of entry `e`: `children[childrenAt[e] .. childrenAt[e + 1]]`, in the order in which they were added. */
  #childrenByParent(): { children: Uint32Array; childrenAt: Uint32Array } {
    const parents = this.#entryParent
    const total = parents.length
    const childrenAt = new Uint32Array(total + 1)
    for (let entry = 1; entry < total; entry++) {
      if (!(parents[entry] < total)) throw new RangeError('an entry names a parent that is not in the tree')
      childrenAt[parents[entry] + 1]++
    }
    for (let entry = 0; entry < total; entry++) childrenAt[entry + 1] += childrenAt[entry]
    const next = childrenAt.slice()
    const children = new Uint32Array(total - 1)
    for (let entry = 1; entry < total; entry++) children[next[parents[entry]]++] = entry
    return { children, childrenAt }
  }

  #inodeColumns(inodes: number[]) {
    const count = inodes.length
    const columns = {
      kind: new Uint8Array(count),
      mode: new Uint16Array(count),
      uid: new Uint32Array(count),
      gid: new Uint32Array(count),
      mtimeSeconds: new Float64Array(count),
      mtimeNanoseconds: new Uint32Array(count),
      opaque: new Uint8Array(count),
      deviceMajor: new Uint32Array(count),
      deviceMinor: new Uint32Array(count),
      xattrSet: new Uint32Array(count),
      targets: new Map<number, Uint8Array>(),
      xattrSets: [[]] as Xattr[][],
    }
    const newSet = new Map<number, number>([[0, 0]])
    for (let index = 0; index < count; index++) {
      const old = inodes[index]
      const init = this.#inodes[old]
      columns.kind[index] = init.kind
      columns.mode[index] = init.mode
      columns.uid[index] = init.uid
      columns.gid[index] = init.gid
      // Adding 0 makes 0 of -0, which are the same time but not the same double.
      columns.mtimeSeconds[index] = init.mtimeSeconds + 0
      columns.mtimeNanoseconds[index] = init.mtimeNanoseconds
      if (init.kind === Kind.directory) {
        columns.opaque[index] = init.opaque === true ? 1 : 0
      } else if (init.kind === Kind.character || init.kind === Kind.block) {
        columns.deviceMajor[index] = init.deviceMajor ?? 0
        columns.deviceMinor[index] = init.deviceMinor ?? 0
      } else if (init.target !== undefined) {
        columns.targets.set(index, init.target)
      }
      const oldSet = this.#inodeSet[old]
      let set = newSet.get(oldSet)
      if (set === undefined) {
        set = columns.xattrSets.length
        newSet.set(oldSet, set)
        columns.xattrSets.push(this.#xattrSets[oldSet])
      }
      columns.xattrSet[index] = set
    }
    return { ...columns, ...this.#contentColumns(inodes) }
  }

  #contentColumns(inodes: number[]) {
    const count = inodes.length
    let pieces = 0
    for (const old of inodes) pieces += this.#contentChunks[old].length
    const firstPiece = new Uint32Array(count)
    const pieceCount = new Uint32Array(count)
    const sizeBytes = new Float64Array(count)
    const pieceChunk = new Uint32Array(pieces)
    const pieceBytes = new Float64Array(pieces)
    const newChunk = new Uint32Array(this.#chunkBytes.length).fill(HOLE)
    const chunks: number[] = []
    let piece = 0
    let total = 0
    for (let index = 0; index < count; index++) {
      const contentChunks = this.#contentChunks[inodes[index]]
      const contentBytes = this.#contentBytes[inodes[index]]
      firstPiece[index] = piece
      pieceCount[index] = contentChunks.length
      let size = 0
      for (let at = 0; at < contentChunks.length; at++, piece++) {
        const chunk = contentChunks[at]
        if (chunk !== HOLE && newChunk[chunk] === HOLE) {
          newChunk[chunk] = chunks.length
          chunks.push(chunk)
        }
        pieceChunk[piece] = chunk === HOLE ? HOLE : newChunk[chunk]
        pieceBytes[piece] = contentBytes[at]
        size += contentBytes[at]
      }
      sizeBytes[index] = size
      total += size
      if (total > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the files are together larger than ${CONTENT_BYTES_MAX} bytes`)
    }
    const chunkDigests = new Uint8Array(chunks.length * DIGEST_BYTES)
    const chunkBytes = new Uint32Array(chunks.length)
    for (let index = 0; index < chunks.length; index++) {
      chunkDigests.set(this.#chunkDigests[chunks[index]], index * DIGEST_BYTES)
      chunkBytes[index] = this.#chunkBytes[chunks[index]]
    }
    return { firstPiece, pieceCount, sizeBytes, pieceChunk, pieceBytes, chunkDigests, chunkBytes }
  }

  #xattrSet(xattrs: readonly Xattr[]): number {
    const sorted = sortedXattrs(xattrs)
    const key = xattrSetKey(sorted)
    let set = this.#setByKey.get(key)
    if (set === undefined) {
      set = this.#xattrSets.length
      this.#setByKey.set(key, set)
      this.#xattrSets.push(sorted)
    }
    return set
  }
}

function checkInode(init: InodeInit): void {
  const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, deviceMajor = 0, deviceMinor = 0, target } = init
  if (mode >>> 0 !== mode || mode > 0o7777) throw new RangeError(`mode ${mode} is not 0 .. 07777`)
  if (uid >>> 0 !== uid || gid >>> 0 !== gid) throw new RangeError(`owner ${uid}:${gid} is not of 32 bits`)
  if (deviceMajor >>> 0 !== deviceMajor || deviceMinor >>> 0 !== deviceMinor) throw new RangeError(`device ${deviceMajor}:${deviceMinor} is not of 32 bits`)
  if (!Number.isSafeInteger(mtimeSeconds) || mtimeNanoseconds >>> 0 !== mtimeNanoseconds || mtimeNanoseconds > 999_999_999) {
    throw new RangeError(`time ${mtimeSeconds} s + ${mtimeNanoseconds} ns is out of range`)
  }
  if (init.kind !== Kind.symlink && init.kind !== Kind.link) return
  if (target === undefined || target.length === 0 || target.includes(0)) throw new VarveError('SOURCE_INVALID', 'the target of a symlink or link is empty or has a NUL')
  if (target.length > TARGET_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the target of a symlink or link has ${target.length} bytes; the limit is ${TARGET_BYTES_MAX}`)
  if (init.kind === Kind.link && !isTreePath(target)) throw new VarveError('SOURCE_INVALID', `the target of a link, ${JSON.stringify(Buffer.from(target).toString())}, is not a path inside the tree`)
}

function withHolesJoined(chunks: ArrayLike<number>, bytes: ArrayLike<number>): { chunks: number[]; bytes: number[] } {
  const joined = { chunks: [] as number[], bytes: [] as number[] }
  for (let at = 0; at < chunks.length; at++) {
    if (chunks[at] === HOLE && joined.chunks.at(-1) === HOLE) {
      joined.bytes[joined.bytes.length - 1] += bytes[at]
    } else {
      joined.chunks.push(chunks[at])
      joined.bytes.push(bytes[at])
    }
  }
  return joined
}

/** True if the names of the entries in `list` ascend, none twice. */
function ascends(list: Uint32Array, names: readonly string[]): boolean {
  for (let at = 1; at < list.length; at++) if (!(names[list[at - 1]] < names[list[at]])) return false
  return true
}
