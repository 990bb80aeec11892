/**
 * ChunkCache: chunks that were read lately, in memory, shared by all devices of a process and bounded in bytes.
 * Not a store: it can be thrown away at any time.
 */
import { LRUCache } from 'lru-cache'
import type { Digest } from '../chunk/digest.ts'
import type { ChunkStore } from '../store/chunk-store.ts'

/** What an entry costs besides its content, bytes; so that many tiny chunks are bounded too. */
const ENTRY_BYTES = 256

export interface ChunkCacheFigures {
  hits: number
  misses: number
  /** Chunks held. */
  chunks: number
  /** Bytes held, with what the entries cost. */
  bytes: number
}

export class ChunkCache {
  readonly #chunks: LRUCache<string, Uint8Array>
  /** Requests under way, so that one chunk is asked for once, however many wait for it. */
  readonly #pending = new Map<string, Promise<Uint8Array>>()
  #hits = 0
  #misses = 0

  constructor({ bytesMax }: { bytesMax: number }) {
    this.#chunks = new LRUCache({ maxSize: bytesMax, sizeCalculation: bytes => bytes.length + ENTRY_BYTES })
  }

  /** Key of a chunk in the cache. Devices keep it: making it costs more than looking it up. */
  static key(digest: Digest): string {
    return Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString('latin1')
  }

  /** Content of a chunk if it is in memory. The bytes are shared: nobody writes to them. @param key `ChunkCache.key(digest)` */
  held(key: string): Uint8Array | undefined {
    const chunk = this.#chunks.get(key)
    if (chunk !== undefined) this.#hits++
    return chunk
  }

  /**
   * Content of a chunk that is not `held`, from `store`; a promise only if the store gives one. The bytes are shared.
   * @throws VarveError what the store throws; failures are not kept
   */
  fetch(key: string, digest: Digest, store: ChunkStore): Uint8Array | Promise<Uint8Array> {
    const pending = this.#pending.get(key)
    if (pending !== undefined) {
      this.#hits++
      return pending
    }
    this.#misses++
    const answer = store.get(digest)
    return answer instanceof Uint8Array ? this.#keep(key, answer) : this.#await(key, answer)
  }

  get figures(): ChunkCacheFigures {
    return { hits: this.#hits, misses: this.#misses, chunks: this.#chunks.size, bytes: this.#chunks.calculatedSize }
  }

  clear(): void {
    this.#chunks.clear()
  }

  #await(key: string, answer: Promise<Uint8Array>): Promise<Uint8Array> {
    const pending = answer.then(bytes => this.#keep(key, bytes)).finally(() => this.#pending.delete(key))
    this.#pending.set(key, pending)
    return pending
  }

  #keep(key: string, bytes: Uint8Array): Uint8Array {
    // A view keeps all of its buffer alive: one that is small in a large buffer would make the bound a lie.
    const kept = bytes.buffer.byteLength > bytes.length + ENTRY_BYTES ? new Uint8Array(bytes) : bytes
    this.#chunks.set(key, kept)
    return kept
  }
}
