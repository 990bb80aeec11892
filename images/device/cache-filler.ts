/**
 * CacheFiller: a thread that puts chunks into a cache before they are asked for. The threads that serve say what will be wanted soon.
 */
import { Worker } from 'node:worker_threads'
import type { ChunkCacheMemory } from './chunk-cache.ts'

/** Chunks in the order in which they will be wanted. */
export interface WantedChunks {
  /** Eight words a chunk. */
  digests: Uint32Array
  /** Bytes of each. */
  lengths: Uint32Array
}

export interface CacheFillerData {
  packsDirectory: string
  memory: ChunkCacheMemory
  /** Number of the thread among those of the cache. */
  thread: number
}

export class CacheFiller implements AsyncDisposable {
  readonly #worker: Worker

  /** @param failed is told when the thread ends by itself: chunks are then read when they are asked for, as without it */
  constructor(data: CacheFillerData, failed: (error: unknown) => void) {
    this.#worker = new Worker(new URL(import.meta.resolve('./cache-filler-thread.ts')), { workerData: data, name: 'cache-filler' })
    this.#worker.on('error', failed)
    this.#worker.unref()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate()
  }
}
