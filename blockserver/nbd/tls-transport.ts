/**
 * TLS as a transport: wraps the socket of a client that was answered NBD_OPT_STARTTLS by ACK. Who the client is comes out of it.
 */
import type net from 'node:net'
import tls from 'node:tls'
import type { TlsCredentials } from './tls-credentials.ts'
import type { Outgoing, Transport, TransportEvents } from './transport.ts'

export interface TlsSession {
  transport: Transport
  /** Common name of the client's certificate, or user of its shared key; undefined for a client that showed neither. */
  name: string | undefined
  /** `TLSv1.3` and the like, and the cipher suite. */
  protocol: string
  cipher: string
}

/**
 * Shakes hands as the server.
 * @param socket plain, nobody else's any more; closed if this fails
 * @param early bytes that came before the socket was given away: they are the client's first of TLS, or the handshake fails
 * @throws Error what kept TLS from being agreed on, in the words of OpenSSL
 */
export function startTls(socket: net.Socket, early: Buffer, credentials: TlsCredentials, events: TransportEvents): Promise<TlsSession> {
  if (early.length > 0) socket.unshift(early)
  let user: string | undefined
  const secured = new tls.TLSSocket(socket, {
    isServer: true,
    secureContext: credentials.context,
    requestCert: credentials.asksCertificate,
    rejectUnauthorized: credentials.requiresCertificate,
    pskCallback: (_socket: tls.TLSSocket, identity: string) => {
      const key = credentials.sharedKey(identity)
      if (key === undefined) return null
      user = identity
      return key
    },
  } as tls.TLSSocketOptions)
  return new Promise((resolve, reject) => {
    let failure = new Error('the client ended the connection within the TLS handshake')
    const failed = (error: Error) => { failure = error }
    const closed = () => reject(failure)
    secured.once('error', failed)
    secured.once('close', closed)
    secured.once('secure', () => {
      const protocol = secured.getProtocol() ?? '?'
      const cipher = secured.getCipher().name
      const refusal = certificateRefusal(secured)
      if (refusal !== undefined) {
        failure = refusal
        secured.destroy()
        return
      }
      secured.off('error', failed).off('close', closed)
      const proven = protocol === 'TLSv1.3' ? secured.isSessionReused() : cipher.includes('PSK')
      resolve({ transport: new TlsTransport(secured, events), name: proven ? user : commonName(secured), protocol, cipher })
    })
  })
}

/** Why the certificate that a client sent is not taken; OpenSSL leaves that question to Node, which answers it for its own servers only. */
function certificateRefusal(socket: tls.TLSSocket): Error | undefined {
  if (socket.getPeerX509Certificate() === undefined) return undefined
  return (socket as unknown as { _handle: { verifyError(): Error | null } })._handle.verifyError() ?? undefined
}

/** Two of them say nothing about who it is. */
function commonName(socket: tls.TLSSocket): string | undefined {
  const { subject } = socket.getPeerCertificate() as Partial<tls.PeerCertificate>
  return typeof subject?.CN === 'string' ? subject.CN : undefined
}

class TlsTransport implements Transport {
  /** Encryption takes its time, and the stream keeps what the peer does not read. */
  readonly isPrompt = false
  readonly #socket: tls.TLSSocket

  #failure: Error | undefined
  readonly #onError = (error: Error) => { this.#failure = error }
  readonly #onData: (bytes: Buffer) => void
  readonly #onEnd: () => void
  readonly #onClose: () => void

  constructor(socket: tls.TLSSocket, events: TransportEvents) {
    this.#socket = socket
    this.#onData = (bytes) => events.received(bytes)
    this.#onEnd = () => events.ended()
    this.#onClose = () => events.closed(this.#failure)
    socket.on('error', this.#onError).on('data', this.#onData).once('end', this.#onEnd).once('close', this.#onClose)
  }

  write(outgoing: Outgoing): boolean {
    outgoing.detach()
    const { parts } = outgoing
    this.#socket.cork()
    for (const [index, part] of parts.entries()) this.#socket.write(part, index === parts.length - 1 ? () => outgoing.sent() : undefined)
    this.#socket.uncork()
    return false
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  end(): void {
    this.#socket.end(() => this.#socket.destroySoon())
  }

  destroy(): void {
    this.#socket.destroy()
  }

  /** What comes from it has been deciphered. */
  yield(): void {
    // The event loop has its turn always.
  }

  giveAway(): net.Socket {
    return this.#socket.off('error', this.#onError).off('data', this.#onData).off('end', this.#onEnd).off('close', this.#onClose)
  }
}
