/**
 * StoredBlocks: which blocks of a disk a computed image stores, and in which order: as runs of neighbours, a few bytes each, so that tables of blocks
 * are computed where they are read.
 */
import type { BlockDevice, ExtentType } from '../device/block-device.ts'
import { ChangedRuns } from '../device/changed-runs.ts'
import type { Piece } from '../device/piecewise-device.ts'
import { lastUpTo } from './ordered-keys.ts'

/** Extents of a disk that are looked at together. */
const EXTENTS_AT_ONCE = 256

/** Bytes of a disk. */
export interface DiskRange {
  offset: number
  /** At least 1. */
  length: number
}

/** What of a range of a disk is of a type, in order. */
export function* rangesOf(disk: BlockDevice, type: ExtentType, offset: number, length: number): Generator<DiskRange, void> {
  const end = offset + length
  for (let at = offset; at < end;) {
    for (const extent of disk.extents(at, end - at, EXTENTS_AT_ONCE)) {
      if (extent.type === type) yield extent
      at = extent.offset + extent.length
    }
  }
}

/** What of a range of a disk is data, in order. */
export function dataRanges(disk: BlockDevice, offset: number, length: number): Generator<DiskRange, void> {
  return rangesOf(disk, 'data', offset, length)
}

/** Neighbouring blocks. */
export interface BlockRun {
  first: number
  count: number
  /** Place of the first among all that are stored. */
  rank: number
}

export class StoredBlocks {
  readonly count: number
  /** First block and end of each run, alternating. */
  readonly #runs: Float64Array
  /** Blocks in all runs before each. */
  readonly #ranks: Float64Array

  readonly #blockBytes: number

  /** @param ranges of the disk, in any order: every block that has a part of one is stored */
  constructor(ranges: Iterable<DiskRange>, blockBytes: number) {
    const runs = new ChangedRuns()
    for (const { offset, length } of ranges) {
      const first = Math.floor(offset / blockBytes)
      runs.add(first, Math.ceil((offset + length) / blockBytes) - first)
    }
    this.#blockBytes = blockBytes
    this.#runs = runs.take()
    this.#ranks = new Float64Array(this.#runs.length / 2)
    let count = 0
    for (let index = 0; index < this.#ranks.length; index++) {
      this.#ranks[index] = count
      count += this.#runs[2 * index + 1] - this.#runs[2 * index]
    }
    this.count = count
  }

  /** The block at a place, below `count`. */
  blockAt(rank: number): number {
    const index = lastUpTo(this.#ranks, rank)
    return this.#runs[2 * index] + rank - this.#ranks[index]
  }

  /** Where the stored blocks stand one behind the other, in order: bytes from `offset` on. What the last block has behind the disk's end is a hole. */
  piece(disk: BlockDevice, offset: number, length: number): Piece {
    const rank = Math.floor(offset / this.#blockBytes)
    const index = lastUpTo(this.#ranks, rank)
    const at = offset + (this.#runs[2 * index] - this.#ranks[index]) * this.#blockBytes
    const runLength = Math.min(length, this.#runs[2 * index + 1] * this.#blockBytes - at)
    if (at >= disk.sizeBytes) return { length: runLength, at: 0, type: 'hole' }
    return { length: Math.min(runLength, disk.sizeBytes - at), source: disk, at }
  }

  /** What is stored of blocks `first` .. `end` - 1, in order. */
  *runs(first: number, end: number): Generator<BlockRun, void> {
    for (let index = Math.max(0, lastUpTo(this.#runs, first, 2)); index < this.#ranks.length && this.#runs[2 * index] < end; index++) {
      const from = Math.max(first, this.#runs[2 * index])
      const count = Math.min(end, this.#runs[2 * index + 1]) - from
      if (count > 0) yield { first: from, count, rank: this.#ranks[index] + from - this.#runs[2 * index] }
    }
  }

  /** What of a range of the disk is stored, in order. */
  *ranges(offset: number, length: number): Generator<DiskRange, void> {
    const end = offset + length
    for (const { first, count } of this.runs(Math.floor(offset / this.#blockBytes), Math.ceil(end / this.#blockBytes))) {
      const from = Math.max(offset, first * this.#blockBytes)
      yield { offset: from, length: Math.min(end, (first + count) * this.#blockBytes) - from }
    }
  }
}
