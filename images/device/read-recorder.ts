/**
 * ReadRecorder: notes which chunks of a disk's block map are read: each chunk's first use, in order, while a boot is recorded, and which chunks are
 * used at all between one report and the next, where reads are many from a sample of them.
 */
import type { BlockMap } from '../blockmap/block-map.ts'
import { SPECIAL_MIN } from '../blockmap/extent-columns.ts'

/** First uses that are noted of one boot; the rest of a longer one is not. */
export const BOOT_CHUNKS_MAX = 1 << 18
/** Of a reader that is faster than READS_EACH_TURN, one read in so many is looked at. */
export const READS_PER_SAMPLE = 16
/** So many reads are all looked at until the next `turn`: more than a person's machine reads in a second, and nothing beside what a fast reader costs. */
export const READS_EACH_TURN = 2000

/** What one boot first used, in order. */
export interface BootRecord {
  /** Numbers of chunks of the map, none twice. */
  chunks: Uint32Array
  /** By place in `chunks`: time since the first of them, ms. */
  timesMs: Float32Array
  /** True if it used more than BOOT_CHUNKS_MAX. */
  cut: boolean
}

export class ReadRecorder {
  readonly map: BlockMap
  #boot: BootNotes | undefined
  #left = READS_EACH_TURN
  #untilSample = READS_PER_SAMPLE
  /** By chunk: 1 if it was used since that was last taken. */
  readonly #used: Uint8Array

  constructor(map: BlockMap) {
    this.map = map
    this.#used = new Uint8Array(map.chunkCount)
  }

  /** Notes first uses from now on, as of a boot that begins. */
  beginBoot(): void {
    this.#boot = new BootNotes(this.map.chunkCount)
  }

  /** What is noted so far; undefined if no boot is recorded. A view: it is good until the next read. */
  get boot(): BootRecord | undefined {
    return this.#boot?.record
  }

  /** When a chunk was last used for the first time, ms of `performance.now()`; undefined before the first, and if no boot is recorded. */
  get firstUseMs(): number | undefined {
    return this.#boot?.lastMs
  }

  /** Notes no more of the boot. @returns what it used; undefined if none was recorded */
  endBoot(): BootRecord | undefined {
    const record = this.#boot?.record
    this.#boot = undefined
    return record
  }

  /** Numbers of the chunks that were used since they were last taken, ascending. */
  takeUsed(): Uint32Array {
    const chunks: number[] = []
    for (let chunk = this.#used.indexOf(1); chunk >= 0; chunk = this.#used.indexOf(1, chunk + 1)) chunks.push(chunk)
    this.#used.fill(0)
    return Uint32Array.from(chunks)
  }

  /** A second has passed, or so. */
  turn(): void {
    this.#left = READS_EACH_TURN
  }

  /** @param offset inside the disk: the device has checked it */
  note(offset: number, length: number): void {
    const isLookedAt = this.#isLookedAt()
    if ((!isLookedAt && this.#boot === undefined) || length === 0) return
    const { starts, refs } = this.map
    const end = offset + length
    for (let index = this.map.indexAt(offset); index < starts.length && starts[index] < end; index++) {
      const chunk = refs[index]
      if (chunk >= SPECIAL_MIN) continue
      this.#boot?.note(chunk)
      if (isLookedAt) this.#used[chunk] = 1
    }
  }

  #isLookedAt(): boolean {
    if (this.#left > 0) {
      this.#left--
      return true
    }
    if (--this.#untilSample > 0) return false
    this.#untilSample = READS_PER_SAMPLE
    return true
  }
}

/** All memory is there from the start: a read allocates nothing. */
class BootNotes {
  readonly #used: Uint32Array
  readonly #chunks: Uint32Array
  readonly #timesMs: Float32Array
  #count = 0
  #startMs = 0
  #cut = false
  lastMs: number | undefined

  constructor(chunkCount: number) {
    const room = Math.min(chunkCount, BOOT_CHUNKS_MAX)
    this.#used = new Uint32Array(Math.ceil(chunkCount / 32))
    this.#chunks = new Uint32Array(room)
    this.#timesMs = new Float32Array(room)
  }

  note(chunk: number): void {
    const bit = 1 << (chunk & 31)
    if ((this.#used[chunk >>> 5] & bit) !== 0) return
    this.#used[chunk >>> 5] |= bit
    this.lastMs = performance.now()
    if (this.#count === 0) this.#startMs = this.lastMs
    if (this.#count === this.#chunks.length) {
      this.#cut = true
      return
    }
    this.#timesMs[this.#count] = this.lastMs - this.#startMs
    this.#chunks[this.#count++] = chunk
  }

  get record(): BootRecord {
    return { chunks: this.#chunks.subarray(0, this.#count), timesMs: this.#timesMs.subarray(0, this.#count), cut: this.#cut }
  }
}
