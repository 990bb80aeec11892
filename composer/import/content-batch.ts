/**
 * Content batch: what the importing thread hands to a worker at once, and what comes back. Columns by *run*: bytes of one file, in one piece,
 * at most SEGMENT_BYTES of them, that are cut by themselves. Everything here passes between threads by structured clone.
 */

/** A run of a batch is content to be cut at fixed places. */
export const RUN_FIXED = 1

/** Runs that the worker reads from files itself. */
export interface FileBatch {
  kind: 'files'
  count: number
  /** Paths, each ended by NUL. */
  paths: Uint8Array
  /** Where in `paths` the path of a run starts; one more than runs. */
  pathStarts: Uint32Array
  /** Where in its file a run starts, bytes. */
  offsets: Float64Array
  /** Bytes of a run. */
  lengths: Uint32Array
  flags: Uint8Array
  /** Of each run's file, IDENTITY_WORDS words (images/native/scan.ts): the file has them still after it was read, or it has changed. */
  identities: Uint32Array
}

/** Runs whose bytes are at hand. */
export interface ByteBatch {
  kind: 'bytes'
  count: number
  /** Shared memory; free again for others when the result is there. */
  bytes: Uint8Array
  /** Where in `bytes` a run starts. */
  starts: Uint32Array
  lengths: Uint32Array
  flags: Uint8Array
}

export type ContentBatch = FileBatch | ByteBatch

/** In BatchResult.chunkCounts: the file was not what the batch says that it is. */
export const RUN_CHANGED = 0xffffffff

export interface BatchResult {
  /** Chunks of each run, or RUN_CHANGED. */
  chunkCounts: Uint32Array
  /** 32 bytes a chunk, of all runs in order. */
  digests: Uint8Array
  /** Bytes of each chunk. */
  chunkBytes: Uint32Array
}

/** A worker answers with an error as data: its class would not survive the way between threads. */
export interface BatchError {
  error: { code: string; message: string; stack?: string }
}
