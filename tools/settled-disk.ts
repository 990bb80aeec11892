/**
 * Settled disks: what a name stands for, as one block map that does not change: a layer, a snapshot, or what a CVD shows now.
 */
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import type { Home } from '@varve/images/store/home.ts'
import { formatLayerName, parseCvdName } from '@varve/images/store/names.ts'
import { settledSnapshot, settledState } from './create-snapshot.ts'
import { startCvd } from './cvd-disk.ts'
import { readMap } from './settlement.ts'

export const LAYER_PREFIX = 'layer:'
/** Of snapshots that are taken for a copy, and removed after it. */
const COPY_SNAPSHOT_PREFIX = 'copy-'

/** Store and cache are borrowed. */
export interface SettledDisk extends AsyncDisposable {
  device: MapDevice
  /** Of its block map: the same digest is the same disk. */
  digest: Digest
}

/**
 * @param name `CVD`, `CVD@SNAPSHOT` or `layer:NAME[@N]`
 * @throws VarveError NOT_FOUND, NAME_INVALID, STORE_LOCKED, and what composing and settling throw
 */
export async function openSettledDisk(name: string, { home, cache, signal }: { home: Home; cache: ChunkCache; signal: AbortSignal }): Promise<SettledDisk> {
  await using opened = new AsyncDisposableStack()
  // Before the catalog is asked: what it names then stays.
  opened.use(home.store.lease())
  const { digest, snapshot } = await settledMap(name, home, signal)
  if (snapshot !== null) opened.defer(() => home.catalog.removeSnapshot(name, snapshot))
  const device = opened.use(new MapDevice(await readMap(home, digest), home.store, cache))
  const parts = opened.move()
  return { device, digest, [Symbol.asyncDispose]: () => parts.disposeAsync() }
}

/** As openSettledDisk, without opening it. @returns the snapshot that was taken for it, too */
export async function settledMap(name: string, home: Home, signal: AbortSignal): Promise<{ digest: Digest; snapshot: string | null }> {
  if (name.startsWith(LAYER_PREFIX)) return { digest: await layerMap(name.slice(LAYER_PREFIX.length), home, signal), snapshot: null }
  const { cvd, snapshot } = parseCvdName(name)
  if (snapshot !== undefined) return { digest: await settledSnapshot(home, { cvd, name: snapshot, signal }), snapshot: null }
  await startCvd(cvd, { home, signal })
  const state = await settledState(home, { cvd, name: `${COPY_SNAPSHOT_PREFIX}${Date.now()}`, signal })
  return { digest: state.map, snapshot: state.snapshot }
}

/** The disk that a layer is, or that its files are composed to. */
async function layerMap(reference: string, { store, catalog }: Home, signal: AbortSignal): Promise<Digest> {
  const layer = await catalog.layer(reference)
  if (layer.map !== null) return layer.map
  const recipe = await prepareRecipe({ layers: [formatLayerName(layer)], policy: { boot: 'none' } }, { catalog, store })
  return (await compose(recipe, { store, catalog, signal })).mapDigest
}
