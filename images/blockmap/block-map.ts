/**
 * BlockMap: which chunk backs each extent of a disk. Immutable, in columns; millions of extents are common.
 * Writes go to ../device/overlay-device.ts. Bytes: docs/formats/block-map.md
 */
import { DIGEST_BYTES } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import { decodeBlockMap, encodeBlockMap, EXTENTS_MAX } from './block-map-format.ts'
import type { BlockMapColumns } from './block-map-format.ts'
import { ChunkTable, digestWords } from '../chunk/chunk-table.ts'
import { BELOW, ExtentColumns, HOLE, SPECIAL_MIN, ZERO } from './extent-columns.ts'
import { sortedOrder } from './sorted-order.ts'

export { BELOW, HOLE, SPECIAL_MIN, ZERO } from './extent-columns.ts'
export { EXTENTS_MAX } from './block-map-format.ts'

export class BlockMap {
  /** Bytes of the disk, 0 .. 2^53 - 1. */
  readonly sizeBytes: number

  // Columns by extent. Extents are ordered, not empty, and cover the disk; neighbours that continue each other are one extent.
  /** First byte of each extent; it ends where the next starts, the last at sizeBytes. */
  readonly starts: Float64Array
  /** Chunk number (below SPECIAL_MIN), or HOLE, ZERO or, in a partial map, BELOW. */
  readonly refs: Uint32Array
  /** First byte inside the chunk; 0 where there is none. */
  readonly chunkOffsets: Uint32Array

  // Columns by chunk. Chunks are numbered in the order in which extents first use them; each digest stands here once.
  /** 32 bytes a chunk. */
  readonly chunkDigests: Uint8Array
  /** Bytes of each whole chunk. */
  readonly chunkBytes: Uint32Array

  /** True if some extent is BELOW: such a map is only good as the upper one of `overlay`. */
  readonly partial: boolean

  /** Takes the columns as they are: only this room, which has checked them, calls this. */
  constructor(columns: BlockMapColumns) {
    this.sizeBytes = columns.sizeBytes
    this.starts = columns.starts
    this.refs = columns.refs
    this.chunkOffsets = columns.chunkOffsets
    this.chunkDigests = columns.chunkDigests
    this.chunkBytes = columns.chunkBytes
    this.partial = columns.refs.includes(BELOW)
  }

  /** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
  static decode(bytes: Uint8Array): BlockMap {
    return new BlockMap(decodeBlockMap(bytes))
  }

  /**
   * The disk that shows `upper` where it is not BELOW, and `lower` elsewhere. Linear in their extents.
   * @throws VarveError FORMAT_INVALID if the two disagree about a chunk
   */
  static overlay(lower: BlockMap, upper: BlockMap): BlockMap {
    if (lower.sizeBytes !== upper.sizeBytes) throw new RangeError(`a map of ${upper.sizeBytes} bytes over one of ${lower.sizeBytes} bytes`)
    const chunks = new ChunkTable(lower.chunkCount + upper.chunkCount)
    const extents = new ExtentColumns(lower.extentCount + upper.extentCount)
    const fromLower = new Appender(lower, chunks, extents)
    const fromUpper = new Appender(upper, chunks, extents)
    for (let index = 0, below = 0; index < upper.extentCount; index++) {
      const end = upper.endOf(index)
      if (upper.refs[index] !== BELOW) {
        fromUpper.append(index, end)
        continue
      }
      while (lower.endOf(below) <= extents.end) below++
      for (; extents.end < end; below++) fromLower.append(below, Math.min(end, lower.endOf(below)))
      below--
    }
    return new BlockMap({ sizeBytes: lower.sizeBytes, ...checkCount(extents.columns()), ...chunks.columns() })
  }

  /** The disk cut short, or with a hole at its end. */
  static resized(map: BlockMap, sizeBytes: number): BlockMap {
    if (map.sizeBytes === sizeBytes) return map
    const chunks = new ChunkTable(map.chunkCount)
    const extents = new ExtentColumns(map.extentCount + 1)
    const appender = new Appender(map, chunks, extents)
    for (let index = 0; index < map.extentCount && map.starts[index] < sizeBytes; index++) appender.append(index, Math.min(map.endOf(index), sizeBytes))
    extents.append(sizeBytes - extents.end, HOLE, 0)
    return new BlockMap({ sizeBytes, ...checkCount(extents.columns()), ...chunks.columns() })
  }

  /** Canonical: the same extents give the same bytes. */
  encode(): Uint8Array {
    return encodeBlockMap(this)
  }

  get extentCount(): number {
    return this.refs.length
  }

  get chunkCount(): number {
    return this.chunkBytes.length
  }

  /** 32 bytes, a view. */
  chunkDigest(chunk: number): Digest {
    return this.chunkDigests.subarray(chunk * DIGEST_BYTES, (chunk + 1) * DIGEST_BYTES)
  }

  /** Where an extent ends, bytes. */
  endOf(index: number): number {
    return index + 1 < this.starts.length ? this.starts[index + 1] : this.sizeBytes
  }

  /** Number of the extent that holds the byte at `offset`, which is inside the disk. */
  indexAt(offset: number): number {
    const starts = this.starts
    let low = 0
    let high = starts.length
    while (high - low > 1) {
      const middle = (low + high) >>> 1
      if (starts[middle] <= offset) low = middle
      else high = middle
    }
    return low
  }

  /** Bytes of the disk that are backed by chunks. */
  get dataBytes(): number {
    let sum = 0
    for (let index = 0; index < this.refs.length; index++) if (this.refs[index] < SPECIAL_MIN) sum += this.endOf(index) - this.starts[index]
    return sum
  }
}

/** @throws VarveError LIMIT_EXCEEDED */
export function checkCount<Columns extends { starts: Float64Array }>(columns: Columns): Columns {
  if (columns.starts.length > EXTENTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `block map: ${columns.starts.length} extents are more than ${EXTENTS_MAX}`)
  return columns
}

/** Copies extents of one map to the columns of another, and numbers its chunks anew as they are used. */
class Appender {
  readonly #map: BlockMap
  readonly #chunks: ChunkTable
  readonly #extents: ExtentColumns
  readonly #numbers: Int32Array
  readonly #words: Uint32Array

  constructor(map: BlockMap, chunks: ChunkTable, extents: ExtentColumns) {
    this.#map = map
    this.#chunks = chunks
    this.#extents = extents
    this.#numbers = new Int32Array(map.chunkCount).fill(-1)
    this.#words = digestWords(map.chunkDigests)
  }

  /** The part of an extent from where the columns end to `end`. */
  append(index: number, end: number): void {
    const { starts, refs, chunkOffsets } = this.#map
    const from = this.#extents.end
    const ref = refs[index]
    if (ref >= SPECIAL_MIN) this.#extents.append(end - from, ref, 0)
    else this.#extents.append(end - from, this.#number(ref), chunkOffsets[index] + from - starts[index])
  }

  #number(chunk: number): number {
    let number = this.#numbers[chunk]
    if (number < 0) {
      number = this.#chunks.addFrom(this.#words, chunk, this.#map.chunkBytes[chunk])
      this.#numbers[chunk] = number
    }
    return number
  }
}

/** Collects extents in any order and gives the canonical BlockMap. Mistakes are the caller's bugs: RangeError. */
export class BlockMapBuilder {
  readonly #sizeBytes: number
  readonly #unmentioned: number
  readonly #chunks = new ChunkTable()
  #count = 0
  #starts = new Float64Array(64)
  #lengths = new Float64Array(64)
  #refs = new Uint32Array(64)
  #chunkOffsets = new Uint32Array(64)

  /** @param options.unmentioned what no extent covers: HOLE, or BELOW for a partial map */
  constructor(sizeBytes: number, { unmentioned = HOLE }: { unmentioned?: typeof HOLE | typeof BELOW } = {}) {
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) throw new RangeError(`a disk of ${sizeBytes} bytes`)
    this.#sizeBytes = sizeBytes
    this.#unmentioned = unmentioned
  }

  /** Number of a chunk, for `data`; the same for the same digest. @param bytes length of the whole chunk */
  addChunk(digest: Digest, bytes: number): number {
    if (digest.length !== DIGEST_BYTES || !Number.isInteger(bytes) || bytes < 1 || bytes > CHUNK_BYTES_MAX) {
      throw new RangeError(`a chunk of ${bytes} bytes with a digest of ${digest.length} bytes`)
    }
    return this.#chunks.add(digest, bytes)
  }

  /** `length` bytes of a chunk from `chunkOffset` inside it, at `offset` of the disk. */
  data(offset: number, length: number, chunk: number, chunkOffset: number): void {
    if (!(chunk < this.#chunks.count) || !(chunkOffset >= 0) || !(chunkOffset + length <= this.#chunks.bytes(chunk))) {
      throw new RangeError(`${chunkOffset}+${length} of chunk ${chunk} is not inside it`)
    }
    this.#add(offset, length, chunk, chunkOffset)
  }

  /** Written as zeroes. */
  zero(offset: number, length: number): void {
    this.#add(offset, length, ZERO, 0)
  }

  /** Not allocated; only of use where what is not mentioned is BELOW. */
  hole(offset: number, length: number): void {
    this.#add(offset, length, HOLE, 0)
  }

  /** @throws RangeError if extents overlap; VarveError LIMIT_EXCEEDED */
  build(): BlockMap {
    const order = sortedOrder(this.#starts.subarray(0, this.#count))
    const used = new Uint32Array(this.#chunks.count)
    let usedCount = 0
    const numbers = new Int32Array(this.#chunks.count).fill(-1)
    const extents = new ExtentColumns(this.#count * 2)
    for (const index of order) {
      const start = this.#starts[index]
      if (start < extents.end) throw new RangeError(`two extents hold the byte at ${start}`)
      extents.append(start - extents.end, this.#unmentioned, 0)
      let ref = this.#refs[index]
      if (ref < SPECIAL_MIN) {
        if (numbers[ref] < 0) {
          used[usedCount] = ref
          numbers[ref] = usedCount++
        }
        ref = numbers[ref]
      }
      extents.append(this.#lengths[index], ref, this.#chunkOffsets[index])
    }
    extents.append(this.#sizeBytes - extents.end, this.#unmentioned, 0)
    return new BlockMap({ sizeBytes: this.#sizeBytes, ...checkCount(extents.columns()), ...this.#chunks.columnsOf(used.subarray(0, usedCount)) })
  }

  #add(offset: number, length: number, ref: number, chunkOffset: number): void {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || offset + length > this.#sizeBytes) {
      throw new RangeError(`extent ${offset}+${length} is outside a disk of ${this.#sizeBytes} bytes`)
    }
    if (length === 0) return
    if (this.#count === this.#refs.length) this.#grow()
    const at = this.#count++
    this.#starts[at] = offset
    this.#lengths[at] = length
    this.#refs[at] = ref
    this.#chunkOffsets[at] = chunkOffset
  }

  #grow(): void {
    const room = this.#refs.length * 2
    const starts = new Float64Array(room)
    const lengths = new Float64Array(room)
    const refs = new Uint32Array(room)
    const chunkOffsets = new Uint32Array(room)
    starts.set(this.#starts)
    lengths.set(this.#lengths)
    refs.set(this.#refs)
    chunkOffsets.set(this.#chunkOffsets)
    this.#starts = starts
    this.#lengths = lengths
    this.#refs = refs
    this.#chunkOffsets = chunkOffsets
  }
}
