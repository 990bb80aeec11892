/**
 * One client: its transport, and the phase that it is in.
 */
import type net from 'node:net'
import type { Logger } from 'pino'
import type { ClientIdentity } from './access.ts'
import type { Arrival } from './connection-host.ts'
import type { Destination, ExportProvider } from './export.ts'
import { HandshakeBroken, HandshakeMoves, type Negotiated, type TlsNegotiation, handshake } from './handshake.ts'
import { HandshakeClock } from './handshake-clock.ts'
import { HandshakeStream, StreamEnded } from './handshake-stream.ts'
import type { NbdLimits } from './limits.ts'
import type { MemoryBudget } from './memory-budget.ts'
import type { NbdMetrics } from './metrics.ts'
import type { Policy } from './policy.ts'
import type { SlabPool } from './slab.ts'
import { TlsRelay } from './tls-relay.ts'
import { startTls } from './tls-transport.ts'
import { Transmission } from './transmission.ts'
import { type SocketLoop, SocketTransport, type Transport, type TransportEvents } from './transport.ts'

/** What all connections of a thread share. */
export interface ConnectionContext {
  provider: ExportProvider
  limits: NbdLimits
  log: Logger
  metrics: NbdMetrics
  loop: SocketLoop
  slabs: SlabPool
  budget: MemoryBudget
  stopping(): boolean
  policy: Policy
  /** True if other threads serve, and agree on TLS. */
  negotiatesOnly: boolean
  /** Takes care of a relay until it has ended. */
  relayed(relay: TlsRelay): void
}

/** A connection that another thread is to go on with. */
export interface Move {
  arrival: Arrival
  to: Destination
}

export class Connection {
  /** Completes when the connection is closed and its export released, or when it leaves for another thread. */
  readonly finished: Promise<Move | undefined>
  readonly #arrival: Arrival
  readonly #context: ConnectionContext
  readonly #log: Logger
  readonly #policy: Policy
  readonly #events: TransportEvents
  #transport: Transport
  readonly #stream: HandshakeStream
  readonly #clock: HandshakeClock
  #client: ClientIdentity
  #secured: boolean
  /** What TLS is being agreed on over. */
  #securing: net.Socket | undefined
  #transmission: Transmission | undefined
  #peerEnded = false
  #closed = false

  constructor(arrival: Arrival, context: ConnectionContext) {
    this.#arrival = arrival
    this.#context = context
    this.#log = context.log.child({ connection: arrival.id })
    this.#policy = context.policy
    this.#client = arrival.client
    this.#secured = arrival.secured ?? false
    this.#events = {
      received: (bytes) => {
        if (this.#transmission === undefined) this.#stream.receive(bytes)
        else this.#transmission.receive(bytes)
      },
      target: () => this.#transmission?.target(),
      receivedInPlace: (count) => this.#transmission?.receivedInPlace(count),
      ended: () => this.#onEnded(),
      closed: (error) => this.#onClosed(error),
    }
    this.#transport = new SocketTransport(arrival.fd, context.loop, this.#events)
    this.#stream = new HandshakeStream(this.#transport)
    this.#clock = new HandshakeClock(arrival.handshake?.msLeft ?? context.limits.handshakeMsMax, () => this.#onHandshakeTimeout())
    this.finished = this.#run()
  }

  /** Answers what is in flight, refuses the rest, then closes. */
  drain(): void {
    if (this.#transmission !== undefined) this.#transmission.drain()
    else this.#stream.end('the server is shutting down')
  }

  /** Closes a client that has asked for nothing for longer than it may. @param nowMs `performance.now()` */
  cutIfIdle(nowMs: number): void {
    const { idleMsMax } = this.#context.limits
    if (idleMsMax > 0) this.#transmission?.cutIfIdle(nowMs, idleMsMax)
  }

  destroy(): void {
    if (this.#securing !== undefined) this.#securing.destroy()
    else this.#transport.destroy()
  }

  async #run(): Promise<Move | undefined> {
    let negotiated
    try {
      negotiated = await this.#handshake()
    } catch (error) {
      if (error instanceof HandshakeMoves) return this.#move(error)
      this.#refuse(error)
    } finally {
      this.#clock.stop()
    }
    if (negotiated === undefined) return
    try {
      await this.#transmit(negotiated)
    } finally {
      await this.#release(negotiated)
    }
  }

  async #handshake(): Promise<Negotiated | undefined> {
    const { provider, limits } = this.#context
    const negotiated = await handshake(this.#stream, {
      provider: { list: () => provider.list(), canonicalName: (name) => provider.canonicalName(name), open: (name) => this.#unhurried(provider.open(name)) },
      limits,
      stopping: () => this.#context.stopping(),
      failed: (error, name) => this.#log.error({ err: error, export: name }, 'an export cannot be opened'),
      defaultExport: this.#policy.defaultExport,
      access: (name) => this.#policy.access?.allowance(name, this.#client) ?? 'read-write',
      tls: this.#tlsNegotiation(),
    }, this.#arrival.handshake)
    if (negotiated === undefined) this.#transport.end()
    return negotiated
  }

  async #unhurried<Result>(work: Promise<Result>): Promise<Result> {
    this.#clock.stop()
    try {
      return await work
    } finally {
      if (!this.#closed) this.#clock.start()
    }
  }

  #refuse(error: unknown): void {
    this.#context.metrics.handshakesFailed++
    if (error instanceof HandshakeBroken || error instanceof StreamEnded) this.#log.info({ reason: error.message }, 'handshake failed')
    else this.#log.error({ err: error }, 'handshake failed')
    this.#transport.destroy()
  }

  #tlsNegotiation(): TlsNegotiation {
    const { tls: { mode }, access } = this.#policy
    return { mode, reveals: access?.askIdentity === true, elsewhere: this.#context.negotiatesOnly, active: () => this.#secured, start: () => this.#startTls() }
  }

  async #startTls(): Promise<void> {
    const { tls } = this.#policy
    if (tls.mode === 'off') throw new TypeError('there is nothing to speak TLS with')
    this.#transport.pause()
    const early = this.#stream.rest()
    try {
      this.#securing = this.#transport.giveAway()
      const { transport, name, protocol, cipher } = await startTls(this.#securing, early, tls.credentials, this.#events)
      this.#transport = transport
      this.#stream.replaceTransport(transport)
      this.#client = { ...this.#client, name }
      this.#secured = true
      this.#log.debug({ protocol, cipher, name }, 'tls begins')
    } catch (cause) {
      throw new HandshakeBroken(`TLS: ${(cause as Error).message}`, { cause })
    } finally {
      this.#securing = undefined
    }
  }

  /** The socket goes with all that was read from it and not used. */
  #move({ state, to }: HandshakeMoves): Move | undefined {
    this.#transport.pause()
    const unread = Buffer.concat([state.unread, this.#stream.rest()])
    const fd = this.#closed || this.#peerEnded ? undefined : this.#giveAway()
    if (fd === undefined) {
      this.#transport.destroy()
      return undefined
    }
    const { id } = this.#arrival
    const { msLeft } = this.#clock
    return { arrival: { id, fd, client: this.#client, secured: this.#secured, handshake: { ...state, unread, msLeft } }, to }
  }

  /** @returns a descriptor by which another thread goes on with the client; undefined if there can be none */
  #giveAway(): number | undefined {
    if (this.#transport instanceof SocketTransport) {
      const fd = this.#transport.duplicate()
      this.#transport.destroy()
      return fd
    }
    const relay = TlsRelay.open(this.#transport.giveAway())
    if (relay === undefined) return undefined
    this.#context.relayed(relay)
    return relay.fd
  }

  #transmit({ served, readOnly, framing, contexts }: Negotiated): Promise<void> {
    const { limits, slabs, budget, metrics } = this.#context
    return new Promise<void>((resolve) => {
      const transmission = new Transmission({
        served, readOnly, framing, contexts, limits, slabs, budget, metrics,
        transport: this.#transport,
        cut: (reason) => this.#log.warn({ reason, export: served.name }, 'connection closed'),
        failed: (error, request) => this.#log.error({ err: error, export: served.name, request }, 'a request failed'),
        finished: resolve,
      })
      this.#transmission = transmission
      this.#log.debug({ export: served.name, readOnly, framing, contexts: contexts.map(({ name }) => name) }, 'transmission begins')
      if (this.#closed) {
        transmission.closed()
        return
      }
      const rest = this.#stream.rest()
      if (rest.length > 0) transmission.receive(rest)
      this.#transport.resume()
      if (this.#peerEnded) transmission.ended()
      else if (this.#context.stopping()) transmission.drain()
    })
  }

  async #release({ served }: Negotiated): Promise<void> {
    try {
      // Whoever keeps the device may be killed next.
      if (this.#context.stopping() && !served.device.readOnly) await served.device.flush()
      await served.release()
    } catch (error) {
      this.#log.error({ err: error, export: served.name }, 'an export cannot be closed')
    }
  }

  #onEnded(): void {
    this.#peerEnded = true
    if (this.#transmission !== undefined) this.#transmission.ended()
    else this.#stream.end('the peer ended the connection')
  }

  #onClosed(error: Error | undefined): void {
    this.#closed = true
    this.#clock.stop()
    if (error !== undefined) this.#log.debug({ err: error }, 'connection lost')
    this.#stream.end('the connection is closed')
    this.#transmission?.closed()
  }

  #onHandshakeTimeout(): void {
    this.#stream.end(`the handshake took longer than ${this.#context.limits.handshakeMsMax} ms`)
    this.destroy()
  }
}
