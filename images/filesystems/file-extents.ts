/**
 * Extents of a file: which one holds an offset, and content that is read from where they lie.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import type { FileExtent } from './filesystem.ts'

/** An extent whose bytes stand on the volume. */
export interface PlacedExtent extends FileExtent {
  diskOffset: number
}

/** Index of the first extent that ends behind `offset`; the number of extents if none does. */
export function extentAfter(extents: readonly FileExtent[], offset: number): number {
  let low = 0
  for (let high = extents.length; low < high;) {
    const middle = (low + high) >>> 1
    if (extents[middle].fileOffset + extents[middle].length > offset) high = middle
    else low = middle + 1
  }
  return low
}

/** Fills `into` with what a file has at `offset`; what no extent covers is zero. @param extents may reach beyond the end of the file; `into` does not */
export async function readPlaced(volume: ReadableDisk, extents: readonly PlacedExtent[], into: Uint8Array, offset: number): Promise<void> {
  const end = offset + into.length
  let done = offset
  for (let index = extentAfter(extents, offset); index < extents.length && extents[index].fileOffset < end; index++) {
    const { fileOffset, diskOffset, length } = extents[index]
    const from = Math.max(offset, fileOffset)
    const to = Math.min(end, fileOffset + length)
    into.fill(0, done - offset, from - offset)
    const pending = volume.read(into.subarray(from - offset, to - offset), diskOffset + from - fileOffset)
    if (pending !== undefined) await pending
    done = to
  }
  into.fill(0, done - offset)
}
