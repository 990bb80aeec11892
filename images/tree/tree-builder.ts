/**
 * TreeBuilder: collects entries, inodes and chunks in any order and gives the canonical Tree.
 * It refuses what tree-format.ts would not read again, when it is added, so that the error can say where it came from.
 */
import { ChunkTable } from '../chunk/chunk-table.ts'
import { VarveError } from '../errors.ts'
import { Column } from './column.ts'
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

export class TreeBuilder {
  // By entry; 0 is the root.
  readonly #entryParent = new Column(new Uint32Array())
  readonly #entryInode = new Column(new Uint32Array())
  readonly #entryName: string[] = ['']

  // By inode.
  readonly #kind = new Column(new Uint8Array())
  readonly #mode = new Column(new Uint16Array())
  readonly #uid = new Column(new Uint32Array())
  readonly #gid = new Column(new Uint32Array())
  readonly #mtimeSeconds = new Column(new Float64Array())
  readonly #mtimeNanoseconds = new Column(new Uint32Array())
  readonly #opaque = new Column(new Uint8Array())
  readonly #deviceMajor = new Column(new Uint32Array())
  readonly #deviceMinor = new Column(new Uint32Array())
  readonly #inodeSet = new Column(new Uint32Array())
  readonly #contentFirst = new Column(new Uint32Array())
  readonly #contentCount = new Column(new Uint32Array())
  readonly #inodeColumnsAll = [
    this.#kind, this.#mode, this.#uid, this.#gid, this.#mtimeSeconds, this.#mtimeNanoseconds, this.#opaque,
    this.#deviceMajor, this.#deviceMinor, this.#inodeSet, this.#contentFirst, this.#contentCount,
  ]
  readonly #targets = new Map<number, Uint8Array>()

  // By piece; contents one after the other, in the order in which they were set.
  readonly #pieceChunk = new Column(new Uint32Array())
  readonly #pieceBytes = new Column(new Float64Array())

  readonly #chunks = new ChunkTable()

  readonly #xattrSets: Xattr[][] = [[]]
  readonly #setByKey = new Map<string, number>()
  #isSpent = false

  /** @param root the root directory's own metadata */
  constructor(root: InodeInit) {
    if (root.kind !== Kind.directory) throw new TypeError('the root of a tree is a directory')
    this.addInode(root)
    this.#entryParent.push(0)
    this.#entryInode.push(0)
  }

  /**
   * @returns the number of the inode, for addEntry and setContent
   * @throws VarveError SOURCE_INVALID, LIMIT_EXCEEDED for a target or attributes that no tree holds; RangeError for numbers out of range
   */
  addInode(init: InodeInit): number {
    checkInode(init)
    const inode = this.#kind.length
    for (const column of this.#inodeColumnsAll) column.push(0)
    this.#setInode(inode, init)
    return inode
  }

  /**
   * Gives an inode other metadata; its content, if any, goes.
   * @throws as addInode
   */
  replaceInode(inode: number, init: InodeInit): void {
    checkInode(init)
    if (!(inode < this.#kind.length)) throw new RangeError('there is no such inode')
    this.#contentCount.values[inode] = 0
    this.#targets.delete(inode)
    this.#setInode(inode, init)
  }

  #setInode(inode: number, init: InodeInit): void {
    this.#inodeSet.values[inode] = this.#xattrSet(init.xattrs)
    this.#kind.values[inode] = init.kind
    this.#mode.values[inode] = init.mode
    this.#uid.values[inode] = init.uid
    this.#gid.values[inode] = init.gid
    // Adding 0 makes 0 of -0, which are the same time but not the same double.
    this.#mtimeSeconds.values[inode] = init.mtimeSeconds + 0
    this.#mtimeNanoseconds.values[inode] = init.mtimeNanoseconds
    const isDevice = init.kind === Kind.character || init.kind === Kind.block
    this.#opaque.values[inode] = init.kind === Kind.directory && init.opaque === true ? 1 : 0
    this.#deviceMajor.values[inode] = isDevice ? (init.deviceMajor ?? 0) : 0
    this.#deviceMinor.values[inode] = isDevice ? (init.deviceMinor ?? 0) : 0
    if (init.target !== undefined && (init.kind === Kind.symlink || init.kind === Kind.link)) this.#targets.set(inode, init.target)
  }

  /** What an inode is. */
  kind(inode: number): Kind {
    return this.#kind.values[inode] as Kind
  }

  /** Target of a symlink or link. */
  target(inode: number): Uint8Array | undefined {
    return this.#targets.get(inode)
  }

  /** The inode's attributes, sorted by name; one array for all inodes that have the same. */
  xattrs(inode: number): readonly Xattr[] {
    return this.#xattrSets[this.#inodeSet.values[inode]]
  }

  /** Makes a directory opaque, whatever it was added as. */
  setOpaque(inode: number): void {
    if (this.kind(inode) !== Kind.directory) throw new RangeError('only directories are opaque')
    this.#opaque.values[inode] = 1
  }

  /**
   * Adds a name; 0 is the root's entry.
   * @param name bytes in latin1
   * @returns the number of the entry, to be used as a parent
   * @throws VarveError SOURCE_INVALID for a name that no filesystem allows
   */
  addEntry(parent: number, name: string, inode: number): number {
    if (!isTreeName(name)) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(name.slice(0, 300))} is not a file name`)
    this.#entryInode.push(inode)
    this.#entryName.push(name)
    return this.#entryParent.push(parent)
  }

  /**
   * @returns the number of the chunk; the same digest gives the same number. The caller may reuse `digest`.
   * @throws VarveError FORMAT_INVALID if the digest was added with another length
   */
  addChunk(digest: Uint8Array, bytes: number): number {
    return this.#chunks.add(digest, bytes)
  }

  /** Chunks added. */
  get chunkCount(): number {
    return this.#chunks.count
  }

  /** 32 bytes, a view that is valid until the next chunk is added. */
  chunkDigest(chunk: number): Uint8Array {
    return this.#chunks.digest(chunk)
  }

  /** Bytes of a chunk. */
  chunkBytes(chunk: number): number {
    return this.#chunks.bytes(chunk)
  }

  /**
   * Content of a file, in file order. A hole that follows a hole becomes one with it.
   * @param chunks chunk numbers, or HOLE
   * @param bytes length of each piece, bytes, at least 1; that of the whole chunk
   */
  setContent(inode: number, chunks: ArrayLike<number>, bytes: ArrayLike<number>): void {
    if (this.kind(inode) !== Kind.file) throw new RangeError('only files have content')
    let size = 0
    let doubled = false
    for (let at = 0; at < chunks.length; at++) {
      if (!(bytes[at] >= 1)) throw new RangeError('a piece is not empty')
      size += bytes[at]
      if (chunks[at] !== HOLE) {
        if (chunks[at] >= this.#chunks.count || this.#chunks.bytes(chunks[at]) !== bytes[at]) throw new RangeError('a piece is not the whole of its chunk')
      } else if (at > 0 && chunks[at - 1] === HOLE) {
        doubled = true
      }
    }
    if (size > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a file is larger than ${CONTENT_BYTES_MAX} bytes`)
    const content = doubled ? withHolesJoined(chunks, bytes) : { chunks, bytes }
    this.#contentFirst.values[inode] = this.#pieceChunk.length
    this.#contentCount.values[inode] = content.chunks.length
    this.#pieceChunk.append(content.chunks)
    this.#pieceBytes.append(content.bytes)
  }

  /** Content as set: views that are valid until the next content is set. */
  content(inode: number): { chunks: Uint32Array; bytes: Float64Array } {
    const first = this.#contentFirst.values[inode]
    const end = first + this.#contentCount.values[inode]
    return { chunks: this.#pieceChunk.values.subarray(first, end), bytes: this.#pieceBytes.values.subarray(first, end) }
  }

  /**
   * The tree. Inodes and chunks that no entry uses are left out. The builder is spent afterwards: its columns go as those of the tree come.
   * @throws VarveError SOURCE_INVALID if a directory holds a name twice, or has two names; LIMIT_EXCEEDED if a path or all files together are too long
   */
  build(): Tree {
    if (this.#isSpent) throw new TypeError('this tree has been built')
    this.#isSpent = true
    const order = this.#breadthFirst()
    const entryCount = order.entries.length
    const parent = new Uint32Array(entryCount)
    const inode = new Uint32Array(entryCount)
    const names = new Array<string>(entryCount)
    const newEntry = new Uint32Array(entryCount)
    const newInode = new Uint32Array(this.#kind.length).fill(HOLE)
    const inodes = new Uint32Array(Math.min(this.#kind.length, entryCount))
    let inodeCount = 0
    for (let index = 0; index < entryCount; index++) {
      const old = order.entries[index]
      newEntry[old] = index
      parent[index] = newEntry[this.#entryParent.values[old]]
      names[index] = this.#entryName[old]
      const oldInode = this.#entryInode.values[old]
      if (newInode[oldInode] === HOLE) {
        newInode[oldInode] = inodeCount
        inodes[inodeCount++] = oldInode
      } else if (this.kind(oldInode) === Kind.directory) {
        throw new VarveError('SOURCE_INVALID', `${JSON.stringify(names[index])} is a second name of a directory`)
      }
      inode[index] = newInode[oldInode]
    }
    checkDepth(names, parent)
    this.#entryParent.clear()
    this.#entryInode.clear()
    this.#entryName.length = 0
    return new Tree({ parent, inode, names, firstChild: order.firstChild, childCount: order.childCount, ...this.#inodeColumns(inodes.subarray(0, inodeCount)) })
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
      if (this.kind(this.#entryInode.values[old]) !== Kind.directory) {
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
    const parents = this.#entryParent.values
    const total = this.#entryParent.length
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

  #inodeColumns(inodes: Uint32Array) {
    const xattrSet = new Uint32Array(inodes.length)
    const xattrSets: Xattr[][] = [[]]
    const targets = new Map<number, Uint8Array>()
    const newSet = new Map<number, number>([[0, 0]])
    for (let index = 0; index < inodes.length; index++) {
      const oldSet = this.#inodeSet.values[inodes[index]]
      let set = newSet.get(oldSet)
      if (set === undefined) {
        set = xattrSets.length
        newSet.set(oldSet, set)
        xattrSets.push(this.#xattrSets[oldSet])
      }
      xattrSet[index] = set
      const target = this.#targets.get(inodes[index])
      if (target !== undefined) targets.set(index, target)
    }
    return {
      kind: gathered(this.#kind, inodes),
      mode: gathered(this.#mode, inodes),
      uid: gathered(this.#uid, inodes),
      gid: gathered(this.#gid, inodes),
      mtimeSeconds: gathered(this.#mtimeSeconds, inodes),
      mtimeNanoseconds: gathered(this.#mtimeNanoseconds, inodes),
      opaque: gathered(this.#opaque, inodes),
      deviceMajor: gathered(this.#deviceMajor, inodes),
      deviceMinor: gathered(this.#deviceMinor, inodes),
      xattrSet,
      xattrSets,
      targets,
      ...this.#contentColumns(inodes),
    }
  }

  #contentColumns(inodes: Uint32Array) {
    const count = inodes.length
    const pieceCount = gathered(this.#contentCount, inodes)
    const firstPiece = new Uint32Array(count)
    let pieces = 0
    for (let index = 0; index < count; index++) {
      firstPiece[index] = pieces
      pieces += pieceCount[index]
    }
    const sizeBytes = new Float64Array(count)
    const pieceChunk = new Uint32Array(pieces)
    const pieceBytes = new Float64Array(pieces)
    const newChunk = new Uint32Array(this.#chunks.count).fill(HOLE)
    const chunks = new Column(new Uint32Array())
    let total = 0
    for (let index = 0; index < count; index++) {
      const from = this.#contentFirst.values[inodes[index]]
      let size = 0
      for (let at = 0; at < pieceCount[index]; at++) {
        const chunk = this.#pieceChunk.values[from + at]
        if (chunk !== HOLE && newChunk[chunk] === HOLE) newChunk[chunk] = chunks.push(chunk)
        pieceChunk[firstPiece[index] + at] = chunk === HOLE ? HOLE : newChunk[chunk]
        pieceBytes[firstPiece[index] + at] = this.#pieceBytes.values[from + at]
        size += this.#pieceBytes.values[from + at]
      }
      sizeBytes[index] = size
      total += size
      if (total > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the files are together larger than ${CONTENT_BYTES_MAX} bytes`)
    }
    return { firstPiece, pieceCount, sizeBytes, pieceChunk, pieceBytes, ...this.#chunks.columnsOf(chunks.values.subarray(0, chunks.length)) }
  }

  #xattrSet(xattrs: readonly Xattr[] | undefined): number {
    if (xattrs === undefined || xattrs.length === 0) return 0
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

/** The rows of a column, in the order given. The column is empty afterwards. */
function gathered<T extends Uint8Array | Uint16Array | Uint32Array | Float64Array>(column: Column<T>, rows: Uint32Array): T {
  const values = column.values
  const result = new (values.constructor as new (length: number) => T)(rows.length)
  for (let index = 0; index < rows.length; index++) result[index] = values[rows[index]]
  column.clear()
  return result
}

/** True if the names of the entries in `list` ascend, none twice. */
function ascends(list: Uint32Array, names: readonly string[]): boolean {
  for (let at = 1; at < list.length; at++) if (!(names[list[at - 1]] < names[list[at]])) return false
  return true
}
