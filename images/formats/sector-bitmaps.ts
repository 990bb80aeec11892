/**
 * Sector bitmaps of an image's blocks: which sectors it holds itself. Kept in memory, so that extents are told at once; what is whole takes no room.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import { VarveError } from '../errors.ts'

/** Of all bitmaps that are kept: those of 1 TiB of blocks that are all held in part, at 512 bytes a sector. */
const BITMAPS_BYTES_MAX = 256 << 20
const READS_AT_ONCE = 64

export interface SectorRun {
  /** True if the image holds these sectors. */
  present: boolean
  /** At least 1. */
  count: number
}

export class SectorBitmaps {
  readonly #highBitFirst: boolean
  /** By block; whole ones are not there. */
  readonly #partial = new Map<number, Uint8Array>()
  #bytesKept = 0

  /** @param options.highBitFirst whether the first sector is the highest bit of a byte, as in VHD, or the lowest, as in VHDX */
  constructor({ highBitFirst }: { highBitFirst: boolean }) {
    this.#highBitFirst = highBitFirst
  }

  /**
   * Reads bitmaps of one length.
   * @param places of each: number of the block, and where in the file its bitmap is
   * @throws VarveError LIMIT_EXCEEDED, and what reading throws
   */
  async load(file: ReadableDisk, places: Iterable<{ block: number; offset: number }>, bytes: number): Promise<void> {
    let reads: Promise<void>[] = []
    try {
      for (const { block, offset } of places) {
        const bitmap = new Uint8Array(bytes)
        const answer = file.read(bitmap, offset)
        if (answer instanceof Promise) reads.push(answer.then(() => this.#keep(block, bitmap)))
        else this.#keep(block, bitmap)
        if (reads.length < READS_AT_ONCE) continue
        await Promise.all(reads)
        reads = []
      }
      await Promise.all(reads)
    } finally {
      await Promise.allSettled(reads)
    }
  }

  /** The sectors of a block from `sector` on that are alike, up to `most`. */
  run(block: number, sector: number, most: number): SectorRun {
    const bitmap = this.#partial.get(block)
    if (bitmap === undefined) return { present: true, count: most }
    const present = this.#has(bitmap, sector)
    const whole = present ? 0xff : 0
    let end = sector + 1
    while (end < sector + most) {
      if (end % 8 === 0 && bitmap[end >>> 3] === whole) end += 8
      else if (this.#has(bitmap, end) === present) end++
      else break
    }
    return { present, count: Math.min(end - sector, most) }
  }

  #has(bitmap: Uint8Array, sector: number): boolean {
    const bit = sector & 7
    return (bitmap[sector >>> 3] & (this.#highBitFirst ? 0x80 >>> bit : 1 << bit)) !== 0
  }

  #keep(block: number, bitmap: Uint8Array): void {
    if (bitmap.every((byte) => byte === 0xff)) return
    this.#bytesKept += bitmap.length
    if (this.#bytesKept > BITMAPS_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the image holds more blocks in part than ${BITMAPS_BYTES_MAX} bytes of sector bitmaps tell of; merge it with its parent first`)
    this.#partial.set(block, bitmap)
  }
}
