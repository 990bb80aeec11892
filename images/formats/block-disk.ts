/**
 * The disk inside an image that keeps it in blocks of one size, some of them in part, over the disk of a parent: VHD and VHDX.
 */
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'
import { PiecewiseDevice } from '../device/piecewise-device.ts'
import type { Piece } from '../device/piecewise-device.ts'
import type { SectorBitmaps } from './sector-bitmaps.ts'

/** Place of a block that the file does not hold: what lies below shows through, or it reads as zeroes. */
export const PLACE = { below: -1, hole: -2, zero: -3 } as const
/** Blocks that one piece may join, so that finding it takes bounded time. */
const BLOCKS_JOINED_MAX = 1 << 16

export interface BlockDiskOptions {
  file: ReadableDisk
  sizeBytes: number
  blockBytes: number
  sectorBytes: number
  /** Where in the file a block's data begins, or one of PLACE. */
  placeOf: (block: number) => number
  /** Of the blocks that the file holds. */
  bitmaps: SectorBitmaps
  parent?: BlockDevice
  /** Closes all of it. */
  close: () => Promise<void>
}

export function blockDisk({ file, sizeBytes, blockBytes, sectorBytes, placeOf, bitmaps, parent, close }: BlockDiskOptions): BlockDevice {
  const absent = (place: number, offset: number, length: number): Piece => {
    if (place === PLACE.zero) return { length, at: 0, type: 'zero' }
    if (place === PLACE.hole || parent === undefined || offset >= parent.sizeBytes) return { length, at: 0, type: 'hole' }
    return { length: Math.min(length, parent.sizeBytes - offset), source: parent, at: offset }
  }
  const locate = (offset: number, length: number): Piece => {
    const block = Math.floor(offset / blockBytes)
    const from = offset - block * blockBytes
    const place = placeOf(block)
    if (place < 0) {
      let end = block + 1
      while (end * blockBytes < offset + length && end - block < BLOCKS_JOINED_MAX && placeOf(end) === place) end++
      return absent(place, offset, Math.min(length, end * blockBytes - offset))
    }
    const inBlock = Math.min(length, blockBytes - from)
    const sector = Math.floor(from / sectorBytes)
    const { present, count } = bitmaps.run(block, sector, Math.ceil((from + inBlock) / sectorBytes) - sector)
    const alike = Math.min(inBlock, (sector + count) * sectorBytes - from)
    return present ? { length: alike, source: file, at: place + from, type: 'data' } : absent(PLACE.below, offset, alike)
  }
  return new PiecewiseDevice({ sizeBytes, locate, close })
}
