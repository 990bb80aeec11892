/**
 * Import: a source becomes a tree, its content chunks, and then a layer of the catalog. Order of what becomes durable:
 * chunks, then the tree as an object, then the row of the catalog that names it; who is interrupted leaves chunks that nothing names,
 * which the next run finds and a collection removes.
 */
import { availableParallelism } from 'node:os'
import { VarveError } from '@varve/images/errors.ts'
import type { PackStore } from '@varve/images/store/pack-store.ts'
import type { WriterFigures } from '@varve/images/store/chunk-store.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { ContentPipeline, WORKERS_MAX } from './content-pipeline.ts'
import { importDirectory } from './directory-source.ts'
import { Progress } from './import-context.ts'
import type { ImportContext, ImportProgress } from './import-context.ts'
import { parseSource } from './source.ts'
import type { Source } from './source.ts'

export interface ImportOptions {
  store: PackStore
  /** Where file caches are kept; without one, all files are read. */
  cacheDirectory?: string
  source: string | Source
  /** Threads that read, hash and compress; 1 .. 8, by default as many as there are processors. */
  workers?: number
  signal?: AbortSignal
  /** Ten times a second at most. */
  onProgress?: (progress: ImportProgress) => void
}

export interface ImportFigures {
  files: number
  filesUnchanged: number
  /** Bytes of the tree's files, holes included. */
  contentBytes: number
  /** What the workers found and wrote. */
  written: WriterFigures
}

export interface ImportedTree {
  tree: Tree
}

/**
 * Reads a source into trees whose chunks are durable in the store. The caller holds a lease of the store until something names the trees.
 * @throws VarveError SOURCE_INVALID, SOURCE_CHANGED, SOURCE_UNSUPPORTED, FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED, LIBRARY_MISSING
 */
export async function importTrees(options: ImportOptions): Promise<{ trees: ImportedTree[]; figures: ImportFigures }> {
  const { store, signal, cacheDirectory } = options
  const source = typeof options.source === 'string' ? parseSource(options.source) : options.source
  const workers = Math.min(options.workers ?? availableParallelism(), WORKERS_MAX)
  if (!(Number.isInteger(workers) && workers >= 1)) throw new RangeError(`${options.workers} is not a number of workers`)
  signal?.throwIfAborted()
  const progress = new Progress(options.onProgress)
  await using writer = store.writer({ signal })
  await using pipeline = new ContentPipeline({ store, packsDirectory: store.directory, workers, signal })
  const context: ImportContext = { pipeline, writer, progress, signal, cacheDirectory }
  const { tree, figures } = await read(context, source)
  const written = await pipeline.commit()
  progress.tell(true)
  return { trees: [{ tree }], figures: { ...figures, contentBytes: tree.contentBytes, written } }
}

async function read(context: ImportContext, source: Source) {
  if (source.kind === 'dir' || source.kind === 'overlay') return importDirectory(context, source.path, source.kind)
  throw new VarveError('SOURCE_UNSUPPORTED', source.kind)
}
