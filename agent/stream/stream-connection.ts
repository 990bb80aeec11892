/**
 * Stream connection: the agent's end of one connection to a server. Bytes: docs/formats/stream.md. It does not connect again: chunk-fetcher.ts does.
 */
import { sign } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import type { Socket } from 'node:net'
import { AgentFrame, CHALLENGE_BYTES, CHUNK_HEADER_BYTES, FrameReader, GET_DIGESTS_MAX, STREAM_PATH, STREAM_PROTOCOL, ServerFrame, frame, jsonFrame, signedChallenge } from '@varve/blockserver/stream/frames.ts'
import type { Priority } from '@varve/blockserver/stream/frames.ts'
import { CODECS } from '@varve/images/chunk/codec.ts'
import type { Codec } from '@varve/images/chunk/codec.ts'
import { DIGEST_BYTES } from '@varve/images/chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '@varve/images/chunk/limits.ts'
import { ERROR_CODES, VarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import { lost, requestTo } from './server-socket.ts'
import type { ServerAddress } from './server-socket.ts'

/** A server that answers no PING for so long is taken for gone. */
const SILENCE_MS_MAX = 20_000
const PING_EVERY_MS = 1000

export interface AgentIdentity {
  agent: string
  /** Ed25519. */
  privateKey: KeyObject
}

/** Answer to OPEN. */
export interface StreamedDiskInfo {
  name: string
  sizeBytes: number
  map: string
  snapshot: string | null
  bootSet: string | null
  order: string | null
}

export interface StreamHandlers {
  /** As it came: to be verified. The payload is good until this returns. */
  chunk(digest: Buffer, stored: { codec: Codec; rawBytes: number; payload: Buffer }): void
  chunkFailed(digest: Buffer, reason: string): void
  roundTrip(ms: number): void
}

export class StreamConnection implements Disposable {
  readonly #socket: Socket
  readonly #handlers: StreamHandlers
  /** Resolves with the reason when the connection has ended. */
  readonly ended: Promise<Error>
  #end!: (error: Error) => void
  #challenge: ((challenge: Buffer) => void) | undefined
  #open: { resolve(info: StreamedDiskInfo): void; reject(error: Error): void } | undefined
  #lastSeenMs = performance.now()
  readonly #pinger: NodeJS.Timeout
  /** GET frames so far, and bytes that came. */
  requests = 0
  receivedBytes = 0

  /**
   * Connects, and proves who the agent is; a refusal shows itself by the end of the connection.
   * @param signal ends the connection, whatever it waits for
   * @throws VarveError CONNECTION_LOST, CREDENTIALS_INVALID, PROTOCOL_INVALID
   */
  static async open(address: ServerAddress, identity: AgentIdentity, handlers: StreamHandlers, signal?: AbortSignal): Promise<StreamConnection> {
    const { socket, head } = await upgrade(address, signal)
    const connection = new StreamConnection(socket, handlers)
    const abort = (): void => connection[Symbol.dispose]()
    signal?.addEventListener('abort', abort, { once: true })
    void connection.ended.then(() => signal?.removeEventListener('abort', abort))
    if (signal?.aborted) abort()
    const challenge = new Promise<Buffer>((resolve) => { connection.#challenge = resolve })
    connection.#listen(head)
    const first = await Promise.race([challenge, connection.ended])
    if (first instanceof Error) throw first
    const signature = sign(null, signedChallenge(first), identity.privateKey).toString('base64')
    connection.#write(jsonFrame(AgentFrame.AUTH, { agent: identity.agent, signature }))
    connection.ping()
    return connection
  }

  private constructor(socket: Socket, handlers: StreamHandlers) {
    this.#socket = socket
    this.#handlers = handlers
    this.ended = new Promise((resolve) => { this.#end = resolve })
    this.#pinger = setInterval(() => this.#tick(), PING_EVERY_MS)
    this.#pinger.unref()
  }

  /** @param map that is gone on with, hexadecimal @throws VarveError as the server says: NOT_FOUND, ...; CONNECTION_LOST */
  async openDisk(name: string, map?: string): Promise<StreamedDiskInfo> {
    const answered = new Promise<StreamedDiskInfo>((resolve, reject) => { this.#open = { resolve, reject } })
    this.#write(jsonFrame(AgentFrame.OPEN, { name, map }))
    const answer = await Promise.race([answered, this.ended])
    if (answer instanceof Error) throw answer
    return answer
  }

  /** @param digests 32 bytes each */
  get(priority: Priority, digests: readonly Uint8Array[]): void {
    for (let from = 0; from < digests.length; from += GET_DIGESTS_MAX) {
      this.requests++
      this.#write(frame(AgentFrame.GET, Uint8Array.of(priority), ...digests.slice(from, from + GET_DIGESTS_MAX)))
    }
  }

  /** They are not wanted any more. */
  cancel(digests: readonly Uint8Array[]): void {
    for (let from = 0; from < digests.length; from += GET_DIGESTS_MAX) this.#write(frame(AgentFrame.CANCEL, ...digests.slice(from, from + GET_DIGESTS_MAX)))
  }

  /** @param bytes of CHUNK payload in all that the server may have sent on this connection */
  window(bytes: number): void {
    const payload = Buffer.alloc(8)
    payload.writeBigUInt64LE(BigInt(bytes))
    this.#write(frame(AgentFrame.WINDOW, payload))
  }

  ping(): void {
    const payload = Buffer.alloc(8)
    payload.writeDoubleLE(performance.now())
    this.#write(frame(AgentFrame.PING, payload))
  }

  report(type: typeof AgentFrame.HEAT | typeof AgentFrame.BOOT, payload: Uint8Array): void {
    this.#write(frame(type, payload))
  }

  [Symbol.dispose](): void {
    this.#close(new VarveError('CONNECTION_LOST', 'the connection was closed'))
  }

  #write(bytes: Uint8Array): void {
    if (!this.#socket.destroyed) this.#socket.write(bytes)
  }

  #listen(head: Buffer): void {
    const socket = this.#socket
    const reader = new FrameReader((type, payload) => this.#take(type, payload))
    const push = (bytes: Buffer): void => {
      this.#lastSeenMs = performance.now()
      this.receivedBytes += bytes.length
      try {
        reader.push(bytes)
      } catch (error) {
        this.#close(error as Error)
      }
    }
    socket.setNoDelay(true)
    socket.on('data', push)
    socket.on('error', (cause) => this.#close(new VarveError('CONNECTION_LOST', `the connection to the server was lost: ${cause.message}`, { cause })))
    socket.on('close', () => this.#close(new VarveError('CONNECTION_LOST', 'the server closed the connection')))
    if (head.length > 0) push(head)
    socket.resume()
  }

  #close(error: Error): void {
    clearInterval(this.#pinger)
    this.#socket.destroy()
    this.#end(error)
  }

  #tick(): void {
    if (performance.now() - this.#lastSeenMs > SILENCE_MS_MAX) this.#close(new VarveError('CONNECTION_LOST', `the server has said nothing for ${SILENCE_MS_MAX} ms`))
    else this.ping()
  }

  #take(type: number, payload: Buffer): void {
    switch (type) {
      case ServerFrame.CHUNK: return this.#takeChunk(payload)
      case ServerFrame.CHUNK_ERROR:
        if (payload.length < DIGEST_BYTES) throw malformed('CHUNK_ERROR')
        return this.#handlers.chunkFailed(payload.subarray(0, DIGEST_BYTES), payload.toString('utf8', DIGEST_BYTES))
      case ServerFrame.PONG:
        if (payload.length !== 8) throw malformed('PONG')
        return this.#handlers.roundTrip(Math.max(0, performance.now() - payload.readDoubleLE(0)))
      case ServerFrame.HELLO:
        if (payload.length !== CHALLENGE_BYTES || this.#challenge === undefined) throw malformed('HELLO')
        this.#challenge(Buffer.from(payload))
        this.#challenge = undefined
        return
      case ServerFrame.DISK:
        this.#open?.resolve(diskInfo(parse(payload)))
        this.#open = undefined
        return
      case ServerFrame.ERROR: {
        const { code, message } = parse(payload)
        const error = new VarveError(ERROR_CODES.includes(code as ErrorCode) ? (code as ErrorCode) : 'PROTOCOL_INVALID', typeof message === 'string' ? `the server says: ${message}` : 'the server refuses')
        if (this.#open !== undefined) this.#open.reject(error)
        else this.#close(error)
        this.#open = undefined
        return
      }
      default: throw new VarveError('PROTOCOL_INVALID', `the server sent a frame of type ${type}, which there is not`)
    }
  }

  #takeChunk(payload: Buffer): void {
    if (payload.length <= CHUNK_HEADER_BYTES) throw malformed('CHUNK')
    const codec = CODECS[payload[DIGEST_BYTES]]
    const rawBytes = payload.readUInt32LE(DIGEST_BYTES + 1)
    if (codec === undefined || rawBytes < 1 || rawBytes > CHUNK_BYTES_MAX) throw malformed('CHUNK')
    this.#handlers.chunk(payload.subarray(0, DIGEST_BYTES), { codec, rawBytes, payload: payload.subarray(CHUNK_HEADER_BYTES) })
  }
}

async function upgrade(address: ServerAddress, signal: AbortSignal | undefined): Promise<{ socket: Socket; head: Buffer }> {
  const { origin } = address.url
  const request = await requestTo(address, STREAM_PATH, { headers: { connection: 'Upgrade', upgrade: STREAM_PROTOCOL } }, signal)
  return new Promise((resolve, reject) => {
    request.once('upgrade', (_response, socket: Socket, head) => {
      socket.setTimeout(0)
      resolve({ socket, head })
    })
    request.once('response', (response) => {
      response.resume()
      request.destroy()
      reject(new VarveError('PROTOCOL_INVALID', `${origin} does not stream: it answers ${response.statusCode}`))
    })
    request.once('timeout', () => request.destroy(new Error('no answer in time')))
    request.once('error', (cause) => reject(lost(address.url, cause)))
    request.end()
  })
}

function parse(payload: Buffer): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(payload.toString('utf8'))
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>
  } catch {
    // Said below.
  }
  throw new VarveError('PROTOCOL_INVALID', 'the server sent what is not JSON')
}

function diskInfo({ name, sizeBytes, map, snapshot = null, bootSet = null, order = null }: Record<string, unknown>): StreamedDiskInfo {
  const isDigest = (value: unknown): value is string => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value)
  const isDigestOrNull = (value: unknown): value is string | null => value === null || isDigest(value)
  if (typeof name !== 'string' || !Number.isSafeInteger(sizeBytes) || (sizeBytes as number) < 0 || !isDigest(map) || !isDigestOrNull(bootSet) || !isDigestOrNull(order)) throw malformed('DISK')
  return { name, sizeBytes: sizeBytes as number, map, snapshot: typeof snapshot === 'string' ? snapshot : null, bootSet, order }
}

function malformed(kind: string): VarveError {
  return new VarveError('PROTOCOL_INVALID', `the server sent a ${kind} that is not one`)
}
