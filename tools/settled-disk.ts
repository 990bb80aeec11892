/**
 * Settled disks: what a name stands for, as one block map that does not change: a layer, a snapshot, or what a CVD shows now.
 */
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import type { Layer } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { formatLayerName, parseCvdName } from '@varve/images/store/names.ts'
import { settledSnapshot, settledState } from './create-snapshot.ts'
import { startCvd } from './cvd-disk.ts'
import { LookSnapshot } from './look-snapshot.ts'
import { readMap } from './settlement.ts'

export const LAYER_PREFIX = 'layer:'

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
  const digest = (await lastingMap(name, home, signal)) ?? (await currentMap(name, opened, home, signal))
  const device = opened.use(new MapDevice(await readMap(home, digest), home.store, cache))
  const parts = opened.move()
  return { device, digest, [Symbol.asyncDispose]: () => parts.disposeAsync() }
}

/** The map of a layer or a snapshot, which is the same always. @returns undefined for a CVD @throws as openSettledDisk */
export async function lastingMap(name: string, home: Home, signal: AbortSignal): Promise<Digest | undefined> {
  if (name.startsWith(LAYER_PREFIX)) return layerMap(await home.catalog.layer(name.slice(LAYER_PREFIX.length)), home, signal)
  const { cvd, snapshot } = parseCvdName(name)
  return snapshot === undefined ? undefined : settledSnapshot(home, { cvd, name: snapshot, signal })
}

/** @param opened keeps what is named by nothing else */
async function currentMap(cvd: string, opened: AsyncDisposableStack, home: Home, signal: AbortSignal): Promise<Digest> {
  const look = opened.use(await LookSnapshot.open(home, await startCvd(cvd, { home, signal })))
  return (await settledState(home, { cvd, name: look.name, signal })).map
}

/** The disk that a layer is, or that its files are composed to. */
export async function layerMap(layer: Layer, { store, catalog }: Home, signal?: AbortSignal): Promise<Digest> {
  if (layer.map !== null) return layer.map
  const recipe = await prepareRecipe({ layers: [formatLayerName(layer)], policy: { boot: 'none' } }, { catalog, store })
  return (await compose(recipe, { store, catalog, signal })).mapDigest
}
