/**
 * Content worker: one thread of the pool that reads, cuts, hashes, compresses and writes. It opens the store by itself
 * and writes packs of its own. Started by content-pipeline.ts through piscina.
 */
import { workerData } from 'node:worker_threads'
import { isVarveError } from '@varve/images/errors.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import type { WriterFigures } from '@varve/images/store/chunk-store.ts'
import type { BatchError, BatchResult, ContentBatch } from './content-batch.ts'
import { ClaimTable } from './claim-table.ts'
import { ContentStorer } from './content-storer.ts'

export interface ContentWorkerData {
  packsDirectory: string
  /** Of the index of chunks, in the worker's memory. */
  indexCacheBytes: number
  /** Memory of the ClaimTable. */
  claims: SharedArrayBuffer
}

/** Makes what the worker has put durable. All workers are given one at a time, and each waits until all have theirs, so that none gets two. */
export interface CommitTask {
  kind: 'commit'
  /** Shared: workers that have taken the task. */
  taken: Int32Array
  workers: number
}

let storer: ContentStorer | undefined

export default async function run(task: ContentBatch | CommitTask): Promise<BatchResult | WriterFigures | BatchError> {
  try {
    storer ??= openStorer(workerData as ContentWorkerData)
    return task.kind === 'commit' ? await commit(storer, task) : storer.store(task)
  } catch (error) {
    if (isVarveError(error)) return { error: { code: error.code, message: error.message, stack: error.stack } }
    throw error
  }
}

function openStorer({ packsDirectory, indexCacheBytes, claims }: ContentWorkerData): ContentStorer {
  return new ContentStorer(PackStore.open(packsDirectory, { indexCacheBytes }).writer(), new ClaimTable(claims))
}

async function commit(of: ContentStorer, { taken, workers }: CommitTask): Promise<WriterFigures> {
  Atomics.add(taken, 0, 1)
  Atomics.notify(taken, 0)
  await of.commit()
  const figures = of.written
  for (let count = Atomics.load(taken, 0); count < workers; count = Atomics.load(taken, 0)) Atomics.wait(taken, 0, count)
  return figures
}
