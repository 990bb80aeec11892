/**
 * Runs of sectors that changed: collected in any order, taken out in order.
 */
import { sortedOrder } from '../blockmap/sorted-order.ts'

/** Runs of sectors. */
export class ChangedRuns {
  #count = 0
  #firsts = new Float64Array(64)
  #counts = new Float64Array(64)

  get count(): number {
    return this.#count
  }

  add(first: number, count: number): void {
    const last = this.#count - 1
    if (last >= 0 && first >= this.#firsts[last] && first <= this.#firsts[last] + this.#counts[last]) {
      this.#counts[last] = Math.max(this.#counts[last], first + count - this.#firsts[last])
      return
    }
    if (this.#count === this.#firsts.length) this.#grow()
    this.#firsts[this.#count] = first
    this.#counts[this.#count++] = count
  }

  /** Takes the runs out, ordered, and those that touch made one: first sector and end of each, alternating. */
  take(): Float64Array {
    const order = sortedOrder(this.#firsts.subarray(0, this.#count))
    const runs = new Float64Array(order.length * 2)
    let length = 0
    for (const index of order) {
      const first = this.#firsts[index]
      const end = first + this.#counts[index]
      if (length > 0 && first <= runs[length - 1]) {
        runs[length - 1] = Math.max(runs[length - 1], end)
      } else {
        runs[length++] = first
        runs[length++] = end
      }
    }
    this.#count = 0
    if (this.#firsts.length > 65_536) {
      this.#firsts = new Float64Array(64)
      this.#counts = new Float64Array(64)
    }
    return runs.subarray(0, length)
  }

  /** Puts back what `take` gave. */
  putBack(runs: Float64Array): void {
    for (let index = 0; index < runs.length; index += 2) this.add(runs[index], runs[index + 1] - runs[index])
  }

  #grow(): void {
    const firsts = new Float64Array(this.#firsts.length * 2)
    firsts.set(this.#firsts)
    this.#firsts = firsts
    const counts = new Float64Array(this.#counts.length * 2)
    counts.set(this.#counts)
    this.#counts = counts
  }
}
