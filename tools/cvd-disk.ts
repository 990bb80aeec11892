/**
 * CvdDisk: the disk of a CVD as its owner holds it: composed base, overlay, snapshots. One process owns it at a time.
 * It keeps catalog and overlay in step; each step leaves a state from which the next opening goes on (docs/formats/overlay.md#catalog).
 */
import { closeSync, openSync, readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { VarveError } from '@varve/images/errors.ts'
import { tryLock } from '@varve/images/native/libc.ts'
import type { Cvd, Snapshot } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { checkName } from '@varve/images/store/names.ts'
import { Settlement } from './settlement.ts'
import type { SettlementParts } from './settlement.ts'

export interface CvdDiskOptions {
  home: Home
  cache: ChunkCache
  /** As SettlementParts has it. */
  lowerOf?: SettlementParts['lowerOf']
  signal?: AbortSignal
}

export class CvdDisk implements AsyncDisposable {
  readonly cvd: Cvd
  readonly #home: Home
  readonly #cache: ChunkCache
  readonly #owner: Disposable
  readonly #settlement: Settlement
  /** Snapshots and settling, one after another. */
  #turn: Promise<unknown> = Promise.resolve()

  private constructor(parts: { home: Home; cache: ChunkCache; cvd: Cvd; owner: Disposable; settlement: Settlement }) {
    this.#home = parts.home
    this.#cache = parts.cache
    this.cvd = parts.cvd
    this.#owner = parts.owner
    this.#settlement = parts.settlement
  }

  /**
   * Opens the disk of a CVD for its one owner; at its first start it is composed.
   * @throws VarveError NOT_FOUND, STORE_LOCKED, OVERLAY_INVALID; ComposeConflictError and what composing throws
   */
  static async open(name: string, options: CvdDiskOptions): Promise<CvdDisk> {
    const { home, cache, lowerOf } = options
    const { owner } = await ownCvd(home, name)
    try {
      // Until the catalog names the base, only this lease keeps it.
      await using _lease = home.store.lease()
      const cvd = await startCvd(name, options)
      const settlement = await Settlement.open({ home, cache, cvd, overlay: cvd.overlay!, baseMap: cvd.baseMap!, lowerOf })
      return new CvdDisk({ home, cache, cvd, owner, settlement })
    } catch (error) {
      owner[Symbol.dispose]()
      throw error
    }
  }

  get device(): BlockDevice {
    return this.#settlement.stack
  }

  /** What was written since the map below, as OverlayStack.changedRuns has it: since the composed disk, or the last snapshot that was settled. */
  changedRuns(offset: number, length: number, most: number): { length: number; changed: boolean }[] {
    return this.#settlement.stack.changedRuns(offset, length, most)
  }

  /** Freezes what the disk shows now, under load, and names it. It is settled into chunks by `settle`. @throws VarveError NAME_INVALID, ALREADY_EXISTS */
  snapshot(name: string): Promise<Snapshot> {
    return this.#inTurn(async () => {
      const { catalog } = this.#home
      checkName(name, 'snapshot')
      if ((await catalog.snapshots(this.cvd.name)).some((snapshot) => snapshot.name === name)) {
        throw new VarveError('ALREADY_EXISTS', `CVD ${this.cvd.name} has a snapshot ${name} already`)
      }
      const generation = await this.#settlement.stack.snapshot()
      return catalog.addSnapshot({ cvd: this.cvd.name, name, generation })
    })
  }

  /** Turns every frozen generation into chunks and a block map; what they held can be collected when nothing names it. */
  settle(signal?: AbortSignal): Promise<void> {
    return this.#inTurn(async () => {
      await this.#settlement.settle({ signal })
      await this.#settleAbandoned(signal)
    })
  }

  /** Snapshots of stacks that the CVD had before its layers were changed: what was written to those since is given up, and then they themselves. */
  async #settleAbandoned(signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      const frozen = (await this.#home.catalog.snapshots(this.cvd.name)).filter((snapshot) => snapshot.overlay !== null && snapshot.overlay !== this.cvd.overlay)
      if (frozen.length === 0) return
      const { overlay, baseMap } = frozen[0]
      const last = Math.max(...frozen.filter((snapshot) => snapshot.overlay === overlay).map((snapshot) => snapshot.generation!))
      {
        await using _lease = this.#home.store.lease()
        await using settlement = await Settlement.open({ home: this.#home, cache: this.#cache, cvd: this.cvd, overlay: overlay!, baseMap: baseMap! })
        await settlement.settle({ last, signal })
      }
      rmSync(this.#home.overlayDirectory(this.cvd.id, overlay!), { recursive: true, force: true })
    }
  }

  /** Makes everything durable, and lets another process own the disk. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#turn.catch(() => {})
    try {
      await this.#settlement[Symbol.asyncDispose]()
    } finally {
      this.#owner[Symbol.dispose]()
    }
  }

  #inTurn<Result>(change: () => Promise<Result>): Promise<Result> {
    const turn = this.#turn.catch(() => {}).then(change)
    this.#turn = turn
    return turn
  }
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
  const fd = openSync(path.join(home.runDirectory, lockFile(cvd)), 'a', 0o600)
  if (!tryLock(fd)) {
    closeSync(fd)
    throw new VarveError('STORE_LOCKED', `CVD ${cvd.name} is in use by another process (a server, most likely); stop that first`)
  }
  return { [Symbol.dispose]: () => closeSync(fd) }
}

function lockFile({ id }: { id: string }): string {
  return `${id}.lock`
}

/**
 * Removes what is left of a CVD that its owner has taken out of the catalog. The lock with it: whoever gets that nonetheless finds no CVD of its id,
 * and another never has it.
 */
export function removeCvdFiles(home: Home, cvd: Cvd): void {
  rmSync(home.overlaysDirectory(cvd.id), { recursive: true, force: true })
  rmSync(path.join(home.runDirectory, lockFile(cvd)), { force: true })
}

/**
 * Removes overlays that no CVD and no snapshot needs any more, and locks of CVDs that are gone. The catalog is asked after the directories were listed:
 * it names an overlay before its directory is made, and none again that it has let go of, which takes the CVD's lock.
 */
export async function removeLeftOverlays(home: Home): Promise<void> {
  const locks = namesIn(home.runDirectory).filter((name) => name.endsWith('.lock'))
  const found = namesIn(path.join(home.directory, 'overlays')).map((id) => ({ id, overlays: namesIn(home.overlaysDirectory(id)) }))
  const needed = await home.catalog.overlays()
  for (const name of locks) if (!needed.has(name.slice(0, -'.lock'.length))) rmSync(path.join(home.runDirectory, name), { force: true })
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

/** The CVD with a base and an overlay. From its first start on its base stays, whatever is learned about boots of its layers. */
export async function startCvd(name: string, { home, signal }: Pick<CvdDiskOptions, 'home' | 'signal'>): Promise<Cvd> {
  const { store, catalog } = home
  const cvd = await catalog.cvd(name)
  if (cvd.baseMap !== null) return cvd
  const recipe = await prepareRecipe({ cvd: name }, { catalog, store, signal })
  const { recipeDigest, mapDigest } = await compose(recipe, { store, catalog, signal })
  return catalog.startCvd(name, { recipe: recipeDigest, map: mapDigest })
}
