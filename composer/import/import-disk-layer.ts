/**
 * Import of a disk as the next version of a layer: tree and block map become visible together, after all that they stand on is durable.
 */
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import type { Catalog, Layer, LayerKind } from '@varve/images/store/catalog.ts'
import { checkName, formatLayerName } from '@varve/images/store/names.ts'
import { getObject } from '@varve/images/store/object.ts'
import type { PackStore } from '@varve/images/store/pack-store.ts'
import type { WriterFigures } from '@varve/images/store/chunk-store.ts'
import { ContentPipeline } from './content-pipeline.ts'
import { importDisk } from './disk/import-disk.ts'
import type { DiskBase, ImportDiskOptions } from './disk/import-disk.ts'
import { KnownFiles } from './disk/known-files.ts'
import type { DiskProblem } from './disk/open-volumes.ts'
import { Progress } from './import-context.ts'
import type { ImportProgress } from './import-context.ts'
import { columnsBytesMax, workersOf } from './import-layer.ts'

export interface ImportDiskLayerOptions extends Pick<ImportDiskOptions, 'keepFree' | 'reread'> {
  home: { store: PackStore; catalog: Catalog; cacheDirectory: string }
  name: string
  kind: LayerKind
  /** Borrowed; nobody writes to it meanwhile. */
  disk: ReadableDisk
  /** Where it came from, in words. */
  source: string
  labels?: Record<string, string>
  /** `NAME@N`, a layer that is an earlier state of the disk; the latest version of the layer that has a disk unless given. */
  base?: string
  /** What may have changed since. */
  changed?: Ranges
  workers?: number
  signal?: AbortSignal
  /** Called ten times a second at most. */
  onProgress?: (progress: ImportProgress) => void
}

export interface DiskFigures {
  /** Regular files, those with several names once. */
  files: number
  /** Of those, files that were known to be unchanged and were not read. */
  filesUnchanged: number
  sizeBytes: number
  /** Of the disk's content; what was read of metadata to find the files comes on top. */
  bytesRead: number
  written: WriterFigures
  /** What is not in the tree; the first of it, and how much there is of it. */
  problems: DiskProblem[]
  leftOut: number
}

/** Label of a layer whose disk has what nothing used, too. */
const FREE_LABEL = 'disk.free'

/** @throws VarveError NAME_INVALID, NOT_FOUND, SOURCE_INVALID, LIMIT_EXCEEDED, and what reading the disk throws */
export async function importDiskLayer(options: ImportDiskLayerOptions): Promise<{ layer: Layer; base: Layer | undefined; figures: DiskFigures }> {
  const { home: { store, catalog, cacheDirectory }, name, kind, disk, source, signal, keepFree = false, reread } = options
  checkName(name, 'layer')
  const workers = workersOf(options)
  // Before the base is looked up: what it names stays, whatever becomes of it.
  await using writer = store.writer({ signal })
  const base = await baseLayer(options)
  // Of a base without its free space, nobody knows what that was: all is read.
  const changed = keepFree && base?.labels[FREE_LABEL] !== 'kept' ? undefined : options.changed
  const progress = new Progress(options.onProgress)
  await using pipeline = new ContentPipeline({ store, packsDirectory: store.directory, workers, signal })
  const context = { pipeline, writer, progress, signal, cacheDirectory, columnsBytesMax: columnsBytesMax(workers), scratchDirectory: store.directory }
  const imported = await importDisk(context, { disk, base: base === undefined ? undefined : await diskBase(store, base, changed), keepFree, reread })
  const { tree, mapDigest, known, filesUnchanged, bytesRead, problems, leftOut } = imported
  const written = await pipeline.commit()
  await writer.commit()
  signal?.throwIfAborted()
  const layer = await catalog.addLayer({
    name, kind, source, map: mapDigest,
    labels: { ...options.labels, ...(keepFree ? { [FREE_LABEL]: 'kept' } : {}) },
    content: tree === undefined ? 'block map' : 'tree',
    digest: tree?.digest ?? mapDigest,
    entries: tree?.entries ?? 0,
    contentBytes: tree?.contentBytes ?? disk.sizeBytes,
  })
  KnownFiles.write(cacheDirectory, mapDigest, known)
  // What is known of the version before may be wanted still; older ones are named by --base at most.
  const maps = (await catalog.layers(name)).flatMap(({ map }) => map ?? [])
  const kept = maps.slice(-2).map(digestToHex)
  for (const map of maps) if (!kept.includes(digestToHex(map))) KnownFiles.forget(cacheDirectory, map)
  progress.tell(true)
  return { layer, base, figures: { files: progress.now.files, filesUnchanged, sizeBytes: disk.sizeBytes, bytesRead, written, problems, leftOut } }
}

/** The layer whose disk this one was. @throws VarveError NOT_FOUND, SOURCE_INVALID */
async function baseLayer({ home: { catalog }, name, base, changed }: ImportDiskLayerOptions): Promise<Layer | undefined> {
  if (base !== undefined) {
    const layer = await catalog.layer(base)
    if (layer.map === null) throw new VarveError('SOURCE_INVALID', `layer ${formatLayerName(layer)} was not imported from a disk; name one that was with --base`)
    return layer
  }
  const found = (await catalog.layers(name)).findLast(({ map }) => map !== null)
  if (found === undefined && changed !== undefined) throw new VarveError('SOURCE_INVALID', `layer ${name} has no version that was imported from a disk; what has changed since is of no use without it`)
  return found
}

/** @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT if the base is needed, since only the changes are told */
async function diskBase(store: PackStore, { map }: Layer, changed: Ranges | undefined): Promise<DiskBase | undefined> {
  try {
    return { map: BlockMap.decode(await getObject(store, map!)), digest: map!, changed }
  } catch (error) {
    if (changed !== undefined || !isVarveError(error, 'CHUNK_MISSING', 'CHUNK_CORRUPT')) throw error
    return undefined
  }
}
