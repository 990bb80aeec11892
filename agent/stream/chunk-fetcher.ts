/**
 * Chunk fetcher: brings chunks from a server, by connections that it makes again whenever one is lost. What is asked for twice is fetched once, at the
 * more urgent of the two priorities. Nothing is given to anybody before it was found to be what was asked for.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { LatencyHistogram } from '@varve/blockserver/latency-histogram.ts'
import type { LatencySnapshot } from '@varve/blockserver/latency-histogram.ts'
import { type AgentFrame, CHUNK_HEADER_BYTES, FRAME_BYTES_MAX, Priority, WAITING_DIGESTS_MAX } from '@varve/blockserver/stream/frames.ts'
import { decompress } from '@varve/images/chunk/codec.ts'
import type { Codec } from '@varve/images/chunk/codec.ts'
import { DIGEST_BYTES, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import { LineWindow } from './line-window.ts'
import { StreamConnection } from './stream-connection.ts'
import type { ServerAddress } from './server-socket.ts'
import type { AgentIdentity, StreamedDiskInfo } from './stream-connection.ts'

/** How often a chunk that comes wrong is asked for in all. */
const ATTEMPTS_MAX = 3
const RECONNECT_MS_FIRST = 200
const RECONNECT_MS_MAX = 10_000

export interface WantOptions {
  priority: Priority
  /** Gives up after so long. Waits for ever unless given. */
  msMax?: number
  signal?: AbortSignal
}

interface Taker {
  deliver(content: Uint8Array): void
  fail(error: Error): void
}

interface Pending {
  digest: Buffer
  priority: Priority
  attempts: number
  askedMs: number
  /** The server has been asked on this connection, and has not answered. */
  isAsked: boolean
  takers: Set<Taker>
}

export interface FetcherOptions {
  address: ServerAddress
  identity: AgentIdentity
  /** Is opened on each connection, so that the server keeps what it consists of. */
  disk: string
  /** Object of the block map that is gone on with, hexadecimal: of a disk that was begun before. Unless given, the first that the server says. */
  map?: string
  log: Logger
}

export interface FetcherFigures {
  connected: boolean
  /** Why not, if it is so. */
  lastError: string | null
  connections: number
  /** GET frames. */
  requests: number
  receivedBytes: number
  chunks: number
  /** Chunks that came wrong. */
  corrupt: number
  misses: number
  missLatency: LatencySnapshot
  roundTripMs: number | null
  lineBytesPerSecond: number
  waiting: number
}

export class ChunkFetcher implements AsyncDisposable {
  readonly #options: FetcherOptions
  readonly #pending = new Map<string, Pending>()
  readonly #window = new LineWindow()
  readonly #stop = new AbortController()
  readonly #running: Promise<void>
  #connection: StreamConnection | undefined
  #info: StreamedDiskInfo | undefined
  readonly #openedWaiters: ((info: StreamedDiskInfo) => void)[] = []
  /** What is to be asked for, by priority; some of it may have come, or be wanted more urgently, since. */
  #toAsk: Digest[][] = [[], [], []]
  #isAsking = false
  /** Chunks that the server has been asked for on this connection and has not answered. */
  #asked = 0
  #disk: string
  #map: string | undefined
  #lastError: string | null = null
  /** What the first connection found; rejected if that failed. Others follow all the same. */
  readonly first: Promise<StreamedDiskInfo>
  #firstEnded!: { resolve(info: StreamedDiskInfo): void; reject(error: Error): void }
  readonly #missLatency = new LatencyHistogram()
  #past = { connections: 0, requests: 0, receivedBytes: 0, chunks: 0, corrupt: 0, misses: 0 }

  constructor(options: FetcherOptions) {
    this.#options = options
    this.#disk = options.disk
    this.#map = options.map
    this.first = new Promise((resolve, reject) => { this.#firstEnded = { resolve, reject } })
    // Who does not ask does not care.
    this.first.catch(() => {})
    this.#running = this.#run()
  }

  get figures(): FetcherFigures {
    const { requests = 0, receivedBytes = 0 } = this.#connection ?? {}
    return {
      ...this.#past,
      connected: this.#connection !== undefined,
      lastError: this.#lastError,
      requests: this.#past.requests + requests,
      receivedBytes: this.#past.receivedBytes + receivedBytes,
      missLatency: this.#missLatency.snapshot(),
      roundTripMs: this.#window.roundTripMs ?? null,
      lineBytesPerSecond: this.#window.bytesPerSecond,
      waiting: this.#pending.size,
    }
  }

  /** What the server last said of the disk: waits for the first time. */
  async opened(signal: AbortSignal): Promise<StreamedDiskInfo> {
    signal.throwIfAborted()
    return this.#info ?? new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
      this.#openedWaiters.push(resolve)
    })
  }

  /** What is opened on the connections that come. */
  set disk(name: string) {
    this.#disk = name
  }

  /** A report for the server about the map that is gone on with. What cannot be told now is not told. @param body what follows the digest of the map */
  report(type: typeof AgentFrame.HEAT | typeof AgentFrame.BOOT, body: Uint8Array): void {
    // The numbers in it mean nothing to a server that has opened another map.
    if (this.#map === undefined || this.#info?.map !== this.#map || body.length >= FRAME_BYTES_MAX - DIGEST_BYTES) return
    this.#connection?.report(type, Buffer.concat([Buffer.from(this.#map, 'hex'), body]))
  }

  /**
   * Fetches chunks.
   * @param deliver is called with each one's place in `digests` and its content, which is good until it returns
   * @throws VarveError CONNECTION_LOST if it takes too long; CHUNK_MISSING, CHUNK_CORRUPT if the server does not give one, after all others came
   */
  async want(digests: readonly Digest[], deliver: (index: number, content: Uint8Array) => void, { priority, msMax, signal }: WantOptions): Promise<void> {
    if (digests.length === 0) return
    const taken: { key: string; taker: Taker }[] = []
    let timer: NodeJS.Timeout | undefined
    let abort: (() => void) | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        let left = digests.length
        let failure: Error | undefined
        const end = (): void => {
          if (--left > 0) return
          if (failure === undefined) resolve()
          else reject(failure)
        }
        if (msMax !== undefined) timer = setTimeout(() => reject(new VarveError('CONNECTION_LOST', `the server gave no answer within ${msMax} ms`)), msMax)
        abort = () => reject(signal!.reason as Error)
        signal?.addEventListener('abort', abort)
        if (signal?.aborted) return abort()
        for (const [index, digest] of digests.entries()) {
          const taker: Taker = {
            deliver: (content) => {
              try {
                deliver(index, content)
              } catch (error) {
                failure ??= error as Error
              }
              end()
            },
            fail: (error) => {
              failure ??= error
              end()
            },
          }
          taken.push({ key: this.#take(digest, priority, taker), taker })
        }
      })
    } finally {
      clearTimeout(timer)
      if (abort !== undefined) signal?.removeEventListener('abort', abort)
      this.#giveUp(taken)
    }
  }

  /** A chunk has come from elsewhere: whoever waits for it has it, and the server need not send it. @param content verified */
  supply(digest: Digest, content: Uint8Array): void {
    const key = keyOf(digest)
    const pending = this.#pending.get(key)
    if (pending === undefined) return
    if (pending.isAsked) this.#connection?.cancel([pending.digest])
    this.#drop(key, pending)
    for (const taker of pending.takers) taker.deliver(content)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new VarveError('CONNECTION_LOST', 'the agent has stopped')
    this.#stop.abort(closed)
    for (const [key, pending] of [...this.#pending]) this.#failPending(key, pending, closed)
    await this.#running
  }

  #take(digest: Digest, priority: Priority, taker: Taker): string {
    const key = keyOf(digest)
    const known = this.#pending.get(key)
    if (known === undefined) {
      this.#pending.set(key, { digest: Buffer.from(digest), priority, attempts: 1, askedMs: performance.now(), isAsked: false, takers: new Set([taker]) })
      this.#ask(digest, priority)
    } else {
      known.takers.add(taker)
      if (priority < known.priority) {
        known.priority = priority
        known.askedMs = performance.now()
        this.#ask(digest, priority)
      }
    }
    return key
  }

  #ask(digest: Digest, priority: Priority): void {
    // Without a connection, all that is pending is asked for by the next.
    if (this.#connection === undefined) return
    this.#toAsk[priority].push(digest)
    this.#askSoon()
  }

  #askSoon(): void {
    if (this.#isAsking) return
    this.#isAsking = true
    queueMicrotask(() => {
      this.#isAsking = false
      if (this.#connection !== undefined) this.#askNow(this.#connection)
    })
  }

  /** Most urgent first, and no more than may wait on a connection: the rest when something has come. */
  #askNow(connection: StreamConnection): void {
    for (const [level, waiting] of this.#toAsk.entries()) {
      const digests: Digest[] = []
      let taken = 0
      for (; taken < waiting.length && this.#asked < WAITING_DIGESTS_MAX; taken++) {
        const pending = this.#pending.get(keyOf(waiting[taken]))
        if (pending?.priority !== level) continue
        if (!pending.isAsked) this.#asked++
        pending.isAsked = true
        digests.push(pending.digest)
      }
      waiting.splice(0, taken)
      if (digests.length > 0) connection.get(level as Priority, digests)
    }
    this.#grant(connection)
  }

  /** What nobody waits for any more need not come, now or on another connection. */
  #giveUp(taken: readonly { key: string; taker: Taker }[]): void {
    const left: Digest[] = []
    for (const { key, taker } of taken) {
      const pending = this.#pending.get(key)
      if (pending === undefined || !pending.takers.delete(taker) || pending.takers.size > 0) continue
      if (pending.isAsked) left.push(pending.digest)
      this.#drop(key, pending)
    }
    this.#connection?.cancel(left)
  }

  /** It is not waited for any more: it has come, or will not. */
  #drop(key: string, pending: Pending): void {
    this.#pending.delete(key)
    this.#isAnswered(pending)
  }

  #isAnswered(pending: Pending): void {
    if (!pending.isAsked) return
    pending.isAsked = false
    this.#asked--
    if (this.#toAsk.some((waiting) => waiting.length > 0)) this.#askSoon()
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop
    let waitMs = RECONNECT_MS_FIRST
    while (!signal.aborted) {
      const chunksBefore = this.#past.chunks
      try {
        await this.#serve(signal)
      } catch (error) {
        this.#firstEnded.reject(error as Error)
        if (signal.aborted) return
        this.#lastError = (error as Error).message
        this.#options.log.warn({ err: error }, 'no connection to the server')
      }
      // A connection that brought something was worth it.
      waitMs = this.#past.chunks > chunksBefore ? RECONNECT_MS_FIRST : Math.min(RECONNECT_MS_MAX, waitMs * 2)
      // Many agents that lost one server do not come back all at once.
      await sleep(waitMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {})
    }
  }

  /** One connection, until it ends. */
  async #serve(signal: AbortSignal): Promise<void> {
    const { address, identity, log } = this.#options
    const connection = await StreamConnection.open(address, identity, {
      chunk: (digest, stored) => this.#arrived(digest, stored),
      chunkFailed: (digest, reason) => this.#refused(digest, reason),
      roundTrip: (ms) => this.#window.noteRoundTrip(ms, performance.now()),
    }, signal)
    try {
      this.#window.restart()
      const info = await connection.openDisk(this.#disk, this.#map)
      signal.throwIfAborted()
      this.#info = info
      this.#map ??= info.map
      if (info.map !== this.#map) log.warn({ map: this.#map, now: info.map }, 'the server does not know the disk as it was begun any more; what it still has of it comes')
      for (const heard of this.#openedWaiters.splice(0)) heard(info)
      log.info({ url: address.url.origin }, 'connected')
      this.#connection = connection
      this.#past.connections++
      this.#lastError = null
      this.#asked = 0
      this.#toAsk = [[], [], []]
      for (const pending of this.#pending.values()) {
        pending.isAsked = false
        this.#toAsk[pending.priority].push(pending.digest)
      }
      this.#askNow(connection)
      this.#firstEnded.resolve(info)
      throw await connection.ended
    } finally {
      this.#connection = undefined
      this.#past.requests += connection.requests
      this.#past.receivedBytes += connection.receivedBytes
      connection[Symbol.dispose]()
    }
  }

  #grant(connection: StreamConnection): void {
    const nowMs = performance.now()
    const granted = this.#window.grant(nowMs)
    if (granted !== undefined) connection.window(granted)
    if (this.#window.takePing(nowMs)) connection.ping()
  }

  #arrived(digest: Buffer, { codec, rawBytes, payload }: { codec: Codec; rawBytes: number; payload: Buffer }): void {
    const key = keyOf(digest)
    const pending = this.#pending.get(key)
    const nowMs = performance.now()
    this.#window.noteBytes(CHUNK_HEADER_BYTES + payload.length, { waiting: this.#pending.size > 1, nowMs })
    if (this.#connection !== undefined) this.#grant(this.#connection)
    // Asked for by somebody who has given up.
    if (pending === undefined) return
    let content: Uint8Array
    try {
      content = decompress(codec, payload, rawBytes)
      if (Buffer.compare(digestOf(content), digest) !== 0) throw new VarveError('CHUNK_CORRUPT', 'its content hashes to something else')
    } catch (cause) {
      this.#past.corrupt++
      return this.#tryAgain(key, pending, new VarveError('CHUNK_CORRUPT', `chunk ${digestToHex(digest)} came wrong from the server: ${(cause as Error).message}`, { cause }))
    }
    this.#past.chunks++
    this.#drop(key, pending)
    if (pending.priority === Priority.MISS) {
      this.#past.misses++
      this.#missLatency.record(nowMs - pending.askedMs)
    }
    for (const taker of pending.takers) taker.deliver(content)
  }

  #refused(digest: Buffer, reason: string): void {
    const key = keyOf(digest)
    const pending = this.#pending.get(key)
    if (pending !== undefined) this.#failPending(key, pending, new VarveError('CHUNK_MISSING', `the server does not give chunk ${digestToHex(digest)}: ${reason.slice(0, 200)}`))
  }

  #tryAgain(key: string, pending: Pending, error: VarveError): void {
    this.#options.log.warn({ err: error }, 'a chunk came wrong')
    this.#isAnswered(pending)
    if (pending.attempts++ < ATTEMPTS_MAX) this.#ask(pending.digest, pending.priority)
    else this.#failPending(key, pending, error)
  }

  #failPending(key: string, pending: Pending, error: Error): void {
    this.#drop(key, pending)
    for (const taker of pending.takers) taker.fail(error)
  }
}

function keyOf(digest: Uint8Array): string {
  return Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString('latin1')
}
