/**
 * A home as the stream server needs it: its agents, its CVDs and snapshots as block maps that stay while they are streamed, its chunks as stored.
 */
import type { StreamAgent, StreamDisk, StreamSource } from '@varve/blockserver/stream/source.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { Agent } from '@varve/images/store/catalog-agents.ts'
import type { Home } from '@varve/images/store/home.ts'
import { parseCvdName } from '@varve/images/store/names.ts'
import type { StoredChunk } from '@varve/images/store/pack-store.ts'
import { recordBoot } from './boot-lists.ts'
import { DiskWorker } from './disk-worker.ts'

export class HomeStreams implements StreamSource, AsyncDisposable {
  readonly #home: Home
  readonly #worker: DiskWorker

  /** @param home borrowed */
  constructor(home: Home) {
    this.#home = home
    this.#worker = new DiskWorker(home.directory)
  }

  /** If there are agents, one may come soon: what takes time to start is started. */
  async prepare(): Promise<void> {
    if ((await this.#home.catalog.agents()).some(({ revokedAtMs }) => revokedAtMs === null)) this.#worker.prepare()
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

  async openDisk(name: string, { agent: { id }, map, signal }: { agent: StreamAgent; map?: Digest; signal: AbortSignal }): Promise<StreamDisk> {
    const { cvd, snapshot } = parseCvdName(name)
    const agent = await this.agent(id)
    if (agent === undefined) throw new VarveError('AUTH_FAILED', 'the agent was revoked')
    // What it may not open is not told apart from what does not exist.
    if (agent.cvds !== null && !agent.cvds.includes(cvd)) throw new VarveError('NOT_FOUND', `there is no CVD ${JSON.stringify(cvd)}`)
    // Before the catalog is asked: what it names then stays, and the lists that are made.
    const lease = this.#home.store.lease()
    try {
      const state = await this.#worker.state(name, { map, signal })
      if (snapshot === undefined) await this.#home.catalog.assignCvd(cvd, id)
      return {
        ...state,
        recordBoot: async (numbers) => void (await recordBoot(this.#home, state.map, numbers)),
        recordHeat: (chunks) => this.#worker.recordHeat(state.map, chunks),
        close: async () => lease.release(),
      }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker[Symbol.asyncDispose]()
  }
}
