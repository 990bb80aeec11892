/**
 * Inode columns: what a TreeBuilder knows of its inodes, of which only their kinds and where their contents are stay in memory.
 */
import { digestOf } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { Column, ScratchColumn } from './column.ts'
import { KeyTable } from './key-table.ts'
import { TARGET_BYTES_MAX, TREE_BYTES_MAX } from './limits.ts'
import { Kind } from './tree.ts'
import type { Xattr } from './tree.ts'
import { isTreePath } from './tree-path.ts'
import { OPAQUE_BIT } from './tree-sections.ts'
import type { Workspace } from './workspace.ts'
import { decodedXattrs, encodedXattrs, sortedXattrs } from './xattr-set.ts'

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

const LENGTH_BYTES = 4

export class InodeColumns {
  /** With OPAQUE_BIT. */
  readonly kind: Column<Uint8Array>
  /** Of files: see content-columns.ts. Of symlinks and links: where their target is, plus 1. Otherwise 0. */
  readonly content: Column<Uint32Array>
  readonly mode: ScratchColumn<Uint16Array>
  readonly uid: ScratchColumn<Uint32Array>
  readonly gid: ScratchColumn<Uint32Array>
  readonly mtimeSeconds: ScratchColumn<Float64Array>
  readonly mtimeNanoseconds: ScratchColumn<Uint32Array>
  readonly deviceMajor: ScratchColumn<Uint32Array>
  readonly deviceMinor: ScratchColumn<Uint32Array>
  readonly xattrSet: ScratchColumn<Uint32Array>
  readonly #scratch
  readonly #targets: ByteStrings
  /** By set, from 1 on: digest of its bytes, and where they are. */
  readonly #setDigests: KeyTable
  readonly #setAt: Column<Uint32Array>
  readonly #sets: ByteStrings

  constructor(space: Workspace) {
    this.kind = new Column(space, new Uint8Array())
    this.content = new Column(space, new Uint32Array())
    this.mode = new ScratchColumn(space, new Uint16Array())
    this.uid = new ScratchColumn(space, new Uint32Array())
    this.gid = new ScratchColumn(space, new Uint32Array())
    this.mtimeSeconds = new ScratchColumn(space, new Float64Array())
    this.mtimeNanoseconds = new ScratchColumn(space, new Uint32Array())
    this.deviceMajor = new ScratchColumn(space, new Uint32Array())
    this.deviceMinor = new ScratchColumn(space, new Uint32Array())
    this.xattrSet = new ScratchColumn(space, new Uint32Array())
    this.#scratch = [this.mode, this.uid, this.gid, this.mtimeSeconds, this.mtimeNanoseconds, this.deviceMajor, this.deviceMinor, this.xattrSet]
    this.#targets = new ByteStrings(space)
    this.#setDigests = new KeyTable(space, 8)
    this.#setAt = new Column(space, new Uint32Array())
    this.#sets = new ByteStrings(space)
  }

  get count(): number {
    return this.kind.length
  }

  /** @throws VarveError SOURCE_INVALID, LIMIT_EXCEEDED for a target or attributes that no tree holds; RangeError for numbers out of range */
  add(init: InodeInit): number {
    checkInode(init)
    const xattrSet = this.#addXattrs(init.xattrs)
    const content = this.#addTarget(init)
    const isDevice = init.kind === Kind.character || init.kind === Kind.block
    this.content.push(content)
    this.mode.push(init.mode)
    this.uid.push(init.uid)
    this.gid.push(init.gid)
    // Adding 0 makes 0 of -0, which are the same time but not the same double.
    this.mtimeSeconds.push(init.mtimeSeconds + 0)
    this.mtimeNanoseconds.push(init.mtimeNanoseconds)
    this.deviceMajor.push(isDevice ? (init.deviceMajor ?? 0) : 0)
    this.deviceMinor.push(isDevice ? (init.deviceMinor ?? 0) : 0)
    this.xattrSet.push(xattrSet)
    return this.kind.push(kindBits(init))
  }

  /** @throws as `add` */
  replace(inode: number, init: InodeInit): void {
    if (!(inode < this.count)) throw new RangeError('there is no such inode')
    checkInode(init)
    const isDevice = init.kind === Kind.character || init.kind === Kind.block
    this.xattrSet.set(inode, this.#addXattrs(init.xattrs))
    this.content.values[inode] = this.#addTarget(init)
    this.mode.set(inode, init.mode)
    this.uid.set(inode, init.uid)
    this.gid.set(inode, init.gid)
    this.mtimeSeconds.set(inode, init.mtimeSeconds + 0)
    this.mtimeNanoseconds.set(inode, init.mtimeNanoseconds)
    this.deviceMajor.set(inode, isDevice ? (init.deviceMajor ?? 0) : 0)
    this.deviceMinor.set(inode, isDevice ? (init.deviceMinor ?? 0) : 0)
    this.kind.values[inode] = kindBits(init)
  }

  kindOf(inode: number): Kind {
    return (this.kind.values[inode] & ~OPAQUE_BIT) as Kind
  }

  /** What an inode was added with, but for its target. */
  init(inode: number): InodeInit {
    return {
      kind: this.kindOf(inode),
      mode: this.mode.get(inode),
      uid: this.uid.get(inode),
      gid: this.gid.get(inode),
      mtimeSeconds: this.mtimeSeconds.get(inode),
      mtimeNanoseconds: this.mtimeNanoseconds.get(inode),
      opaque: this.kind.values[inode] >= OPAQUE_BIT,
      deviceMajor: this.deviceMajor.get(inode),
      deviceMinor: this.deviceMinor.get(inode),
      xattrs: this.xattrs(this.xattrSet.get(inode)),
    }
  }

  /** Target of a symlink or link. */
  target(inode: number): Uint8Array {
    return this.#targets.get(this.content.values[inode] - 1)
  }

  /** Sets of attributes, the empty set 0 among them. */
  get setCount(): number {
    return this.#setAt.length + 1
  }

  /** Attributes of a set, sorted by name. */
  xattrs(set: number): Xattr[] {
    return set === 0 ? [] : decodedXattrs(this.#sets.get(this.#setAt.values[set - 1]))
  }

  truncate(count: number): void {
    for (const column of [this.kind, this.content, ...this.#scratch]) column.truncate(count)
  }

  /** Forgets all. */
  clear(): void {
    for (const column of [this.kind, this.content, this.#setAt, ...this.#scratch]) column.clear()
    this.#targets.clear()
    this.#sets.clear()
    this.close()
  }

  /** Nothing is added any more: what only finds sets again is for others. */
  close(): void {
    this.#setDigests.close()
  }

  #addTarget({ kind, target }: InodeInit): number {
    return kind === Kind.symlink || kind === Kind.link ? this.#targets.add(target!) + 1 : 0
  }

  #addXattrs(xattrs: readonly Xattr[] | undefined): number {
    if (xattrs === undefined || xattrs.length === 0) return 0
    const bytes = encodedXattrs(sortedXattrs(xattrs))
    const digest = digestOf(bytes)
    const set = this.#setDigests.add(new Uint32Array(Uint8Array.from(digest).buffer))
    if (set === this.#setAt.length) this.#setAt.push(this.#sets.add(bytes))
    return set + 1
  }
}

/** Strings of bytes in the scratch file, each after its length. */
class ByteStrings {
  readonly #bytes: ScratchColumn<Uint8Array>

  constructor(space: Workspace) {
    this.#bytes = new ScratchColumn(space, new Uint8Array())
  }

  /** @returns where it is */
  add(bytes: Uint8Array): number {
    const at = this.#bytes.length
    if (at + LENGTH_BYTES + bytes.length > TREE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the targets or the attributes have together more than ${TREE_BYTES_MAX} bytes`)
    this.#bytes.append(new Uint8Array(new Uint32Array([bytes.length]).buffer))
    this.#bytes.append(bytes)
    return at
  }

  clear(): void {
    this.#bytes.clear()
  }

  get(at: number): Uint8Array {
    const length = new Uint32Array(1)
    this.#bytes.read(at, new Uint8Array(length.buffer))
    const bytes = new Uint8Array(length[0])
    this.#bytes.read(at + LENGTH_BYTES, bytes)
    return bytes
  }
}

function kindBits({ kind, opaque }: InodeInit): number {
  return kind === Kind.directory && opaque === true ? kind | OPAQUE_BIT : kind
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
