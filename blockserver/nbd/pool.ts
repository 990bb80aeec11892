/**
 * NBD client for those who want an export to stay: several connections where the server allows it, and each comes back when it is lost.
 * What was in flight on a lost connection is sent again; all commands may be carried out twice. docs/nbd.md says what that means for writes.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { type ConnectOptions, NbdClient, NbdRequestError, type StatusRequestOptions, type WriteRequestOptions, type WriteZeroesRequestOptions } from './client.ts'
import type { StatusRun } from './export.ts'
import { NBD_ESHUTDOWN } from './protocol.ts'

const CONNECTIONS = 4
const RECONNECT_MS_MAX = 60_000
const BACKOFF_MS_MIN = 20
const BACKOFF_MS_MAX = 2000
/** Payload of one request, unless the server tells less; a longer one is split. */
const REQUEST_BYTES_MAX = 32 * 1024 * 1024
/** Of a server that does not tell. */
const MINIMUM_BLOCK_BYTES = 512

export interface PoolOptions extends ConnectOptions {
  /** 4 unless given; one where the server does not say that several see the same. */
  connections?: number
  /** How long a lost connection is tried to be made again before the requests that wait for it fail; 60 s unless given. */
  reconnectMsMax?: number
}

export class NbdPool implements AsyncDisposable {
  readonly sizeBytes: number
  readonly readOnly: boolean
  readonly contexts: readonly string[]
  /** Offsets and lengths of requests are multiples of it, bytes, but where the export ends. */
  readonly minimumBlockBytes: number
  /** Connections that were made again. */
  reconnections = 0
  /**
   * How many times a connection was lost while writes were answered and not flushed. If the server's system was lost with it, they may be too, and no later flush
   * brings them back: as with qemu and the kernel's client. Who must know compares this before the first write and after the flush.
   */
  unflushedLosses = 0
  readonly #lanes: Lane[]
  readonly #requestBytesMax: number
  readonly #reconnectMsMax: number
  /** Counts answered writes, and those of them that a flush covers. */
  #written = 0
  #flushed = 0

  /** @throws as NbdClient.connect */
  static async connect(address: string, options: PoolOptions = {}): Promise<NbdPool> {
    const first = await NbdClient.connect(address, options)
    const count = first.canMultiConnect ? options.connections ?? CONNECTIONS : 1
    const others = await Promise.allSettled(Array.from({ length: count - 1 }, () => NbdClient.connect(address, options)))
    // A server that allows fewer connections at once is served by fewer.
    return new NbdPool(address, options, [first, ...others.filter((other) => other.status === 'fulfilled').map((other) => other.value)])
  }

  private constructor(address: string, options: PoolOptions, clients: readonly NbdClient[]) {
    const [{ sizeBytes, readOnly, contexts, blockSizes }] = clients
    this.sizeBytes = sizeBytes
    this.readOnly = readOnly
    this.contexts = contexts
    this.minimumBlockBytes = blockSizes?.minimum ?? MINIMUM_BLOCK_BYTES
    this.#requestBytesMax = Math.min(blockSizes?.maximum ?? REQUEST_BYTES_MAX, REQUEST_BYTES_MAX)
    this.#reconnectMsMax = options.reconnectMsMax ?? RECONNECT_MS_MAX
    const reconnect = async (closed: AbortSignal) => {
      const signal = options.signal === undefined ? closed : AbortSignal.any([closed, options.signal])
      const client = await connectAgain(address, { ...options, signal }, { sizeBytes, untilMs: performance.now() + this.#reconnectMsMax })
      this.reconnections++
      return client
    }
    this.#lanes = clients.map((client) => new Lane(client, reconnect, () => {
      if (this.#written > this.#flushed) this.unflushedLosses++
    }))
  }

  /** Connections that the pool keeps. */
  get connections(): number {
    return this.#lanes.length
  }

  /** @throws NbdRequestError; VarveError when the connection cannot be made again */
  async read(offset: number, length: number): Promise<Buffer> {
    if (length <= this.#requestBytesMax) return this.#run((client) => client.read(offset, length))
    return Buffer.concat(await Promise.all(this.#pieces(offset, length).map((piece) => this.read(piece.offset, piece.length))))
  }

  /** In pieces, where it is longer than the server takes at once: it is then not carried out as one. */
  async write(bytes: Uint8Array, offset: number, options: WriteRequestOptions = {}): Promise<void> {
    await Promise.all(this.#pieces(offset, bytes.length).map((piece) => {
      const part = bytes.subarray(piece.offset - offset, piece.offset - offset + piece.length)
      return this.#change(options, (client) => client.write(part, piece.offset, options))
    }))
  }

  trim(offset: number, length: number, options: WriteRequestOptions = {}): Promise<void> {
    return this.#change(options, (client) => client.trim(offset, length, options))
  }

  writeZeroes(offset: number, length: number, options: WriteZeroesRequestOptions = {}): Promise<void> {
    return this.#change(options, (client) => client.writeZeroes(offset, length, options))
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#run((client) => client.cache(offset, length))
  }

  blockStatus(offset: number, length: number, options: StatusRequestOptions = {}): Promise<Map<string, StatusRun[]>> {
    return this.#run((client) => client.blockStatus(offset, length, options))
  }

  /** What was answered before on any connection, also a lost one, is durable afterwards, unless the server's system was lost meanwhile: see `unflushedLosses`. */
  async flush(): Promise<void> {
    const written = this.#written
    await this.#run((client) => client.flush())
    this.#flushed = Math.max(this.#flushed, written)
  }

  /** What is in flight is still answered. */
  async close(): Promise<void> {
    await Promise.all(this.#lanes.map((lane) => lane.close()))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #change({ fua }: WriteRequestOptions, request: (client: NbdClient) => Promise<void>): Promise<void> {
    await this.#run(request)
    if (fua !== true) this.#written++
  }

  /** On the connection with the least to do; on another, or the same made again, when that is lost. */
  async #run<T>(request: (client: NbdClient) => Promise<T>): Promise<T> {
    let firstLossMs: number | undefined
    for (let backoffMs = 0; ; backoffMs = Math.min(Math.max(2 * backoffMs, BACKOFF_MS_MIN), BACKOFF_MS_MAX)) {
      const lane = this.#lanes.reduce((best, other) => other.load < best.load ? other : best)
      lane.load++
      try {
        const client = await lane.client()
        try {
          return await request(client)
        } catch (error) {
          if (!isLost(error)) throw error
          lane.lost(client)
          if (backoffMs > 0) await sleep(backoffMs)
          // A request that always ends the connection is not tried for ever.
          firstLossMs ??= performance.now()
          if (performance.now() - firstLossMs > this.#reconnectMsMax) throw error
        }
      } finally {
        lane.load--
      }
    }
  }

  #pieces(offset: number, length: number): { offset: number; length: number }[] {
    const pieces = [{ offset, length: Math.min(length, this.#requestBytesMax) }]
    for (let at = this.#requestBytesMax; at < length; at += this.#requestBytesMax) pieces.push({ offset: offset + at, length: Math.min(length - at, this.#requestBytesMax) })
    return pieces
  }
}

/** One connection after another. */
class Lane {
  /** Requests that use it or wait for it. */
  load = 0
  #client: NbdClient | undefined
  /** The next one, while it is made. */
  #making: Promise<NbdClient> | undefined
  readonly #reconnect: Reconnect
  readonly #onLost: () => void
  readonly #abort = new AbortController()
  #closed = false

  constructor(client: NbdClient, reconnect: Reconnect, onLost: () => void) {
    this.#client = client
    this.#reconnect = reconnect
    this.#onLost = onLost
  }

  /** The connection; made again if it is lost. @throws what kept it from being made: whoever comes next tries anew */
  async client(): Promise<NbdClient> {
    if (this.#closed) throw new VarveError('CONNECTION_LOST', 'the pool is closed')
    if (this.#client?.ended !== undefined) this.lost(this.#client)
    if (this.#client !== undefined) return this.#client
    this.#making ??= this.#make()
    return this.#making
  }

  /** @param client ignored if another one has taken its place */
  lost(client: NbdClient): void {
    if (this.#client !== client) return
    this.#client = undefined
    this.#onLost()
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#client?.disconnect()
    this.#abort.abort()
  }

  async #make(): Promise<NbdClient> {
    try {
      this.#client = await this.#reconnect(this.#abort.signal)
      return this.#client
    } finally {
      this.#making = undefined
    }
  }
}

type Reconnect = (signal: AbortSignal) => Promise<NbdClient>

/** Waits longer after each attempt, and not always as long as others do. */
async function connectAgain(address: string, options: ConnectOptions & { signal: AbortSignal }, { sizeBytes, untilMs }: { sizeBytes: number; untilMs: number }): Promise<NbdClient> {
  for (let backoffMs = BACKOFF_MS_MIN; ; backoffMs = Math.min(2 * backoffMs, BACKOFF_MS_MAX)) {
    try {
      return await connectToSame(address, options, sizeBytes)
    } catch (error) {
      if (!mayPass(error) || performance.now() + backoffMs > untilMs) throw error
    }
    await sleep(backoffMs * (1 + Math.random()) / 2, undefined, { signal: options.signal })
  }
}

async function connectToSame(address: string, options: ConnectOptions, sizeBytes: number): Promise<NbdClient> {
  const client = await NbdClient.connect(address, options)
  if (client.sizeBytes === sizeBytes) return client
  client.destroy()
  throw new VarveError('PROTOCOL_INVALID', `the export had ${sizeBytes} bytes, and has ${client.sizeBytes} after the connection was lost: it is another one`)
}

/** A server that is started again may not listen yet, or not have its exports. */
function mayPass(error: unknown): boolean {
  return isVarveError(error, 'CONNECTION_LOST', 'EXPORT_NOT_FOUND') || (error as NodeJS.ErrnoException).syscall !== undefined
}

function isLost(error: unknown): boolean {
  return isVarveError(error, 'CONNECTION_LOST') || (error instanceof NbdRequestError && error.errno === NBD_ESHUTDOWN)
}
