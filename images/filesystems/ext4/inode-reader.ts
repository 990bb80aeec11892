/**
 * Inodes as they stand on the disk, and what they say of a file.
 * Bytes: Documentation/filesystems/ext4/inodes.rst of Linux.
 */
import { Kind } from '../../tree/tree.ts'
import type { Answer, FileNode, Timestamp } from '../filesystem.ts'
import { invalid } from './block-reader.ts'
import type { BlockReader } from './block-reader.ts'
import { CHECKSUM_START, checksumShort, checksumUint32 } from './checksum.ts'
import { FAST_SYMLINK_BYTES_MAX, INCOMPAT, INODE, INODE_FLAG, MODE_TYPE, RO_COMPAT } from './format.ts'
import type { GroupTable } from './group-table.ts'
import type { Ext4Superblock } from './superblock-reader.ts'

export interface Ext4Inode {
  number: number
  kind: Kind
  /** Of directories, too: bytes that its blocks hold. */
  sizeBytes: number
  /** INODE_FLAG. */
  flags: number
  /** All of it: a view of what is kept. */
  bytes: Buffer
  /** Of checksums of what belongs to it. */
  checksumSeed: number
  /** Block of extended attributes, or 0. */
  xattrBlock: number
}

/** Bytes of an inode that every filesystem has. */
export const SHORT_INODE_BYTES = 128
const KIND_OF_TYPE = new Map<number, Kind>()
for (const kind of [Kind.file, Kind.directory, Kind.symlink, Kind.character, Kind.block, Kind.fifo, Kind.socket]) KIND_OF_TYPE.set(MODE_TYPE[kind], kind)

export class InodeReader {
  readonly #reader: BlockReader
  readonly #superblock: Ext4Superblock
  readonly #groups: GroupTable

  constructor(reader: BlockReader, superblock: Ext4Superblock, groups: GroupTable) {
    this.#reader = reader
    this.#superblock = superblock
    this.#groups = groups
  }

  /** Where an inode stands, bytes from the start of the volume. @param number 1 .. inodes @throws VarveError FORMAT_INVALID */
  position(number: number): number {
    const { inodesPerGroup, inodeBytes, blockBytes } = this.#superblock
    const group = Math.floor((number - 1) / inodesPerGroup)
    return this.#groups.block(group, 'inodeTable') * blockBytes + ((number - 1) % inodesPerGroup) * inodeBytes
  }

  /** @param number 1 .. inodes @throws VarveError FORMAT_INVALID if it is damaged, or of no kind */
  read(number: number): Answer<Ext4Inode> {
    const bytes = this.#reader.bytes(this.position(number), this.#superblock.inodeBytes)
    return bytes instanceof Promise ? bytes.then((read) => this.#inode(number, read)) : this.#inode(number, bytes)
  }

  #inode(number: number, bytes: Buffer): Ext4Inode {
    const { roCompat, incompat, checksumSeed, blocks } = this.#superblock
    const seed = (roCompat & RO_COMPAT.metadataCsum) === 0 ? CHECKSUM_START : checksumUint32(checksumUint32(checksumSeed, number), bytes.readUInt32LE(INODE.generation))
    if ((roCompat & RO_COMPAT.metadataCsum) !== 0 && !isSound(bytes, seed)) throw invalid(`inode ${number} is damaged`)
    const kind = KIND_OF_TYPE.get(bytes.readUInt16LE(INODE.mode) & 0o170000)
    if (kind === undefined) throw invalid(`inode ${number} is of no kind`)
    const hasHighSize = kind === Kind.file || (kind === Kind.directory && (incompat & INCOMPAT.largeDir) !== 0)
    const sizeBytes = bytes.readUInt32LE(INODE.sizeLow) + (hasHighSize ? bytes.readUInt32LE(INODE.sizeHigh) * 2 ** 32 : 0)
    if (!Number.isSafeInteger(sizeBytes)) throw invalid(`inode ${number} has ${sizeBytes} bytes`)
    const xattrBlock = bytes.readUInt32LE(INODE.fileAclLow) + (incompat & INCOMPAT.bit64 ? bytes.readUInt16LE(INODE.fileAclHigh) * 2 ** 32 : 0)
    if (xattrBlock >= blocks) throw invalid(`inode ${number} has its attributes in block ${xattrBlock}, behind the end`)
    return { number, kind, sizeBytes, flags: bytes.readUInt32LE(INODE.flags), bytes, checksumSeed: seed, xattrBlock }
  }
}

/** All of the inode but its checksum, of which short inodes have only one half. */
function isSound(bytes: Buffer, seed: number): boolean {
  const hasHigh = bytes.length > SHORT_INODE_BYTES && extraBytes(bytes) >= 4
  let sum = checksumShort(seed, bytes, 0, INODE.checksumLow)
  sum = checksumShort(sum, ZEROES, 0, 2)
  sum = checksumShort(sum, bytes, INODE.checksumLow + 2, hasHigh ? INODE.checksumHigh : bytes.length)
  if (!hasHigh) return (sum & 0xffff) === bytes.readUInt16LE(INODE.checksumLow)
  sum = checksumShort(sum, ZEROES, 0, 2)
  sum = checksumShort(sum, bytes, INODE.checksumHigh + 2, bytes.length)
  return sum === bytes.readUInt16LE(INODE.checksumLow) + bytes.readUInt16LE(INODE.checksumHigh) * 0x10000
}

const ZEROES = new Uint8Array(2)

/** Bytes of fields that follow the first 128. */
export function extraBytes(bytes: Buffer): number {
  return bytes.length > SHORT_INODE_BYTES ? bytes.readUInt16LE(INODE.extraIsize) : 0
}

/** What the contract says of a file. @throws VarveError FORMAT_INVALID for one that was deleted */
export function fileNodeOf({ number, kind, sizeBytes, bytes }: Ext4Inode): FileNode {
  const links = bytes.readUInt16LE(INODE.links)
  if (links === 0) throw invalid(`inode ${number} has a name, but was deleted`)
  const device = kind === Kind.character || kind === Kind.block ? deviceOf(bytes) : { deviceMajor: 0, deviceMinor: 0 }
  return {
    id: number,
    kind,
    mode: bytes.readUInt16LE(INODE.mode) & 0o7777,
    uid: bytes.readUInt16LE(INODE.uidLow) + bytes.readUInt16LE(INODE.uidHigh) * 0x10000,
    gid: bytes.readUInt16LE(INODE.gidLow) + bytes.readUInt16LE(INODE.gidHigh) * 0x10000,
    sizeBytes: kind === Kind.file || kind === Kind.symlink ? sizeBytes : 0,
    links: kind === Kind.directory ? 1 : links,
    modified: timeOf(bytes, INODE.mtime, INODE.mtimeExtra),
    accessed: timeOf(bytes, INODE.atime, INODE.atimeExtra),
    changed: timeOf(bytes, INODE.ctime, INODE.ctimeExtra),
    ...device,
  }
}

/** Signed seconds, which two bits of the extra field carry on to 2446; its other bits are nanoseconds. */
function timeOf(bytes: Buffer, offset: number, extraOffset: number): Timestamp {
  const hasExtra = SHORT_INODE_BYTES + extraBytes(bytes) >= extraOffset + 4
  const extra = hasExtra ? bytes.readUInt32LE(extraOffset) : 0
  return { seconds: bytes.readInt32LE(offset) + (extra & 3) * 2 ** 32, nanoseconds: Math.min(extra >>> 2, 999_999_999) }
}

/** The old form, of 8 bits each, stands first; the new one, of 12 and 20, second. */
function deviceOf(bytes: Buffer): { deviceMajor: number; deviceMinor: number } {
  const old = bytes.readUInt32LE(INODE.block)
  if (old !== 0) return { deviceMajor: (old >>> 8) & 0xff, deviceMinor: old & 0xff }
  const device = bytes.readUInt32LE(INODE.block + 4)
  return { deviceMajor: (device >>> 8) & 0xfff, deviceMinor: (device & 0xff) | ((device >>> 12) & 0xfff00) }
}

/** True if the target of a symlink stands where other files have their blocks. */
export function isFastSymlink({ kind, sizeBytes, flags, bytes, xattrBlock }: Ext4Inode, { incompat, blockBytes }: Ext4Superblock): boolean {
  if (kind !== Kind.symlink || (flags & INODE_FLAG.inlineData) !== 0) return false
  if ((incompat & INCOMPAT.eaInode) !== 0) return sizeBytes > 0 && sizeBytes <= FAST_SYMLINK_BYTES_MAX
  // Sectors of 512 bytes; those of attributes are counted, too.
  return bytes.readUInt32LE(INODE.blocksLow) === (xattrBlock === 0 ? 0 : blockBytes / 512)
}
