/**
 * Content storer: reads the runs of a batch, cuts them, and puts their chunks into the store through a writer of its own.
 * One in every worker, and one in the importing thread itself when there is too little to do for workers to be worth their start.
 */
import { readSync } from 'node:fs'
import { DIGEST_BYTES, digestOf } from '@varve/images/chunk/digest.ts'
import { cutContent, cutFixed } from '@varve/images/chunk/cut.ts'
import { CUT_BYTES_MAX, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { VarveError } from '@varve/images/errors.ts'
import { FileStatus, IDENTITY_WORDS, closeDescriptor, errnoName, openToRead } from '@varve/images/native/scan.ts'
import type { WriterFigures } from '@varve/images/store/chunk-store.ts'
import type { PackWriter } from '@varve/images/store/pack-writer.ts'
import type { ClaimTable } from './claim-table.ts'
import { RUN_CHANGED, RUN_FIXED } from './content-batch.ts'
import type { BatchResult, ContentBatch, FileBatch } from './content-batch.ts'
import { isUpdatedInPlace } from './in-place-formats.ts'
import { printPath } from '../merge/print-path.ts'

/**
 * Bytes of new chunks, and their number, after which the writer commits, while the work goes on: the end need not wait for all of it,
 * memory is not filled with what is to be committed, and an import that is run again after an interruption finds what was committed.
 */
const COMMIT_BYTES = 128 << 20
const COMMIT_CHUNKS = 8192
const KEPT_DIGESTS = 1024

export class ContentStorer {
  readonly #writer: PackWriter
  readonly #claims: ClaimTable | undefined
  readonly #status = new FileStatus()
  #bytesCommitted = 0
  #chunksCommitted = 0
  #commit: { failure?: unknown } | undefined
  /** Chunks, and their bytes, that another has put. */
  #chunksClaimed = 0
  #bytesClaimed = 0
  /** Content of the run at hand; grows with the runs, up to SEGMENT_BYTES. */
  #content = new Uint8Array(CUT_BYTES_MAX)
  /** Memory for digests that the writer keeps, and how much of it is used. */
  #kept = new Uint8Array()
  #keptAt = 0
  #digests = new Uint8Array(1024 * DIGEST_BYTES)
  #chunkBytes = new Uint32Array(1024)
  #chunks = 0

  /** @param claims shared with the other storers of the import, if there are any */
  constructor(writer: PackWriter, claims?: ClaimTable) {
    this.#writer = writer
    this.#claims = claims
  }

  get written(): WriterFigures {
    const { written } = this.#writer
    return { ...written, chunks: written.chunks + this.#chunksClaimed, bytes: written.bytes + this.#bytesClaimed }
  }

  /** @throws VarveError SOURCE_INVALID for a file that cannot be read, and what the store throws */
  store(batch: ContentBatch): BatchResult {
    if (this.#commit?.failure !== undefined) throw this.#commit.failure as Error
    this.#chunks = 0
    const chunkCounts = new Uint32Array(batch.count)
    for (let run = 0; run < batch.count; run++) {
      const before = this.#chunks
      if (batch.kind === 'bytes') {
        this.#put(batch.bytes.subarray(batch.starts[run], batch.starts[run] + batch.lengths[run]), (batch.flags[run] & RUN_FIXED) !== 0)
      } else if (!this.#putFile(batch, run)) {
        this.#chunks = before
        chunkCounts[run] = RUN_CHANGED
        continue
      }
      chunkCounts[run] = this.#chunks - before
    }
    const { bytesNew, chunksNew } = this.#writer.written
    if (this.#commit === undefined && (bytesNew - this.#bytesCommitted >= COMMIT_BYTES || chunksNew - this.#chunksCommitted >= COMMIT_CHUNKS)) this.#startCommit()
    return { chunkCounts, digests: this.#digests.slice(0, this.#chunks * DIGEST_BYTES), chunkBytes: this.#chunkBytes.slice(0, this.#chunks) }
  }

  /** Makes durable what was put. */
  async commit(): Promise<void> {
    await this.#writer.commit()
  }

  /** Commits beside the work; a failure comes with the next batch, or the commit at the end. */
  #startCommit(): void {
    const commit: { failure?: unknown } = {}
    this.#commit = commit
    this.#bytesCommitted = this.#writer.written.bytesNew
    this.#chunksCommitted = this.#writer.written.chunksNew
    this.#writer.commit().then(
      () => (this.#commit = undefined),
      (error: unknown) => (commit.failure = error),
    )
  }

  /** @returns false if the file has changed */
  #putFile(batch: FileBatch, run: number): boolean {
    const path = batch.paths.subarray(batch.pathStarts[run], batch.pathStarts[run + 1])
    const fd = openToRead(path)
    if (fd < 0) {
      const errno = errnoName(-fd)
      if (errno === 'ENOENT' || errno === 'ENOTDIR' || errno === 'ELOOP') return false
      throw unreadable(path, errno)
    }
    try {
      const content = this.#read(fd, path, batch.offsets[run], batch.lengths[run])
      const errno = this.#status.ofDescriptor(fd)
      if (errno !== 0) throw unreadable(path, errnoName(errno))
      if (content === undefined || !this.#status.hasIdentity(batch.identities, run * IDENTITY_WORDS)) return false
      this.#put(content, (batch.flags[run] & RUN_FIXED) !== 0 || (batch.offsets[run] === 0 && isUpdatedInPlace(content)))
      return true
    } finally {
      closeDescriptor(fd)
    }
  }

  /** @returns undefined if the file ends before */
  #read(fd: number, path: Uint8Array, offset: number, length: number): Uint8Array | undefined {
    if (length > this.#content.length) this.#content = new Uint8Array(Math.min(SEGMENT_BYTES, 2 ** Math.ceil(Math.log2(length))))
    let filled = 0
    while (filled < length) {
      let bytes
      try {
        bytes = readSync(fd, this.#content, filled, length - filled, offset + filled)
      } catch (cause) {
        throw unreadable(path, (cause as NodeJS.ErrnoException).code ?? 'error', cause)
      }
      if (bytes === 0) return undefined
      filled += bytes
    }
    return this.#content.subarray(0, length)
  }

  #put(content: Uint8Array, fixed: boolean): void {
    let start = 0
    for (const end of fixed && content.length > CUT_BYTES_MAX ? cutFixed(content) : cutContent(content)) {
      if (this.#chunks === this.#chunkBytes.length) this.#grow()
      this.#digests.set(this.#putChunk(content.subarray(start, end)), this.#chunks * DIGEST_BYTES)
      this.#chunkBytes[this.#chunks++] = end - start
      start = end
    }
  }

  /**
   * The writer keeps digests until it commits. Given as they come from the hash function, each in memory of its own, they would outlive the
   * young generation, and their memory the collections that follow.
   */
  #putChunk(bytes: Uint8Array): Uint8Array {
    if (this.#keptAt === this.#kept.length) {
      this.#kept = new Uint8Array(KEPT_DIGESTS * DIGEST_BYTES)
      this.#keptAt = 0
    }
    const digest = this.#kept.subarray(this.#keptAt, (this.#keptAt += DIGEST_BYTES))
    digest.set(digestOf(bytes))
    if (this.#claims?.claim(digest) !== true) return this.#writer.put(bytes, digest)
    this.#chunksClaimed++
    this.#bytesClaimed += bytes.length
    return digest
  }

  #grow(): void {
    const digests = new Uint8Array(this.#digests.length * 2)
    digests.set(this.#digests)
    this.#digests = digests
    const chunkBytes = new Uint32Array(this.#chunkBytes.length * 2)
    chunkBytes.set(this.#chunkBytes)
    this.#chunkBytes = chunkBytes
  }
}

function unreadable(path: Uint8Array, errno: string, cause?: unknown): VarveError {
  return new VarveError('SOURCE_INVALID', `${printPath(Buffer.from(path.subarray(0, -1)).toString('latin1'))} cannot be read: ${errno}`, { cause })
}
