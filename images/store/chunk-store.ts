/**
 * ChunkStore: the contract of everything that holds chunks. Implementations: packs on a local filesystem (pack-store.ts),
 * memory (memory-store.ts). One conformance suite holds for all: test/images/store/conformance.ts.
 */
import type { Digest } from '../chunk/digest.ts'

export interface ReadOptions {
  signal?: AbortSignal
  /** Memory of the chunk's length. A store that answers at once, and has to make the content anyway, makes it there, and returns just that. */
  into?: Uint8Array
}

export interface ChunkStore extends AsyncDisposable {
  /**
   * Content of a chunk, verified against its digest. A store whose data is at hand answers without a promise.
   * The bytes may be shared with a cache: the caller never writes to them.
   * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT
   */
  get(digest: Digest, options?: ReadOptions): Uint8Array | Promise<Uint8Array>

  /** True if `get` would find the chunk (its content is not checked). */
  has(digest: Digest): boolean | Promise<boolean>

  /** Opens a session that adds chunks. */
  writer(options?: { signal?: AbortSignal }): ChunkWriter
}

/**
 * Adds chunks. What was put becomes visible to readers and durable with `commit`, all or nothing seen from outside;
 * disposing without a commit leaves nothing visible. While it is open it holds a lease: neither the chunks it has put,
 * nor those that it has found to exist already, are collected.
 */
export interface ChunkWriter extends AsyncDisposable {
  /** Stores `bytes` (1 byte .. CHUNK_BYTES_MAX) unless the store has them already. The caller may reuse `bytes` afterwards. */
  put(bytes: Uint8Array): Digest
  /** All that was put is durable and visible when this resolves. The writer can be used on. */
  commit(): Promise<void>
  /** What this writer has added so far. */
  readonly written: WriterFigures
}

export interface WriterFigures {
  /** Chunks put, found or new. */
  chunks: number
  /** Bytes put, found or new. */
  bytes: number
  /** Chunks that the store did not have. */
  chunksNew: number
  /** Bytes of new chunks before compression. */
  bytesNew: number
  /** Bytes added to packs. */
  bytesStored: number
}
