/**
 * Compose: recipe -> block map. Pure: the same recipe gives the same map everywhere, and no file data is read or copied.
 * Layers are merged (merge/), laid out as a disk (disk/), and the map is kept under the recipe's digest.
 */
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import type { Catalog, JsonObject } from '@varve/images/store/catalog.ts'
import type { ChunkStore, ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { getObject, putObject } from '@varve/images/store/object.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { BootSet } from './bootset/boot-set.ts'
import { fileOrder } from './bootset/file-order.ts'
import { decodeBootKit } from './boot/boot-kit.ts'
import type { BootKit } from './boot/boot-kit.ts'
import { layOutDisk } from './disk/lay-out-disk.ts'
import { mergeTrees } from './merge/merge.ts'
import type { MergeResult } from './merge/merge.ts'
import type { MergeReport } from './merge/report.ts'
import { recipeDigest } from './recipe.ts'
import type { Recipe, RecipeLayer } from './recipe.ts'

export interface ComposeOptions {
  store: ChunkStore
  /** Remembers composed maps; without it every composition is made anew. */
  catalog?: Catalog
  signal?: AbortSignal
}

/** What is told about a composed disk, and remembered with it. */
export interface ComposedSummary {
  sizeBytes: number
  /** UUID of the root filesystem, text form; '' for a disk that was imported. */
  rootUuid: string
  /** In the order of their numbers; none of a disk that was imported. */
  partitions: { name: string; guid: string; firstByte: number; byteLength: number }[]
  /** Inodes of the merged tree. */
  files: number
  /** Bytes of all files. */
  contentBytes: number
  report: MergeReport
}

export interface Composition extends ComposedSummary {
  recipeDigest: Digest
  /** Decoded when it is first asked for, if the disk was composed before. */
  readonly map: BlockMap
  /** The map's object in the store. */
  mapDigest: Digest
  /** The disk's digest: that of the encoded map, which names all of its bytes. */
  diskDigest: Digest
  /** True if nothing had to be done. */
  cached: boolean
  figures: ComposeFigures
}

export interface ComposeFigures {
  /** Bytes that were generated: all but file data; 0 from the cache. */
  metadataBytes: number
  /** Bytes by which the store grew. */
  storedBytes: number
  /** By phase, and `total`, in milliseconds. */
  milliseconds: Record<string, number>
}

/** The layers disagree, and the recipe does not decide: the report says about what. */
export class ComposeConflictError extends VarveError {
  readonly report: MergeReport

  constructor(report: MergeReport) {
    const [first] = report.conflicts.filter(({ needsDecision }) => needsDecision)
    const more = report.open > 1 ? `, and ${report.open - 1} more` : ''
    super('COMPOSE_CONFLICT', `the layers disagree about ${first.path} (${first.detail})${more}; decide with --decide '${first.key}=LAYER'`)
    this.report = report
  }
}

/**
 * Composes, or takes what was composed before.
 * @throws ComposeConflictError; VarveError DISK_TOO_SMALL, BOOT_MISSING, LIMIT_EXCEEDED, CHUNK_MISSING, CHUNK_CORRUPT, FORMAT_INVALID
 */
export async function compose(recipe: Recipe, options: ComposeOptions): Promise<Composition> {
  const clock = new PhaseClock()
  const digest = recipeDigest(recipe)
  if (recipe.disk.boot === 'own') return await importedDisk(recipe, digest, options, clock)
  return (await composedBefore(digest, options, clock)) ?? (await composeAnew(recipe, digest, options, clock))
}

/** Merges the layers of a recipe and reports, without laying out or keeping anything. */
export async function mergeRecipe(recipe: Recipe, options: { store: ChunkStore; report?: 'conflicts' | 'all'; signal?: AbortSignal }): Promise<MergeResult> {
  await using writer = options.store.writer({ signal: options.signal })
  return await mergeLayers(recipe, await loadTrees(recipe.layers, options), { ...options, writer })
}

async function composedBefore(digest: Digest, { store, catalog }: ComposeOptions, clock: PhaseClock): Promise<Composition | undefined> {
  const composed = await catalog?.composedMap(digest)
  if (composed === undefined) return undefined
  const encoded = await readMap(store, composed.map)
  if (encoded === undefined) return undefined
  const diskDigest = digestOf(encoded)
  clock.end('read')
  let map: BlockMap | undefined
  // The catalog gives back the JSON that composeAnew has handed in.
  const summary = composed.figures as unknown as ComposedSummary
  const figures = { metadataBytes: 0, storedBytes: 0, milliseconds: clock.figures() }
  return {
    ...summary,
    recipeDigest: digest,
    get map() {
      return (map ??= BlockMap.decode(encoded))
    },
    mapDigest: composed.map,
    diskDigest,
    cached: true,
    figures,
  }
}

/** Nothing is composed: the map is there since the disk was imported. */
async function importedDisk({ disk, layers }: Recipe, digest: Digest, { store }: ComposeOptions, clock: PhaseClock): Promise<Composition> {
  if (disk.map === undefined) throw new RangeError('a recipe of a disk as it was imported names its map')
  const encoded = await getObject(store, disk.map)
  const map = BlockMap.decode(encoded)
  const tree = Buffer.compare(layers[0].tree, disk.map) === 0 ? undefined : (await loadTrees(layers, { store }))[0]
  clock.end('read')
  return {
    sizeBytes: map.sizeBytes,
    rootUuid: '',
    partitions: [],
    files: tree?.inodeCount ?? 0,
    contentBytes: tree?.contentBytes ?? map.dataBytes,
    report: { paths: [], conflicts: [], open: 0, unusedDecisions: [] },
    recipeDigest: digest,
    map,
    mapDigest: disk.map,
    diskDigest: digestOf(encoded),
    cached: true,
    figures: { metadataBytes: 0, storedBytes: 0, milliseconds: clock.figures() },
  }
}

async function composeAnew(recipe: Recipe, digest: Digest, options: ComposeOptions, clock: PhaseClock): Promise<Composition> {
  const { store, catalog, signal } = options
  await using writer = store.writer({ signal })
  const trees = await loadTrees(recipe.layers, options)
  const bootKit = await loadBootKit(recipe, store)
  const bootSet = recipe.disk.bootSet === null ? BootSet.empty : BootSet.decode(await getObject(store, recipe.disk.bootSet))
  clock.end('load')
  const { tree, report } = await mergeLayers(recipe, trees, { ...options, writer })
  if (report.open > 0) throw new ComposeConflictError(report)
  clock.end('merge')
  signal?.throwIfAborted()
  const { layout, plan, rootUuid, root } = layOutDisk({ recipe: digest, disk: recipe.disk, tree, bootKit, order: fileOrder(bootSet, tree) }, writer)
  clock.end('lay out')
  signal?.throwIfAborted()
  const map = layout.build(writer)
  clock.end('map')
  const encoded = map.encode()
  const mapDigest = putObject(writer, encoded)
  const diskDigest = digestOf(encoded)
  clock.end('encode')
  await writer.commit()
  const partitions = plan.partitions.map(({ name, guid, firstByte, byteLength }) => ({ name, guid, firstByte, byteLength }))
  const summary: ComposedSummary = { sizeBytes: plan.diskBytes, rootUuid, partitions, files: tree.inodeCount, contentBytes: tree.contentBytes, report }
  const layers = recipe.layers.map((layer) => layer.tree)
  await catalog?.rememberComposedMap({ recipe: digest, map: mapDigest, layers, figures: summary as unknown as JsonObject })
  clock.end('commit')
  const figures = { metadataBytes: root.metadataBytes, storedBytes: writer.written.bytesStored, milliseconds: clock.figures() }
  return { ...summary, recipeDigest: digest, map, mapDigest, diskDigest, cached: false, figures }
}

async function mergeLayers(recipe: Recipe, trees: Tree[], options: { store: ChunkStore; writer: ChunkWriter; report?: 'conflicts' | 'all'; signal?: AbortSignal }): Promise<MergeResult> {
  const layers = recipe.layers.map(({ name, kind }, index) => ({ name, kind, tree: trees[index] }))
  return await mergeTrees(layers, { ...options, decisions: recipe.decisions })
}

async function loadTrees(layers: readonly RecipeLayer[], { store, signal }: { store: ChunkStore; signal?: AbortSignal }): Promise<Tree[]> {
  const trees: Tree[] = []
  for (const { name, tree } of layers) {
    signal?.throwIfAborted()
    try {
      trees.push(decodeTree(await getObject(store, tree)))
    } catch (cause) {
      if (isVarveError(cause)) throw new VarveError(cause.code, `layer ${name}: ${cause.message}`, { cause })
      throw cause
    }
  }
  return trees
}

async function loadBootKit(recipe: Recipe, store: ChunkStore): Promise<BootKit | undefined> {
  if (recipe.disk.boot === 'none') return undefined
  if (recipe.disk.bootKit === null) throw new RangeError('a recipe that boots names a boot kit')
  return decodeBootKit(await getObject(store, recipe.disk.bootKit))
}

/** The encoded map; undefined if it is gone: it can be made again. */
async function readMap(store: ChunkStore, digest: Digest): Promise<Uint8Array | undefined> {
  try {
    return await getObject(store, digest)
  } catch (error) {
    if (isVarveError(error, 'CHUNK_MISSING')) return undefined
    throw error
  }
}

/** Names what each span of time was spent on. */
class PhaseClock {
  readonly #start = performance.now()
  readonly #phases: Record<string, number> = {}
  #last = this.#start

  end(phase: string): void {
    const now = performance.now()
    this.#phases[phase] = (this.#phases[phase] ?? 0) + now - this.#last
    this.#last = now
  }

  figures(): Record<string, number> {
    return { ...this.#phases, total: performance.now() - this.#start }
  }
}
