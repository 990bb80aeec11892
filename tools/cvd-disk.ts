/**
 * CvdDisk: the disk of a CVD as its owner holds it: composed base, overlay, snapshots. One process owns it at a time.
 * It keeps catalog and overlay in step; each step leaves a state from which the next opening goes on (docs/formats/overlay.md#catalog).
 */
import { closeSync, openSync, readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { VarveError } from '@varve/images/errors.ts'
import { tryLock } from '@varve/images/native/libc.ts'
import type { Cvd, Snapshot } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import type { Lease } from '@varve/images/store/lease.ts'
import { checkName } from '@varve/images/store/names.ts'
import { getObject, putObject } from '@varve/images/store/object.ts'

export interface CvdDiskOptions {
  home: Home
  cache: ChunkCache
  signal?: AbortSignal
}

export class CvdDisk implements AsyncDisposable {
  readonly cvd: Cvd
  readonly #home: Home
  readonly #cache: ChunkCache
  readonly #owner: Disposable
  readonly #stack: OverlayStack
  /** The map below the stack. */
  #baseMap: BlockMap
  /** What the stack has adopted and the catalog does not name yet: until it does, only the lease keeps its chunks. */
  #adopted: { generation: number; mapDigest: Digest; lease: Lease } | undefined
  /** Snapshots and settling, one after another. */
  #turn: Promise<unknown> = Promise.resolve()

  private constructor(parts: { home: Home; cache: ChunkCache; cvd: Cvd; owner: Disposable; stack: OverlayStack; baseMap: BlockMap }) {
    this.#home = parts.home
    this.#cache = parts.cache
    this.cvd = parts.cvd
    this.#owner = parts.owner
    this.#stack = parts.stack
    this.#baseMap = parts.baseMap
  }

  /**
   * Opens the disk of a CVD for its one owner; at its first start it is composed.
   * @throws VarveError NOT_FOUND, STORE_LOCKED, OVERLAY_INVALID; ComposeConflictError and what composing throws
   */
  static async open(name: string, options: CvdDiskOptions): Promise<CvdDisk> {
    const { home, cache } = options
    const { owner } = await ownCvd(home, name)
    try {
      // Until the catalog names the base, only this lease keeps it.
      await using _lease = home.store.lease()
      const cvd = await startCvd(name, options)
      const baseMap = await readMap(home, cvd.baseMap!)
      const lower = new MapDevice(baseMap, home.store, cache)
      home.makeOverlaysDirectory(cvd.id)
      const stack = await OverlayStack.open({ directory: home.overlayDirectory(cvd.id, cvd.overlay!), lower, lowerDigest: cvd.baseMap! })
      return new CvdDisk({ home, cache, cvd, owner, stack, baseMap })
    } catch (error) {
      owner[Symbol.dispose]()
      throw error
    }
  }

  get device(): BlockDevice {
    return this.#stack
  }

  /** What was written since the map below, as OverlayStack.changedRuns has it: since the composed disk, or the last snapshot that was settled. */
  changedRuns(offset: number, length: number, most: number): { length: number; changed: boolean }[] {
    return this.#stack.changedRuns(offset, length, most)
  }

  /** Freezes what the disk shows now, under load, and names it. It is settled into chunks by `settle`. @throws VarveError NAME_INVALID, ALREADY_EXISTS */
  snapshot(name: string): Promise<Snapshot> {
    return this.#inTurn(async () => {
      const { catalog } = this.#home
      checkName(name, 'snapshot')
      if ((await catalog.snapshots(this.cvd.name)).some((snapshot) => snapshot.name === name)) {
        throw new VarveError('ALREADY_EXISTS', `CVD ${this.cvd.name} has a snapshot ${name} already`)
      }
      const generation = await this.#stack.snapshot()
      return catalog.addSnapshot({ cvd: this.cvd.name, name, generation })
    })
  }

  /** Turns every frozen generation into chunks and a block map; what they held can be collected when nothing names it. */
  settle(signal?: AbortSignal): Promise<void> {
    return this.#inTurn(async () => {
      await this.#recordAdopted()
      while (this.#stack.frozenGenerations().length > 0) {
        await this.#settleLowest(signal)
        await this.#recordAdopted()
      }
    })
  }

  async #settleLowest(signal: AbortSignal | undefined): Promise<void> {
    const { store } = this.#home
    // Older than the writer's, so that it protects what that finds, and goes on when that has ended.
    const lease = store.lease()
    try {
      await using writer = store.writer({ signal })
      const { generation, map } = await this.#stack.settle(this.#baseMap, writer, { signal })
      const mapDigest = putObject(writer, map.encode())
      await writer.commit()
      // From here on the stack opens over the old map and the new one, so that the catalog may name either.
      await this.#stack.adopt({ generation, lower: new MapDevice(map, store, this.#cache), lowerDigest: mapDigest })
      this.#baseMap = map
      this.#adopted = { generation, mapDigest, lease }
    } finally {
      if (this.#adopted?.lease !== lease) lease.release()
    }
  }

  /** If it fails, the next settling begins with it: a later generation's would drop this one while the catalog still needs it. */
  async #recordAdopted(): Promise<void> {
    if (this.#adopted === undefined) return
    const { generation, mapDigest, lease } = this.#adopted
    await this.#home.catalog.settle(this.cvd.name, { overlay: this.cvd.overlay!, generation, map: mapDigest })
    await this.#stack.drop()
    this.#adopted = undefined
    lease.release()
  }

  /** Makes everything durable, and lets another process own the disk. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#turn.catch(() => {})
    try {
      await this.#stack[Symbol.asyncDispose]()
    } finally {
      // The catalog names the old map still, over which the next opening finds the generation frozen.
      this.#adopted?.lease.release()
      this.#owner[Symbol.dispose]()
    }
  }

  #inTurn<Result>(change: () => Promise<Result>): Promise<Result> {
    const turn = this.#turn.catch(() => {}).then(change)
    this.#turn = turn
    return turn
  }
}

/** The map that an object of the store holds. @throws VarveError CHUNK_MISSING, FORMAT_INVALID */
export async function readMap(home: Home, digest: Digest): Promise<BlockMap> {
  return BlockMap.decode(await getObject(home.store, digest))
}

/**
 * Owns the CVD of a name, with all its overlays, until `owner` is disposed of, or the process dies.
 * @throws VarveError NOT_FOUND, STORE_LOCKED
 */
export async function ownCvd(home: Home, name: string): Promise<{ cvd: Cvd; owner: Disposable }> {
  for (;;) {
    const found = await home.catalog.cvd(name)
    const owner = ownOverlays(home, found)
    try {
      const cvd = await home.catalog.cvd(name)
      if (cvd.id === found.id) return { cvd, owner }
    } catch (error) {
      owner[Symbol.dispose]()
      throw error
    }
    // It was removed, and its name given to another, before the lock was had.
    owner[Symbol.dispose]()
  }
}

/** @throws VarveError STORE_LOCKED */
function ownOverlays(home: Home, cvd: Cvd): Disposable {
  const fd = openSync(path.join(home.runDirectory, `${cvd.id}.lock`), 'a', 0o600)
  if (!tryLock(fd)) {
    closeSync(fd)
    throw new VarveError('STORE_LOCKED', `CVD ${cvd.name} is in use by another process (a server, most likely); stop that first`)
  }
  return { [Symbol.dispose]: () => closeSync(fd) }
}

/**
 * Removes overlays that no CVD and no snapshot needs any more. The catalog is asked after the directories were listed: it names an overlay before
 * its directory is made, and none again that it has let go of, which takes the CVD's lock.
 */
export async function removeLeftOverlays(home: Home): Promise<void> {
  const found = namesIn(path.join(home.directory, 'overlays')).map((id) => ({ id, overlays: namesIn(home.overlaysDirectory(id)) }))
  const needed = await home.catalog.overlays()
  for (const { id, overlays } of found) {
    const ofCvd = needed.get(id)
    if (ofCvd === undefined) rmSync(home.overlaysDirectory(id), { recursive: true, force: true })
    else for (const overlay of overlays) if (!ofCvd.has(Number(overlay))) rmSync(path.join(home.overlaysDirectory(id), overlay), { recursive: true, force: true })
  }
}

/** None if another process has just removed the directory. */
function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}

/** The CVD with a base and an overlay. */
async function startCvd(name: string, { home, signal }: CvdDiskOptions): Promise<Cvd> {
  const { store, catalog } = home
  const cvd = await catalog.cvd(name)
  if (cvd.baseMap !== null) return cvd
  const recipe = await prepareRecipe({ cvd: name }, { catalog, store, signal })
  const { recipeDigest, mapDigest } = await compose(recipe, { store, catalog, signal })
  return catalog.startCvd(name, { recipe: recipeDigest, map: mapDigest })
}
