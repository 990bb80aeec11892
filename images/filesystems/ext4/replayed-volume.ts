/**
 * ReplayedVolume: a volume as it is after its journal was replayed, without writing to it: blocks that the journal holds are read from there.
 */
import { checkRange } from '../../device/block-device.ts'
import type { DeviceExtent, ReadableDisk } from '../../device/block-device.ts'

/** A block as the journal holds it. */
export interface JournaledBlock {
  /** Where its copy is, bytes from the start of the volume. */
  copyAt: number
  /** It begins with the magic number of the journal, which stands as zeroes there. */
  isEscaped: boolean
}

/** Big-endian, of all blocks that the journal itself consists of. */
export const JOURNAL_MAGIC = 0xc03b3998

export class ReplayedVolume implements ReadableDisk {
  readonly sizeBytes: number
  readonly extents: ReadableDisk['extents']
  readonly #volume: ReadableDisk
  readonly #blockBytes: number
  readonly #blocks: ReadonlyMap<number, JournaledBlock>
  /** Numbers of the blocks, sorted. */
  readonly #numbers: Float64Array

  /** @param volume borrowed @param blocks by number */
  constructor(volume: ReadableDisk, blockBytes: number, blocks: ReadonlyMap<number, JournaledBlock>) {
    this.#volume = volume
    this.sizeBytes = volume.sizeBytes
    this.#blockBytes = blockBytes
    this.#blocks = blocks
    this.#numbers = Float64Array.from(blocks.keys()).sort()
    if (volume.extents !== undefined) this.extents = (offset, length, most) => this.#extents(offset, length, most)
  }

  /** Numbers of the blocks of a range that are in the journal, in order. */
  journaled(offset: number, length: number): Float64Array {
    const first = this.#indexOf(Math.floor(offset / this.#blockBytes))
    return this.#numbers.subarray(first, this.#indexOf(Math.ceil((offset + length) / this.#blockBytes), first))
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    checkRange(this, offset, into.length)
    const pending = this.#volume.read(into, offset)
    const numbers = this.journaled(offset, into.length)
    return numbers.length === 0 ? pending : this.#replace(pending, into, offset, numbers)
  }

  async #replace(pending: void | Promise<void>, into: Uint8Array, offset: number, numbers: Float64Array): Promise<void> {
    await pending
    const block = Buffer.alloc(this.#blockBytes)
    for (const number of numbers) {
      const { copyAt, isEscaped } = this.#blocks.get(number)!
      await this.#volume.read(block, copyAt)
      if (isEscaped) block.writeUInt32BE(JOURNAL_MAGIC)
      const at = number * this.#blockBytes - offset
      into.set(block.subarray(Math.max(0, -at), Math.min(block.length, into.length - at)), Math.max(0, at))
    }
  }

  /** A journaled block holds data, whatever its place holds. */
  #extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    const extents: DeviceExtent[] = []
    const end = offset + length
    for (let at = offset; at < end && extents.length < most;) {
      const [number] = this.journaled(at, end - at)
      const start = number === undefined ? end : Math.max(at, number * this.#blockBytes)
      if (start > at) {
        const [extent] = this.#volume.extents!(at, start - at, 1)
        extents.push(extent)
        at += extent.length
      } else {
        const stop = Math.min(end, (number + 1) * this.#blockBytes)
        extents.push({ offset: at, length: stop - at, type: 'data' })
        at = stop
      }
    }
    return extents
  }

  /** Index of the first block of at least this number. */
  #indexOf(number: number, from = 0): number {
    let low = from
    for (let high = this.#numbers.length; low < high;) {
      const middle = (low + high) >>> 1
      if (this.#numbers[middle] < number) low = middle + 1
      else high = middle
    }
    return low
  }
}
