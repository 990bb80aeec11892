/**
 * Extended attributes of an inode: in the inode's last 96 bytes, then in one block, and values that do not fit there in inodes of their own.
 * Bytes: Documentation/filesystems/ext4/attributes.rst of Linux.
 */
import type { Xattr } from '../../tree/tree.ts'
import { VarveError } from '../../errors.ts'
import { checksumBlock } from './checksum.ts'
import { BLOCK_BYTES, INODE_XATTR_BYTES, blocksOf, viewOf } from './format.ts'

export const XATTR_MAGIC = 0xea020000
export const XATTR_ENTRY_BYTES = 16
export const XATTR_BLOCK_HEADER_BYTES = 32
/** Inodes that may share a block. */
export const XATTR_BLOCK_SHARES_MAX = 1024

export const ACL_INDEX_ACCESS = 2
export const ACL_INDEX_DEFAULT = 3
/** Prefixes that Linux stores as a number; names of other namespaces cannot be stored. */
export const PREFIXES: readonly [string, number][] = [
  ['user.', 1],
  ['trusted.', 4],
  ['security.', 6],
]
export const ACL_NAMES: ReadonlyMap<string, number> = new Map([
  ['system.posix_acl_access', ACL_INDEX_ACCESS],
  ['system.posix_acl_default', ACL_INDEX_DEFAULT],
])

/** An attribute as ext4 names and writes it. */
interface Attribute {
  index: number
  /** Without prefix, bytes in latin1. */
  name: string
  value: Uint8Array
  /** Number of the inode that holds the value; 0 if it stands here. */
  valueInode: number
}

/** Where the attributes of one set go; shared by all inodes that have the set. */
export interface XattrPlan {
  /** For the last bytes of the inode; undefined if the set is empty. */
  body: Uint8Array | undefined
  /** Attributes of the block, in the order of the format; empty if there is none. */
  block: Attribute[]
  /** Attributes whose values are in inodes of their own. */
  outside: Attribute[]
  /** 512-byte sectors to be added to the inode's count for values outside. */
  outsideSectors: number
  /** Attributes of namespaces that ext4 does not have. */
  dropped: number
}

/**
 * @param subject path for messages
 * @throws VarveError SOURCE_INVALID for an ACL that cannot be read, LIMIT_EXCEEDED for more than ext4 can hold
 */
export function planXattrs(xattrs: readonly Xattr[], subject: () => string): XattrPlan {
  const attributes = xattrs.map((xattr) => toAttribute(xattr, subject)).filter((attribute) => attribute !== undefined)
  // Small ones into the inode, where they cost nothing.
  attributes.sort((a, b) => a.value.length - b.value.length || compareNames(a, b))
  const body: Attribute[] = []
  const block: Attribute[] = []
  let bodyLeft = INODE_XATTR_BYTES - 8
  let blockLeft = BLOCK_BYTES - XATTR_BLOCK_HEADER_BYTES - 4
  for (const attribute of attributes) {
    const bytes = entryBytes(attribute) + padded(attribute.value.length)
    if (bytes <= bodyLeft) {
      body.push(attribute)
      bodyLeft -= bytes
    } else {
      block.push(attribute)
      blockLeft -= bytes
    }
  }
  const outside: Attribute[] = []
  for (let at = block.length - 1; at >= 0 && blockLeft < 0; at--) {
    outside.push(block[at])
    blockLeft += padded(block[at].value.length)
  }
  if (blockLeft < 0) throw new VarveError('LIMIT_EXCEEDED', `${subject()}: the names of its extended attributes do not fit a block of ${BLOCK_BYTES} bytes`)
  let outsideSectors = 0
  for (const attribute of outside) outsideSectors += blocksOf(attribute.value.length) * (BLOCK_BYTES / 512)
  return {
    body: body.length > 0 ? writeBody(body.sort(compareNames)) : undefined,
    block: block.sort(compareNames),
    outside,
    outsideSectors,
    dropped: xattrs.length - attributes.length,
  }
}

/** @returns undefined for a namespace that ext4 does not have */
function toAttribute({ name, value }: Xattr, subject: () => string): Attribute | undefined {
  const acl = ACL_NAMES.get(name)
  if (acl !== undefined) return { index: acl, name: '', value: toDiskAcl(value, subject), valueInode: 0 }
  for (const [prefix, index] of PREFIXES) {
    if (name.startsWith(prefix) && name.length > prefix.length) return { index, name: name.slice(prefix.length), value, valueInode: 0 }
  }
  return undefined
}

const ACL_VERSION_XATTR = 2
const ACL_VERSION_DISK = 1
const ACL_TAG_USER = 2
const ACL_TAG_GROUP = 8
/** In the form of the system call: no user or group is named. */
const ACL_ID_NONE = 0xffffffff
const ACL_TAGS = [1, ACL_TAG_USER, 4, ACL_TAG_GROUP, 16, 32]

/** From the form of the system call (8 bytes an entry) to that on disk (4 bytes, 8 for those that name a user or group). */
function toDiskAcl(value: Uint8Array, subject: () => string): Uint8Array {
  const invalid = () => new VarveError('SOURCE_INVALID', `${subject()}: its ACL cannot be read`)
  if (value.length < 4 || value.length % 8 !== 4) throw invalid()
  const from = viewOf(value)
  if (from.getUint32(0, true) !== ACL_VERSION_XATTR) throw invalid()
  const disk = new Uint8Array(value.length)
  const to = viewOf(disk)
  to.setUint32(0, ACL_VERSION_DISK, true)
  let length = 4
  for (let at = 4; at < value.length; at += 8) {
    const tag = from.getUint16(at, true)
    if (!ACL_TAGS.includes(tag)) throw invalid()
    to.setUint16(length, tag, true)
    to.setUint16(length + 2, from.getUint16(at + 2, true), true)
    length += 4
    if (tag !== ACL_TAG_USER && tag !== ACL_TAG_GROUP) continue
    to.setUint32(length, from.getUint32(at + 4, true), true)
    length += 4
  }
  return disk.subarray(0, length)
}

/** The other way round. @throws VarveError FORMAT_INVALID */
export function fromDiskAcl(disk: Uint8Array, subject: () => string): Uint8Array {
  const invalid = () => new VarveError('FORMAT_INVALID', `ext4: ${subject()} has an ACL that cannot be read`)
  if (disk.length < 4) throw invalid()
  const from = viewOf(disk)
  if (from.getUint32(0, true) !== ACL_VERSION_DISK) throw invalid()
  const value = new Uint8Array(4 + 2 * disk.length)
  const to = viewOf(value)
  to.setUint32(0, ACL_VERSION_XATTR, true)
  let length = 4
  for (let at = 4; at < disk.length; length += 8) {
    const tag = at + 4 <= disk.length ? from.getUint16(at, true) : 0
    const hasId = tag === ACL_TAG_USER || tag === ACL_TAG_GROUP
    if (!ACL_TAGS.includes(tag) || (hasId && at + 8 > disk.length)) throw invalid()
    to.setUint16(length, tag, true)
    to.setUint16(length + 2, from.getUint16(at + 2, true), true)
    to.setUint32(length + 4, hasId ? from.getUint32(at + 4, true) : ACL_ID_NONE, true)
    at += hasId ? 8 : 4
  }
  return value.slice(0, length)
}

/** The kernel looks names up in this order. */
function compareNames(a: Attribute, b: Attribute): number {
  return a.index - b.index || a.name.length - b.name.length || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)
}

function padded(bytes: number): number {
  return (bytes + 3) & ~3
}

function entryBytes(attribute: Attribute): number {
  return XATTR_ENTRY_BYTES + padded(attribute.name.length)
}

function writeBody(attributes: readonly Attribute[]): Uint8Array {
  const bytes = new Uint8Array(INODE_XATTR_BYTES)
  const view = viewOf(bytes)
  view.setUint32(0, XATTR_MAGIC, true)
  writeEntries(bytes, 4, 4, attributes, () => 0)
  return bytes
}

/**
 * Writes the block but for its share count and checksum.
 * @param outsideHash checksum of a value that is in an inode of its own, by that inode's number
 */
export function writeXattrBlock(into: Uint8Array, attributes: readonly Attribute[], outsideHash: (valueInode: number) => number): void {
  const view = viewOf(into)
  view.setUint32(0, XATTR_MAGIC, true)
  view.setUint32(8, 1, true)
  let blockHash = 0
  let shareable = true
  writeEntries(into, XATTR_BLOCK_HEADER_BYTES, 0, attributes, (attribute) => {
    const hash = entryHash(attribute, outsideHash)
    blockHash = ((blockHash << 16) | (blockHash >>> 16)) ^ hash
    if (hash === 0) shareable = false
    return hash
  })
  view.setUint32(12, shareable ? blockHash >>> 0 : 0, true)
}

/** Last of all: how many inodes share the block, and its checksum. */
export function sealXattrBlock(bytes: Uint8Array, block: number, shares: number, filesystemSeed: number): void {
  const view = viewOf(bytes)
  view.setUint32(4, shares, true)
  view.setUint32(16, 0, true)
  const number = new Uint8Array(8)
  viewOf(number).setBigUint64(0, BigInt(block), true)
  view.setUint32(16, checksumBlock(checksumBlock(filesystemSeed, number), bytes), true)
}

/** Entries from `start` up, values from the end down; offsets count from `base`. */
function writeEntries(bytes: Uint8Array, start: number, base: number, attributes: readonly Attribute[], hash: (attribute: Attribute) => number): void {
  const view = viewOf(bytes)
  let at = start
  let end = bytes.length
  for (const attribute of attributes) {
    view.setUint8(at, attribute.name.length)
    view.setUint8(at + 1, attribute.index)
    view.setUint32(at + 4, attribute.valueInode, true)
    view.setUint32(at + 8, attribute.value.length, true)
    view.setUint32(at + 12, hash(attribute) >>> 0, true)
    for (let index = 0; index < attribute.name.length; index++) bytes[at + XATTR_ENTRY_BYTES + index] = attribute.name.charCodeAt(index)
    if (attribute.valueInode === 0 && attribute.value.length > 0) {
      end -= padded(attribute.value.length)
      bytes.set(attribute.value, end)
      view.setUint16(at + 2, end - base, true)
    }
    at += entryBytes(attribute)
  }
}

function entryHash(attribute: Attribute, outsideHash: (valueInode: number) => number): number {
  let hash = 0
  for (let index = 0; index < attribute.name.length; index++) hash = ((hash << 5) | (hash >>> 27)) ^ attribute.name.charCodeAt(index)
  if (attribute.valueInode !== 0) return (((hash << 16) | (hash >>> 16)) ^ outsideHash(attribute.valueInode)) >>> 0
  const { value } = attribute
  for (let index = 0; index < value.length; index += 4) {
    const word = value[index] | (value[index + 1] << 8) | (value[index + 2] << 16) | (value[index + 3] << 24)
    hash = ((hash << 16) | (hash >>> 16)) ^ word
  }
  return hash >>> 0
}
