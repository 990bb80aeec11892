/**
 * PackStore: chunks in append-only pack files of a local directory, found by an index in SQLite.
 * Several processes and threads use one directory at once, each with a PackStore of its own. Bytes and protocols: docs/formats/pack.md.
 */
import { closeSync, existsSync, mkdirSync, openSync, read } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { digestOf, digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { decompressInto } from '../chunk/codec.ts'
import type { Codec } from '../chunk/codec.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import { readCached } from '../native/libc.ts'
import type { ChunkStore, ReadOptions } from './chunk-store.ts'
import { collect } from './collect.ts'
import type { CollectOptions, CollectReport, Reachable } from './collect.ts'
import { Lease, StoreLock } from './lease.ts'
import { RECORD_HEADER_BYTES, decodeRecordHeader, packFileName } from './pack-format.ts'
import { INDEX_FILE, PackIndex } from './pack-index.ts'
import type { ChunkPlace } from './pack-index.ts'
import { readFully } from './pack-scan.ts'
import { PackWriter } from './pack-writer.ts'
import type { PackWriterOptions } from './pack-writer.ts'
import { syncPath } from './sync-path.ts'
import { rebuildIndex, verify } from './verify.ts'
import type { VerifyOptions, VerifyReport } from './verify.ts'

/** Packs kept open for reading. */
const OPEN_PACKS_MAX = 64
/** How often a place is looked up again because its pack has gone: each time a collection has moved the chunk meanwhile. */
const LOOKUPS_MAX = 5

const readAsync = promisify(read)

/** A chunk as a pack has it: what `payload` decompresses to is for its reader to verify. */
export interface StoredChunk {
  codec: Codec
  /** Bytes of the content. */
  raw: number
  payload: Buffer
}

export class PackStore implements ChunkStore {
  readonly directory: string
  readonly #index: PackIndex
  readonly #lock: StoreLock
  /** Descriptors by pack number, least recently opened first. */
  readonly #descriptors = new Map<number, number>()
  /** Reads under way, by descriptor. One that is read from is closed by its last reader. */
  readonly #reads = new Map<number, number>()
  readonly #unwanted = new Set<number>()
  readonly #payload = Buffer.allocUnsafeSlow(CHUNK_BYTES_MAX)
  #closed = false

  private constructor(directory: string, index: PackIndex, lock: StoreLock) {
    this.directory = directory
    this.#index = index
    this.#lock = lock
  }

  /**
   * Opens the store in a directory; makes both if they do not exist.
   * @param options `indexCacheBytes`: of the index, in memory; default 32 MiB
   * @throws VarveError INDEX_INVALID if the index is missing or damaged (PackStore.rebuild makes a new one), STORE_LOCKED while that runs
   */
  static open(directory: string, options: { indexCacheBytes?: number } = {}): PackStore {
    mkdirSync(directory, { recursive: true })
    if (!existsSync(join(directory, INDEX_FILE))) createIndex(directory)
    const lock = StoreLock.take(directory, 'store', { mode: 'shared', wait: true })
    try {
      return new PackStore(directory, PackIndex.open(directory, { cacheBytes: options.indexCacheBytes }), lock)
    } catch (error) {
      lock[Symbol.dispose]()
      throw error
    }
  }

  /**
   * Makes the index anew from the packs alone, for a store that nobody has open. What a killed writer left complete but uncommitted is taken in too.
   * @throws VarveError STORE_LOCKED if somebody has it open
   */
  static async rebuild(directory: string, options: { signal?: AbortSignal } = {}): Promise<VerifyReport> {
    const lock = StoreLock.take(directory, 'store', { mode: 'exclusive', wait: false })
    try {
      return await rebuildIndex(directory, options)
    } finally {
      lock[Symbol.dispose]()
    }
  }

  /**
   * Content of a chunk, checked against its digest.
   * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT, INDEX_INVALID
   */
  get(digest: Digest, { into }: ReadOptions = {}): Uint8Array {
    const { fd, place } = this.#open(digest)
    return this.#read(fd, digest, place, into?.length === place.raw ? into : Buffer.allocUnsafeSlow(place.raw))
  }

  /**
   * A chunk as it is stored, for those who send it on. Read in the thread pool where it has to come from a disk, which then holds up nobody else.
   * The record's header is checked, which has the digest; the payload has no checksum of its own.
   * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT, INDEX_INVALID
   */
  async stored(digest: Digest): Promise<StoredChunk> {
    const { fd, place } = this.#open(digest)
    this.#reads.set(fd, (this.#reads.get(fd) ?? 0) + 1)
    try {
      const record = Buffer.allocUnsafeSlow(RECORD_HEADER_BYTES + place.stored)
      // What the kernel has at hand is had faster than a thread of the pool is asked.
      for (let done = readCached(fd, record, place.offset); done < record.length; ) {
        const { bytesRead } = await readAsync(fd, record, done, record.length - done, place.offset + done)
        if (bytesRead === 0) throw this.#corrupt(digest, place, `the pack ends after ${done} of ${record.length} bytes`)
        done += bytesRead
      }
      const header = decodeRecordHeader(record, 0)
      if (header === undefined || header.stored !== place.stored || header.raw !== place.raw || header.codec !== place.codec || Buffer.compare(header.digest, digest) !== 0) {
        throw this.#corrupt(digest, place, 'there is no record of it')
      }
      return { codec: place.codec, raw: place.raw, payload: record.subarray(RECORD_HEADER_BYTES) }
    } finally {
      this.#readEnded(fd)
    }
  }

  /** True if `get` would find the chunk; a writer's `has` says whether it stays. */
  has(digest: Digest): boolean {
    return this.#index.find(digest) !== undefined
  }

  /** Bytes of a chunk's content as the index knows them, without reading it; undefined if the chunk is not there. */
  sizeBytes(digest: Digest): number | undefined {
    return this.#index.find(digest)?.raw
  }

  writer(options: PackWriterOptions = {}): PackWriter {
    return new PackWriter(this.directory, this.#index, this.lease(), options)
  }

  /**
   * Keeps alive what roots reach from now on, and what is found or written from now on, until it is released.
   * Take it before reading the root, and release it after writing the new one.
   */
  lease(): Lease {
    return Lease.take(this.directory, this.#index)
  }

  /**
   * Removes the chunks that no root reaches and no lease protects; other processes read and write on meanwhile.
   * @param reachable is called twice, and reads the roots each time anew
   * @throws VarveError STORE_LOCKED if another collection or a verification runs
   */
  collect(reachable: Reachable, options: CollectOptions = {}): Promise<CollectReport> {
    return collect(this.directory, this.#index, reachable, options)
  }

  /**
   * Checks every record of every pack up to its committed length, and the index against them; with `repair` puts right what can be.
   * @throws VarveError STORE_LOCKED if a collection or another verification runs; INDEX_INVALID if the index must be made anew (PackStore.rebuild)
   */
  verify(options: VerifyOptions = {}): Promise<VerifyReport> {
    return verify(this.directory, this.#index, options)
  }

  #open(digest: Digest): { fd: number; place: ChunkPlace } {
    for (let lookup = 0; lookup < LOOKUPS_MAX; lookup++) {
      const place = this.#index.find(digest)
      if (place === undefined) throw new VarveError('CHUNK_MISSING', `chunk ${digestToHex(digest)} is not in ${this.directory}`)
      const fd = this.#descriptor(place.pack)
      if (fd !== undefined) return { fd, place }
    }
    throw new VarveError('CHUNK_MISSING', `chunk ${digestToHex(digest)}: its pack is missing from ${this.directory}; run 'varve verify'`)
  }

  #read(fd: number, digest: Digest, place: ChunkPlace, into: Uint8Array): Uint8Array {
    try {
      if (place.codec === 'none' && place.stored === place.raw) {
        readFully(fd, into, place.offset + RECORD_HEADER_BYTES)
      } else {
        const payload = this.#payload.subarray(0, place.stored)
        readFully(fd, payload, place.offset + RECORD_HEADER_BYTES)
        decompressInto(into, place.codec, payload)
      }
    } catch (cause) {
      throw this.#corrupt(digest, place, (cause as Error).message, cause)
    }
    const actual = digestOf(into)
    if (Buffer.compare(actual, digest) !== 0) throw this.#corrupt(digest, place, `content hashes to ${digestToHex(actual)}`)
    return into
  }

  #corrupt(digest: Digest, place: ChunkPlace, problem: string, cause?: unknown): VarveError {
    const file = packFileName(this.#index.pack(place.pack)?.id ?? `number ${place.pack}`)
    return new VarveError('CHUNK_CORRUPT', `chunk ${digestToHex(digest)} at offset ${place.offset} of ${join(this.directory, file)}: ${problem}`, { cause })
  }

  /** Descriptor of a pack; undefined if it has gone. */
  #descriptor(pack: number): number | undefined {
    const open = this.#descriptors.get(pack)
    if (open !== undefined) return open
    const row = this.#index.pack(pack)
    if (row === undefined) return undefined
    let fd
    try {
      fd = openSync(join(this.directory, packFileName(row.id)), 'r')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
    if (this.#descriptors.size >= OPEN_PACKS_MAX) {
      const [oldest, oldestFd] = this.#descriptors.entries().next().value!
      this.#descriptors.delete(oldest)
      this.#close(oldestFd)
    }
    this.#descriptors.set(pack, fd)
    return fd
  }

  #close(fd: number): void {
    if (this.#reads.has(fd)) this.#unwanted.add(fd)
    else closeSync(fd)
  }

  #readEnded(fd: number): void {
    const others = this.#reads.get(fd)! - 1
    if (others > 0) this.#reads.set(fd, others)
    else {
      this.#reads.delete(fd)
      if (this.#unwanted.delete(fd)) closeSync(fd)
    }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const fd of this.#descriptors.values()) this.#close(fd)
    this.#descriptors.clear()
    this.#index.close()
    this.#lock[Symbol.dispose]()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close()
  }
}

/** Makes the index of a new store, unless another process does so at the same time. */
function createIndex(directory: string): void {
  const lock = StoreLock.take(directory, 'store', { mode: 'exclusive', wait: true, unless: () => existsSync(join(directory, INDEX_FILE)) })
  if (lock === undefined) return
  try {
    PackIndex.open(directory).close()
    syncPath(directory)
    syncPath(dirname(resolve(directory)))
  } finally {
    lock[Symbol.dispose]()
  }
}
