/**
 * Sequential readers of a disk: which reads go on where an earlier one ended, and what is to be read ahead of them.
 */

/** Readers that are told apart; more than one connection, and more than one file, are read at once. */
const READERS_MAX = 8
/** Bytes read one after another that make a reader sequential. */
const SEQUENTIAL_BYTES = 256 << 10
/** How far ahead of a sequential reader the disk is read; asked for when half of it is left. */
export const READ_AHEAD_BYTES = 8 << 20

export class SequentialReaders {
  /** By reader: where its next read would start, how much it has read in a row, and up to where has been read ahead. */
  readonly #next = new Float64Array(READERS_MAX).fill(-1)
  readonly #rowBytes = new Float64Array(READERS_MAX)
  readonly #ahead = new Float64Array(READERS_MAX)
  #oldest = 0

  /**
   * Notes a read.
   * @returns from where on READ_AHEAD_BYTES from the read's end are to be read ahead, or -1
   */
  note(offset: number, length: number): number {
    const end = offset + length
    const reader = this.#next.indexOf(offset)
    if (reader < 0) {
      this.#next[this.#oldest] = end
      this.#rowBytes[this.#oldest] = length
      this.#ahead[this.#oldest] = end
      this.#oldest = (this.#oldest + 1) % READERS_MAX
      return -1
    }
    this.#next[reader] = end
    this.#rowBytes[reader] += length
    const from = Math.max(this.#ahead[reader], end)
    if (this.#rowBytes[reader] < SEQUENTIAL_BYTES || from - end > READ_AHEAD_BYTES / 2) return -1
    this.#ahead[reader] = end + READ_AHEAD_BYTES
    return from
  }
}
