/**
 * What a CVD or a snapshot shows now, as one block map, and what is known of its use. Takes its time: the map may have to be composed,
 * or the overlay settled; disk-thread.ts does it beside the streams. Whoever asks holds a lease that is older than the question.
 */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { type Digest, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import { startCvd } from '../cvd-disk.ts'
import { settledSnapshot, settledState } from '../create-snapshot.ts'
import { snapshotName } from '../exports.ts'
import { readMap } from '../settlement.ts'
import { bootListsOf, type BootLists } from './boot-lists.ts'

/** Of the names of snapshots that are taken for agents. */
export const STREAM_SNAPSHOT_PREFIX = 'stream-'
/** Maps whose size is remembered: a map is large, and is read for that alone. */
const SIZES_MAX = 1000

interface State {
  map: Digest
  /** Name of the snapshot that this is, if it is one. */
  snapshot: string | null
}

interface MapSize {
  sizeBytes: number
  chunkCount: number
}

export interface DiskState extends MapSize, BootLists {
  map: Digest
  /** `CVD@SNAPSHOT` if it is one. */
  snapshot: string | null
}

export interface StateOptions {
  /** That whoever asks goes on with: it is given if it is still known, whatever the CVD shows by now. */
  map: Digest | undefined
  signal: AbortSignal
}

export class DiskStates {
  readonly #home: Home
  /** By map. */
  readonly #sizes = new Map<string, MapSize>()
  /** By CVD, what is done to find its state: one after another, so that the next finds what the one before has settled. */
  readonly #turns = new Map<string, Promise<unknown>>()

  /** @param home borrowed */
  constructor(home: Home) {
    this.#home = home
  }

  /** @param name `CVD` or `CVD@SNAPSHOT` @throws VarveError NOT_FOUND, STORE_LOCKED, what composing and settling throw */
  async of(name: string, { map, signal }: StateOptions): Promise<DiskState> {
    const { cvd, snapshot } = parseCvdName(name)
    const state = snapshot !== undefined
      ? { map: await settledSnapshot(this.#home, { cvd, name: snapshot, signal }), snapshot }
      : await this.#known(cvd, map) ?? await this.#inTurn(cvd, () => this.#newest(cvd, signal))
    return {
      ...await this.#sizeOf(state.map),
      ...await bootListsOf(this.#home, state.map, name),
      map: state.map,
      snapshot: state.snapshot === null ? null : `${cvd}@${state.snapshot}`,
    }
  }

  /** A map that something in the catalog keeps. */
  async #known(cvd: string, map: Digest | undefined): Promise<State | undefined> {
    if (map === undefined || (await this.#home.catalog.stackOfMap(map)) === undefined) return undefined
    return { map, snapshot: await this.#snapshotOf(cvd, map) }
  }

  async #snapshotOf(cvd: string, map: Digest): Promise<string | null> {
    const found = (await this.#home.catalog.snapshots(cvd)).find((snapshot) => snapshot.map !== null && Buffer.compare(snapshot.map, map) === 0)
    return found?.name ?? null
  }

  /** Started if it never was; its base if nothing was written to that; else what a snapshot shows that is taken for it. */
  async #newest(name: string, signal: AbortSignal): Promise<State> {
    // An agent that comes back finds the disk that it has a part of: what is learned meanwhile gives others another layout.
    const cvd = await startCvd(name, { home: this.#home, signal })
    if (!existsSync(this.#home.overlayDirectory(cvd.id, cvd.overlay!))) return { map: cvd.baseMap!, snapshot: await this.#snapshotOf(name, cvd.baseMap!) }
    // It is kept: an agent that was away goes on with it, whatever has been written since.
    const snapshot = `${STREAM_SNAPSHOT_PREFIX}${snapshotName()}-${randomBytes(2).toString('hex')}`
    const state = await settledState(this.#home, { cvd: name, name: snapshot, signal })
    return { map: state.map, snapshot: state.snapshot ?? await this.#snapshotOf(name, state.map) }
  }

  async #inTurn<Result>(cvd: string, work: () => Promise<Result>): Promise<Result> {
    const before = this.#turns.get(cvd)
    const turn = (before ?? Promise.resolve()).catch(() => undefined).then(work)
    this.#turns.set(cvd, turn)
    try {
      return await turn
    } finally {
      if (this.#turns.get(cvd) === turn) this.#turns.delete(cvd)
    }
  }

  async #sizeOf(map: Digest): Promise<MapSize> {
    const key = digestToHex(map)
    let size = this.#sizes.get(key)
    if (size === undefined) {
      const { sizeBytes, chunkCount } = await readMap(this.#home, map)
      size = { sizeBytes, chunkCount }
      if (this.#sizes.size >= SIZES_MAX) this.#sizes.delete(this.#sizes.keys().next().value!)
      this.#sizes.set(key, size)
    }
    return size
  }
}
