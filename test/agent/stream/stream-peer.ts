/**
 * A server of one disk that does wrong what it is told to, for tests of the agent: it speaks the stream's protocol and nothing else.
 */
import http from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { AgentFrame, FrameReader, STREAM_PATH, ServerFrame, WAITING_DIGESTS_MAX, frame, jsonFrame } from '@varve/blockserver/stream/frames.ts'
import { CODECS, compress } from '@varve/images/chunk/codec.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { putObject } from '@varve/images/store/object.ts'
import type { Random } from '../../random.ts'
import type { SourceDisk } from './streaming.ts'

/** What is done to a chunk instead of sending it. */
export type Misdeed = 'flip a bit' | 'another chunk' | 'cut short' | 'wrong length' | 'wrong codec' | 'refuse' | 'garbage' | 'close' | 'huge frame' | 'silence' | 'twice'
export const MISDEEDS: readonly Misdeed[] = ['flip a bit', 'another chunk', 'cut short', 'wrong length', 'wrong codec', 'refuse', 'garbage', 'close', 'huge frame', 'twice']

export class StreamPeer implements AsyncDisposable {
  readonly #server: http.Server
  /** With the chunks that wait on each. */
  readonly #sockets = new Map<Socket, Set<string>>()
  readonly #chunks = new Map<string, Buffer>()
  readonly #random: Random
  readonly map: string
  readonly #sizeBytes: number
  /** Called for each chunk of the disk that is asked for. */
  misdeed: (random: Random) => Misdeed | undefined = () => undefined
  /** Whether OPEN is answered. */
  opens = true
  /** Chunks that were asked for, objects included, with their priorities, in order. */
  readonly asked: { digest: string; priority: number }[] = []
  /** Digest of a chunk list, hexadecimal. */
  bootSet: string | null = null
  readonly #honest = new Set<string>()

  static async start(source: SourceDisk, random: Random): Promise<StreamPeer> {
    const store = new MemoryStore()
    await using writer = store.writer()
    const map = putObject(writer, source.map.encode())
    await writer.commit()
    const peer = new StreamPeer(source, digestToHex(map), random)
    // Objects are always given: without a map there is nothing to test.
    await peer.addObject(source.map.encode())
    await new Promise<void>((resolve) => peer.#server.listen(0, '127.0.0.1', resolve))
    return peer
  }

  private constructor(source: SourceDisk, map: string, random: Random) {
    this.map = map
    this.#sizeBytes = source.map.sizeBytes
    this.#random = random
    for (const chunk of source.chunks) this.#chunks.set(digestToHex(digestOf(chunk)), chunk)
    this.#server = http.createServer((_request, response) => response.writeHead(404).end())
    this.#server.on('upgrade', (request, socket: Socket) => this.#accept(request.url ?? '', socket))
  }

  get url(): URL {
    return new URL(`http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`)
  }

  /** @returns its digest, hexadecimal */
  async addObject(bytes: Uint8Array): Promise<string> {
    const seen: Buffer[] = []
    const digest = putObject({ put: (chunk: Uint8Array) => {
      seen.push(Buffer.from(chunk))
      return digestOf(chunk)
    } } as never, bytes)
    for (const chunk of seen) {
      this.#chunks.set(digestToHex(digestOf(chunk)), chunk)
      this.#honest.add(digestToHex(digestOf(chunk)))
    }
    return digestToHex(digest)
  }

  /** A chunk that is no part of the disk. */
  addChunk(content: Buffer): void {
    this.#chunks.set(digestToHex(digestOf(content)), content)
  }

  /** Ends all connections. */
  cut(): void {
    for (const socket of this.#sockets.keys()) socket.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut()
    this.#server.closeAllConnections()
    await new Promise<void>((resolve) => this.#server.close(() => resolve()))
  }

  #accept(url: string, socket: Socket): void {
    if (url !== STREAM_PATH) return void socket.end('HTTP/1.1 404 Not Found\r\n\r\n')
    this.#sockets.set(socket, new Set())
    socket.on('close', () => this.#sockets.delete(socket))
    socket.on('error', () => {})
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: varve-stream/1\r\n\r\n')
    socket.write(frame(ServerFrame.HELLO, this.#random.bytes(32)))
    const reader = new FrameReader((type, payload) => this.#answer(socket, type, payload))
    socket.on('data', (bytes: Buffer) => reader.push(bytes))
  }

  #answer(socket: Socket, type: number, payload: Buffer): void {
    if (type === AgentFrame.PING) socket.write(frame(ServerFrame.PONG, payload))
    if (type === AgentFrame.OPEN && this.opens) socket.write(jsonFrame(ServerFrame.DISK, { name: 'desk', sizeBytes: this.#sizeBytes, map: this.map, snapshot: null, bootSet: this.bootSet, order: null }))
    const waiting = this.#sockets.get(socket)
    if (type === AgentFrame.CANCEL) for (let at = 0; at < payload.length; at += 32) waiting?.delete(digestToHex(payload.subarray(at, at + 32)))
    if (type !== AgentFrame.GET) return
    for (let at = 1; at < payload.length; at += 32) {
      const digest = Buffer.from(payload.subarray(at, at + 32))
      const key = digestToHex(digest)
      this.asked.push({ digest: key, priority: payload[0] })
      const misdeed = this.#honest.has(key) ? undefined : this.misdeed(this.#random)
      if (misdeed === 'silence') waiting?.add(key)
      this.#send(socket, digest, this.#chunks.get(key)!, misdeed)
    }
    if (waiting !== undefined && waiting.size > WAITING_DIGESTS_MAX) socket.destroy()
  }

  #send(socket: Socket, digest: Buffer, content: Buffer, misdeed: Misdeed | undefined): void {
    const { codec, bytes } = compress(content, { codec: this.#random.pick(CODECS) })
    const chunk = (stored: Uint8Array, length = content.length, number = CODECS.indexOf(codec)): void => {
      const header = Buffer.alloc(5)
      header[0] = number
      header.writeUInt32LE(length, 1)
      socket.write(frame(ServerFrame.CHUNK, digest, header, stored))
    }
    switch (misdeed) {
      case undefined: return chunk(bytes)
      case 'twice':
        chunk(bytes)
        return chunk(bytes)
      case 'flip a bit': {
        const flipped = Buffer.from(bytes)
        flipped[this.#random.below(flipped.length)] ^= 1 << this.#random.below(8)
        return chunk(flipped)
      }
      case 'another chunk': {
        const other = this.#random.pick([...this.#chunks.values()])
        return chunk(other, other.length, 0)
      }
      case 'cut short': return chunk(bytes.subarray(0, Math.max(1, bytes.length - this.#random.between(1, 20))))
      case 'wrong length': return chunk(bytes, this.#random.between(1, 1 << 20))
      case 'wrong codec': return chunk(bytes, content.length, this.#random.below(256))
      case 'refuse': return void socket.write(frame(ServerFrame.CHUNK_ERROR, digest, Buffer.from('no')))
      case 'garbage': return void socket.write(this.#random.bytes(this.#random.between(1, 5000)))
      case 'huge frame': return void socket.write(Buffer.from([0xff, 0xff, 0xff, 0xff, 3, 1, 2]))
      case 'close': return void socket.destroy()
      case 'silence': return
    }
  }
}
