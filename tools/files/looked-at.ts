/**
 * What a CVD shows now, as a disk that stays as it is: its base where nothing was written since, otherwise a snapshot that is taken for the purpose
 * and removed afterwards, by whoever has the CVD. A CVD that was never started shows what would be composed now.
 */
import type { Logger } from 'pino'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import type { Home } from '@varve/images/store/home.ts'
import { freezeState } from '../create-snapshot.ts'
import { HomeExports } from '../exports.ts'
import { LookSnapshot } from '../look-snapshot.ts'
import { readMap } from '../settlement.ts'

export interface DiskParts {
  home: Home
  cache: ChunkCache
  log: Logger
  signal: AbortSignal
}

/** A disk that does not change, and whatever keeps its chunks. */
export interface StillDisk extends AsyncDisposable {
  device: BlockDevice
}

/** @throws VarveError NOT_FOUND, STORE_LOCKED, and what composing throws */
export async function openSnapshotDisk(parts: DiskParts, cvd: string, snapshot: string): Promise<StillDisk> {
  return openExport(parts, `${cvd}@${snapshot}`)
}

/** @throws as `openSnapshotDisk` */
export async function openCurrentDisk(parts: DiskParts, name: string): Promise<StillDisk> {
  const { home, signal } = parts
  await using opened = new AsyncDisposableStack()
  // Before the catalog is asked: what it names then stays.
  const lease = home.store.lease()
  opened.defer(() => lease.release())
  const cvd = await home.catalog.cvd(name)
  if (cvd.baseMap === null) {
    const { store, catalog } = home
    const { map } = await compose(await prepareRecipe({ cvd: name }, { catalog, store, signal }), { store, catalog, signal })
    const device = opened.use(new MapDevice(map, store, parts.cache))
    const stack = opened.move()
    return { device, [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose]() }
  }
  const look = opened.use(await LookSnapshot.open(home, cvd))
  const snapshot = await freezeState(home, { cvd: name, name: look.name, signal })
  const { device } = opened.use(snapshot === null ? await openBase(parts, name) : await openExport(parts, `${name}@${snapshot}`))
  const stack = opened.move()
  return { device, [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose]() }
}

async function openBase({ home, cache }: DiskParts, name: string): Promise<StillDisk> {
  const device = new MapDevice(await readMap(home, (await home.catalog.cvd(name)).baseMap!), home.store, cache)
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
}

async function openExport({ home, log, cache }: DiskParts, name: string): Promise<StillDisk> {
  const opened = await new HomeExports(home, log, cache).open(name)
  return { device: opened.device, [Symbol.asyncDispose]: async () => opened.close?.() }
}
