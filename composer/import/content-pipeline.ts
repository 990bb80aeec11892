/**
 * Content pipeline: hands batches to a pool of workers and their results back, with a bound on what is under way.
 * Where there is but one batch, the importing thread stores it itself: workers would take longer to start than it takes to do.
 */
import type { Piscina } from 'piscina'
import { SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import type { PackStore } from '@varve/images/store/pack-store.ts'
import type { PackWriter } from '@varve/images/store/pack-writer.ts'
import type { WriterFigures } from '@varve/images/store/chunk-store.ts'
import type { BatchError, BatchResult, ContentBatch } from './content-batch.ts'
import { ClaimTable } from './claim-table.ts'
import { ContentStorer } from './content-storer.ts'
import type { CommitTask, ContentWorkerData } from './content-worker.ts'

/** More workers than this would not fit the memory that an import may take. */
export const WORKERS_MAX = 8
/** What each worker takes of that memory, bytes. */
export const WORKER_BYTES = 24 << 20

/** Of a worker's heap, for what is garbage at once; V8 would take 64 MiB and be no faster, since the bytes that a worker moves are not in its heap. */
const WORKER_YOUNG_MIB = 8

/** Of the index of chunks, in all workers together; what they have not in memory, the kernel has. */
const INDEX_CACHES_BYTES = 8 << 20

/** Batches that wait for a worker, beside those that the workers have. */
const QUEUED_BATCHES_MAX = 2
/** Of batches with their bytes, SEGMENT_BYTES each: as many as one thread fills while workers empty them. */
const SLOTS_MAX = 5

export interface ContentPipelineOptions {
  store: PackStore
  packsDirectory: string
  /** 1 .. WORKERS_MAX */
  workers: number
  signal?: AbortSignal
}

type Pool = Piscina<ContentBatch | CommitTask, BatchResult | WriterFigures | BatchError>

interface Held {
  batch: ContentBatch
  onResult: (result: BatchResult) => void
}

export class ContentPipeline implements AsyncDisposable {
  readonly #options: ContentPipelineOptions
  #pool: Promise<Pool> | undefined
  /** The first batch, until it is known whether there is a second. */
  #first: Held | undefined
  /** Of this thread, if all batches are to be stored by it. */
  #own: { writer: PackWriter; storer: ContentStorer } | undefined
  #underWay = 0
  #failure: { error: Error } | undefined
  #waiting: (() => void)[] = []
  #freeSlots: Uint8Array[] = []
  #slots = 0
  /** Written by this thread. */
  readonly #ownWritten: WriterFigures = { chunks: 0, bytes: 0, chunksNew: 0, bytesNew: 0, bytesStored: 0 }

  constructor(options: ContentPipelineOptions) {
    this.#options = options
    options.signal?.addEventListener('abort', this.#onAbort)
  }

  readonly #onAbort = (): void => this.#fail(this.#options.signal?.reason)

  /** What comes is so little that this thread stores it all, as it comes: before the first batch. */
  stayInThread(): void {
    const writer = this.#options.store.writer({ signal: this.#options.signal })
    this.#own = { writer, storer: new ContentStorer(writer) }
  }

  /** True if `submit` may be called now. */
  get hasRoom(): boolean {
    return this.#underWay < this.#options.workers + QUEUED_BATCHES_MAX
  }

  /** Resolves when hasRoom is true. @throws what a batch failed with */
  async room(): Promise<void> {
    this.throwIfFailed()
    while (!this.hasRoom) await this.#change()
  }

  /** Memory for the bytes of one batch, SEGMENT_BYTES of it; comes back with the batch's result. Waits until some is free. */
  async slot(): Promise<Uint8Array> {
    this.throwIfFailed()
    while (this.#freeSlots.length === 0 && this.#slots >= Math.min(this.#options.workers + QUEUED_BATCHES_MAX, SLOTS_MAX)) await this.#change()
    const free = this.#freeSlots.pop()
    if (free !== undefined) return free
    this.#slots++
    return new Uint8Array(new SharedArrayBuffer(SEGMENT_BYTES))
  }

  /** Gives back what `slot` gave, without a batch. */
  giveBack(slot: Uint8Array): void {
    this.#freeSlots.push(slot)
    this.#wake()
  }

  /** Hands over a batch, whose memory is the worker's until `onResult` is called. */
  submit(batch: ContentBatch, onResult: (result: BatchResult) => void): void {
    this.#underWay++
    if (this.#own !== undefined) {
      this.#done(batch, onResult, this.#own.storer.store(batch))
      return
    }
    if (this.#pool === undefined) {
      if (this.#first === undefined) {
        this.#first = { batch, onResult }
        return
      }
      this.#pool = this.#startPool()
      this.#pool.catch(() => undefined)
      const first = this.#first
      void this.#run(this.#pool, first.batch, first.onResult)
    }
    void this.#run(this.#pool, batch, onResult)
  }

  /** All batches are stored and have had their results; their chunks may not be durable yet. @throws what a batch failed with */
  async drain(): Promise<void> {
    this.throwIfFailed()
    if (this.#pool === undefined && this.#first !== undefined) {
      const { batch, onResult } = this.#first
      this.#first = undefined
      await using writer = this.#options.store.writer({ signal: this.#options.signal })
      const storer = new ContentStorer(writer)
      this.#done(batch, onResult, storer.store(batch))
      await storer.commit()
      add(this.#ownWritten, writer.written)
    }
    while (this.#underWay > 0) await this.#change()
  }

  /** Drains, and makes all chunks durable. @returns what was written so far @throws what a batch failed with */
  async commit(): Promise<WriterFigures> {
    await this.drain()
    if (this.#own !== undefined) {
      await this.#own.storer.commit()
      return { ...this.#own.storer.written }
    }
    const figures = { ...this.#ownWritten }
    if (this.#pool === undefined) return figures
    const pool = await this.#pool
    const taken = new Int32Array(new SharedArrayBuffer(4))
    const { workers } = this.#options
    const commits = Array.from({ length: workers }, async () => unwrap(await pool.run({ kind: 'commit', taken, workers })) as WriterFigures)
    // A worker that fails leaves the others waiting for it: the first failure counts.
    const failed = new Promise<never>((_, reject) => this.#waiting.push(() => this.#failure !== undefined && reject(this.#failure.error)))
    for (const worker of await Promise.race([Promise.all(commits), failed])) add(figures, worker)
    return figures
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    await this.#own?.writer[Symbol.asyncDispose]()
    // What is not committed by now is not wanted: the workers are stopped where they are.
    if (this.#pool !== undefined) await this.#pool.then((pool) => pool.destroy()).catch(() => undefined)
  }

  throwIfFailed(): void {
    this.#options.signal?.throwIfAborted()
    if (this.#failure !== undefined) throw this.#failure.error
  }

  async #startPool(): Promise<Pool> {
    const { Piscina } = await import('piscina')
    const { workers, packsDirectory } = this.#options
    const pool: Pool = new Piscina({
      filename: import.meta.resolve('./content-worker.ts'),
      minThreads: workers,
      maxThreads: workers,
      workerData: { packsDirectory, indexCacheBytes: INDEX_CACHES_BYTES / workers, claims: new ClaimTable().memory } satisfies ContentWorkerData,
      atomics: 'disabled',
      resourceLimits: { maxYoungGenerationSizeMb: WORKER_YOUNG_MIB },
    })
    pool.on('error', (error: unknown) => this.#fail(error))
    return pool
  }

  async #run(pool: Promise<Pool>, batch: ContentBatch, onResult: (result: BatchResult) => void): Promise<void> {
    try {
      const result = unwrap(await (await pool).run(batch)) as BatchResult
      if (this.#failure === undefined) this.#done(batch, onResult, result)
    } catch (error) {
      this.#fail(error)
    }
  }

  #done(batch: ContentBatch, onResult: (result: BatchResult) => void, result: BatchResult): void {
    onResult(result)
    if (batch.kind === 'bytes') this.#freeSlots.push(batch.bytes)
    this.#underWay--
    this.#wake()
  }

  #fail(error: unknown): void {
    this.#failure ??= { error: error instanceof Error ? error : new Error(String(error)) }
    this.#wake()
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }

  async #change(): Promise<void> {
    await new Promise<void>((resolve) => this.#waiting.push(resolve))
    this.throwIfFailed()
  }
}

function add(sum: WriterFigures, figures: WriterFigures): void {
  for (const name of Object.keys(sum) as (keyof WriterFigures)[]) sum[name] += figures[name]
}

function unwrap<T>(result: T | BatchError): T {
  if (typeof result === 'object' && result !== null && 'error' in result) {
    const { code, message, stack } = result.error
    const error = new VarveError(code as ErrorCode, message)
    error.stack = stack
    throw error
  }
  return result
}
