/**
 * Computes VHD images of disks: fixed, dynamic, and differencing over an image of another disk. Nothing is written: each part is found, or made, where it is read.
 * Virtual Hard Disk Image Format Specification 1.0. A block's data begins on a page, with its bitmap before it, so that what a guest reads in pages is read in pages.
 */
import type { Digest } from '../../chunk/digest.ts'
import type { BlockDevice } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { bytesPiece, computedTable, layoutDigest, roundUp, uniqueId } from '../computed-parts.ts'
import type { ComputeOptions } from '../computed-parts.ts'
import { StoredBlocks, dataRanges } from '../stored-blocks.ts'
import type { DiskRange } from '../stored-blocks.ts'
import { DISK_TYPE, FOOTER_BYTES, HEADER_BYTES, PLATFORM, SECTOR_BYTES, bitmapBytesOf, checkSize, encodeFooter, encodeHeader } from './format.ts'

const BLOCK_BYTES = 2 << 20
const BITMAP_BYTES = bitmapBytesOf(BLOCK_BYTES)
const PAGE_BYTES = 4096
/** From one block to the next: a page that ends with the bitmap, and the data. */
const STRIDE_BYTES = PAGE_BYTES + BLOCK_BYTES

export interface DifferencingOptions {
  digest: Digest
  /** What differs from the parent, in any order. */
  changed: Iterable<DiskRange>
  parent: {
    /** Of its file, relative to the one that is computed, with slashes. */
    name: string
    /** 16 bytes: `vhdId` of its digest if we computed it. */
    id: Uint8Array
  }
}

/** Unique id of the image that is computed of a disk: 16 bytes. */
export function vhdId(digest: Digest): Uint8Array {
  return uniqueId(digest, 'vhd')
}

/** A fixed VHD image: the disk and a footer. As ComputeImage. @throws VarveError LIMIT_EXCEEDED above 2040 GiB */
export async function computeFixedVhd(disk: BlockDevice, { digest = layoutDigest(disk) }: ComputeOptions = {}): Promise<BlockDevice> {
  const sizeBytes = diskBytesOf(disk)
  const footer = encodeFooter({ type: DISK_TYPE.fixed, sizeBytes, id: vhdId(digest) })
  const locate = (offset: number, length: number): Piece => (offset < sizeBytes ? diskPiece(disk, offset, Math.min(length, sizeBytes - offset)) : bytesPiece(footer, sizeBytes, { offset, length }))
  return new PiecewiseDevice({ sizeBytes: sizeBytes + FOOTER_BYTES, locate })
}

/** A dynamic VHD image: what is data. As ComputeImage. @throws VarveError LIMIT_EXCEEDED above 2040 GiB */
export async function computeVhd(disk: BlockDevice, { digest = layoutDigest(disk) }: ComputeOptions = {}): Promise<BlockDevice> {
  return sparseImage(disk, { digest, ranges: (offset, length) => dataRanges(disk, offset, length) })
}

/** A differencing VHD image: what changed. The parent's disk has the same size. @throws VarveError LIMIT_EXCEEDED above 2040 GiB */
export async function computeDifferencingVhd(disk: BlockDevice, { digest, changed, parent }: DifferencingOptions): Promise<BlockDevice> {
  const sectors = new StoredBlocks(changed, SECTOR_BYTES)
  return sparseImage(disk, { digest, ranges: (offset, length) => sectors.ranges(offset, length), parent })
}

interface SparseOptions {
  digest: Digest
  /** What is stored of a range of the disk, in order. */
  ranges: (offset: number, length: number) => Iterable<DiskRange>
  parent?: DifferencingOptions['parent']
}

/** Footer, header, parent locator; block allocation table; blocks, each behind its bitmap; footer. */
function sparseImage(disk: BlockDevice, { digest, ranges, parent }: SparseOptions): BlockDevice {
  const sizeBytes = diskBytesOf(disk)
  const stored = new StoredBlocks(ranges(0, disk.sizeBytes), BLOCK_BYTES)
  const blocks = Math.ceil(sizeBytes / BLOCK_BYTES)
  const footer = encodeFooter({ type: parent === undefined ? DISK_TYPE.dynamic : DISK_TYPE.differencing, sizeBytes, id: vhdId(digest) })
  const path = parent === undefined ? Buffer.alloc(0) : Buffer.from(`.\\${parent.name.replaceAll('/', '\\')}`, 'utf16le')
  const tableOffset = roundUp(FOOTER_BYTES + HEADER_BYTES + path.length, SECTOR_BYTES)
  const locator = { platform: PLATFORM.relative, offset: FOOTER_BYTES + HEADER_BYTES, length: path.length }
  const head = Buffer.alloc(tableOffset)
  head.set(footer)
  head.set(encodeHeader({ tableOffset, entries: blocks, blockBytes: BLOCK_BYTES, parent: parent && { ...parent, locator } }), FOOTER_BYTES)
  head.set(path, FOOTER_BYTES + HEADER_BYTES)

  const tableEnd = tableOffset + roundUp(blocks * 4, SECTOR_BYTES)
  const blocksOffset = roundUp(tableEnd, PAGE_BYTES)
  const blocksEnd = blocksOffset + stored.count * STRIDE_BYTES
  const table = computedTable(4, tableEnd - tableOffset, (bytes, first, end) => {
    bytes.fill(0xff)
    for (const run of stored.runs(first, end)) {
      for (let index = 0; index < run.count; index++) {
        const bitmapOffset = blocksOffset + (run.rank + index) * STRIDE_BYTES + PAGE_BYTES - BITMAP_BYTES
        bytes.writeUInt32BE(bitmapOffset / SECTOR_BYTES, (run.first - first + index) * 4)
      }
    }
  })
  /** A part of the block at a place, `from` bytes behind the start of its page. */
  const blockPiece = (rank: number, from: number, length: number): Piece => {
    if (from < PAGE_BYTES - BITMAP_BYTES) return { length: Math.min(length, PAGE_BYTES - BITMAP_BYTES - from), at: 0, type: 'hole' }
    const start = stored.blockAt(rank) * BLOCK_BYTES
    if (from < PAGE_BYTES) {
      const bitmap = computedTable(BITMAP_BYTES, BITMAP_BYTES, (bytes) => setBits(bytes, start, ranges(start, Math.min(BLOCK_BYTES, disk.sizeBytes - start))))
      return { length: Math.min(length, PAGE_BYTES - from), source: bitmap, at: from - (PAGE_BYTES - BITMAP_BYTES), type: 'data' }
    }
    const offset = start + from - PAGE_BYTES
    const piece = diskPiece(disk, offset, Math.min(length, STRIDE_BYTES - from))
    // What is not stored of a disk without a parent are zeroes.
    if (parent === undefined || piece.source === undefined) return piece
    for (const range of ranges(offset, piece.length)) {
      if (range.offset === offset) return { ...piece, length: range.length }
      return { length: range.offset - offset, at: 0, type: 'hole' }
    }
    return { length: piece.length, at: 0, type: 'hole' }
  }
  const locate = (offset: number, length: number): Piece => {
    if (offset < tableOffset) return bytesPiece(head, 0, { offset, length })
    if (offset < tableEnd) return { length: Math.min(length, tableEnd - offset), source: table, at: offset - tableOffset, type: 'data' }
    if (offset < blocksOffset) return { length: Math.min(length, blocksOffset - offset), at: 0, type: 'hole' }
    if (offset >= blocksEnd) return bytesPiece(footer, blocksEnd, { offset, length })
    const from = (offset - blocksOffset) % STRIDE_BYTES
    return blockPiece((offset - blocksOffset - from) / STRIDE_BYTES, from, length)
  }
  return new PiecewiseDevice({ sizeBytes: blocksEnd + FOOTER_BYTES, locate })
}

/** Sets the bits of ranges of the block that starts at `start` of the disk: one a sector, the highest of a byte first. */
function setBits(bitmap: Uint8Array, start: number, ranges: Iterable<DiskRange>): void {
  for (const { offset, length } of ranges) {
    const end = Math.ceil((offset + length - start) / SECTOR_BYTES)
    for (let sector = Math.floor((offset - start) / SECTOR_BYTES); sector < end; sector++) bitmap[sector >>> 3] |= 0x80 >>> (sector & 7)
  }
}

/** Bytes of the disk in the image: whole sectors. */
function diskBytesOf(disk: BlockDevice): number {
  const sizeBytes = roundUp(disk.sizeBytes, SECTOR_BYTES)
  checkSize(sizeBytes)
  return sizeBytes
}

/** Bytes of the disk, and zeroes behind it. */
function diskPiece(disk: BlockDevice, offset: number, length: number): Piece {
  if (offset >= disk.sizeBytes) return { length, at: 0, type: 'hole' }
  return { length: Math.min(length, disk.sizeBytes - offset), source: disk, at: offset }
}
