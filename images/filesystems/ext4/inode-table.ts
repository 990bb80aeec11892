/**
 * InodeTable: the inodes in use, from number 1 on without gaps, as one buffer.
 * Bytes: Documentation/filesystems/ext4/inodes.rst of Linux.
 */
import { CHECKSUM_START, checksumBlock, checksumShort, checksumUint32, zeroesChecksum } from './checksum.ts'
import { EXTRA_ISIZE_BYTES, INODE, INODE_BYTES, INODE_XATTR_BYTES, viewOf } from './format.ts'

/** What the 32 + 2 bits of a time can hold: 1901-12-13 to 2446-05-10. */
export const TIME_SECONDS_MIN = -(2 ** 31)
export const TIME_SECONDS_MAX = 2 ** 34 - 2 ** 31 - 1

const INODE_SHORTS = INODE_BYTES / 2
const INODE_WORDS = INODE_BYTES / 4

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
  /** The same bytes, whose fields are aligned; cheaper than the view while little has been compiled. Little-endian, as are the machines that we run on. */
  readonly #shorts: Uint16Array
  readonly #words: Uint32Array
  readonly #seed: number
  /** Times that did not fit and were moved to the nearest that does. */
  timesClamped = 0

  /** @param options.uuid of the filesystem: all checksums start from it */
  constructor(options: { inodes: number; uuid: Uint8Array }) {
    this.bytes = new Uint8Array(options.inodes * INODE_BYTES)
    this.view = viewOf(this.bytes)
    this.#shorts = new Uint16Array(this.bytes.buffer)
    this.#words = new Uint32Array(this.bytes.buffer)
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
    const at = (number - 1) * INODE_SHORTS
    const shorts = this.#shorts
    shorts[at + INODE.mode / 2] = fields.mode
    shorts[at + INODE.uidLow / 2] = fields.uid
    shorts[at + INODE.uidHigh / 2] = fields.uid >>> 16
    shorts[at + INODE.gidLow / 2] = fields.gid
    shorts[at + INODE.gidHigh / 2] = fields.gid >>> 16
    shorts[at + INODE.links / 2] = 1
    shorts[at + INODE.extraIsize / 2] = EXTRA_ISIZE_BYTES
    this.#setTimes(number, fields.seconds, fields.nanoseconds)
  }

  setLinks(number: number, links: number): void {
    this.#shorts[(number - 1) * INODE_SHORTS + INODE.links / 2] = links
  }

  setFlags(number: number, flags: number): void {
    this.#words[(number - 1) * INODE_WORDS + INODE.flags / 4] = flags
  }

  setSize(number: number, bytes: number): void {
    const at = (number - 1) * INODE_WORDS
    this.#words[at + INODE.sizeLow / 4] = bytes
    this.#words[at + INODE.sizeHigh / 4] = bytes / 2 ** 32
  }

  /** Adds to the 512-byte sectors that the inode takes. */
  addSectors(number: number, sectors: number): void {
    const low = (number - 1) * INODE_WORDS + INODE.blocksLow / 4
    const high = (number - 1) * INODE_SHORTS + INODE.blocksHigh / 2
    const total = this.#words[low] + this.#shorts[high] * 2 ** 32 + sectors
    this.#words[low] = total
    this.#shorts[high] = total / 2 ** 32
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
  #setTimes(number: number, seconds: number, nanoseconds: number): void {
    let clamped = seconds
    let fraction = nanoseconds
    if (seconds < TIME_SECONDS_MIN || seconds > TIME_SECONDS_MAX) {
      clamped = seconds < TIME_SECONDS_MIN ? TIME_SECONDS_MIN : TIME_SECONDS_MAX
      fraction = 0
      this.timesClamped++
    }
    const epoch = ((clamped - (clamped | 0)) / 2 ** 32) & 3
    const extra = (fraction << 2) | epoch
    const words = this.#words
    const at = (number - 1) * INODE_WORDS
    words[at + INODE.atime / 4] = clamped
    words[at + INODE.ctime / 4] = clamped
    words[at + INODE.mtime / 4] = clamped
    words[at + INODE.crtime / 4] = clamped
    words[at + INODE.atimeExtra / 4] = extra
    words[at + INODE.ctimeExtra / 4] = extra
    words[at + INODE.mtimeExtra / 4] = extra
    words[at + INODE.crtimeExtra / 4] = extra
  }
}

/** Checksum that all others of the filesystem start from. */
export function filesystemSeed(uuid: Uint8Array): number {
  return checksumBlock(CHECKSUM_START, uuid)
}
