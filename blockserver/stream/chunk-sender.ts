/**
 * ChunkSender: sends the chunks that one agent waits for, the most urgent first, as the line, the window and the rates allow.
 * Little of it is ever given to the socket before it is sent, so that a miss waits behind little.
 */
import type { Socket } from 'node:net'
import type { Logger } from 'pino'
import { CODECS } from '@varve/images/chunk/codec.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { StoredChunk } from '@varve/images/store/pack-store.ts'
import { ChunkQueue, type WaitingChunk } from './chunk-queue.ts'
import { CHUNK_HEADER_BYTES, frame, FRAME_HEADER_BYTES, Priority, ServerFrame, WAITING_DIGESTS_MAX } from './frames.ts'
import { AHEAD_MAX, READS_MAX, UNSENT_BYTES_MAX } from './limits.ts'
import type { StreamMetrics } from './metrics.ts'
import type { RateBuckets } from './rate-limits.ts'
import type { ReadTurns } from './read-turns.ts'
import type { StreamSource } from './source.ts'

export interface ChunkSenderOptions {
  source: StreamSource
  turns: ReadTurns
  metrics: StreamMetrics
  log: Logger
  failed: (error: unknown) => void
  /** Something has left the buffers of the socket; `send` goes on then, whoever wrote it. */
  written: () => void
}

export class ChunkSender {
  readonly #socket: Socket
  readonly #options: ChunkSenderOptions
  readonly #queue = new ChunkQueue()
  readonly #wake = () => this.send()
  #rates: RateBuckets | undefined
  /** Payload of CHUNK so far, and how much of it the agent takes before background waits. */
  #sentBytes = 0
  #windowBytes = 0
  #reads = 0
  #stopped = false

  constructor(socket: Socket, options: ChunkSenderOptions) {
    this.#socket = socket
    this.#options = options
  }

  /** Nothing is sent before they are known. */
  set rates(rates: RateBuckets) {
    this.#rates?.[Symbol.dispose]()
    this.#rates = rates
    if (this.#stopped) rates[Symbol.dispose]()
    else this.send()
  }

  /** @param keys digests, a character a byte @throws VarveError LIMIT_EXCEEDED */
  ask(keys: readonly string[], priority: Priority): void {
    const nowMs = performance.now()
    for (const key of keys) this.#queue.add(key, priority, nowMs)
    if (this.#queue.size > WAITING_DIGESTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `${this.#queue.size} chunks wait on one connection; at most ${WAITING_DIGESTS_MAX} are allowed`)
    this.send()
  }

  /** @param keys none: everything but misses */
  cancel(keys: readonly string[]): void {
    if (keys.length === 0) this.#queue.cancelBackground()
    for (const key of keys) this.#queue.cancel(key)
    this.send()
  }

  /** @param bytes never less than before; what is less changes nothing */
  widen(bytes: number): void {
    this.#windowBytes = Math.max(this.#windowBytes, bytes)
    this.send()
  }

  stop(): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#queue.clear()
    this.#rates?.[Symbol.dispose]()
    this.#rates = undefined
  }

  /** Sends what may be sent. Called whenever something has changed of what it depends on. */
  send(): void {
    while (!this.#stopped && this.#rates !== undefined) {
      const priority = this.#queue.mostUrgent()
      if (priority === undefined) return
      const isMiss = priority === Priority.MISS
      if (!isMiss && this.#sentBytes >= this.#windowBytes) return
      this.#readAhead(priority)
      const chunk = this.#queue.first(priority)
      // Less urgent ones do not go before it while it is read.
      if (chunk?.read === undefined) return
      if (this.#socket.writableLength >= UNSENT_BYTES_MAX) return
      if (!this.#rates.admits(isMiss, this.#wake)) return
      this.#queue.remove(chunk)
      this.#write(chunk, chunk.read)
    }
  }

  #readAhead(priority: Priority): void {
    while (this.#reads < READS_MAX) {
      const chunk = this.#queue.takeAhead(priority, AHEAD_MAX)
      if (chunk === undefined) return
      this.#read(chunk).catch((error: unknown) => this.#options.failed(error))
    }
  }

  async #read(chunk: WaitingChunk): Promise<void> {
    const { source, turns, log } = this.#options
    const digest = Buffer.from(chunk.key, 'latin1')
    this.#reads++
    try {
      // It may be wanted no more when its turn comes.
      chunk.read = await turns.read(chunk.priority === Priority.MISS, async () => (this.#queue.has(chunk) ? source.stored(digest) : undefined))
    } catch (error) {
      log.warn({ err: error, chunk: digestToHex(digest) }, 'a chunk of a stream cannot be given')
      chunk.read = error as Error
    } finally {
      this.#reads--
    }
    this.send()
  }

  #write(chunk: WaitingChunk, read: StoredChunk | Error): void {
    const { metrics } = this.#options
    const socket = this.#socket
    const digest = Buffer.from(chunk.key, 'latin1')
    if (read instanceof Error) {
      metrics.chunkErrors++
      // Messages name files of the server.
      socket.write(frame(ServerFrame.CHUNK_ERROR, digest, Buffer.from(isVarveError(read) ? read.code : 'the server failed; its log says why')), this.#options.written)
      return
    }
    const { codec, raw, payload } = read
    const payloadBytes = CHUNK_HEADER_BYTES + payload.length
    const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES + CHUNK_HEADER_BYTES)
    header.writeUInt32LE(payloadBytes, 0)
    header[4] = ServerFrame.CHUNK
    digest.copy(header, FRAME_HEADER_BYTES)
    header[37] = CODECS.indexOf(codec)
    header.writeUInt32LE(raw, 38)
    this.#sentBytes += payloadBytes
    this.#rates!.take(payloadBytes)
    metrics.sent(chunk.priority, payloadBytes)
    if (chunk.priority === Priority.MISS) metrics.missWaited(performance.now() - chunk.askedAtMs)
    socket.cork()
    socket.write(header)
    socket.write(payload, this.#options.written)
    socket.uncork()
  }
}
