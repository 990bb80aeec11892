/**
 * Connection host: the connections of one thread, and what they share. A server has one in its own thread, or one in each of its server threads.
 */
import type { Logger } from 'pino'
import type { ClientIdentity } from './access.ts'
import { BusyLoop } from './busy-loop.ts'
import { Connection, type ConnectionContext } from './connection.ts'
import { watchEventLoopDelay } from '../event-loop-delay.ts'
import type { Destination, ExportProvider } from './export.ts'
import type { HandshakeState } from './handshake.ts'
import type { NbdLimits } from './limits.ts'
import { MemoryBudget } from './memory-budget.ts'
import { NbdMetrics } from './metrics.ts'
import type { Policy } from './policy.ts'
import { SlabPool } from './slab.ts'
import type { TlsRelay } from './tls-relay.ts'
import { SocketLoop } from './transport.ts'

/** A connected socket on its way to the thread that is to serve it. */
export interface Arrival {
  /** Of the connection, for the log; unique in the server. */
  id: number
  /** Belongs to whoever has the arrival. */
  fd: number
  /** Who is at the other end. */
  client: ClientIdentity
  /** True for what has come by TLS, which another thread deciphers. */
  secured?: boolean
  /** What another thread has negotiated so far. */
  handshake?: HandshakeState
}

/** How often it is asked which connections are idle. */
const IDLE_WATCH_MS = 1000

export interface ConnectionHostOptions {
  provider: ExportProvider
  /** True if other threads serve: what asks for an export, or TLS, moves. */
  negotiatesOnly?: boolean
  policy: Policy
  limits: NbdLimits
  log: Logger
  /** A connection has ended; called once for each that was taken, unless it moved. */
  ended(id: number): void
  /** A connection asked for what another thread has. */
  moved(arrival: Arrival, to: Destination): void
}

export class ConnectionHost {
  readonly metrics = new NbdMetrics()
  readonly #options: ConnectionHostOptions
  /** Replaced, never changed: a connection keeps that of its beginning. */
  #context: ConnectionContext
  readonly #delayWatch = watchEventLoopDelay(this.metrics.eventLoopDelay)
  readonly #connections = new Set<Connection>()
  readonly #idleWatch = setInterval(() => this.#cutIdle(), IDLE_WATCH_MS).unref()
  /** Of connections with TLS that other threads serve. */
  readonly #relays = new Set<TlsRelay>()
  #draining: Promise<void> | undefined

  constructor(options: ConnectionHostOptions) {
    const { provider, negotiatesOnly = false, policy, limits, log } = options
    const loop = new BusyLoop()
    this.#options = options
    this.#context = {
      provider,
      negotiatesOnly,
      policy,
      limits,
      log,
      metrics: this.metrics,
      loop: new SocketLoop(loop),
      slabs: new SlabPool(),
      budget: new MemoryBudget(limits.sharedBytesMax, limits.stalledMsMax),
      stopping: () => this.#draining !== undefined,
      relayed: (relay) => {
        this.#relays.add(relay)
        void relay.finished.then(() => this.#relays.delete(relay))
      },
    }
  }

  take(arrival: Arrival): void {
    const connection = new Connection(arrival, this.#context)
    this.#connections.add(connection)
    void connection.finished.then((move) => {
      this.#connections.delete(connection)
      if (move === undefined) this.#options.ended(arrival.id)
      else this.#options.moved(move.arrival, move.to)
    })
  }

  /** Limits of a connection, and the policy, are for connections that come; limits of all together are in force at once. */
  reconfigure(limits: NbdLimits, policy: Policy): void {
    this.#context = { ...this.#context, limits, policy }
    this.#context.budget.resize(limits.sharedBytesMax, limits.stalledMsMax)
  }

  /** Answers what is in flight, closes the connections and lets go of their exports. @param drainMs after which connections are cut */
  drain(drainMs: number): Promise<void> {
    this.#draining ??= this.#drain(drainMs)
    return this.#draining
  }

  #cutIdle(): void {
    const nowMs = performance.now()
    for (const connection of this.#connections) connection.cutIfIdle(nowMs)
  }

  async #drain(drainMs: number): Promise<void> {
    // Set before the connections ask for it, since this runs up to its first await within drain().
    await Promise.resolve()
    const connections = [...this.#connections]
    for (const connection of connections) connection.drain()
    const cut = setTimeout(() => {
      for (const connection of [...connections, ...this.#relays]) connection.destroy()
    }, drainMs)
    await Promise.all([...connections, ...this.#relays].map(({ finished }) => finished))
    clearTimeout(cut)
    this.#context.budget.close()
    clearInterval(this.#idleWatch)
    this.#delayWatch[Symbol.dispose]()
  }
}
