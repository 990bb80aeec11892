/**
 * MemoryStore: chunks in memory, for tests and for work that ends with its process. Nothing is collected.
 */
import { digestOf, digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import type { ChunkStore, ChunkWriter, WriterFigures } from './chunk-store.ts'

export class MemoryStore implements ChunkStore {
  readonly #chunks = new Map<string, Uint8Array>()

  /** @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT (somebody wrote to the bytes of an earlier `get`) */
  get(digest: Digest): Uint8Array {
    const content = this.#chunks.get(digestToHex(digest))
    if (content === undefined) throw new VarveError('CHUNK_MISSING', `chunk ${digestToHex(digest)} is not in memory`)
    if (Buffer.compare(digestOf(content), digest) !== 0) throw new VarveError('CHUNK_CORRUPT', `chunk ${digestToHex(digest)} in memory was written to`)
    return content
  }

  has(digest: Digest): boolean {
    return this.#chunks.has(digestToHex(digest))
  }

  writer(options: { signal?: AbortSignal } = {}): ChunkWriter {
    return new MemoryWriter(this.#chunks, options.signal)
  }

  /** Chunks that it holds. */
  get chunkCount(): number {
    return this.#chunks.size
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#chunks.clear()
  }
}

class MemoryWriter implements ChunkWriter {
  readonly written: WriterFigures = { chunks: 0, bytes: 0, chunksNew: 0, bytesNew: 0, bytesStored: 0 }
  readonly #chunks: Map<string, Uint8Array>
  readonly #pending = new Map<string, Uint8Array>()
  readonly #signal: AbortSignal | undefined
  #closed = false

  constructor(chunks: Map<string, Uint8Array>, signal: AbortSignal | undefined) {
    this.#chunks = chunks
    this.#signal = signal
  }

  put(bytes: Uint8Array): Digest {
    this.#usable()
    if (bytes.length < 1 || bytes.length > CHUNK_BYTES_MAX) throw new RangeError(`a chunk has 1 .. ${CHUNK_BYTES_MAX} bytes, not ${bytes.length}`)
    const digest = digestOf(bytes)
    const key = digestToHex(digest)
    this.written.chunks++
    this.written.bytes += bytes.length
    if (this.#pending.has(key) || this.#chunks.has(key)) return digest
    this.#pending.set(key, Uint8Array.from(bytes))
    this.written.chunksNew++
    this.written.bytesNew += bytes.length
    this.written.bytesStored += bytes.length
    return digest
  }

  async commit(): Promise<void> {
    this.#usable()
    for (const [key, content] of this.#pending) this.#chunks.set(key, content)
    this.#pending.clear()
  }

  #usable(): void {
    if (this.#closed) throw new TypeError('this writer is closed')
    this.#signal?.throwIfAborted()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    this.#pending.clear()
  }
}
