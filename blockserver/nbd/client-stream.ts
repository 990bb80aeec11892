/**
 * A client's connection as bytes: a socket, plain or with TLS over it, read in exact numbers of bytes.
 */
import net from 'node:net'
import tls from 'node:tls'
import { VarveError } from '@varve/images/errors.ts'
import { type ListenAddress, formatAddress, parseAddress } from '../listen-address.ts'

const CONNECT_MS_MAX = 10_000
/** A shared key goes with suites of SHA-256 in TLS 1.3, and below with those that have forward secrecy. */
const PSK_CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256'

/** How a client speaks TLS: with a server's certificate and maybe one of its own, or with a shared key. PEM throughout. */
export type ClientTls = {
  /** Certificates that may sign the server's; those of the system unless given. */
  ca?: string | Buffer
  certificate?: string | Buffer
  key?: string | Buffer
  /** What the server's certificate must name; the host of the address unless given, `localhost` for a unix socket. */
  serverName?: string
} | {
  psk: { user: string; key: Uint8Array }
}

export interface StreamOptions {
  /** For connecting and the handshake together; 10 s unless given. */
  connectMsMax?: number
  /** Destroys the connection, at any time. */
  signal?: AbortSignal
}

export class ClientStream {
  readonly address: ListenAddress
  #socket: net.Socket
  #ended: VarveError | undefined
  #wake: (() => void) | undefined
  readonly #timer: NodeJS.Timeout
  readonly #onReadable = () => this.#wake?.()
  readonly #onError = (error: Error) => this.#end(error)
  readonly #onEnd = () => this.#end(undefined)

  /** @throws VarveError ADDRESS_INVALID, CONNECTION_LOST, or what the socket throws */
  static connect(address: string, { connectMsMax = CONNECT_MS_MAX, signal }: StreamOptions = {}): Promise<ClientStream> {
    const target = parseAddress(address)
    return new Promise((resolve, reject) => {
      const socket = net.connect({ ...target, signal } as net.NetConnectOpts)
      const timer = setTimeout(() => socket.destroy(new VarveError('CONNECTION_LOST', `${formatAddress(target)}: not connected within ${connectMsMax} ms`)), connectMsMax)
      const failed = (error: Error) => {
        clearTimeout(timer)
        reject(error)
      }
      socket.once('error', failed)
      socket.once('connect', () => {
        socket.off('error', failed)
        resolve(new ClientStream(socket, target, timer))
      })
    })
  }

  private constructor(socket: net.Socket, address: ListenAddress, timer: NodeJS.Timeout) {
    this.address = address
    this.#socket = socket
    this.#timer = timer
    socket.setNoDelay(true)
    this.#listen()
  }

  /** The handshake is over, and with it its time. */
  connected(): void {
    clearTimeout(this.#timer)
  }

  /** All bytes from here on go by TLS. @throws VarveError CREDENTIALS_INVALID, PROTOCOL_INVALID */
  async startTls(options: ClientTls): Promise<void> {
    if (this.#socket.readableLength > 0) throw new VarveError('PROTOCOL_INVALID', 'the server sent bytes before TLS that are not TLS')
    const plain = this.#socket
    plain.off('readable', this.#onReadable).off('error', this.#onError).off('end', this.#onEnd).off('close', this.#onEnd)
    const secured = tls.connect({ socket: plain, minVersion: 'TLSv1.2', ...connectionOptions(options, this.address) })
    await new Promise<void>((resolve, reject) => {
      const failed = (cause?: Error) => reject(new VarveError('CREDENTIALS_INVALID', `${formatAddress(this.address)}: no TLS: ${cause?.message ?? 'the server closed the connection'}`, { cause }))
      const closed = () => failed()
      secured.once('error', failed)
      secured.once('close', closed)
      secured.once('secureConnect', () => {
        secured.off('error', failed).off('close', closed)
        resolve()
      })
    })
    this.#socket = secured
    this.#listen()
    if ('psk' in options && !secured.isSessionReused() && !secured.getCipher().name.includes('PSK')) {
      this.destroy()
      throw new VarveError('CREDENTIALS_INVALID', `${formatAddress(this.address)}: the server did not prove that it has the shared key`)
    }
  }

  write(parts: readonly Uint8Array[]): void {
    this.#socket.cork()
    for (const part of parts) this.#socket.write(part)
    this.#socket.uncork()
  }

  async read(count: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(count)
    await this.readInto(bytes)
    return bytes
  }

  /** Fills all of `into`. @throws VarveError CONNECTION_LOST, CREDENTIALS_INVALID */
  async readInto(into: Buffer): Promise<void> {
    for (let filled = 0; filled < into.length;) {
      const wanted = Math.min(into.length - filled, this.#socket.readableLength)
      const bytes = wanted === 0 ? null : this.#socket.read(wanted) as Buffer | null
      if (bytes !== null) {
        bytes.copy(into, filled)
        filled += bytes.length
        continue
      }
      if (this.#ended !== undefined) throw this.#ended
      this.#socket.read(0)
      await new Promise<void>((resolve) => { this.#wake = resolve })
      this.#wake = undefined
    }
  }

  /** Sends what was written, and waits until the other side has closed too. */
  end(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#socket.closed) {
        resolve()
        return
      }
      this.#socket.once('close', () => resolve())
      this.#socket.end()
      this.#socket.resume()
    })
  }

  destroy(): void {
    this.#socket.destroy()
  }

  #listen(): void {
    this.#socket.on('readable', this.#onReadable).on('error', this.#onError).once('end', this.#onEnd).once('close', this.#onEnd)
  }

  #end(cause: NodeJS.ErrnoException | undefined): void {
    if (cause instanceof VarveError) this.#ended ??= cause
    // A server that does not take a client's certificate says so after TLS 1.3 has begun.
    const refused = cause?.code?.startsWith('ERR_SSL_') === true
    this.#ended ??= new VarveError(refused ? 'CREDENTIALS_INVALID' : 'CONNECTION_LOST', `${formatAddress(this.address)}: the server closed the connection${cause === undefined ? '' : `: ${cause.message}`}`, { cause })
    this.#wake?.()
  }
}

function connectionOptions(options: ClientTls, address: ListenAddress): tls.ConnectionOptions {
  if ('psk' in options) {
    const { user, key } = options.psk
    // No certificate may stand in for the key.
    return { ca: [], ciphers: PSK_CIPHERS, pskCallback: () => ({ psk: key, identity: user }), checkServerIdentity: () => undefined }
  }
  const { ca, certificate, key, serverName = 'path' in address ? 'localhost' : address.host } = options
  // A name of the certificate is asked for by SNI, an address cannot be.
  return { ca, cert: certificate, key, host: serverName, ...(net.isIP(serverName) === 0 ? { servername: serverName } : {}) }
}
