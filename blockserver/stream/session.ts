/**
 * StreamSession: the server's side of one connection of an agent. Frames: docs/formats/stream.md. What is sent next: chunk-sender.ts
 */
import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import type { Logger } from 'pino'
import { type Digest, digestToHex, DIGEST_BYTES } from '@varve/images/chunk/digest.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { isSignedBy } from './authentication.ts'
import { ChunkSender } from './chunk-sender.ts'
import { AgentFrame, CHALLENGE_BYTES, frame, FRAME_BYTES_MAX, FrameReader, GET_DIGESTS_MAX, jsonFrame, type Priority, ServerFrame } from './frames.ts'
import { DISKS_MAX, JSON_BYTES_MAX, LINGER_MS, REPORTS_MAX, type StreamLimits, UNSENT_BYTES_MAX } from './limits.ts'
import type { StreamMetrics } from './metrics.ts'
import type { RateBuckets } from './rate-limits.ts'
import type { ReadTurns } from './read-turns.ts'
import { decodeBoot, decodeHeat } from './reports.ts'
import type { StreamAgent, StreamDisk, StreamSource } from './source.ts'

export interface StreamSessionOptions {
  source: StreamSource
  limits: StreamLimits
  turns: ReadTurns
  metrics: StreamMetrics
  /** Runs work one after another, over all connections. */
  inTurn: (work: () => Promise<void>) => Promise<void>
  log: Logger
  /** The agent has proven who it is. @returns what it may take */
  authenticated(agent: StreamAgent, session: StreamSession): RateBuckets
}

/** What frames each state takes. `proving`: the agent's signature is looked at, and what it sends waits. */
type State = 'expecting AUTH' | 'proving' | 'open' | 'ended'

const COUNT_BYTES = 8
/** What the sender leaves unsent at most; only answers can be more. */
const HELD_BACK_BYTES = UNSENT_BYTES_MAX + FRAME_BYTES_MAX

export class StreamSession {
  /** Who has proven to be there, until the connection ends. */
  agent: StreamAgent | undefined
  /** Resolves when everything that it held is let go of. */
  readonly closed: Promise<void>
  readonly #socket: Socket
  readonly #options: StreamSessionOptions
  readonly #log: Logger
  readonly #sender: ChunkSender
  readonly #reader = new FrameReader((type, payload) => this.#take(type, payload))
  readonly #challenge = randomBytes(CHALLENGE_BYTES)
  readonly #gone = new AbortController()
  readonly #written = () => {
    this.#sender.send()
    this.#holdBack()
  }
  #state: State = 'expecting AUTH'
  /** What came behind AUTH while that was looked at: no more than was read at once. */
  #deferred: { type: number; payload: Buffer }[] = []
  #handshake: NodeJS.Timeout | undefined
  #disks = new Map<string, StreamDisk>()
  /** Disks are opened one after another, so that answers come in the order of OPENs. */
  #opening: Promise<void> = Promise.resolve()
  #opens = 0
  #reports = 0

  /** @param socket after the upgrade; is destroyed in the end @param head what has been read of it already */
  constructor(socket: Socket, head: Buffer, options: StreamSessionOptions) {
    this.#socket = socket
    this.#options = options
    this.#log = options.log
    this.#sender = new ChunkSender(socket, { ...options, failed: (error) => this.#fail(error), written: this.#written })
    this.closed = new Promise((resolve) => socket.once('close', () => void this.#close().then(resolve)))
    // Nobody holds much here before it is known who it is.
    this.#reader.bytesMax = JSON_BYTES_MAX
    socket.setNoDelay(true)
    // Of the HTTP server there may be one, which knows nothing of what goes on here.
    socket.removeAllListeners('timeout')
    socket.setTimeout(options.limits.idleMsMax, () => {
      this.#log.info({ reason: 'nothing moved' }, 'a stream was closed')
      socket.destroy()
    })
    this.#handshake = setTimeout(() => this.#fail(new VarveError('AUTH_FAILED', 'the agent took too long to prove who it is')), options.limits.handshakeMsMax)
    socket.on('error', (error) => this.#log.debug({ err: error }, 'a stream broke'))
    socket.on('end', () => socket.destroySoon())
    this.#write(frame(ServerFrame.HELLO, this.#challenge))
    socket.on('data', (bytes: Buffer) => this.#push(bytes))
    this.#push(head)
  }

  set rates(rates: RateBuckets) {
    this.#sender.rates = rates
  }

  /** Tells the agent why, and ends the connection. */
  end(error: VarveError): void {
    if (this.#state === 'ended') return
    this.#stop()
    this.#socket.end(jsonFrame(ServerFrame.ERROR, { code: error.code, message: error.message }))
    // What still comes is read, and not looked at: a socket that is closed with data unread takes the last frame with it.
    this.#socket.resume()
    setTimeout(() => this.#socket.destroy(), LINGER_MS).unref()
  }

  #push(bytes: Buffer): void {
    if (this.#state === 'ended') return
    try {
      this.#reader.push(bytes)
    } catch (error) {
      this.#fail(error)
    }
    this.#holdBack()
  }

  /** Who does not take what it is sent, asks for nothing more. */
  #holdBack(): void {
    if (this.#state === 'proving' || (this.#state !== 'ended' && this.#socket.writableLength > HELD_BACK_BYTES)) this.#socket.pause()
    else this.#socket.resume()
  }

  #write(bytes: Buffer): void {
    this.#socket.write(bytes, this.#written)
  }

  #fail(error: unknown): void {
    if (this.#state === 'ended') return
    const { metrics } = this.#options
    if (isVarveError(error)) {
      if (error.code === 'AUTH_FAILED') metrics.authFailures++
      else metrics.cut++
      this.#log.info({ reason: error.message }, 'a stream was cut')
      this.end(error)
      return
    }
    this.#log.error({ err: error }, 'a stream failed')
    this.#socket.destroy()
  }

  #take(type: number, payload: Buffer): void {
    if (this.#state === 'ended') return
    if (this.#state === 'proving') this.#deferred.push({ type, payload: Buffer.from(payload) })
    else if (this.#state === 'expecting AUTH') this.#takeFirst(type, payload)
    else this.#takeOpen(type, payload)
  }

  #takeFirst(type: number, payload: Buffer): void {
    if (type !== AgentFrame.AUTH) throw new VarveError('PROTOCOL_INVALID', `a frame of type ${type} before AUTH`)
    const { agent, signature } = jsonOf(payload)
    if (typeof agent !== 'string' || typeof signature !== 'string') throw new VarveError('PROTOCOL_INVALID', 'AUTH without agent and signature')
    this.#state = 'proving'
    this.#reader.bytesMax = FRAME_BYTES_MAX
    this.#prove(agent, Buffer.from(signature, 'base64')).catch((error: unknown) => this.#fail(error))
  }

  async #prove(id: string, signature: Buffer): Promise<void> {
    const { source } = this.#options
    const agent = await source.agent(id)
    if (this.#ended) return
    // Who is not known is not told apart from who has another key.
    if (agent === undefined || !isSignedBy(agent.publicKey, this.#challenge, signature)) throw new VarveError('AUTH_FAILED', 'the agent is not known here, was revoked, or has another key')
    await source.connected(agent)
    if (this.#ended) return
    clearTimeout(this.#handshake)
    this.agent = agent
    this.#state = 'open'
    this.#sender.rates = this.#options.authenticated(agent, this)
    for (const { type, payload } of this.#deferred.splice(0)) this.#take(type, payload)
    this.#holdBack()
  }

  get #ended(): boolean {
    return this.#state === 'ended' || this.#socket.destroyed
  }

  #takeOpen(type: number, payload: Buffer): void {
    switch (type) {
      case AgentFrame.OPEN: return this.#open(payload)
      case AgentFrame.GET: return this.#get(payload)
      case AgentFrame.CANCEL: return this.#sender.cancel(digests(payload, 'CANCEL'))
      case AgentFrame.WINDOW: return this.#sender.widen(count(payload))
      case AgentFrame.PING:
        count(payload)
        return this.#write(frame(ServerFrame.PONG, payload))
      case AgentFrame.HEAT:
      case AgentFrame.BOOT: return this.#report(type, payload)
      default: throw new VarveError('PROTOCOL_INVALID', `a frame of type ${type}`)
    }
  }

  #get(payload: Buffer): void {
    const priority = payload[0]
    const asked = digests(payload.subarray(1), 'GET')
    if (!(priority <= 2) || asked.length === 0 || asked.length > GET_DIGESTS_MAX) throw new VarveError('PROTOCOL_INVALID', `GET of ${asked.length} chunks with priority ${priority}`)
    this.#sender.ask(asked, priority as Priority)
  }

  #open(payload: Buffer): void {
    const { name, map } = jsonOf(payload)
    if (typeof name !== 'string') throw new VarveError('PROTOCOL_INVALID', 'OPEN without a name')
    if (map !== undefined && (typeof map !== 'string' || !/^[0-9a-f]{64}$/.test(map))) throw new VarveError('PROTOCOL_INVALID', 'OPEN with a map that is no digest')
    const goesOnWith = map === undefined ? undefined : Buffer.from(map, 'hex')
    if (++this.#opens > DISKS_MAX) throw new VarveError('LIMIT_EXCEEDED', `${this.#opens} disks on one connection; at most ${DISKS_MAX} are allowed`)
    this.#opening = this.#opening.then(() => this.#openDisk(name, goesOnWith)).catch((error: unknown) => this.#fail(error))
  }

  async #openDisk(name: string, goesOnWith: Digest | undefined): Promise<void> {
    if (this.#ended) return
    let disk: StreamDisk
    try {
      disk = await this.#options.source.openDisk(name, { agent: this.agent!, map: goesOnWith, signal: this.#gone.signal })
    } catch (error) {
      if (this.#ended) return
      if (!isVarveError(error)) throw error
      this.#log.info({ cvd: name, reason: error.message }, 'a disk was not opened for a stream')
      return this.#write(jsonFrame(ServerFrame.ERROR, { code: error.code, message: error.message }))
    }
    if (this.#ended) return disk.close()
    const map = digestToHex(disk.map)
    const before = this.#disks.get(map)
    this.#disks.set(map, disk)
    await before?.close()
    const list = (digest: Uint8Array | null) => (digest === null ? null : digestToHex(digest))
    this.#log.info({ cvd: name, map, snapshot: disk.snapshot }, 'a disk is streamed')
    this.#write(jsonFrame(ServerFrame.DISK, { name, sizeBytes: disk.sizeBytes, map, bootSet: list(disk.bootSet), order: list(disk.order), snapshot: disk.snapshot }))
  }

  #report(type: number, payload: Buffer): void {
    if (payload.length < DIGEST_BYTES) throw new VarveError('PROTOCOL_INVALID', `a report of ${payload.length} bytes`)
    const map = payload.toString('hex', 0, DIGEST_BYTES)
    const disk = this.#disks.get(map)
    // An agent may speak of what it opened on an earlier connection, and of what is newer now.
    if (disk === undefined) return this.#log.info({ map }, 'a report about a disk that was not opened on its stream is ignored')
    if (this.#reports >= REPORTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `more than ${REPORTS_MAX} reports wait on one connection`)
    this.#reports++
    const record = recordOf(type, payload.subarray(DIGEST_BYTES), disk)
    this.#options.inTurn(record)
      .catch((error: unknown) => this.#log.error({ err: error, map }, 'a report could not be recorded'))
      .finally(() => this.#reports--)
  }

  #stop(): void {
    this.#state = 'ended'
    this.agent = undefined
    this.#deferred = []
    this.#sender.stop()
    this.#gone.abort()
    clearTimeout(this.#handshake)
  }

  async #close(): Promise<void> {
    this.#stop()
    await this.#opening
    for (const disk of this.#disks.values()) await disk.close().catch((error: unknown) => this.#log.error({ err: error }, 'a disk of a stream could not be closed'))
    this.#disks.clear()
  }
}

/** @throws VarveError PROTOCOL_INVALID */
function recordOf(type: number, payload: Buffer, disk: StreamDisk): () => Promise<void> {
  if (type === AgentFrame.BOOT) {
    const numbers = decodeBoot(payload, disk.chunkCount)
    return () => disk.recordBoot(numbers)
  }
  const numbers = decodeHeat(payload, disk.chunkCount)
  return () => disk.recordHeat(numbers)
}

/** @throws VarveError PROTOCOL_INVALID */
function jsonOf(payload: Buffer): Record<string, unknown> {
  if (payload.length <= JSON_BYTES_MAX) {
    try {
      const value: unknown = JSON.parse(payload.toString('utf8'))
      if (typeof value === 'object' && value !== null) return value as Record<string, unknown>
    } catch {
      // Said below.
    }
  }
  throw new VarveError('PROTOCOL_INVALID', `${payload.length} bytes that are no JSON object of at most ${JSON_BYTES_MAX}`)
}

/** As keys: a character a byte. @throws VarveError PROTOCOL_INVALID */
function digests(payload: Buffer, what: string): string[] {
  if (payload.length % DIGEST_BYTES !== 0) throw new VarveError('PROTOCOL_INVALID', `${what} with ${payload.length} bytes of digests`)
  return Array.from({ length: payload.length / DIGEST_BYTES }, (_, index) => payload.toString('latin1', index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES))
}

/** @throws VarveError PROTOCOL_INVALID */
function count(payload: Buffer): number {
  if (payload.length !== COUNT_BYTES) throw new VarveError('PROTOCOL_INVALID', `${payload.length} bytes where ${COUNT_BYTES} are a number`)
  return Number(payload.readBigUInt64LE())
}
