/**
 * MapDevice: the disk that a block map describes, read from a chunk store through a cache. Read-only.
 */
import type { BlockMap } from '../blockmap/block-map.ts'
import { HOLE, SPECIAL_MIN, ZERO } from '../blockmap/extent-columns.ts'
import { digestWords } from '../chunk/chunk-table.ts'
import { DIGEST_BYTES, digestToHex } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import type { ChunkStore } from '../store/chunk-store.ts'
import { checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, DeviceView, ExtentType } from './block-device.ts'
import { ChunkTickets } from './chunk-cache.ts'
import type { ChunkCache } from './chunk-cache.ts'
import { READ_AHEAD_BYTES, SequentialReaders } from './sequential-readers.ts'

/** Chunks that one read waits for at a time, so that a read over many tiny chunks is bounded in memory. */
const CHUNKS_AWAITED_MAX = 64

const DIGEST_WORDS = DIGEST_BYTES / 4
/** Chunks that are asked for at a time ahead of a reader. */
const CHUNKS_AHEAD_MAX = 1024
/** A view of so many bytes may have another part: more small parts cost more than a copy. */
const VIEW_PART_BYTES_MIN = 4 << 10
const ZEROES = Buffer.alloc(64 << 10)

class PinnedView implements DeviceView {
  readonly parts: Uint8Array[] = []
  readonly #cache: ChunkCache
  readonly #entries: number[] = []

  constructor(cache: ChunkCache) {
    this.#cache = cache
  }

  /** @param entry pinned already */
  pin(entry: number, from: number, length: number): void {
    const position = this.#cache.positionOf(entry) + from
    this.parts.push(this.#cache.bytes.subarray(position, position + length))
    this.#entries.push(entry)
  }

  release(): void {
    for (const entry of this.#entries) this.#cache.unpin(entry)
    this.#entries.length = 0
  }
}

export class MapDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = 4096
  readonly readOnly = true
  readonly map: BlockMap
  readonly #store: ChunkStore
  readonly #cache: ChunkCache
  readonly #digests: Uint32Array
  readonly #tickets: ChunkTickets
  readonly #readers = new SequentialReaders()
  #closed = false

  /** Store and cache are borrowed: closing the device leaves them open. */
  constructor(map: BlockMap, store: ChunkStore, cache: ChunkCache) {
    if (map.partial) throw new RangeError('a partial map is not a disk')
    this.sizeBytes = map.sizeBytes
    this.map = map
    this.#store = store
    this.#cache = cache
    this.#digests = digestWords(map.chunkDigests)
    this.#tickets = new ChunkTickets(map.chunkCount)
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.#check(offset, into.length)
    if (into.length === 0) return
    this.#readAhead(offset, into.length)
    return this.#readFrom(into, offset, 0)
  }

  view(offset: number, length: number): DeviceView | undefined {
    this.#check(offset, length)
    const map = this.map
    const first = map.indexAt(offset)
    const partsMax = 1 + Math.floor(length / VIEW_PART_BYTES_MIN)
    if (first + partsMax < map.extentCount && map.starts[first + partsMax] < offset + length) return undefined
    this.#readAhead(offset, length)
    const view = new PinnedView(this.#cache)
    try {
      for (let at = offset, index = first; at < offset + length; index++) {
        const stop = Math.min(map.endOf(index), offset + length)
        if (map.refs[index] >= SPECIAL_MIN) {
          for (let zeroAt = at; zeroAt < stop; zeroAt += ZEROES.length) view.parts.push(ZEROES.subarray(0, Math.min(ZEROES.length, stop - zeroAt)))
        } else {
          const entry = this.#pinned(map.refs[index])
          if (entry < 0) {
            view.release()
            return undefined
          }
          view.pin(entry, map.chunkOffsets[index] + at - map.starts[index], stop - at)
        }
        at = stop
      }
      return view
    } catch (error) {
      view.release()
      throw error
    }
  }

  /** Has the cache filled ahead of a reader that goes on where it was. */
  #readAhead(offset: number, length: number): void {
    if (!this.#cache.canFill) return
    const from = this.#readers.note(offset, length)
    if (from < 0 || from >= this.sizeBytes) return
    const map = this.map
    const chunks = new Set<number>()
    const end = Math.min(offset + length + READ_AHEAD_BYTES, this.sizeBytes)
    for (let index = map.indexAt(from); index < map.extentCount && map.starts[index] < end && chunks.size < CHUNKS_AHEAD_MAX; index++) {
      if (map.refs[index] < SPECIAL_MIN && !this.#cache.has(this.#digests, map.refs[index], this.#tickets)) chunks.add(map.refs[index])
    }
    if (chunks.size === 0) return
    const digests = new Uint32Array(chunks.size * DIGEST_WORDS)
    const lengths = new Uint32Array(chunks.size)
    let count = 0
    for (const chunk of chunks) {
      digests.set(this.#digests.subarray(chunk * DIGEST_WORDS, (chunk + 1) * DIGEST_WORDS), count * DIGEST_WORDS)
      lengths[count++] = map.chunkBytes[chunk]
    }
    this.#cache.fillSoon({ digests, lengths })
  }

  /** The pinned entry of a chunk, which is read if that can be done at once; else -1. */
  #pinned(chunk: number): number {
    const entry = this.#cache.pin(this.#digests, chunk, this.#tickets)
    if (entry >= 0) return entry
    const answer = this.#fetch(chunk)
    if (typeof answer === 'number') return answer
    // Who reads in the other way waits for it, and hears what went wrong.
    if (answer instanceof Promise) answer.catch(() => undefined)
    return -1
  }

  /** Reads what follows the first `done` bytes of `into`; goes on asynchronously from the first chunk that is not at hand. */
  #readFrom(into: Uint8Array, offset: number, done: number): void | Promise<void> {
    const map = this.map
    for (let index = map.indexAt(offset + done); done < into.length; index++) {
      const at = offset + done
      const length = Math.min(map.endOf(index) - at, into.length - done)
      if (map.refs[index] >= SPECIAL_MIN) {
        into.fill(0, done, done + length)
      } else {
        const pending = this.#readExtent(into, done, length, index, at)
        if (pending !== undefined) return this.#readAwaited(into, offset, done, index, pending)
      }
      done += length
    }
  }

  /** Goes on with extent `index`, whose chunk is awaited: asks for the chunks that follow it before it waits. */
  async #readAwaited(into: Uint8Array, offset: number, done: number, index: number, first: Promise<void>): Promise<void> {
    const map = this.map
    const awaited = [first]
    try {
      for (;;) {
        done += Math.min(map.endOf(index) - (offset + done), into.length - done)
        index++
        if (done === into.length || map.refs[index] >= SPECIAL_MIN || awaited.length === CHUNKS_AWAITED_MAX) break
        const pending = this.#readExtent(into, done, Math.min(map.endOf(index) - (offset + done), into.length - done), index, offset + done)
        if (pending !== undefined) awaited.push(pending)
      }
      await Promise.all(awaited)
    } finally {
      // Nothing writes into the caller's buffer once it has its answer.
      await Promise.allSettled(awaited)
    }
    if (done < into.length) await this.#readFrom(into, offset, done)
  }

  /** Copies `length` bytes of the chunk of an extent, those at `at` of the disk, to `to` in `into`. */
  #readExtent(into: Uint8Array, to: number, length: number, index: number, at: number): void | Promise<void> {
    const { map } = this
    const chunk = map.refs[index]
    const from = map.chunkOffsets[index] + at - map.starts[index]
    let entry = this.#cache.pin(this.#digests, chunk, this.#tickets)
    if (entry < 0) {
      const answer = this.#fetch(chunk)
      if (answer instanceof Promise) return answer.then((bytes) => { into.set(bytes.subarray(from, from + length), to) })
      if (answer instanceof Uint8Array) {
        into.set(answer.subarray(from, from + length), to)
        return
      }
      entry = answer
    }
    const position = this.#cache.positionOf(entry) + from
    // Not `set`, which copies shared memory word by word.
    this.#cache.bytes.copy(into, to, position, position + length)
    this.#cache.unpin(entry)
  }

  /** Content of a chunk that is not in the cache: the pinned entry that it has got, or the bytes themselves. */
  #fetch(chunk: number): number | Uint8Array | Promise<Uint8Array> {
    const length = this.map.chunkBytes[chunk]
    const digest = this.map.chunkDigest(chunk)
    const asked = this.#cache.asked(digest)
    if (asked !== undefined) return asked
    const room = this.#cache.room(length)
    const into = room < 0 ? undefined : this.#cache.bytes.subarray(room, room + length)
    const answer = this.#store.get(digest, { into })
    if (answer instanceof Promise) return this.#cache.ask(digest, answer.then((content) => this.#keep(chunk, content)))
    this.#checkLength(chunk, answer)
    if (into === undefined) return answer
    if (answer !== into) into.set(answer)
    return this.#cache.publish(this.#digests, chunk, length, this.#tickets)
  }

  /** Puts what came late into the cache, where another chunk may have got the room meanwhile. */
  #keep(chunk: number, content: Uint8Array): Uint8Array {
    this.#checkLength(chunk, content)
    const room = this.#cache.room(content.length)
    if (room >= 0) {
      this.#cache.bytes.set(content, room)
      this.#cache.unpin(this.#cache.publish(this.#digests, chunk, content.length, this.#tickets))
    }
    return content
  }

  #checkLength(chunk: number, content: Uint8Array): void {
    if (content.length === this.map.chunkBytes[chunk]) return
    throw new VarveError('CHUNK_CORRUPT', `chunk ${digestToHex(this.map.chunkDigest(chunk))} is ${content.length} bytes; the block map says ${this.map.chunkBytes[chunk]}`)
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#check(offset, length)
    const map = this.map
    const extents: DeviceExtent[] = []
    const end = offset + length
    let index = length > 0 ? map.indexAt(offset) : 0
    for (let at = offset; at < end && extents.length < most;) {
      const type = typeOf(map.refs[index])
      while (index + 1 < map.extentCount && map.starts[index + 1] < end && typeOf(map.refs[index + 1]) === type) index++
      const stop = Math.min(end, map.endOf(index++))
      extents.push({ offset: at, length: stop - at, type })
      at = stop
    }
    return extents
  }

  write(): never {
    throw readOnlyError()
  }

  trim(): never {
    throw readOnlyError()
  }

  writeZeroes(): never {
    throw readOnlyError()
  }

  flush(): void {
    this.#check(0, 0)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }
}

function typeOf(ref: number): ExtentType {
  return ref === HOLE ? 'hole' : ref === ZERO ? 'zero' : 'data'
}

function readOnlyError(): VarveError {
  return new VarveError('READ_ONLY', 'the disk of a layer or snapshot cannot be written to')
}
