/**
 * BlockAllocator: gives out the free blocks of a Geometry in order, so that what is asked for one after the other
 * lies one after the other. Nothing is given back, and nothing is skipped: all blocks below `position` are in use.
 */
import { VarveError } from '../../errors.ts'
import type { Extents } from './extents.ts'
import type { Geometry } from './geometry.ts'

export class BlockAllocator {
  readonly #starts: number[]
  readonly #ends: number[]
  #run = 0
  #position: number
  #allocated = 0

  constructor(geometry: Geometry) {
    this.#starts = geometry.freeStarts
    this.#ends = geometry.freeEnds
    this.#position = this.#starts[0] ?? 0
  }

  /** First block that was not given out. */
  get position(): number {
    return this.#position
  }

  /** Blocks given out. */
  get allocated(): number {
    return this.#allocated
  }

  /**
   * Appends `count` blocks to `into`, as the blocks of a file from `logical` on.
   * @throws VarveError DISK_TOO_SMALL; the caller adds how much is needed
   */
  allocate(count: number, logical: number, into: Extents): void {
    let left = count
    let at = logical
    while (left > 0) {
      if (this.#run === this.#starts.length) throw new VarveError('DISK_TOO_SMALL', 'the disk is full')
      const length = Math.min(left, this.#ends[this.#run] - this.#position)
      into.add(at, length, this.#position)
      this.#position += length
      at += length
      left -= length
      if (this.#position === this.#ends[this.#run]) {
        this.#run++
        if (this.#run < this.#starts.length) this.#position = this.#starts[this.#run]
      }
    }
    this.#allocated += count
  }
}
