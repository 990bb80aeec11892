/**
 * MapDevice: the disk that a block map describes, read from a chunk store through a cache. Read-only.
 */
import type { BlockMap } from '../blockmap/block-map.ts'
import { HOLE, SPECIAL_MIN, ZERO } from '../blockmap/extent-columns.ts'
import { digestToHex } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import type { ChunkStore } from '../store/chunk-store.ts'
import { checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, ExtentType } from './block-device.ts'
import { ChunkCache } from './chunk-cache.ts'

/** Chunks that one read waits for at a time, so that a read over many tiny chunks is bounded in memory. */
const CHUNKS_AWAITED_MAX = 64

export class MapDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = 4096
  readonly readOnly = true
  readonly map: BlockMap
  readonly #store: ChunkStore
  readonly #cache: ChunkCache
  /** By chunk: its key in the cache, once it was read. */
  readonly #keys: (string | undefined)[] = []
  #closed = false

  /** Store and cache are borrowed: closing the device leaves them open. */
  constructor(map: BlockMap, store: ChunkStore, cache: ChunkCache) {
    if (map.partial) throw new RangeError('a partial map is not a disk')
    this.sizeBytes = map.sizeBytes
    this.map = map
    this.#store = store
    this.#cache = cache
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.#check(offset, into.length)
    return into.length === 0 ? undefined : this.#readFrom(into, offset, 0)
  }

  /** Reads what follows the first `done` bytes of `into`; goes on asynchronously from the first chunk that is not at hand. */
  #readFrom(into: Uint8Array, offset: number, done: number): void | Promise<void> {
    const map = this.map
    for (let index = map.indexAt(offset + done); done < into.length; index++) {
      const at = offset + done
      const length = Math.min(map.endOf(index) - at, into.length - done)
      const ref = map.refs[index]
      if (ref >= SPECIAL_MIN) {
        into.fill(0, done, done + length)
      } else {
        const chunk = this.#chunk(ref)
        if (!(chunk instanceof Uint8Array)) return this.#readAwaited(into, offset, done, index, chunk)
        this.#copy(chunk, index, at, into, done, length)
      }
      done += length
    }
  }

  /** Goes on with extent `index`, whose chunk is awaited: asks for the chunks that follow it before it waits. */
  async #readAwaited(into: Uint8Array, offset: number, done: number, index: number, first: Promise<Uint8Array>): Promise<void> {
    const map = this.map
    const awaited: Promise<void>[] = []
    let chunk: Uint8Array | Promise<Uint8Array> = first
    try {
      for (;; index++) {
        const at = offset + done
        const length = Math.min(map.endOf(index) - at, into.length - done)
        if (chunk instanceof Uint8Array) {
          this.#copy(chunk, index, at, into, done, length)
        } else {
          const [copyIndex, copyTo] = [index, done]
          awaited.push(chunk.then(bytes => this.#copy(bytes, copyIndex, at, into, copyTo, length)))
        }
        done += length
        if (done === into.length || map.refs[index + 1] >= SPECIAL_MIN || awaited.length === CHUNKS_AWAITED_MAX) break
        chunk = this.#chunk(map.refs[index + 1])
      }
      await Promise.all(awaited)
    } finally {
      // Nothing writes into the caller's buffer once it has its answer.
      await Promise.allSettled(awaited)
    }
    if (done < into.length) await this.#readFrom(into, offset, done)
  }

  #copy(chunk: Uint8Array, index: number, at: number, into: Uint8Array, done: number, length: number): void {
    const map = this.map
    if (chunk.length !== map.chunkBytes[map.refs[index]]) {
      throw new VarveError('CHUNK_CORRUPT', `chunk ${digestToHex(map.chunkDigest(map.refs[index]))} is ${chunk.length} bytes; the block map says ${map.chunkBytes[map.refs[index]]}`)
    }
    const from = map.chunkOffsets[index] + at - map.starts[index]
    into.set(from === 0 && length === chunk.length ? chunk : chunk.subarray(from, from + length), done)
  }

  #chunk(chunk: number): Uint8Array | Promise<Uint8Array> {
    const key = this.#keys[chunk] ??= ChunkCache.key(this.map.chunkDigest(chunk))
    return this.#cache.held(key) ?? this.#cache.fetch(key, this.map.chunkDigest(chunk), this.#store)
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
    this.#keys.length = 0
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
