/**
 * Parts of a computed image file that are not the disk's own bytes: headers in memory, tables whose entries are computed where they are read,
 * and unique ids that follow from what the image holds.
 */
import { DigestStream } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'
import type { Piece } from '../device/piecewise-device.ts'

const EXTENTS_AT_ONCE = 1024

/** What names a disk whose image is computed. */
export interface ComputeOptions {
  /** Digest of the disk's content, which its unique ids follow from; without it, they follow from its size and extents. */
  digest?: Digest
}

/** Unique id of a disk in an image: 16 bytes. @param purpose tells ids of one image apart */
export function uniqueId(digest: Digest, purpose: string): Uint8Array {
  const stream = new DigestStream()
  stream.update(Buffer.from(`varve disk image ${purpose}\0`))
  stream.update(digest)
  return stream.end().slice(0, 16)
}

/** What stands for a disk whose digest is not known: its size and where it has data. */
export function layoutDigest(disk: BlockDevice): Digest {
  const stream = new DigestStream()
  stream.update(new Uint8Array(Float64Array.of(disk.sizeBytes).buffer))
  for (let at = 0; at < disk.sizeBytes;) {
    const extents = disk.extents(at, disk.sizeBytes - at, EXTENTS_AT_ONCE)
    const data = extents.filter(({ type }) => type === 'data').flatMap(({ offset, length }) => [offset, length])
    stream.update(new Uint8Array(Float64Array.from(data).buffer))
    const last = extents[extents.length - 1]
    at = last.offset + last.length
  }
  return stream.end()
}

/** The rest of `bytes`, which start at `start` of the file, from `offset` on. */
export function bytesPiece(bytes: Uint8Array, start: number, { offset, length }: { offset: number; length: number }): Piece {
  const source = { sizeBytes: bytes.length, read: (into: Uint8Array, at: number): void => into.set(bytes.subarray(at, at + into.length)) }
  return { length: Math.min(length, start + bytes.length - offset), source, at: offset - start, type: 'data' }
}

/**
 * A table of entries of one size that are computed.
 * @param fill puts entries `first` .. `end` - 1 into `bytes`, which are zeroes
 */
export function computedTable(entryBytes: number, sizeBytes: number, fill: (bytes: Buffer, first: number, end: number) => void): ReadableDisk {
  return {
    sizeBytes,
    read(into, offset) {
      const first = Math.floor(offset / entryBytes)
      const end = Math.ceil((offset + into.length) / entryBytes)
      const bytes = Buffer.alloc((end - first) * entryBytes)
      fill(bytes, first, end)
      const from = offset - first * entryBytes
      into.set(bytes.subarray(from, from + into.length))
    },
  }
}

export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit
}
