/**
 * One client: its transport, and the phase that it is in.
 */
import type { Logger } from 'pino'
import type { Arrival } from './connection-host.ts'
import type { ExportProvider } from './export.ts'
import { HandshakeBroken, HandshakeMoves, type Negotiated, handshake } from './handshake.ts'
import { HandshakeStream, StreamEnded } from './handshake-stream.ts'
import type { NbdLimits } from './limits.ts'
import type { MemoryBudget } from './memory-budget.ts'
import type { NbdMetrics } from './metrics.ts'
import type { SlabPool } from './slab.ts'
import { Transmission } from './transmission.ts'
import { type SocketLoop, SocketTransport } from './transport.ts'

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
}

/** A connection that another thread is to go on with. */
export interface Move {
  arrival: Arrival
  thread: number
}

export class Connection {
  /** Completes when the connection is closed and its export released, or when it leaves for another thread. */
  readonly finished: Promise<Move | undefined>
  readonly #arrival: Arrival
  readonly #context: ConnectionContext
  readonly #log: Logger
  readonly #transport: SocketTransport
  readonly #stream: HandshakeStream
  readonly #timer: NodeJS.Timeout
  #transmission: Transmission | undefined
  #peerEnded = false
  #closed = false

  constructor(arrival: Arrival, context: ConnectionContext) {
    this.#arrival = arrival
    this.#context = context
    this.#log = context.log.child({ connection: arrival.id })
    this.#transport = new SocketTransport(arrival.fd, context.loop, {
      received: (bytes) => {
        if (this.#transmission === undefined) this.#stream.receive(bytes)
        else this.#transmission.receive(bytes)
      },
      target: () => this.#transmission?.target(),
      receivedInPlace: (count) => this.#transmission?.receivedInPlace(count),
      ended: () => this.#onEnded(),
      closed: (error) => this.#onClosed(error),
    })
    this.#stream = new HandshakeStream(this.#transport)
    this.#timer = setTimeout(() => this.#onHandshakeTimeout(), arrival.handshake?.msLeft ?? context.limits.handshakeMsMax)
    this.finished = this.#run()
  }

  /** Answers what is in flight, refuses the rest, then closes. */
  drain(): void {
    if (this.#transmission !== undefined) this.#transmission.drain()
    else this.#stream.end('the server is shutting down')
  }

  destroy(): void {
    this.#transport.destroy()
  }

  async #run(): Promise<Move | undefined> {
    const startMs = performance.now()
    let negotiated
    try {
      negotiated = await this.#handshake()
    } catch (error) {
      if (error instanceof HandshakeMoves) return this.#move(error, startMs)
      this.#refuse(error)
    } finally {
      clearTimeout(this.#timer)
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
      provider,
      limits,
      stopping: () => this.#context.stopping(),
      failed: (error, name) => this.#log.error({ err: error, export: name }, 'an export cannot be opened'),
    }, this.#arrival.handshake)
    if (negotiated === undefined) this.#transport.end()
    return negotiated
  }

  #refuse(error: unknown): void {
    this.#context.metrics.handshakesFailed++
    if (error instanceof HandshakeBroken || error instanceof StreamEnded) this.#log.info({ reason: error.message }, 'handshake failed')
    else this.#log.error({ err: error }, 'handshake failed')
    this.#transport.destroy()
  }

  /** The socket goes with all that was read from it and not used. */
  #move({ state, thread }: HandshakeMoves, startMs: number): Move | undefined {
    // A socket whose peer is gone is destroyed before that is told.
    const fd = this.#closed || this.#peerEnded ? undefined : this.#transport.duplicate()
    if (fd === undefined) {
      this.#transport.destroy()
      return undefined
    }
    const { id, handshake: earlier } = this.#arrival
    this.#transport.pause()
    const unread = Buffer.concat([state.unread, this.#stream.rest()])
    this.#transport.destroy()
    const msLeft = Math.max(1, (earlier?.msLeft ?? this.#context.limits.handshakeMsMax) - (performance.now() - startMs))
    return { arrival: { id, fd, handshake: { ...state, unread, msLeft } }, thread }
  }

  #transmit({ served, structured, allocation }: Negotiated): Promise<void> {
    const { limits, slabs, budget, metrics } = this.#context
    return new Promise<void>((resolve) => {
      const transmission = new Transmission({
        served, structured, allocation, limits, slabs, budget, metrics,
        transport: this.#transport,
        cut: (reason) => this.#log.warn({ reason, export: served.name }, 'connection closed'),
        failed: (error, request) => this.#log.error({ err: error, export: served.name, request }, 'a request failed'),
        finished: resolve,
      })
      this.#transmission = transmission
      this.#log.debug({ export: served.name, structured, allocation }, 'transmission begins')
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
    clearTimeout(this.#timer)
    if (error !== undefined) this.#log.debug({ err: error }, 'connection lost')
    this.#stream.end('the connection is closed')
    this.#transmission?.closed()
  }

  #onHandshakeTimeout(): void {
    this.#stream.end(`the handshake took longer than ${this.#context.limits.handshakeMsMax} ms`)
    this.#transport.destroy()
  }
}
