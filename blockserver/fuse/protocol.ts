/**
 * The FUSE protocol, as far as it is spoken here: numbers, requests as the kernel writes them, and the structures that answer them.
 * Bytes: include/uapi/linux/fuse.h of Linux, version 7.31; all fields are in the order of the machine, which is little-endian.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { FileNode, Timestamp } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'

export const MAJOR = 7
/** Least version of the kernel's side, and the newest that is made use of. */
export const MINOR_MIN = 28
export const MINOR = 39

export const Opcode = {
  lookup: 1, forget: 2, getattr: 3, setattr: 4, readlink: 5, symlink: 6, mknod: 8, mkdir: 9, unlink: 10, rmdir: 11, rename: 12, link: 13, open: 14, read: 15,
  write: 16, statfs: 17, release: 18, fsync: 20, setxattr: 21, getxattr: 22, listxattr: 23, removexattr: 24, flush: 25, init: 26, opendir: 27, readdir: 28,
  releasedir: 29, fsyncdir: 30, access: 34, create: 35, interrupt: 36, destroy: 38, batchForget: 42, fallocate: 43, readdirplus: 44, rename2: 45, lseek: 46,
  copyFileRange: 47, syncfs: 50, tmpfile: 51,
} as const
export type Opcode = (typeof Opcode)[keyof typeof Opcode]

/** Flags of INIT. */
export const InitFlag = {
  asyncRead: 1 << 0,
  bigWrites: 1 << 5,
  readdirplus: 1 << 13,
  readdirplusAuto: 1 << 14,
  asyncDio: 1 << 15,
  parallelDirops: 1 << 18,
  posixAcl: 1 << 20,
  abortError: 1 << 21,
  maxPages: 1 << 22,
  cacheSymlinks: 1 << 23,
  explicitInvalData: 1 << 25,
  initExt: 1 << 30,
} as const
/** Flags of INIT from bit 32 on. */
export const InitFlag2 = { directIoAllowMmap: 1 << 4 } as const
/** Flags of OPEN's answer. */
export const OpenFlag = { directIo: 1, keepCache: 2, parallelDirectWrites: 1 << 6 } as const
/** Bits of SETATTR. */
export const AttributeBit = { mode: 1, uid: 2, gid: 4, size: 8 } as const
/** Modes of FALLOCATE, as fallocate(2) has them. */
export const FallocateMode = { keepSize: 1, punchHole: 2, zeroRange: 0x10 } as const
/** What is done with a range of a disk: it reads as zeroes afterwards. */
export const FALLOCATE_MODES: ReadonlySet<number> = new Set([FallocateMode.punchHole | FallocateMode.keepSize, FallocateMode.zeroRange, FallocateMode.zeroRange | FallocateMode.keepSize])
export const SEEK_DATA = 3
export const SEEK_HOLE = 4

export const IN_HEADER_BYTES = 40
export const OUT_HEADER_BYTES = 16
/** struct fuse_write_in: what stands before the bytes of a WRITE. */
export const WRITE_IN_BYTES = 40
/** The kernel takes no smaller buffer for requests. */
export const REQUEST_BYTES_MIN = 8192
export const PAGE_BYTES = 4096
/** Of one READ or WRITE: what the kernel allows without privileges, in pages. */
export const PAGES_MAX = 256
export const NAME_BYTES_MAX = 255

/** Least bytes of a request's body. Requests that are refused whatever they say are not looked at. */
const BODY_BYTES_MIN: Readonly<Partial<Record<number, number>>> = {
  [Opcode.lookup]: 1, [Opcode.setattr]: 88, [Opcode.open]: 8, [Opcode.read]: 40, [Opcode.write]: WRITE_IN_BYTES, [Opcode.fsync]: 16,
  [Opcode.getxattr]: 9, [Opcode.listxattr]: 8, [Opcode.init]: 16, [Opcode.readdir]: 40, [Opcode.readdirplus]: 40, [Opcode.interrupt]: 8,
  [Opcode.fallocate]: 32, [Opcode.lseek]: 24,
}

const TWO_32 = 2 ** 32

/** A node of a mount: a file of one of its filesystems. On the wire, 16 bits of the filesystem's number before 48 of the file's id. */
export interface NodeId {
  filesystem: number
  id: number
}

/** Ids of files are below. */
export const FILE_ID_END = 2 ** 48
export const FILESYSTEMS_MAX = 1 << 16

/** A request of the kernel. It is a view of the bytes that it came in. */
export class Request {
  readonly opcode: number
  /** Names the request in answers; even, and an INTERRUPT's odd. */
  readonly unique: number
  readonly node: NodeId
  readonly body: Buffer

  /** @throws VarveError PROTOCOL_INVALID for what no kernel writes */
  constructor(bytes: Buffer) {
    if (bytes.length < IN_HEADER_BYTES) throw new VarveError('PROTOCOL_INVALID', `FUSE: a request of ${bytes.length} bytes`)
    const length = bytes.readUInt32LE(0)
    this.opcode = bytes.readUInt32LE(4)
    this.unique = bytes.readUInt32LE(8) + bytes.readUInt32LE(12) * TWO_32
    const high = bytes.readUInt32LE(20)
    this.node = { filesystem: high >>> 16, id: (high & 0xffff) * TWO_32 + bytes.readUInt32LE(16) }
    this.body = bytes.subarray(IN_HEADER_BYTES)
    if (length !== bytes.length) throw new VarveError('PROTOCOL_INVALID', `FUSE: a request of ${length} bytes came as ${bytes.length}`)
    if (!Number.isSafeInteger(this.unique)) throw new VarveError('PROTOCOL_INVALID', `FUSE: a request with the number ${this.unique}`)
    if (this.body.length < (BODY_BYTES_MIN[this.opcode] ?? 0)) throw new VarveError('PROTOCOL_INVALID', `FUSE: request ${this.opcode} has a body of ${this.body.length} bytes`)
  }

  u32(at: number): number {
    return this.body.readUInt32LE(at)
  }

  /** @throws VarveError PROTOCOL_INVALID above what a number holds exactly */
  u64(at: number): number {
    const value = this.body.readUInt32LE(at) + this.body.readUInt32LE(at + 4) * TWO_32
    if (!Number.isSafeInteger(value)) throw new VarveError('PROTOCOL_INVALID', `FUSE: request ${this.opcode} says ${value}`)
    return value
  }

  /** The name that starts at `at` and ends with a NUL, bytes in latin1. @throws VarveError PROTOCOL_INVALID */
  name(at = 0): string {
    const end = this.body.indexOf(0, at)
    if (end < 0) throw new VarveError('PROTOCOL_INVALID', `FUSE: the name of request ${this.opcode} has no end`)
    return this.body.toString('latin1', at, end)
  }
}

/** Bytes of an answer with room for its header. */
export function answer(bodyBytes: number): Buffer {
  return Buffer.alloc(OUT_HEADER_BYTES + bodyBytes)
}

/** @param length bytes of the whole answer @param errno 0, or the error of the system as a positive number */
export function putOutHeader(bytes: Buffer, { length, errno, unique }: { length: number; errno: number; unique: number }): void {
  bytes.writeUInt32LE(length, 0)
  bytes.writeInt32LE(-errno, 4)
  putU64(bytes, unique, 8)
}

/** How long the kernel may keep names and attributes, seconds: they do not change. */
const VALID_SECONDS = 0x7fff_ffff
const ENTRY_OUT_HEAD_BYTES = 40
const ATTR_BYTES = 88
export const ENTRY_OUT_BYTES = ENTRY_OUT_HEAD_BYTES + ATTR_BYTES
export const ATTR_OUT_BYTES = 16 + ATTR_BYTES
const DIRENT_HEAD_BYTES = 24

/** What a node's attributes say besides the node itself. */
export interface NodeAttributes {
  node: FileNode
  filesystem: number
  /** Bytes that are allocated. */
  allocatedBytes: number
  blockBytes: number
}

/** struct fuse_entry_out at `at`. @param nodeId as it is on the wire */
export function putEntryOut(bytes: Buffer, at: number, nodeId: NodeId, attributes: NodeAttributes): void {
  putNodeId(bytes, at, nodeId)
  bytes.writeUInt32LE(VALID_SECONDS, at + 16)
  bytes.writeUInt32LE(VALID_SECONDS, at + 24)
  putAttributes(bytes, at + ENTRY_OUT_HEAD_BYTES, attributes)
}

/** struct fuse_entry_out of a name that is not there, which the kernel may remember. */
export function absentEntry(): Buffer {
  const bytes = answer(ENTRY_OUT_BYTES)
  bytes.writeUInt32LE(VALID_SECONDS, OUT_HEADER_BYTES + 16)
  return bytes
}

/** struct fuse_attr_out at `at`. */
export function putAttrOut(bytes: Buffer, at: number, attributes: NodeAttributes): void {
  bytes.writeUInt32LE(VALID_SECONDS, at)
  putAttributes(bytes, at + 16, attributes)
}

/** struct fuse_attr */
function putAttributes(bytes: Buffer, at: number, { node, filesystem, allocatedBytes, blockBytes }: NodeAttributes): void {
  putNodeId(bytes, at, { filesystem, id: node.id })
  putU64(bytes, node.sizeBytes, at + 8)
  putU64(bytes, Math.ceil(allocatedBytes / 512), at + 16)
  putTime(bytes, at + 24, at + 48, node.accessed)
  putTime(bytes, at + 32, at + 52, node.modified)
  putTime(bytes, at + 40, at + 56, node.changed)
  bytes.writeUInt32LE(TYPE_BITS[node.kind] | node.mode, at + 60)
  bytes.writeUInt32LE(node.links, at + 64)
  bytes.writeUInt32LE(node.uid, at + 68)
  bytes.writeUInt32LE(node.gid, at + 72)
  bytes.writeUInt32LE(deviceNumber(node), at + 76)
  bytes.writeUInt32LE(blockBytes, at + 80)
}

/** S_IFMT of a kind. What a layer deletes is as overlayfs spells it; its link to a path below it is a symlink. */
export const TYPE_BITS: Readonly<Record<Kind, number>> = {
  [Kind.file]: 0o100000, [Kind.directory]: 0o040000, [Kind.symlink]: 0o120000, [Kind.character]: 0o020000, [Kind.block]: 0o060000, [Kind.fifo]: 0o010000,
  [Kind.socket]: 0o140000, [Kind.whiteout]: 0o020000, [Kind.link]: 0o120000,
}

/** As new_encode_dev of Linux: 12 bits of major, 20 of minor. */
function deviceNumber({ deviceMajor, deviceMinor }: FileNode): number {
  return ((deviceMinor & 0xff) | ((deviceMajor & 0xfff) << 8) | ((deviceMinor & 0xfff00) << 12)) >>> 0
}

/** Bytes of a directory entry with its padding, without attributes. */
export function direntBytes(name: string): number {
  return (DIRENT_HEAD_BYTES + name.length + 7) & ~7
}

/** struct fuse_dirent. @param next offset of the entry that follows */
export function putDirent(bytes: Buffer, at: number, { name, nodeId, next, kind }: { name: string; nodeId: NodeId; next: number; kind: Kind | undefined }): void {
  putNodeId(bytes, at, nodeId)
  putU64(bytes, next, at + 8)
  bytes.writeUInt32LE(name.length, at + 16)
  bytes.writeUInt32LE(kind === undefined ? 0 : TYPE_BITS[kind] >>> 12, at + 20)
  bytes.write(name, at + DIRENT_HEAD_BYTES, 'latin1')
}

/** struct fuse_statfs_out */
export function statfsAnswer({ sizeBytes, blockBytes }: { sizeBytes: number; blockBytes: number }): Buffer {
  const bytes = answer(80)
  putU64(bytes, Math.floor(sizeBytes / blockBytes), OUT_HEADER_BYTES)
  bytes.writeUInt32LE(blockBytes, OUT_HEADER_BYTES + 40)
  bytes.writeUInt32LE(NAME_BYTES_MAX, OUT_HEADER_BYTES + 44)
  bytes.writeUInt32LE(blockBytes, OUT_HEADER_BYTES + 48)
  return bytes
}

/** struct fuse_open_out, without a handle. */
export function openAnswer(flags: number): Buffer {
  const bytes = answer(16)
  bytes.writeUInt32LE(flags, OUT_HEADER_BYTES + 8)
  return bytes
}

/** struct fuse_write_out, fuse_getxattr_out */
export function sizeAnswer(size: number): Buffer {
  const bytes = answer(8)
  bytes.writeUInt32LE(size, OUT_HEADER_BYTES)
  return bytes
}

/** struct fuse_lseek_out */
export function seekAnswer(offset: number): Buffer {
  const bytes = answer(8)
  putU64(bytes, offset, OUT_HEADER_BYTES)
  return bytes
}

/** What INIT of the kernel says. */
export interface InitIn {
  major: number
  minor: number
  readAheadBytesMax: number
  flags: number
  flags2: number
}

export function initIn(request: Request): InitIn {
  const flags = request.u32(12)
  const isLong = (flags & InitFlag.initExt) !== 0 && request.body.length >= 20
  return { major: request.u32(0), minor: request.u32(4), readAheadBytesMax: request.u32(8), flags, flags2: isLong ? request.u32(16) : 0 }
}

/** Requests that the kernel sends without waiting for their answers, and from how many on it holds others back. */
const BACKGROUND_MAX = 64
const CONGESTED = 48

/** struct fuse_init_out. Flags that the kernel does not have are left out. */
export function initAnswer({ minor, readAheadBytesMax, flags, flags2 }: InitIn, writeBytesMax: number): Buffer {
  const bytes = answer(64)
  const at = OUT_HEADER_BYTES
  const wanted = Object.values(InitFlag).reduce((all, flag) => all | flag, 0)
  bytes.writeUInt32LE(MAJOR, at)
  bytes.writeUInt32LE(Math.min(minor, MINOR), at + 4)
  bytes.writeUInt32LE(readAheadBytesMax, at + 8)
  bytes.writeUInt32LE((flags & wanted) >>> 0, at + 12)
  bytes.writeUInt16LE(BACKGROUND_MAX, at + 16)
  bytes.writeUInt16LE(CONGESTED, at + 18)
  bytes.writeUInt32LE(writeBytesMax, at + 20)
  bytes.writeUInt32LE(1, at + 24)
  bytes.writeUInt16LE(PAGES_MAX, at + 28)
  bytes.writeUInt32LE(flags2 & InitFlag2.directIoAllowMmap, at + 32)
  return bytes
}

function putTime(bytes: Buffer, at: number, nanosecondsAt: number, { seconds, nanoseconds }: Timestamp): void {
  bytes.writeUInt32LE(seconds >>> 0, at)
  bytes.writeInt32LE(Math.floor(seconds / TWO_32), at + 4)
  bytes.writeUInt32LE(nanoseconds, nanosecondsAt)
}

function putNodeId(bytes: Buffer, at: number, { filesystem, id }: NodeId): void {
  bytes.writeUInt32LE(id % TWO_32, at)
  bytes.writeUInt32LE((filesystem * 0x10000 + Math.floor(id / TWO_32)) >>> 0, at + 4)
}

function putU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % TWO_32, at)
  bytes.writeUInt32LE(Math.floor(value / TWO_32), at + 4)
}
