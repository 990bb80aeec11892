/**
 * InodeTable: the inodes in use, from number 1 on without gaps, as one buffer.
 * Bytes: Documentation/filesystems/ext4/inodes.rst of Linux.
 */
import { CHECKSUM_START, checksumBlock, checksumShort, checksumUint32, zeroesChecksum } from './checksum.ts'
import { EXTRA_ISIZE_BYTES, INODE, INODE_BYTES, INODE_XATTR_BYTES, viewOf } from './format.ts'

/** What the 32 + 2 bits of a time can hold: 1901-12-13 to 2446-05-10. */
export const TIME_SECONDS_MIN = -(2 ** 31)
export const TIME_SECONDS_MAX = 2 ** 34 - 2 ** 31 - 1

const afterXattrs = zeroesChecksum(INODE_XATTR_BYTES)

export interface InodeFields {
  /** With the type. */
  mode: number
  uid: number
  gid: number
  seconds: number
  nanoseconds: number
}

export class InodeTable {
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly #seed: number
  /** Times that did not fit and were moved to the nearest that does. */
  timesClamped = 0

  /** @param options.uuid of the filesystem: all checksums start from it */
  constructor(options: { inodes: number; uuid: Uint8Array }) {
    this.bytes = new Uint8Array(options.inodes * INODE_BYTES)
    this.view = viewOf(this.bytes)
    this.#seed = filesystemSeed(options.uuid)
  }

  /** Inodes that there is room for. */
  get count(): number {
    return this.bytes.length / INODE_BYTES
  }

  offset(number: number): number {
    return (number - 1) * INODE_BYTES
  }

  /** Checksum that everything belonging to an inode starts from: its number and generation (0). */
  seed(number: number): number {
    return checksumUint32(checksumUint32(this.#seed, number), 0)
  }

  set(number: number, fields: InodeFields): void {
    const { view } = this
    const at = this.offset(number)
    view.setUint16(at + INODE.mode, fields.mode, true)
    view.setUint16(at + INODE.uidLow, fields.uid & 0xffff, true)
    view.setUint16(at + INODE.uidHigh, fields.uid >>> 16, true)
    view.setUint16(at + INODE.gidLow, fields.gid & 0xffff, true)
    view.setUint16(at + INODE.gidHigh, fields.gid >>> 16, true)
    view.setUint16(at + INODE.links, 1, true)
    view.setUint16(at + INODE.extraIsize, EXTRA_ISIZE_BYTES, true)
    this.#setTimes(at, fields.seconds, fields.nanoseconds)
  }

  setLinks(number: number, links: number): void {
    this.view.setUint16(this.offset(number) + INODE.links, links, true)
  }

  setFlags(number: number, flags: number): void {
    this.view.setUint32(this.offset(number) + INODE.flags, flags, true)
  }

  setSize(number: number, bytes: number): void {
    const at = this.offset(number)
    this.view.setUint32(at + INODE.sizeLow, bytes >>> 0, true)
    this.view.setUint32(at + INODE.sizeHigh, Math.floor(bytes / 2 ** 32), true)
  }

  /** Adds to the 512-byte sectors that the inode takes. */
  addSectors(number: number, sectors: number): void {
    const at = this.offset(number)
    const total = this.view.getUint32(at + INODE.blocksLow, true) + this.view.getUint16(at + INODE.blocksHigh, true) * 2 ** 32 + sectors
    this.view.setUint32(at + INODE.blocksLow, total >>> 0, true)
    this.view.setUint16(at + INODE.blocksHigh, Math.floor(total / 2 ** 32), true)
  }

  /** Block with the extended attributes that do not fit the inode. */
  setXattrBlock(number: number, block: number): void {
    const at = this.offset(number)
    this.view.setUint32(at + INODE.fileAclLow, block >>> 0, true)
    this.view.setUint16(at + INODE.fileAclHigh, Math.floor(block / 2 ** 32), true)
  }

  /** Makes the inode one that holds the value of an attribute: checksum and count of references stand in place of times and version. */
  setAttributeValue(number: number, { hash, references }: { hash: number; references: number }): void {
    const at = this.offset(number)
    this.view.setUint32(at + INODE.atime, hash, true)
    this.view.setUint32(at + INODE.atimeExtra, 0, true)
    this.view.setUint32(at + INODE.ctime, 0, true)
    this.view.setUint32(at + INODE.ctimeExtra, 0, true)
    this.view.setUint32(at + INODE.version, references, true)
  }

  /** Last of all. */
  seal(): void {
    for (let number = 1; number <= this.count; number++) {
      const at = this.offset(number)
      if (this.view.getUint16(at + INODE.extraIsize, true) === 0) continue
      const fields = checksumShort(this.seed(number), this.bytes, at, at + INODE.xattrs)
      const hasXattrs = this.bytes[at + INODE.xattrs + 3] !== 0
      const checksum = hasXattrs ? checksumShort(fields, this.bytes, at + INODE.xattrs, at + INODE_BYTES) : afterXattrs(fields)
      this.view.setUint16(at + INODE.checksumLow, checksum & 0xffff, true)
      this.view.setUint16(at + INODE.checksumHigh, checksum >>> 16, true)
    }
  }

  /** All four times are one: what is not in the tree must not differ from one composition to the next. */
  #setTimes(at: number, seconds: number, nanoseconds: number): void {
    const { view } = this
    let clamped = seconds
    let fraction = nanoseconds
    if (seconds < TIME_SECONDS_MIN || seconds > TIME_SECONDS_MAX) {
      clamped = seconds < TIME_SECONDS_MIN ? TIME_SECONDS_MIN : TIME_SECONDS_MAX
      fraction = 0
      this.timesClamped++
    }
    const low = clamped | 0
    const epoch = ((clamped - low) / 2 ** 32) & 3
    const extra = ((fraction << 2) | epoch) >>> 0
    view.setInt32(at + INODE.atime, low, true)
    view.setInt32(at + INODE.ctime, low, true)
    view.setInt32(at + INODE.mtime, low, true)
    view.setInt32(at + INODE.crtime, low, true)
    view.setUint32(at + INODE.atimeExtra, extra, true)
    view.setUint32(at + INODE.ctimeExtra, extra, true)
    view.setUint32(at + INODE.mtimeExtra, extra, true)
    view.setUint32(at + INODE.crtimeExtra, extra, true)
  }
}

/** Checksum that all others of the filesystem start from. */
export function filesystemSeed(uuid: Uint8Array): number {
  return checksumBlock(CHECKSUM_START, uuid)
}
