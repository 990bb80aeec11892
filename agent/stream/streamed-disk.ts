/**
 * Streamed disk: the disk of a block map on a target that is not filled yet. What is not there is wanted, and comes by `install`; what the guest
 * writes stays on the target. It asks for chunks and is given verified ones; where they come from is its owner's affair.
 */
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { SPECIAL_MIN, ZERO } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { appendExtent, checkRange } from '@varve/images/device/block-device.ts'
import type { BlockDevice, DeviceExtent, ExtentType, WriteOptions, WriteZeroesOptions } from '@varve/images/device/block-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import { ChunkPlaces } from './chunk-places.ts'
import { BLOCK_BYTES, blocksOf } from './target.ts'
import type { Target } from './target.ts'

/** Contents of chunks that share a block with others which have not come yet, bytes in all. */
const KEPT_BYTES_MAX = 32 << 20
/** How often blocks are asked for that stay away although their chunks have come. */
const ATTEMPTS_MAX = 4
/** Bytes that are looked at in one go by `verify`, before others have their turn. */
const VERIFY_BYTES = 1 << 20
/** Zeroes that are written in one go. */
const ZEROES_AT_ONCE_BYTES = 16 << 20

export interface StreamedDiskOptions {
  target: Target
  /** Asks for chunks, by number, before all else. Resolves when all of them have been given to `install`. */
  want: (chunks: readonly number[]) => Promise<void>
  /** Called with each range that a guest reads, bytes. */
  noteRead?: (offset: number, length: number) => void
}

export class StreamedDisk implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = BLOCK_BYTES
  readonly readOnly = false
  readonly map: BlockMap
  readonly target: Target
  readonly places: ChunkPlaces
  readonly #want: StreamedDiskOptions['want']
  readonly #noteRead: StreamedDiskOptions['noteRead']
  /** By chunk; the one that came first is first. */
  readonly #kept = new Map<number, Uint8Array>()
  #keptBytes = 0
  #closed = false

  /** The target is borrowed. */
  constructor({ target, want, noteRead }: StreamedDiskOptions) {
    this.target = target
    this.map = target.map
    this.sizeBytes = target.map.sizeBytes
    this.places = new ChunkPlaces(target.map)
    this.#want = want
    this.#noteRead = noteRead
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.#checkOpen(offset, into.length)
    if (into.length === 0) return
    this.#noteRead?.(offset, into.length)
    const made = this.#make(Math.floor(offset / BLOCK_BYTES), blocksOf(offset + into.length))
    if (made !== undefined) return made.then(() => this.target.readRaw(into, offset))
    this.target.readRaw(into, offset)
  }

  write(bytes: Uint8Array, offset: number, options: WriteOptions = {}): void | Promise<void> {
    return this.#change(offset, bytes.length, options, () => this.target.write(bytes, offset))
  }

  flush(): Promise<void> {
    this.#checkOpen(0, 0)
    return this.target.flush()
  }

  /** Where space cannot be given back, the content stays: to write zeroes over all that a guest has no use for would stop everything else. */
  trim(offset: number, length: number, options: WriteOptions = {}): void | Promise<void> {
    this.#checkOpen(offset, length)
    if (this.target.givesBack()) return this.writeZeroes(offset, length, options)
    return options.fua ? this.target.flush() : undefined
  }

  writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void | Promise<void> {
    if (length > ZEROES_AT_ONCE_BYTES) return this.#writeManyZeroes(offset, length, options)
    return this.#change(offset, length, options, () => this.target.writeZeroes(offset, length, { allocated: options.noHole }))
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#checkOpen(offset, length)
    const extents: DeviceExtent[] = []
    const end = offset + length
    for (let at = offset; at < end && extents.length <= most;) {
      const block = Math.floor(at / BLOCK_BYTES)
      const isWritten = this.target.isWritten(block)
      const stop = Math.min(end, this.target.runOfWritten(block, blocksOf(end)) * BLOCK_BYTES)
      if (isWritten) appendExtent(extents, at, stop - at, 'data')
      else this.#appendMap(extents, at, stop, most)
      at = stop
    }
    return extents.slice(0, most)
  }

  /** True if a guest could read it now without waiting. */
  isResident(block: number): boolean {
    return this.target.isReadable(block, block + 1)
  }

  /** True if some block of the disk waits for this chunk. */
  needs(chunk: number): boolean {
    for (const index of this.places.extentsOf(chunk)) {
      const end = blocksOf(this.map.endOf(index))
      for (let block = Math.floor(this.map.starts[index] / BLOCK_BYTES); block < end; block++) if (!this.target.isPresent(block)) return true
    }
    return false
  }

  /** Puts a chunk in its places, where the disk lacks it. @param content verified */
  install(chunk: number, content: Uint8Array): void {
    let isLeftOver = false
    for (const index of this.places.extentsOf(chunk)) {
      const start = this.map.starts[index]
      const end = this.map.endOf(index)
      const [first, stop] = [Math.floor(start / BLOCK_BYTES), blocksOf(end)]
      const whole = blocksOf(start)
      const wholeEnd = end === this.sizeBytes ? stop : Math.floor(end / BLOCK_BYTES)
      for (let block = whole; block < wholeEnd; block++) {
        if (this.target.isPresent(block)) continue
        let until = block + 1
        while (until < wholeEnd && !this.target.isPresent(until)) until++
        const from = this.map.chunkOffsets[index] + block * BLOCK_BYTES - start
        this.target.install(content.subarray(from, from + Math.min(until * BLOCK_BYTES, end) - block * BLOCK_BYTES), block)
        block = until
      }
      if (first < whole && !this.#assemble(first, chunk, content)) isLeftOver = true
      if (wholeEnd < stop && wholeEnd >= whole && !this.#assemble(wholeEnd, chunk, content)) isLeftOver = true
    }
    if (isLeftOver) this.#keep(chunk, content)
  }

  /** Blocks of zeroes alone that are not there, up to `end`. */
  installZeroes(first: number, end: number): void {
    for (let block = first; block < end; block++) {
      if (this.target.isPresent(block) || !this.#isZero(block)) continue
      let stop = block + 1
      while (stop < end && !this.target.isPresent(stop) && this.#isZero(stop)) stop++
      this.target.installZeroes(block, stop)
      block = stop
    }
  }

  /**
   * Compares with its digest every chunk that lies on the target as it came, and gives up the blocks of those that differ, which are then lacking again.
   * @returns bytes that were right, and bytes that cannot be told: parts of chunks, and what stands between writes of the guest
   */
  async verify({ signal, report }: { signal?: AbortSignal; report?: (bytes: number) => void } = {}): Promise<{ verifiedBytes: number; unverifiableBytes: number; wrongBytes: number }> {
    const sums = { verifiedBytes: 0, unverifiableBytes: 0, wrongBytes: 0 }
    let since = 0
    for (let index = 0; index < this.map.extentCount; index++) {
      if (this.map.refs[index] >= SPECIAL_MIN) continue
      const length = this.map.endOf(index) - this.map.starts[index]
      const answer = this.#check(index)
      sums[answer === undefined ? 'unverifiableBytes' : answer ? 'verifiedBytes' : 'wrongBytes'] += length
      if (answer === false) this.#lose(index)
      since += length
      if (since < VERIFY_BYTES) continue
      report?.(since)
      since = 0
      await new Promise<void>((resolve) => setImmediate(resolve))
      signal?.throwIfAborted()
    }
    return sums
  }

  /** Makes every block that may not be what it should be certain, or lacking. */
  async settleSuspects(signal?: AbortSignal): Promise<void> {
    const { target } = this
    for (let block = 0; target.hasSuspects && block < target.blockCount; block += VERIFY_BYTES / BLOCK_BYTES) {
      this.#decide(block, Math.min(target.blockCount, block + VERIFY_BYTES / BLOCK_BYTES))
      await new Promise<void>((resolve) => setImmediate(resolve))
      signal?.throwIfAborted()
    }
    target.clearAll()
  }

  /** Makes everything durable; the target stays open. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.target.flush()
  }

  #checkOpen(offset: number, length: number): void {
    if (this.#closed) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }

  async #writeManyZeroes(offset: number, length: number, { fua, ...options }: WriteZeroesOptions): Promise<void> {
    this.#checkOpen(offset, length)
    for (let at = offset; at < offset + length; at += ZEROES_AT_ONCE_BYTES) {
      await this.writeZeroes(at, Math.min(ZEROES_AT_ONCE_BYTES, offset + length - at), options)
      await new Promise<void>((resolve) => setImmediate(resolve))
    }
    if (fua) await this.target.flush()
  }

  #change(offset: number, length: number, { fua }: WriteOptions, change: () => void): void | Promise<void> {
    this.#checkOpen(offset, length)
    if (length === 0) return
    const end = offset + length
    const [first, last] = [Math.floor(offset / BLOCK_BYTES), Math.floor(end / BLOCK_BYTES)]
    // A block that is written in part is made whole first.
    const before = offset % BLOCK_BYTES === 0 ? undefined : this.#make(first, first + 1)
    const after = end % BLOCK_BYTES === 0 || end === this.sizeBytes || (last === first && before !== undefined) ? undefined : this.#make(last, last + 1)
    if (before === undefined && after === undefined) {
      change()
      return fua ? this.target.flush() : undefined
    }
    return Promise.all([before, after]).then(() => {
      change()
      return fua ? this.target.flush() : undefined
    })
  }

  /** Has blocks there, and certain. */
  #make(first: number, end: number): void | Promise<void> {
    if (!this.target.isReadable(first, end)) return this.#makeWanted(first, end)
  }

  async #makeWanted(first: number, end: number): Promise<void> {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      this.#decide(first, end)
      this.installZeroes(first, end)
      if (this.target.isReadable(first, end)) return
      await this.#want(this.#lacking(first, end))
      if (this.target.isReadable(first, end)) return
    }
    throw new VarveError('CHUNK_MISSING', `blocks ${first} to ${end} of ${this.target.path} did not come`)
  }

  /** Chunks that the blocks that are not there consist of. */
  #lacking(first: number, end: number): number[] {
    const chunks = new Set<number>()
    for (let block = first; block < end; block++) {
      if (!this.target.isPresent(block)) this.#forPieces(block, (index) => { if (this.map.refs[index] < SPECIAL_MIN) chunks.add(this.map.refs[index]) })
    }
    return [...chunks]
  }

  /** Blocks that are suspect are found right, or given up. */
  #decide(first: number, end: number): void {
    if (!this.target.hasSuspects) return
    const answers = new Map<number, boolean>()
    for (let block = first; block < end; block++) {
      if (!this.target.isSuspect(block)) continue
      let isRight = true
      this.#forPieces(block, (index, from, to) => {
        if (this.map.refs[index] >= SPECIAL_MIN) {
          isRight &&= this.#readsZero(from, to)
          return
        }
        let answer = answers.get(index)
        if (answer === undefined) {
          answers.set(index, (answer = this.#check(index) === true))
          if (answer) this.target.clear(blocksOf(this.map.starts[index]), Math.floor(this.map.endOf(index) / BLOCK_BYTES))
        }
        isRight &&= answer
      })
      if (isRight) this.target.clear(block, block + 1)
      else this.target.lose(block)
    }
  }

  /** True if the chunk of an extent lies on the target as it came; undefined if that cannot be told. */
  #check(index: number): boolean | undefined {
    const { map, target } = this
    const [start, end, chunk] = [map.starts[index], map.endOf(index), map.refs[index]]
    if (end - start !== map.chunkBytes[chunk]) return undefined
    for (let block = Math.floor(start / BLOCK_BYTES); block < blocksOf(end); block++) if (!target.isPresent(block) || target.isWritten(block)) return undefined
    const content = Buffer.allocUnsafe(end - start)
    target.readRaw(content, start)
    return Buffer.compare(digestOf(content), map.chunkDigest(chunk)) === 0
  }

  #lose(index: number): void {
    for (let block = Math.floor(this.map.starts[index] / BLOCK_BYTES); block < blocksOf(this.map.endOf(index)); block++) if (!this.target.isWritten(block)) this.target.lose(block)
  }

  #readsZero(from: number, to: number): boolean {
    const bytes = Buffer.allocUnsafe(to - from)
    this.target.readRaw(bytes, from)
    return bytes.every((byte) => byte === 0)
  }

  #isZero(block: number): boolean {
    let isZero = true
    this.#forPieces(block, (index) => { isZero &&= this.map.refs[index] >= SPECIAL_MIN })
    return isZero
  }

  /** Calls `visit` with each extent in a block, and the bytes of the disk that it has there. */
  #forPieces(block: number, visit: (index: number, from: number, to: number) => void): void {
    const end = Math.min((block + 1) * BLOCK_BYTES, this.sizeBytes)
    for (let at = block * BLOCK_BYTES, index = this.map.indexAt(at); at < end; index++) {
      const stop = Math.min(this.map.endOf(index), end)
      visit(index, at, stop)
      at = stop
    }
  }

  /** A block of which a chunk has only a part. @returns false if another part has not come */
  #assemble(block: number, chunk: number, content: Uint8Array): boolean {
    if (this.target.isPresent(block)) return true
    const bytes = Buffer.alloc(Math.min(BLOCK_BYTES, this.sizeBytes - block * BLOCK_BYTES))
    let isWhole = true
    this.#forPieces(block, (index, from, to) => {
      const ref = this.map.refs[index]
      if (ref >= SPECIAL_MIN) return
      const source = ref === chunk ? content : this.#kept.get(ref)
      if (source === undefined) isWhole = false
      else {
        const at = this.map.chunkOffsets[index] + from - this.map.starts[index]
        bytes.set(source.subarray(at, at + to - from), from - block * BLOCK_BYTES)
      }
    })
    if (isWhole) this.target.install(bytes, block)
    return isWhole
  }

  #keep(chunk: number, content: Uint8Array): void {
    if (this.#kept.has(chunk)) return
    this.#kept.set(chunk, Uint8Array.from(content))
    this.#keptBytes += content.length
    for (const [oldest, bytes] of this.#kept) {
      if (this.#keptBytes <= KEPT_BYTES_MAX) break
      this.#kept.delete(oldest)
      this.#keptBytes -= bytes.length
    }
  }

  #appendMap(extents: DeviceExtent[], from: number, end: number, most: number): void {
    for (let at = from, index = this.map.indexAt(from); at < end && extents.length <= most; index++) {
      const stop = Math.min(end, this.map.endOf(index))
      appendExtent(extents, at, stop - at, typeOf(this.map.refs[index]))
      at = stop
    }
  }
}

function typeOf(ref: number): ExtentType {
  return ref < SPECIAL_MIN ? 'data' : ref === ZERO ? 'zero' : 'hole'
}
