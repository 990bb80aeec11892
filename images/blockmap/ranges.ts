/**
 * Ranges: sets of bytes of a disk, as where each run of them starts and ends, alternating: ordered, none empty, none touching the next.
 */
import { sortedOrder } from './sorted-order.ts'

export type Ranges = Float64Array

export const NO_RANGES: Ranges = new Float64Array()

/** All bytes of a disk. */
export function wholeDisk(sizeBytes: number): Ranges {
  return sizeBytes === 0 ? NO_RANGES : Float64Array.of(0, sizeBytes)
}

/** Collects ranges in any order, overlapping or not. */
export class RangesBuilder {
  #count = 0
  #starts = new Float64Array(64)
  #ends = new Float64Array(64)

  /** Ranges that are kept until `build`: a little more than it gives if they do not come in order. */
  get count(): number {
    return this.#count
  }

  add(offset: number, length: number): void {
    if (length <= 0) return
    const last = this.#count - 1
    if (last >= 0 && offset >= this.#starts[last] && offset <= this.#ends[last]) {
      this.#ends[last] = Math.max(this.#ends[last], offset + length)
      return
    }
    if (this.#count === this.#starts.length) {
      this.#starts = grown(this.#starts)
      this.#ends = grown(this.#ends)
    }
    this.#starts[this.#count] = offset
    this.#ends[this.#count++] = offset + length
  }

  addAll(ranges: Ranges): void {
    for (let at = 0; at < ranges.length; at += 2) this.add(ranges[at], ranges[at + 1] - ranges[at])
  }

  build(): Ranges {
    const ranges = new Float64Array(this.#count * 2)
    let length = 0
    for (const index of sortedOrder(this.#starts.subarray(0, this.#count))) {
      if (length > 0 && this.#starts[index] <= ranges[length - 1]) {
        ranges[length - 1] = Math.max(ranges[length - 1], this.#ends[index])
      } else {
        ranges[length++] = this.#starts[index]
        ranges[length++] = this.#ends[index]
      }
    }
    return ranges.slice(0, length)
  }
}

/** Bytes that are in both. */
export function intersection(one: Ranges, other: Ranges): Ranges {
  const both = new RangesBuilder()
  for (let at = 0, otherAt = 0; at < one.length && otherAt < other.length; ) {
    const start = Math.max(one[at], other[otherAt])
    const end = Math.min(one[at + 1], other[otherAt + 1])
    both.add(start, end - start)
    if (one[at + 1] < other[otherAt + 1]) at += 2
    else otherAt += 2
  }
  return both.build()
}

/** Bytes of `from` that are not in `less`. */
export function difference(from: Ranges, less: Ranges): Ranges {
  const left = new RangesBuilder()
  let lessAt = 0
  for (let at = 0; at < from.length; at += 2) {
    let start = from[at]
    const end = from[at + 1]
    while (lessAt < less.length && less[lessAt + 1] <= start) lessAt += 2
    for (let next = lessAt; next < less.length && less[next] < end; next += 2) {
      left.add(start, less[next] - start)
      start = Math.max(start, less[next + 1])
    }
    left.add(start, end - start)
  }
  return left.build()
}

export function union(one: Ranges, other: Ranges): Ranges {
  const all = new RangesBuilder()
  all.addAll(one)
  all.addAll(other)
  return all.build()
}

/** The blocks that hold some of the bytes. @param blockBytes a power of two @param sizeBytes of the disk */
export function aligned(ranges: Ranges, blockBytes: number, sizeBytes: number): Ranges {
  const blocks = new RangesBuilder()
  for (let at = 0; at < ranges.length; at += 2) {
    const start = ranges[at] - (ranges[at] % blockBytes)
    blocks.add(start, Math.min(Math.ceil(ranges[at + 1] / blockBytes) * blockBytes, sizeBytes) - start)
  }
  return blocks.build()
}

/** True if some byte of the range is among them. */
export function touches(ranges: Ranges, offset: number, length: number): boolean {
  // The first range that ends behind the offset.
  let low = 0
  let high = ranges.length / 2
  while (low < high) {
    const middle = (low + high) >>> 1
    if (ranges[2 * middle + 1] <= offset) low = middle + 1
    else high = middle
  }
  return 2 * low < ranges.length && ranges[2 * low] < offset + length
}

/** Bytes of all. */
export function bytesOf(ranges: Ranges): number {
  let sum = 0
  for (let at = 0; at < ranges.length; at += 2) sum += ranges[at + 1] - ranges[at]
  return sum
}

function grown(values: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const twice = new Float64Array(values.length * 2)
  twice.set(values)
  return twice
}
