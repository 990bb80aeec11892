/**
 * ExtentColumns: extents of a disk from its start to its end, appended in order and joined where neighbours continue each other,
 * so that one sequence of content has one sequence of extents.
 */

/** In `refs`: nothing is allocated; reads as zeroes. */
export const HOLE = 0xffffffff
/** In `refs`: written as zeroes; nothing is stored. */
export const ZERO = 0xfffffffe
/** In `refs` of a partial map: the map says nothing here, what lies below it shows through. */
export const BELOW = 0xfffffffd
/** Refs below this are chunk numbers. */
export const SPECIAL_MIN = 0xfffffff0

export class ExtentColumns {
  #count = 0
  #end = 0
  #starts: Float64Array
  #refs: Uint32Array
  #chunkOffsets: Uint32Array

  /** @param capacity extents expected; it grows as needed */
  constructor(capacity: number) {
    const room = Math.max(capacity, 8)
    this.#starts = new Float64Array(room)
    this.#refs = new Uint32Array(room)
    this.#chunkOffsets = new Uint32Array(room)
  }

  /** Where the next extent starts, bytes. */
  get end(): number {
    return this.#end
  }

  /** Adds an extent at the end. @param chunkOffset 0 unless `ref` is a chunk */
  append(length: number, ref: number, chunkOffset: number): void {
    if (length === 0) return
    const last = this.#count - 1
    const joins = last >= 0 && this.#refs[last] === ref
      && (ref >= SPECIAL_MIN || this.#chunkOffsets[last] + this.#end - this.#starts[last] === chunkOffset)
    if (!joins) {
      if (this.#count === this.#refs.length) this.#grow()
      this.#starts[this.#count] = this.#end
      this.#refs[this.#count] = ref
      this.#chunkOffsets[this.#count] = chunkOffset
      this.#count++
    }
    this.#end += length
  }

  columns(): { starts: Float64Array; refs: Uint32Array; chunkOffsets: Uint32Array } {
    return {
      starts: this.#starts.slice(0, this.#count),
      refs: this.#refs.slice(0, this.#count),
      chunkOffsets: this.#chunkOffsets.slice(0, this.#count),
    }
  }

  #grow(): void {
    const room = this.#refs.length * 2
    const starts = new Float64Array(room)
    starts.set(this.#starts)
    this.#starts = starts
    const refs = new Uint32Array(room)
    refs.set(this.#refs)
    this.#refs = refs
    const chunkOffsets = new Uint32Array(room)
    chunkOffsets.set(this.#chunkOffsets)
    this.#chunkOffsets = chunkOffsets
  }
}
