/**
 * StreamServer: all connections of agents, whatever brings them here. Each is a StreamSession.
 */
import type { Socket } from 'node:net'
import { type Logger, pino } from 'pino'
import { VarveError } from '@varve/images/errors.ts'
import { plainAddress } from '../nbd/access.ts'
import { RECHECK_MS, type StreamLimits, STREAM_LIMITS } from './limits.ts'
import { type StreamFigures, StreamMetrics } from './metrics.ts'
import { type RateClock, RateLimits, type RateSettings } from './rate-limits.ts'
import { ReadTurns } from './read-turns.ts'
import { StreamSession } from './session.ts'
import type { StreamAgent, StreamSource } from './source.ts'

export interface StreamSettings extends RateSettings {
  limits: StreamLimits
}

export interface StreamServerOptions {
  source: StreamSource
  /** No rates, and the limits that there are by default, unless given. */
  settings?: StreamSettings
  clock?: RateClock
  log?: Logger
}

export class StreamServer implements AsyncDisposable {
  readonly #source: StreamSource
  readonly #log: Logger
  readonly #clock: RateClock | undefined
  readonly #metrics = new StreamMetrics()
  readonly #turns = new ReadTurns()
  /** Oldest first, with where each comes from. */
  readonly #sessions = new Map<StreamSession, { address: string | undefined }>()
  readonly #recheck: NodeJS.Timeout
  #turn: Promise<unknown> = Promise.resolve()
  #limits: StreamLimits
  #rates: RateLimits
  #closing = false
  /** Called with the number of connections when that changes. */
  connectionsChanged: (connections: number) => void = () => undefined

  /** @throws VarveError ACCESS_INVALID */
  constructor({ source, settings = { limits: STREAM_LIMITS, sites: [], rates: [] }, clock, log = pino({ level: 'silent' }) }: StreamServerOptions) {
    this.#source = source
    this.#log = log
    this.#clock = clock
    this.#limits = settings.limits
    this.#rates = new RateLimits(settings, clock)
    this.#recheck = setInterval(() => void this.recheck().catch((error: unknown) => log.error({ err: error }, 'agents could not be looked up')), RECHECK_MS)
    this.#recheck.unref()
  }

  figures(): StreamFigures {
    return this.#metrics.figures(this.#sessions.size)
  }

  /** True if one more connection is taken; false is counted. */
  admits(): boolean {
    const admitted = !this.#closing && this.#sessions.size < this.#limits.connectionsMax
    if (!admitted) this.#metrics.refused++
    return admitted
  }

  /** Takes a connection over. @param head what has been read of it already */
  accept(socket: Socket, head: Buffer): void {
    this.#metrics.accepted++
    const address = socket.remoteAddress === undefined ? undefined : plainAddress(socket.remoteAddress)
    const session = new StreamSession(socket, head, {
      source: this.#source, limits: this.#limits, turns: this.#turns, metrics: this.#metrics, log: this.#log,
      inTurn: (work) => this.#inTurn(work),
      authenticated: (agent, authenticated) => this.#authenticated(agent, authenticated, address),
    })
    this.#sessions.set(session, { address })
    this.connectionsChanged(this.#sessions.size)
    void session.closed.then(() => {
      this.#sessions.delete(session)
      this.connectionsChanged(this.#sessions.size)
    })
  }

  /** Limits hold for connections that come; rates for all. @throws VarveError ACCESS_INVALID */
  reconfigure(settings: StreamSettings): void {
    this.#rates = new RateLimits(settings, this.#clock)
    this.#limits = settings.limits
    for (const [session, { address }] of this.#sessions) if (session.agent !== undefined) session.rates = this.#rates.bucketsOf(session.agent.id, address)
  }

  /** Ends connections of agents that have been revoked. */
  async recheck(): Promise<void> {
    for (const session of [...this.#sessions.keys()]) {
      const { agent } = session
      if (agent !== undefined && (await this.#source.agent(agent.id)) === undefined) session.end(new VarveError('AUTH_FAILED', 'the agent was revoked'))
    }
  }

  /** Takes no more, and ends all. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true
    clearInterval(this.#recheck)
    const sessions = [...this.#sessions.keys()]
    for (const session of sessions) session.end(new VarveError('CONNECTION_LOST', 'the server ends'))
    await Promise.all(sessions.map(({ closed }) => closed))
    await this.#turn.catch(() => undefined)
  }

  async #inTurn(work: () => Promise<void>): Promise<void> {
    const turn = this.#turn.catch(() => undefined).then(work)
    this.#turn = turn
    return turn
  }

  #authenticated(agent: StreamAgent, session: StreamSession, address: string | undefined) {
    const others = [...this.#sessions.keys()].filter((one) => one !== session && one.agent?.id === agent.id)
    for (const oldest of others.slice(0, Math.max(0, others.length + 1 - this.#limits.connectionsPerAgentMax))) {
      oldest.end(new VarveError('LIMIT_EXCEEDED', `the agent has more than ${this.#limits.connectionsPerAgentMax} connections; the oldest ends`))
    }
    this.#log.info({ agent: agent.id, address }, 'an agent is connected')
    return this.#rates.bucketsOf(agent.id, address)
  }
}
