/**
 * A home as the stream server needs it: its agents, its CVDs and snapshots as block maps that stay while they are streamed, its chunks as stored.
 */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import type { Logger } from 'pino'
import type { StreamAgent, StreamDisk, StreamSource } from '@varve/blockserver/stream/source.ts'
import { type Digest, digestToHex } from '@varve/images/chunk/digest.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { Agent } from '@varve/images/store/catalog-agents.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import type { StoredChunk } from '@varve/images/store/pack-store.ts'
import { startCvd } from '../cvd-disk.ts'
import { settledSnapshot, settledState } from '../create-snapshot.ts'
import { snapshotName } from '../exports.ts'
import { readMap } from '../settlement.ts'
import { bootListsOf, recordBoot, recordHeat } from './boot-lists.ts'

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

export class HomeStreams implements StreamSource {
  readonly #home: Home
  readonly #log: Logger
  /** By map. */
  readonly #sizes = new Map<string, MapSize>()
  /** By CVD, what is done to find its state: one after another, so that the next finds what the one before has settled. */
  readonly #turns = new Map<string, Promise<unknown>>()

  /** @param home borrowed */
  constructor(home: Home, log: Logger) {
    this.#home = home
    this.#log = log
  }

  async agent(id: string): Promise<Agent | undefined> {
    try {
      const agent = await this.#home.catalog.agent(id)
      return agent.revokedAtMs === null ? agent : undefined
    } catch (error) {
      if (isVarveError(error, 'NOT_FOUND')) return undefined
      throw error
    }
  }

  async connected({ id }: StreamAgent): Promise<void> {
    await this.#home.catalog.noteAgent(await this.#home.catalog.agent(id))
  }

  stored(digest: Digest): Promise<StoredChunk> {
    return this.#home.store.stored(digest)
  }

  async openDisk(name: string, { agent: { id }, signal }: { agent: StreamAgent; signal: AbortSignal }): Promise<StreamDisk> {
    const { cvd, snapshot } = parseCvdName(name)
    const agent = await this.agent(id)
    if (agent === undefined) throw new VarveError('AUTH_FAILED', 'the agent was revoked')
    // What it may not open is not told apart from what does not exist.
    if (agent.cvds !== null && !agent.cvds.includes(cvd)) throw new VarveError('NOT_FOUND', `there is no CVD ${JSON.stringify(cvd)}`)
    // Before the catalog is asked: what it names then stays.
    const lease = this.#home.store.lease()
    try {
      const state = await this.#inTurn(cvd, () => (snapshot === undefined ? this.#newest(cvd, signal) : this.#snapshot({ cvd, name: snapshot, signal })))
      if (snapshot === undefined) await this.#home.catalog.assignCvd(cvd, id)
      const { map } = state
      const lists = await bootListsOf(this.#home, map, name)
      return {
        ...await this.#sizeOf(map),
        ...lists,
        map,
        snapshot: state.snapshot === null ? null : `${cvd}@${state.snapshot}`,
        recordBoot: async (numbers) => void (await recordBoot(this.#home, map, numbers)),
        recordHeat: (chunks, uses) => recordHeat(this.#home, map, { chunks, uses }),
        close: async () => lease.release(),
      }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  async #snapshot(options: { cvd: string; name: string; signal: AbortSignal }): Promise<State> {
    return { map: await settledSnapshot(this.#home, options), snapshot: options.name }
  }

  /** Started if it never was; its base if nothing was written to that; else what a snapshot shows that is taken for it. */
  async #newest(name: string, signal: AbortSignal): Promise<State> {
    // An agent that comes back finds the disk that it has a part of: what is learned meanwhile gives others another layout.
    const cvd = await startCvd(name, { home: this.#home, signal })
    if (!existsSync(this.#home.overlayDirectory(cvd.id, cvd.overlay!))) return { map: cvd.baseMap!, snapshot: null }
    // It is kept: an agent that was away goes on with it, whatever has been written since.
    const snapshot = `stream-${snapshotName()}-${randomBytes(2).toString('hex')}`
    const state = await settledState(this.#home, { cvd: name, name: snapshot, signal })
    this.#log.info({ cvd: name, snapshot: state.snapshot }, 'the newest state of a CVD was settled for a stream')
    return state
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
