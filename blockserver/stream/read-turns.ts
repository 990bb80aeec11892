/**
 * Turns of reading: misses are read at once; everything else waits for one of few turns, so that it does not fill the thread pool before them.
 */
import { BACKGROUND_READS_MAX } from './limits.ts'

export class ReadTurns {
  #reading = 0
  readonly #waiting: (() => void)[] = []

  async read<Result>(urgent: boolean, read: () => Promise<Result>): Promise<Result> {
    if (urgent) return read()
    if (this.#reading >= BACKGROUND_READS_MAX) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    else this.#reading++
    try {
      return await read()
    } finally {
      // The turn goes to the next as it is.
      const next = this.#waiting.shift()
      if (next === undefined) this.#reading--
      else next()
    }
  }
}
