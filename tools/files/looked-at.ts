/**
 * What a CVD shows now, as a disk that stays as it is: its base where nothing was written since, otherwise a snapshot that is taken for the purpose
 * and removed afterwards, by whoever has the CVD. A CVD that was never started shows what would be composed now.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, openSync, rmSync } from 'node:fs'
import path from 'node:path'
import type { Logger } from 'pino'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { tryLock } from '@varve/images/native/libc.ts'
import type { Cvd } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { freezeState } from '../create-snapshot.ts'
import { HomeExports, snapshotName } from '../exports.ts'
import { readMap } from '../settlement.ts'

/** Snapshots that are taken to look at a CVD, and go when nobody looks any more. */
export const LOOK_SNAPSHOT_PREFIX = 'look-'

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
  await removeLeftLooks(home, cvd)
  const look = `${LOOK_SNAPSHOT_PREFIX}${snapshotName()}-${randomBytes(3).toString('hex')}`
  opened.use(lookLock(home, cvd, look))
  const snapshot = await freezeState(home, { cvd: name, name: look, signal })
  if (snapshot === null) {
    const device = opened.use(new MapDevice(await readMap(home, (await home.catalog.cvd(name)).baseMap!), home.store, parts.cache))
    const stack = opened.move()
    return { device, [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose]() }
  }
  opened.defer(() => removeLook(home, cvd, snapshot))
  const disk = opened.use(await openExport(parts, `${name}@${snapshot}`))
  const stack = opened.move()
  return { device: disk.device, [Symbol.asyncDispose]: () => stack[Symbol.asyncDispose]() }
}

/** Says that a look goes on, until it is disposed of or the process dies. It is there before its snapshot is. */
function lookLock(home: Home, cvd: Cvd, look: string): Disposable {
  const file = lookFile(home, cvd, look)
  const fd = openSync(file, 'w', 0o600)
  tryLock(fd)
  return {
    [Symbol.dispose]: () => {
      rmSync(file, { force: true })
      closeSync(fd)
    },
  }
}

function lookFile(home: Home, cvd: Cvd, look: string): string {
  return path.join(home.runDirectory, `${cvd.id}.${look}`)
}

/** Snapshots whose lookers were killed. */
async function removeLeftLooks(home: Home, cvd: Cvd): Promise<void> {
  for (const { name } of await home.catalog.snapshots(cvd.name)) {
    if (!name.startsWith(LOOK_SNAPSHOT_PREFIX) || isLookedAt(lookFile(home, cvd, name))) continue
    await removeLook(home, cvd, name)
    rmSync(lookFile(home, cvd, name), { force: true })
  }
}

function isLookedAt(file: string): boolean {
  if (!existsSync(file)) return false
  const fd = openSync(file, 'r')
  try {
    return !tryLock(fd)
  } finally {
    closeSync(fd)
  }
}

async function removeLook(home: Home, cvd: Cvd, snapshot: string): Promise<void> {
  try {
    await home.catalog.removeSnapshot(cvd.name, snapshot)
  } catch (error) {
    // With its CVD, or by hand.
    if (!isVarveError(error, 'NOT_FOUND')) throw error
  }
}

async function openExport({ home, log, cache }: DiskParts, name: string): Promise<StillDisk> {
  const opened = await new HomeExports(home, log, cache).open(name)
  return { device: opened.device, [Symbol.asyncDispose]: async () => opened.close?.() }
}
