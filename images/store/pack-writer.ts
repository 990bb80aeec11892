/**
 * PackWriter: adds chunks to a PackStore. Looks each up, compresses the new ones into packs of its own, and makes them
 * durable and visible with `commit`. Holds a lease from its start to its disposal.
 */
import { digestOf } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import type { CodecOptions } from '../chunk/codec.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import type { ChunkWriter, WriterFigures } from './chunk-store.ts'
import type { Lease } from './lease.ts'
import { PackAppender } from './pack-appender.ts'
import { RECORD_HEADER_BYTES } from './pack-format.ts'
import type { ChunkRow, PackIndex } from './pack-index.ts'

export interface PackWriterOptions extends Partial<CodecOptions> {
  signal?: AbortSignal
}

export class PackWriter implements ChunkWriter {
  readonly written: WriterFigures = { chunks: 0, bytes: 0, chunksNew: 0, bytesNew: 0, bytesStored: 0 }
  readonly #index: PackIndex
  readonly #lease: Lease
  readonly #appender: PackAppender
  readonly #codec: CodecOptions
  readonly #signal: AbortSignal | undefined
  /** Put and not committed, by digest in latin1. */
  readonly #pending = new Set<string>()
  #rows: ChunkRow[] = []
  #commits: Promise<void> = Promise.resolve()
  #failure: unknown
  #closed = false

  /** PackStore.writer opens one. The writer owns the lease. */
  constructor(directory: string, index: PackIndex, lease: Lease, options: PackWriterOptions) {
    this.#index = index
    this.#lease = lease
    this.#appender = new PackAppender(directory, index, lease.id)
    this.#codec = { codec: options.codec ?? 'zstd', level: options.level }
    this.#signal = options.signal
  }

  /**
   * @param known digest of `bytes` if the caller has computed it already: it is believed
   * @throws RangeError if `bytes` is empty or larger than CHUNK_BYTES_MAX; what the file system throws, and then again with every call
   */
  put(bytes: Uint8Array, known?: Digest): Digest {
    this.#usable()
    if (bytes.length < 1 || bytes.length > CHUNK_BYTES_MAX) throw new RangeError(`a chunk has 1 .. ${CHUNK_BYTES_MAX} bytes, not ${bytes.length}`)
    const digest = known ?? digestOf(bytes)
    this.written.chunks++
    this.written.bytes += bytes.length
    const key = keyOf(digest)
    if (this.#pending.has(key) || this.#index.isKept(digest)) return digest
    const row = this.#attempt(() => this.#appender.append(digest, bytes, this.#codec))
    this.#rows.push(row)
    this.#pending.add(key)
    this.written.chunksNew++
    this.written.bytesNew += bytes.length
    this.written.bytesStored += RECORD_HEADER_BYTES + row.stored
    return digest
  }

  /** True if the chunk is there and stays while this writer is open, so that it need not be put. */
  has(digest: Digest): boolean {
    return this.#pending.has(keyOf(digest)) || this.#index.isKept(digest)
  }

  /** `has` of many, 32 bytes each, for chunks that were committed; by digest 1 or 0. */
  hasCommitted(digests: Uint8Array): Uint8Array {
    return this.#index.areKept(digests)
  }

  commit(): Promise<void> {
    const commit = this.#commits.then(() => this.#commit())
    this.#commits = commit.catch(() => {})
    return commit
  }

  async #commit(): Promise<void> {
    this.#usable()
    try {
      const rows = this.#rows
      this.#rows = []
      if (rows.length === 0) return
      const packs = await this.#appender.sync()
      this.#index.addChunks(rows, packs)
      this.#appender.committed(packs)
      for (const { digest } of rows) this.#pending.delete(keyOf(digest))
    } catch (error) {
      // After a failed write or sync nobody knows what the disk holds: nothing of this writer is committed any more.
      this.#failure ??= error
      throw error
    }
  }

  #attempt<T>(work: () => T): T {
    try {
      return work()
    } catch (error) {
      this.#failure ??= error
      throw error
    }
  }

  #usable(): void {
    if (this.#closed) throw new TypeError('this writer is closed')
    if (this.#failure !== undefined) throw this.#failure as Error
    this.#signal?.throwIfAborted()
  }

  /** Drops what is not committed, and ends the lease. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#commits
    try {
      await this.#appender.close()
    } finally {
      this.#lease.release()
    }
  }
}

function keyOf(digest: Digest): string {
  return Buffer.prototype.latin1Slice.call(digest)
}
