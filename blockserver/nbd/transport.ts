/**
 * What carries a connection's bytes. The phases know this, not sockets; plain sockets are read into one buffer shared by all of them.
 */
import net from 'node:net'

export interface Transport {
  /** Bytes that were written and are not with the kernel yet. */
  readonly unsentBytes: number
  /** Writes the parts in order, with one system call where possible. They must stay as they are until `sent` is called. */
  write(parts: readonly Uint8Array[], sent: () => void): void
  /** No more bytes are delivered until `resume`. */
  pause(): void
  resume(): void
  /** Sends what was written, then closes. */
  end(): void
  /** Closes at once. */
  destroy(): void
}

export interface TransportEvents {
  /** Bytes arrived; they may be overwritten when this returns. */
  received(bytes: Buffer): void
  /** Where the next bytes shall go, instead of `received`. */
  target(): Uint8Array | undefined
  /** Bytes arrived at the front of what `target` gave. */
  receivedInPlace(count: number): void
  /** The peer sends no more. */
  ended(): void
  /** Nothing more goes out or comes in. Called once. */
  closed(error: Error | undefined): void
}

/** Seconds of silence after which the kernel asks a TCP peer whether it is alive. */
const KEEP_ALIVE_MS = 60_000

/**
 * Takes over a socket that net.Server accepted with `pauseOnConnect`.
 * Accepted sockets cannot be given `onread`, which reads into memory of ours; a second Socket on the same handle can.
 */
export function takeSocket(accepted: net.Socket, receiveBuffer: Buffer, events: TransportEvents): Transport {
  const owner = accepted as unknown as { _handle: unknown }
  const handle = owner._handle
  owner._handle = null
  accepted.destroy()
  let paused = false
  const socket = new net.Socket({
    handle,
    allowHalfOpen: true,
    onread: {
      buffer: () => events.target() ?? receiveBuffer,
      callback: (bytesRead: number, buffer: Uint8Array) => {
        if (buffer === receiveBuffer) events.received(receiveBuffer.subarray(0, bytesRead))
        else events.receivedInPlace(bytesRead)
        return !paused
      },
    },
  } as net.SocketConstructorOpts)
  return new SocketTransport(socket, events, (value) => { paused = value })
}

class SocketTransport implements Transport {
  readonly #socket: net.Socket
  readonly #setPaused: (paused: boolean) => void

  constructor(socket: net.Socket, events: TransportEvents, setPaused: (paused: boolean) => void) {
    this.#socket = socket
    this.#setPaused = setPaused
    let failure: Error | undefined
    socket.setNoDelay(true)
    socket.setKeepAlive(true, KEEP_ALIVE_MS)
    socket.on('error', (error) => { failure = error })
    socket.once('end', () => events.ended())
    socket.once('close', () => events.closed(failure))
  }

  get unsentBytes(): number {
    return this.#socket.writableLength
  }

  write(parts: readonly Uint8Array[], sent: () => void): void {
    const socket = this.#socket
    if (parts.length === 1) {
      socket.write(parts[0], sent)
      return
    }
    const last = parts.length - 1
    socket.cork()
    for (let index = 0; index < last; index++) socket.write(parts[index])
    socket.write(parts[last], sent)
    socket.uncork()
  }

  pause(): void {
    this.#setPaused(true)
    this.#socket.pause()
  }

  resume(): void {
    this.#setPaused(false)
    this.#socket.resume()
  }

  end(): void {
    this.#socket.end(() => this.#socket.destroySoon())
  }

  destroy(): void {
    this.#socket.destroy()
  }
}
