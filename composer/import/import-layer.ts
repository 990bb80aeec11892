/**
 * Import: a source becomes trees, their chunks, and then layers of the catalog. What becomes durable in this order: chunks, the trees as objects,
 * the rows of the catalog that name them. Who is interrupted leaves chunks that nothing names, which the next run finds and a collection removes.
 */
import { availableParallelism } from 'node:os'
import type { Catalog, Layer, LayerKind } from '@varve/images/store/catalog.ts'
import type { PackStore } from '@varve/images/store/pack-store.ts'
import type { PackWriter } from '@varve/images/store/pack-writer.ts'
import type { WriterFigures } from '@varve/images/store/chunk-store.ts'
import { checkName } from '@varve/images/store/names.ts'
import type { StoredTree } from '@varve/images/store/stored-tree.ts'
import { ContentPipeline, WORKERS_MAX, WORKER_BYTES } from './content-pipeline.ts'
import { importDirectory } from './directory-source.ts'
import { Progress } from './import-context.ts'
import type { ImportContext, ImportProgress } from './import-context.ts'
import { importOci } from './oci-source.ts'
import { parseSource } from './source.ts'
import type { Source } from './source.ts'
import { fileBytes, importTar, standardInput } from './tar-source.ts'

/** Columns of trees in memory, with so many workers: with all else that an import needs, the process stays below 512 MiB. More workers leave less. */
const COLUMNS_BYTES_MAX = 200 << 20
const WORKERS_COUNTED = 2
/** Of themselves no more: the importing thread can hardly feed them, and they would leave too little for the columns. */
const WORKERS_DEFAULT_MAX = 4

export interface ImportTreesOptions {
  store: PackStore
  /** Where file caches are kept; without one, all files are read. */
  cacheDirectory?: string
  source: string | Source
  /** Makes one tree of an image of several layers. */
  squash?: boolean
  /** Threads that read, hash and compress: 1 .. 8; by default as many as there are processors, 4 at most. */
  workers?: number
  signal?: AbortSignal
  /** Called ten times a second at most. */
  onProgress?: (progress: ImportProgress) => void
}

export interface ImportLayerOptions extends Omit<ImportTreesOptions, 'store' | 'cacheDirectory'> {
  home: { store: PackStore; catalog: Catalog; cacheDirectory: string }
  /** Of the layer. An image of several layers that is not squashed gives NAME-1, NAME-2, ..., bottom first. */
  name: string
  kind: LayerKind
}

export interface ImportFigures {
  /** Regular files, those with several names once in each tree. */
  files: number
  /** Of those, files that were known to be unchanged and were not read. */
  filesUnchanged: number
  /** Bytes of the files, holes included. */
  contentBytes: number
  /** What was put for them, found or new, and what it takes. */
  written: WriterFigures
}

/**
 * Imports a source as the next version of a layer; all that it stands on is durable then.
 * @throws VarveError NAME_INVALID, and what importTrees throws
 */
export async function importLayer(options: ImportLayerOptions): Promise<{ layers: Layer[]; figures: ImportFigures }> {
  const { home, name, kind, source } = options
  checkName(name, 'layer')
  // Open until the catalog names the trees: it holds all that is found or put from now on.
  await using writer = home.store.writer({ signal: options.signal })
  const { trees, figures } = await readTrees({ ...options, store: home.store, cacheDirectory: home.cacheDirectory }, writer)
  await writer.commit()
  options.signal?.throwIfAborted()
  const layers = await home.catalog.addLayers(
    trees.map(({ digest, entries, contentBytes }, index) => ({
      name: trees.length === 1 ? name : `${name}-${index + 1}`,
      kind,
      content: 'tree' as const,
      digest,
      entries,
      contentBytes,
      source: typeof source === 'string' ? source : formatSource(source),
    })),
  )
  return { layers, figures }
}

/**
 * Reads a source into trees of the store, bottom first; they and their chunks are durable then. The caller holds a lease of the store until something names the trees.
 * @throws VarveError SOURCE_INVALID, SOURCE_CHANGED, SOURCE_UNSUPPORTED, FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED, LIBRARY_MISSING
 */
export async function importTrees(options: ImportTreesOptions): Promise<{ trees: StoredTree[]; figures: ImportFigures }> {
  await using writer = options.store.writer({ signal: options.signal })
  const read = await readTrees(options, writer)
  await writer.commit()
  return read
}

/** The trees are put into `writer`, but not committed: their chunks are. */
async function readTrees(options: ImportTreesOptions, writer: PackWriter): Promise<{ trees: StoredTree[]; figures: ImportFigures }> {
  const { store, signal, cacheDirectory } = options
  const source = typeof options.source === 'string' ? parseSource(options.source) : options.source
  const workers = workersOf(options)
  signal?.throwIfAborted()
  const progress = new Progress(options.onProgress)
  await using pipeline = new ContentPipeline({ store, packsDirectory: store.directory, workers, signal })
  const { trees, filesUnchanged } = await readSource({ pipeline, writer, progress, signal, cacheDirectory, columnsBytesMax: columnsBytesMax(workers), scratchDirectory: store.directory }, source, options.squash ?? false)
  const written = await pipeline.commit()
  progress.tell(true)
  const { files } = progress.now
  return { trees, figures: { files, filesUnchanged, contentBytes: trees.reduce((sum, tree) => sum + tree.contentBytes, 0), written } }
}

async function readSource(context: ImportContext, source: Source, squash: boolean): Promise<{ trees: StoredTree[]; filesUnchanged: number }> {
  switch (source.kind) {
    case 'dir':
    case 'overlay': {
      const { tree, filesUnchanged } = await importDirectory(context, source.path, source.kind)
      return { trees: [tree], filesUnchanged }
    }
    case 'tar': {
      const onSize = (sizeBytes: number) => void (context.progress.now.sourceBytesTotal = sizeBytes)
      const bytes = source.path === '-' ? standardInput(context.signal) : fileBytes(source.path, { onSize })
      return { trees: [await importTar(context, bytes)], filesUnchanged: 0 }
    }
    case 'oci':
      return { trees: await importOci(context, { directory: source.path, tag: source.tag, squash }), filesUnchanged: 0 }
  }
}

/** How many there are to be. */
export function workersOf({ workers = Math.min(availableParallelism(), WORKERS_DEFAULT_MAX) }: Pick<ImportTreesOptions, 'workers'>): number {
  if (!(Number.isInteger(workers) && workers >= 1)) throw new RangeError(`${workers} is not a number of workers`)
  return Math.min(workers, WORKERS_MAX)
}

/** Together with the workers, some 512 MiB. */
export function columnsBytesMax(workers: number): number {
  return COLUMNS_BYTES_MAX - Math.max(0, workers - WORKERS_COUNTED) * WORKER_BYTES
}

function formatSource(source: Source): string {
  return `${source.kind}:${source.path}${source.kind === 'oci' && source.tag !== undefined ? `:${source.tag}` : ''}`
}
