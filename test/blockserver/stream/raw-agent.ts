/**
 * An agent that speaks frames as a test says, right or wrong.
 */
import { sign } from 'node:crypto'
import http from 'node:http'
import https from 'node:https'
import type { Socket } from 'node:net'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { AgentFrame, frame, FrameReader, jsonFrame, type Priority, ServerFrame, signedChallenge, STREAM_PATH, STREAM_PROTOCOL } from '@varve/blockserver/stream/frames.ts'
import type { AgentKey } from './memory-source.ts'

export interface ReceivedFrame {
  type: number
  payload: Buffer
}

export interface ConnectOptions {
  /** HOST:PORT */
  address: string
  /** PEM of the authority that signed the server's certificate; TLS is spoken if it is given. */
  ca?: Buffer
}

export class RawAgent implements Disposable {
  readonly socket: Socket
  /** What has come and was not taken. */
  readonly frames: ReceivedFrame[] = []
  /** Payload of all CHUNK frames that have come. */
  chunkBytes = 0
  #closed = false
  #waiting: (() => void)[] = []

  /** @throws Error with the status if the server answers with another than 101 */
  static connect({ address, ca }: ConnectOptions): Promise<RawAgent> {
    const [host, port] = address.split(':')
    const options = { host, port, path: STREAM_PATH, ca, agent: false, headers: { connection: 'Upgrade', upgrade: STREAM_PROTOCOL } }
    const request = ca === undefined ? http.request(options) : https.request({ ...options, servername: 'localhost' })
    return new Promise((resolve, reject) => {
      request.once('error', reject)
      request.once('response', (response) => {
        response.resume()
        reject(new Error(`the server answers ${response.statusCode}`))
      })
      request.once('upgrade', (_response, socket: Socket, head: Buffer) => resolve(new RawAgent(socket, head)))
      request.end()
    })
  }

  /** With HELLO and AUTH exchanged. */
  static async open(options: ConnectOptions, key: AgentKey): Promise<RawAgent> {
    const agent = await RawAgent.connect(options)
    agent.auth(key, (await agent.next(ServerFrame.HELLO)).payload)
    return agent
  }

  constructor(socket: Socket, head: Buffer) {
    this.socket = socket
    const reader = new FrameReader((type, payload) => {
      if (type === ServerFrame.CHUNK) this.chunkBytes += payload.length
      this.frames.push({ type, payload: Buffer.from(payload) })
    })
    const push = (bytes: Buffer) => {
      reader.push(bytes)
      this.#wake()
    }
    socket.on('data', push)
    socket.on('error', () => undefined)
    socket.on('end', () => socket.end())
    socket.on('close', () => {
      this.#closed = true
      this.#wake()
    })
    if (head.length > 0) push(head)
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  /** Resolves when something has come, or the connection has ended. */
  moved(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  /** The next frame, of this type if one is given: others that came before it are dropped. */
  async next(type?: number): Promise<ReceivedFrame> {
    for (;;) {
      for (let found = this.frames.shift(); found !== undefined; found = this.frames.shift()) if (type === undefined || found.type === type) return found
      if (this.#closed) throw new Error('the server closed the connection')
      await this.moved()
    }
  }

  async json(type: number): Promise<any> {
    return JSON.parse((await this.next(type)).payload.toString())
  }

  /** Digests of the next chunks. */
  async chunks(count: number): Promise<string[]> {
    const digests: string[] = []
    while (digests.length < count) digests.push((await this.next(ServerFrame.CHUNK)).payload.toString('hex', 0, 32))
    return digests
  }

  /** Everything that was sent before is dealt with when this resolves; nothing that came is dropped. */
  async settled(): Promise<void> {
    const mark = Buffer.from(`mark${String(RawAgent.#marks++).padStart(4, '0')}`)
    this.send(AgentFrame.PING, mark)
    for (;;) {
      const at = this.frames.findIndex(({ type, payload }) => type === ServerFrame.PONG && payload.equals(mark))
      if (at >= 0) {
        this.frames.splice(at, 1)
        return
      }
      if (this.#closed) throw new Error('the server closed the connection')
      await this.moved()
    }
  }

  static #marks = 0

  send(type: number, ...parts: Uint8Array[]): void {
    this.socket.write(frame(type, ...parts))
  }

  auth({ id, privateKey }: AgentKey, challenge: Buffer): void {
    this.socket.write(jsonFrame(AgentFrame.AUTH, { agent: id, signature: sign(null, signedChallenge(challenge), privateKey).toString('base64') }))
  }

  openDisk(name: string): Promise<any> {
    this.socket.write(jsonFrame(AgentFrame.OPEN, { name }))
    return this.json(ServerFrame.DISK)
  }

  get(priority: Priority, digests: readonly Uint8Array[]): void {
    this.send(AgentFrame.GET, Buffer.from([priority]), ...digests)
  }

  window(bytes: number): void {
    const payload = Buffer.alloc(8)
    payload.writeBigUInt64LE(BigInt(bytes))
    this.send(AgentFrame.WINDOW, payload)
  }

  /** Resolves with the error that the server gave before it closed the connection; undefined if it gave none. */
  async ended(): Promise<{ code: string; message: string } | undefined> {
    while (!this.#closed) await this.moved()
    const error = this.frames.findLast(({ type }) => type === ServerFrame.ERROR)
    return error === undefined ? undefined : JSON.parse(error.payload.toString())
  }

  [Symbol.dispose](): void {
    this.socket.destroy()
  }
}

export function hexOf(digests: readonly Uint8Array[]): string[] {
  return digests.map(digestToHex)
}

