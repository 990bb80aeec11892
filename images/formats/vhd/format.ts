/**
 * Bytes of VHD: footer, header of dynamic disks, parent locators. Numbers are big-endian.
 * Virtual Hard Disk Image Format Specification 1.0: "Hard Disk Footer Format", "Dynamic Disk Header Format", "Appendix: CHS Calculation".
 */
import { VarveError } from '../../errors.ts'

export const SECTOR_BYTES = 512
export const FOOTER_BYTES = 512
export const HEADER_BYTES = 1024
/** What a block allocation table has for a block that is not in the file. */
export const UNUSED = 0xffffffff
/** As large as a disk can be: 2040 GiB, whose sectors and bitmaps a table of 32-bit sector numbers reaches. */
export const DISK_BYTES_MAX = 2040 * 2 ** 30

export const DISK_TYPE = { fixed: 2, dynamic: 3, differencing: 4 } as const

/** Parent locators that we know: paths of Windows, relative and absolute, in UTF-16LE, and a URL of macOS in UTF-8. */
export const PLATFORM = { relative: 'W2ru', absolute: 'W2ku', url: 'MacX' } as const

const FOOTER_COOKIE = 'conectix'
const HEADER_COOKIE = 'cxsparse'
const VERSION = 0x00010000
const NO_OFFSET = 0xffff_ffff_ffff_ffffn
/** Bit 1 is always set. */
const FEATURES = 2
/** Where a footer and a header have their checksum. */
const FOOTER_CHECKSUM = 64
const HEADER_CHECKSUM = 36
const GEOMETRY_SECTORS_MAX = 65535 * 16 * 255
/** Who counts a disk's size by its geometry, and leaves the rest of `current size` unused. All others mean what they say there. */
const CREATORS_BY_GEOMETRY = ['vpc ', 'qemu']
/** Ours: readers that look at the geometry of unknown creators take the size of this one as it is. */
const CREATOR = 'win '
const CREATOR_OS = 'Wi2k'
const CREATOR_VERSION = 0x000a0000
const LOCATORS = 8
const LOCATORS_OFFSET = 576
const LOCATOR_ENTRY_BYTES = 24
const PARENT_NAME_OFFSET = 64
/** UTF-16 units. */
const PARENT_NAME_UNITS_MAX = 256

export interface VhdFooter {
  type: number
  /** Of the disk inside, by whichever of geometry and current size its creator means. */
  sizeBytes: number
  /** Where the header of a dynamic disk is. */
  headerOffset: number
  /** 32 hexadecimal digits. */
  id: string
  /** True if the machine was suspended. */
  savedState: boolean
}

export interface VhdLocator {
  platform: string
  offset: number
  length: number
}

export interface VhdHeader {
  tableOffset: number
  /** Blocks that the table has entries for. */
  entries: number
  blockBytes: number
  /** 32 hexadecimal digits. */
  parentId: string
  parentName: string
  locators: VhdLocator[]
}

/** Ones' complement of the sum of all bytes but the checksum's own. */
function checksumOf(bytes: Uint8Array, checksumOffset: number): number {
  let sum = 0
  for (let index = 0; index < bytes.length; index++) if (index < checksumOffset || index >= checksumOffset + 4) sum += bytes[index]
  return ~sum >>> 0
}

export type FooterState = 'sound' | 'damaged' | 'missing'

/** @param bytes FOOTER_BYTES, of which old versions have one less: zero, then */
export function footerState(bytes: Buffer): FooterState {
  if (bytes.toString('latin1', 0, 8) !== FOOTER_COOKIE) return 'missing'
  return bytes.readUInt32BE(FOOTER_CHECKSUM) === checksumOf(bytes, FOOTER_CHECKSUM) ? 'sound' : 'damaged'
}

/** @param bytes of a footer that is sound. @throws VarveError FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
export function decodeFooter(bytes: Buffer): VhdFooter {
  const version = bytes.readUInt32BE(12)
  if (version >>> 16 !== VERSION >>> 16) throw new VarveError('FORMAT_UNSUPPORTED', `VHD: its version is ${version >>> 16}.${version & 0xffff}, of which only 1 is read`)
  const creator = bytes.toString('latin1', 28, 32)
  const geometrySectors = bytes.readUInt16BE(56) * bytes[58] * bytes[59]
  const byGeometry = CREATORS_BY_GEOMETRY.includes(creator) && geometrySectors !== GEOMETRY_SECTORS_MAX
  const sizeBytes = byGeometry ? geometrySectors * SECTOR_BYTES : Number(bytes.readBigUInt64BE(48))
  checkSize(sizeBytes)
  const type = bytes.readUInt32BE(60)
  if (!Object.values<number>(DISK_TYPE).includes(type)) throw new VarveError('FORMAT_UNSUPPORTED', `VHD: its disk type ${type} is none of fixed, dynamic and differencing`)
  return { type, sizeBytes, headerOffset: Number(bytes.readBigUInt64BE(16)), id: bytes.toString('hex', 68, 84), savedState: bytes[84] !== 0 }
}

/** @throws VarveError LIMIT_EXCEEDED */
export function checkSize(sizeBytes: number): void {
  if (sizeBytes > DISK_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHD: a disk of ${sizeBytes} bytes is larger than the ${DISK_BYTES_MAX} (2040 GiB) that the format holds; use VHDX`)
}

/** @param bytes HEADER_BYTES. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
export function decodeHeader(bytes: Buffer): VhdHeader {
  if (bytes.toString('latin1', 0, 8) !== HEADER_COOKIE) throw invalid('there is no header of a dynamic disk where the footer says')
  if (bytes.readUInt32BE(HEADER_CHECKSUM) !== checksumOf(bytes, HEADER_CHECKSUM)) throw invalid('the checksum of the dynamic disk\'s header is wrong')
  const version = bytes.readUInt32BE(24)
  if (version >>> 16 !== VERSION >>> 16) throw new VarveError('FORMAT_UNSUPPORTED', `VHD: the version of its dynamic header is ${version >>> 16}.${version & 0xffff}, of which only 1 is read`)
  const locators: VhdLocator[] = []
  for (let at = LOCATORS_OFFSET; at < LOCATORS_OFFSET + LOCATORS * LOCATOR_ENTRY_BYTES; at += LOCATOR_ENTRY_BYTES) {
    locators.push({ platform: bytes.toString('latin1', at, at + 4), length: bytes.readUInt32BE(at + 8), offset: Number(bytes.readBigUInt64BE(at + 16)) })
  }
  return {
    tableOffset: Number(bytes.readBigUInt64BE(16)),
    entries: bytes.readUInt32BE(28),
    blockBytes: bytes.readUInt32BE(32),
    parentId: bytes.toString('hex', 40, 56),
    parentName: Buffer.from(bytes.subarray(PARENT_NAME_OFFSET, PARENT_NAME_OFFSET + 2 * PARENT_NAME_UNITS_MAX)).swap16().toString('utf16le'),
    locators,
  }
}

/** @param id 16 bytes */
export function encodeFooter({ type, sizeBytes, id }: { type: number; sizeBytes: number; id: Uint8Array }): Buffer {
  const bytes = Buffer.alloc(FOOTER_BYTES)
  bytes.write(FOOTER_COOKIE, 0, 'latin1')
  bytes.writeUInt32BE(FEATURES, 8)
  bytes.writeUInt32BE(VERSION, 12)
  bytes.writeBigUInt64BE(type === DISK_TYPE.fixed ? NO_OFFSET : BigInt(FOOTER_BYTES), 16)
  // The time stamp stays 0, the beginning of 2000: the same disk gives the same bytes.
  bytes.write(CREATOR, 28, 'latin1')
  bytes.writeUInt32BE(CREATOR_VERSION, 32)
  bytes.write(CREATOR_OS, 36, 'latin1')
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 40)
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 48)
  const { cylinders, heads, sectors } = geometryOf(sizeBytes / SECTOR_BYTES)
  bytes.writeUInt16BE(cylinders, 56)
  bytes[58] = heads
  bytes[59] = sectors
  bytes.writeUInt32BE(type, 60)
  bytes.set(id, 68)
  bytes.writeUInt32BE(checksumOf(bytes, FOOTER_CHECKSUM), FOOTER_CHECKSUM)
  return bytes
}

export interface HeaderFields {
  tableOffset: number
  entries: number
  blockBytes: number
  parent?: { id: Uint8Array; name: string; locator: VhdLocator }
}

export function encodeHeader({ tableOffset, entries, blockBytes, parent }: HeaderFields): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES)
  bytes.write(HEADER_COOKIE, 0, 'latin1')
  bytes.writeBigUInt64BE(NO_OFFSET, 8)
  bytes.writeBigUInt64BE(BigInt(tableOffset), 16)
  bytes.writeUInt32BE(VERSION, 24)
  bytes.writeUInt32BE(entries, 28)
  bytes.writeUInt32BE(blockBytes, 32)
  if (parent !== undefined) {
    bytes.set(parent.id, 40)
    bytes.set(Buffer.from(parent.name.slice(0, PARENT_NAME_UNITS_MAX - 1), 'utf16le').swap16(), PARENT_NAME_OFFSET)
    const at = LOCATORS_OFFSET
    bytes.write(parent.locator.platform, at, 'latin1')
    bytes.writeUInt32BE(Math.ceil(parent.locator.length / SECTOR_BYTES), at + 4)
    bytes.writeUInt32BE(parent.locator.length, at + 8)
    bytes.writeBigUInt64BE(BigInt(parent.locator.offset), at + 16)
  }
  bytes.writeUInt32BE(checksumOf(bytes, HEADER_CHECKSUM), HEADER_CHECKSUM)
  return bytes
}

/** Bytes of the bitmap that stands before a block: a bit a sector, whole sectors. */
export function bitmapBytesOf(blockBytes: number): number {
  return Math.ceil(blockBytes / SECTOR_BYTES / 8 / SECTOR_BYTES) * SECTOR_BYTES
}

/** The geometry that a disk of so many sectors is said to have; it may hold less than the disk. */
function geometryOf(diskSectors: number): { cylinders: number; heads: number; sectors: number } {
  const total = Math.min(diskSectors, GEOMETRY_SECTORS_MAX)
  if (total >= 65535 * 16 * 63) return { cylinders: Math.floor(total / 255 / 16), heads: 16, sectors: 255 }
  let sectors = 17
  let heads = Math.max(4, Math.ceil(Math.floor(total / sectors) / 1024))
  for (const more of [31, 63]) {
    if (heads <= 16 && Math.floor(total / sectors) < heads * 1024) break
    sectors = more
    heads = 16
  }
  return { cylinders: Math.floor(Math.floor(total / sectors) / heads), heads, sectors }
}

export function invalid(problem: string): VarveError {
  return new VarveError('FORMAT_INVALID', `VHD: ${problem}`)
}
