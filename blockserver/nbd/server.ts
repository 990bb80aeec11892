/**
 * The NBD server: listens, keeps the connections, and stops in order. It knows exports and devices, not what is behind them.
 */
import net from 'node:net'
import { type Logger, pino } from 'pino'
import { VarveError } from '@varve/images/errors.ts'
import { type ListenAddress, formatAddress, listenOn, parseAddress } from '../listen-address.ts'
import { Connection, type ConnectionContext } from './connection.ts'
import type { ExportProvider } from './export.ts'
import { NBD_LIMITS, type NbdLimits, RECEIVE_BUFFER_BYTES } from './limits.ts'
import { MemoryBudget } from './memory-budget.ts'
import { NbdMetrics } from './metrics.ts'
import { SlabPool } from './slab.ts'

export interface NbdServerOptions {
  provider: ExportProvider
  /** What is not given is as in NBD_LIMITS. */
  limits?: Partial<NbdLimits>
  log?: Logger
}

export interface CloseOptions {
  /** How long to wait for requests in flight and for slow readers of replies, before connections are cut. */
  drainMs?: number
}

const DRAIN_MS = 5000
/** Connections that the kernel accepts before we do. */
const BACKLOG = 511

export class NbdServer implements AsyncDisposable {
  readonly metrics = new NbdMetrics()
  /** As bound: a port 0 is replaced by the one that was chosen. */
  readonly addresses: string[] = []
  readonly #servers: net.Server[] = []
  readonly #connections = new Set<Connection>()
  readonly #context: ConnectionContext
  readonly #log: Logger
  #connectionCount = 0
  #closing: Promise<void> | undefined

  /**
   * Listens on all of `addresses` (`HOST:PORT`, `[IPV6]:PORT`, `unix:PATH`), or on none.
   * @throws VarveError ADDRESS_INVALID
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

  private constructor({ provider, limits: given, log = pino({ level: 'silent' }) }: NbdServerOptions) {
    const limits = { ...NBD_LIMITS, ...given }
    checkLimits(limits)
    this.#log = log
    this.#context = {
      provider,
      limits,
      log,
      metrics: this.metrics,
      slabs: new SlabPool(),
      budget: new MemoryBudget(limits.sharedBytesMax, limits.stalledMsMax),
      receiveBuffer: Buffer.allocUnsafeSlow(RECEIVE_BUFFER_BYTES),
      stopping: () => this.#closing !== undefined,
    }
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
    const { limits } = this.#context
    if (this.#connections.size >= limits.connectionsMax || this.#closing !== undefined) {
      this.metrics.connectionsRefused++
      this.#log.warn({ connectionsMax: limits.connectionsMax }, 'connection refused')
      socket.destroy()
      return
    }
    this.metrics.connectionsAccepted++
    this.metrics.connectionsOpen++
    const connection = new Connection(socket, this.#context, ++this.#connectionCount)
    this.#connections.add(connection)
    void connection.finished.finally(() => this.#connections.delete(connection))
  }

  async #close(drainMs: number): Promise<void> {
    const stopped = this.#servers.filter((server) => server.listening).map((server) => new Promise<void>((resolve) => server.close(() => resolve())))
    // Set before drain() asks for it, since this runs up to its first await within close().
    await Promise.resolve()
    const connections = [...this.#connections]
    for (const connection of connections) connection.drain()
    const cut = setTimeout(() => {
      for (const connection of connections) connection.destroy()
    }, drainMs)
    await Promise.all(connections.map(({ finished }) => finished))
    clearTimeout(cut)
    await Promise.all(stopped)
    this.#context.budget.close()
    this.#log.info('nbd stopped')
  }
}

function checkLimits(limits: NbdLimits): void {
  const { requestBytesMax, sharedBytesMax, inFlightRequestsMax, connectionsMax } = limits
  if (requestBytesMax < 1024 * 1024 || requestBytesMax % 65536 !== 0) throw new RangeError('requestBytesMax is a multiple of 64 KiB, at least 1 MiB')
  if (sharedBytesMax < requestBytesMax) throw new RangeError('sharedBytesMax holds at least one request')
  if (inFlightRequestsMax < 1 || connectionsMax < 1) throw new RangeError('at least one connection and one request')
}
