/**
 * A peer that sends whatever bytes a test wants, well-formed or not.
 */
import net from 'node:net'
import tls from 'node:tls'

export class RawPeer implements Disposable {
  socket: net.Socket
  #waiting: Buffer = Buffer.alloc(0)
  #wake: (() => void) | undefined
  closed = false

  /** @param address `unix:PATH` */
  constructor(address: string) {
    this.socket = net.connect({ path: address.slice('unix:'.length), allowHalfOpen: true })
    this.#listen()
  }

  #listen(): void {
    this.socket.on('data', (bytes) => {
      this.#waiting = Buffer.concat([this.#waiting, bytes])
      this.#wake?.()
    })
    this.socket.on('error', () => undefined)
    const ended = () => {
      this.closed = true
      this.#wake?.()
    }
    this.socket.once('end', ended)
    this.socket.once('close', ended)
  }

  /** Goes on by TLS, as node:tls does it with these options. @throws what keeps TLS from being agreed on */
  async startTls(options: tls.ConnectionOptions): Promise<tls.TLSSocket> {
    this.socket.removeAllListeners('data').removeAllListeners('end').removeAllListeners('close')
    const secured = tls.connect({ socket: this.socket, host: 'localhost', servername: 'localhost', ...options })
    await new Promise<void>((resolve, reject) => {
      secured.once('error', reject)
      secured.once('close', () => reject(new Error('closed within the TLS handshake')))
      secured.once('secureConnect', resolve)
    })
    secured.removeAllListeners('error').removeAllListeners('close')
    this.socket = secured
    this.#listen()
    return secured
  }

  /** A peer that has been greeted and has sent its flags: FIXED_NEWSTYLE and NO_ZEROES unless given. */
  static async greeted(address: string, flags = 3): Promise<RawPeer> {
    const peer = new RawPeer(address)
    await peer.read(18)
    peer.send(uint32(flags))
    return peer
  }

  send(...parts: Buffer[]): void {
    this.socket.write(Buffer.concat(parts))
  }

  /** @throws Error if the server closes first */
  async read(count: number): Promise<Buffer> {
    while (this.#waiting.length < count) {
      if (this.closed) throw new Error(`closed after ${this.#waiting.length} of ${count} bytes`)
      await new Promise<void>((resolve) => { this.#wake = resolve })
    }
    const bytes = this.#waiting.subarray(0, count)
    this.#waiting = this.#waiting.subarray(count)
    return bytes
  }

  /** All replies to one option: type and data of each. */
  async replies(): Promise<{ option: number; type: number; data: Buffer }[]> {
    const replies = []
    for (;;) {
      const header = await this.read(20)
      if (header.readBigUInt64BE() !== 0x3e889045565a9n) throw new Error('not an option reply')
      const reply = { option: header.readUInt32BE(8), type: header.readUInt32BE(12), data: await this.read(header.readUInt32BE(16)) }
      replies.push(reply)
      if (reply.type === 1 || reply.type >= 0x8000_0000) return replies
    }
  }

  /** Completes when the server has closed the connection. @returns bytes that it had sent and nobody read */
  async end(): Promise<Buffer> {
    while (!this.closed) await new Promise<void>((resolve) => { this.#wake = resolve })
    return this.#waiting
  }

  [Symbol.dispose](): void {
    this.socket.destroy()
  }
}

export function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

export function counted(bytes: Buffer | string): Buffer {
  return Buffer.concat([uint32(Buffer.byteLength(bytes)), Buffer.from(bytes)])
}

export function option(type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([Buffer.from('IHAVEOPT'), uint32(type), counted(data)])
}

export function go(name: Buffer | string, infos: number[] = [], type = 7): Buffer {
  return option(type, Buffer.concat([counted(name), uint16(infos.length), ...infos.map(uint16)]))
}

export function metaContext(type: number, name: string, queries: string[]): Buffer {
  return option(type, Buffer.concat([counted(name), uint32(queries.length), ...queries.map(counted)]))
}

export function uint64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(value)
  return bytes
}

export interface RawRequest {
  type: number
  flags?: number
  cookie?: bigint
  offset?: bigint
  length?: number
  magic?: number
}

/** With an extended header. */
export function extendedRequest({ type, flags = 0, cookie = 1n, offset = 0n, length = 0n, magic = 0x21e41c71 }: Omit<RawRequest, 'length'> & { length?: bigint }): Buffer {
  return Buffer.concat([uint32(magic), uint16(flags), uint16(type), uint64(cookie), uint64(offset), uint64(length)])
}

export function request({ type, flags = 0, cookie = 1n, offset = 0n, length = 0, magic = 0x25609513 }: RawRequest): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32BE(magic)
  bytes.writeUInt16BE(flags, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeBigUInt64BE(offset, 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}
