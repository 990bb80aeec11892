/**
 * The NBD server: listens, hands connections to the threads that serve them, and stops in order. It knows exports and devices, not what is
 * behind them.
 */
import net from 'node:net'
import { type Logger, pino } from 'pino'
import { VarveError } from '@varve/images/errors.ts'
import { type ListenAddress, formatAddress, listenOn, parseAddress } from '../listen-address.ts'
import { identifyPeer } from './access.ts'
import { type Arrival, ConnectionHost } from './connection-host.ts'
import type { ExportProvider } from './export.ts'
import { NBD_LIMIT_RANGES, NBD_LIMITS, type NbdLimits } from './limits.ts'
import { type ServerSnapshot, serverSnapshot } from './metrics.ts'
import { type PolicyOptions, policyOf, sendablePolicy } from './policy.ts'
import { duplicate, widenSendBuffer } from './socket-calls.ts'
import type { ThreadExports } from './thread-messages.ts'
import { ThreadPool } from './thread-pool.ts'

/** Connections are served in this thread, from exports of this thread, or in threads that open exports by themselves. */
export type ServedFrom = { provider: ExportProvider } | { threads: number; exports: ThreadExports; threadEnded?: (thread: number) => void }

/** What may change while the server serves. */
export interface NbdServerSettings extends PolicyOptions {
  /** What is not given is as in NBD_LIMITS. */
  limits?: Partial<NbdLimits>
}

export type NbdServerOptions = ServedFrom & NbdServerSettings & { log?: Logger }

export interface CloseOptions {
  /** How long to wait for requests in flight and for slow readers of replies, before connections are cut. */
  drainMs?: number
}

const DRAIN_MS = 5000
/** Connections that the kernel accepts before we do. */
const BACKLOG = 511

export class NbdServer implements AsyncDisposable {
  /** As bound: a port 0 is replaced by the one that was chosen. */
  readonly addresses: string[] = []
  readonly #servers: net.Server[] = []
  #limits: NbdLimits
  readonly #log: Logger
  readonly #served: ConnectionHost | ThreadPool
  /** Connections that are open, with the address that each comes from; undefined for a unix socket. */
  readonly #open = new Map<number, string | undefined>()
  /** How many come from an address. */
  readonly #perPeer = new Map<string, number>()
  #accepted = 0
  #refused = 0
  #closing: Promise<void> | undefined

  /**
   * Listens on all of `addresses` (`HOST:PORT`, `[IPV6]:PORT`, `unix:PATH`), or on none.
   * @throws VarveError ADDRESS_INVALID, ACCESS_INVALID
   */
  static async listen(addresses: readonly string[], options: NbdServerOptions): Promise<NbdServer> {
    const parsed = addresses.map(parseAddress)
    if (parsed.length === 0) throw new VarveError('ADDRESS_INVALID', 'no address to listen on was given')
    const server = new NbdServer(options)
    try {
      for (const address of parsed) await server.#listen(address)
    } catch (error) {
      await server.close({ drainMs: 0 })
      throw error
    }
    return server
  }

  private constructor(options: NbdServerOptions) {
    const { log = pino({ level: 'silent' }) } = options
    const limits = completeLimits(options.limits)
    this.#limits = limits
    this.#log = log
    const policy = policyOf(options)
    const ended = (id: number) => this.#ended(id)
    if ('provider' in options) {
      const moved = () => { throw new Error('there is no other thread') }
      this.#served = new ConnectionHost({ provider: options.provider, policy, limits, log, ended, moved })
    } else {
      const { threads: count, exports, threadEnded } = options
      this.#served = new ThreadPool({ count, exports, policy: sendablePolicy(options), limits, log, ended, threadEnded })
    }
  }

  /** Of all threads. */
  async metrics(): Promise<ServerSnapshot> {
    const metrics = this.#served instanceof ThreadPool ? await this.#served.metrics() : this.#served.metrics.snapshot()
    return serverSnapshot(metrics, { connectionsAccepted: this.#accepted, connectionsRefused: this.#refused, connectionsOpen: this.#open.size })
  }

  /**
   * Takes over the level of the log as it is now, and settings; what is not given is as it would be at the start. Limits of all connections together
   * are in force at once; those of one connection, and whom it is granted what, are for connections that come.
   * @throws VarveError ACCESS_INVALID, then nothing has changed
   */
  reconfigure(settings: NbdServerSettings): void {
    const limits = completeLimits(settings.limits)
    const policy = policyOf(settings)
    this.#limits = limits
    if (this.#served instanceof ThreadPool) this.#served.reconfigure(limits, sendablePolicy(settings))
    else this.#served.reconfigure(limits, policy)
  }

  /** The threads, if there are any. */
  get pool(): ThreadPool | undefined {
    return this.#served instanceof ThreadPool ? this.#served : undefined
  }

  /**
   * Accepts no more, answers what is in flight, closes the connections and lets go of their exports: the provider flushes and closes the devices.
   * @param options.drainMs 5000 unless given
   */
  close(options: CloseOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options.drainMs ?? DRAIN_MS)
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #listen(address: ListenAddress): Promise<void> {
    const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => this.#accept(socket))
    this.#servers.push(server)
    const bound = formatAddress(await listenOn(server, address, { backlog: BACKLOG }))
    server.on('error', (error) => this.#log.error({ err: error, address: bound }, 'cannot accept a connection'))
    this.addresses.push(bound)
    this.#log.info({ address: bound }, 'nbd listens')
  }

  #accept(socket: net.Socket): void {
    const { connectionsMax, connectionsPerPeerMax } = this.#limits
    const client = identifyPeer(socket)
    const { address } = client
    const ofPeer = address === undefined ? 0 : this.#perPeer.get(address) ?? 0
    if (this.#open.size >= connectionsMax || ofPeer >= connectionsPerPeerMax || this.#closing !== undefined) {
      this.#refused++
      this.#log.warn({ connectionsMax, connectionsPerPeerMax, address }, 'connection refused')
      socket.destroy()
      return
    }
    const fd = takeDescriptor(socket)
    if (fd === undefined) {
      this.#refused++
      this.#log.error('connection refused: the process may have no more descriptors')
      return
    }
    // TCP finds the size of its buffers by itself.
    if (address === undefined) widenSendBuffer(fd)
    const arrival: Arrival = { id: ++this.#accepted, fd, client }
    this.#open.set(arrival.id, address)
    if (address !== undefined) this.#perPeer.set(address, ofPeer + 1)
    this.#served.take(arrival)
  }

  #ended(id: number): void {
    const address = this.#open.get(id)
    this.#open.delete(id)
    if (address === undefined) return
    const left = this.#perPeer.get(address)! - 1
    if (left === 0) this.#perPeer.delete(address)
    else this.#perPeer.set(address, left)
  }

  async #close(drainMs: number): Promise<void> {
    const stopped = this.#servers.filter((server) => server.listening).map((server) => new Promise<void>((resolve) => server.close(() => resolve())))
    await this.#served.drain(drainMs)
    await Promise.all(stopped)
    this.#log.info('nbd stopped')
  }
}

/**
 * The descriptor of an accepted socket, which Node gives to nobody: so this is the one use of something that it does not document. The socket
 * that it made is closed; the connection is not, since the descriptor is another one. Undefined if there can be none: then the connection is closed.
 */
function takeDescriptor(socket: net.Socket): number | undefined {
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle
  const taken = duplicate(fd)
  socket.destroy()
  return taken
}

/** @throws RangeError if they are not within NBD_LIMIT_RANGES */
function completeLimits(given: Partial<NbdLimits> = {}): NbdLimits {
  const limits = { ...NBD_LIMITS, ...given }
  for (const name of Object.keys(NBD_LIMIT_RANGES) as (keyof NbdLimits)[]) {
    const { min, max, multipleOf = 1 } = NBD_LIMIT_RANGES[name]
    if (!(limits[name] >= min && limits[name] <= max && limits[name] % multipleOf === 0)) throw new RangeError(`${name} is from ${min} to ${max}, a multiple of ${multipleOf}`)
  }
  if (limits.sharedBytesMax < limits.requestBytesMax) throw new RangeError('sharedBytesMax holds at least one request')
  return limits
}
