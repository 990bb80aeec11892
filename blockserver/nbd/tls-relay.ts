/**
 * TLS relay: carries the bytes of a client with TLS to the thread that serves it, and back, by a pair of sockets. TLS cannot leave the thread
 * where it was agreed on, but an export may be in another one.
 */
import net from 'node:net'
import { socketPair } from './socket-calls.ts'

export class TlsRelay {
  /** Belongs to whoever takes it: the other end, in the clear. */
  readonly fd: number
  /** Completes when both sides are closed. */
  readonly finished: Promise<void>
  readonly #client: net.Socket
  readonly #near: net.Socket

  /** @param client whose bytes have been deciphered; closed with the relay @returns undefined if there can be no more sockets: then the client is closed */
  static open(client: net.Socket): TlsRelay | undefined {
    const pair = socketPair()
    if (pair === undefined) client.destroy()
    return pair && new TlsRelay(client, ...pair)
  }

  private constructor(client: net.Socket, nearFd: number, farFd: number) {
    this.fd = farFd
    this.#client = client
    this.#near = new net.Socket({ fd: nearFd, allowHalfOpen: true })
    const closed = [client, this.#near].map((socket) => new Promise<void>((resolve) => {
      socket.on('error', () => undefined)
      socket.once('close', () => resolve())
    }))
    client.once('close', () => this.#near.destroy())
    // What the server has sent before it closed is still for the client.
    this.#near.once('close', () => client.destroySoon())
    client.pipe(this.#near)
    this.#near.pipe(client)
    this.finished = Promise.all(closed).then(() => undefined)
  }

  destroy(): void {
    this.#client.destroy()
    this.#near.destroy()
  }
}
