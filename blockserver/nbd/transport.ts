/**
 * What carries a connection's bytes. The phases know this, not sockets. A plain socket is read by the event loop, into one buffer that all
 * connections share, or while it is busy by the thread itself (busy-loop.ts); what is written goes to the kernel at once.
 */
import net from 'node:net'
import type { BusyLoop, BusyMember } from './busy-loop.ts'
import { RECEIVE_BUFFER_BYTES } from './limits.ts'
import { receiveNow, sendNow } from './socket-calls.ts'

export interface Transport {
  /**
   * Writes the parts in order, with one system call where possible.
   * @returns true if the kernel has them all; otherwise they must stay as they are until `sent` is called
   */
  write(parts: readonly Uint8Array[], sent: () => void): boolean
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

/** Silence after which the kernel asks a TCP peer whether it is alive. */
const KEEP_ALIVE_MS = 60_000
/** A connection is busy when so many deliveries follow each other within so many milliseconds. */
const BUSY_DELIVERIES = 4
const BUSY_MS = 2

/** What the plain connections of a thread share. */
export class SocketLoop {
  readonly receiveBuffer = Buffer.allocUnsafeSlow(RECEIVE_BUFFER_BYTES)
  readonly busy: BusyLoop

  constructor(busy: BusyLoop) {
    this.busy = busy
  }
}

export class SocketTransport implements Transport, BusyMember {
  readonly fd: number
  readonly #loop: SocketLoop
  readonly #events: TransportEvents
  readonly #socket: net.Socket
  #paused = false
  /** Read by the busy loop; the event loop's reading rests. */
  #busy = false
  #deliveries = 0
  #burstStartMs = 0
  /** Bytes that the kernel did not take at once wait in the stream: what follows them goes the same way. */
  #waiting = false

  /** @param fd of a connected socket, which is closed with the transport */
  constructor(fd: number, loop: SocketLoop, events: TransportEvents) {
    this.fd = fd
    this.#loop = loop
    this.#events = events
    const socket = new net.Socket({
      fd,
      allowHalfOpen: true,
      onread: {
        // What the busy loop fills meanwhile is not where the event loop shall read to when it goes on.
        buffer: () => (this.#busy ? undefined : events.target()) ?? loop.receiveBuffer,
        callback: (bytesRead: number, buffer: Uint8Array) => this.#read(bytesRead, buffer),
      },
    })
    this.#socket = socket
    let failure: Error | undefined
    socket.setNoDelay(true)
    socket.setKeepAlive(true, KEEP_ALIVE_MS)
    socket.on('error', (error) => { failure = error })
    socket.once('end', () => events.ended())
    socket.once('close', () => {
      loop.busy.drop(this)
      events.closed(failure)
    })
  }

  write(parts: readonly Uint8Array[], sent: () => void): boolean {
    // The descriptor of a socket that is destroyed may be that of another by now.
    if (this.#waiting || this.#socket.destroyed) {
      this.#writeLater(parts, sent)
      return false
    }
    let left = sendNow(this.fd, parts)
    let index = 0
    while (index < parts.length && left >= parts[index].length) left -= parts[index++].length
    if (index === parts.length) return true
    this.#waiting = true
    this.#writeLater([parts[index].subarray(left), ...parts.slice(index + 1)], () => {
      this.#waiting = this.#socket.writableLength > 0
      sent()
    })
    return false
  }

  pause(): void {
    this.#paused = true
    this.#loop.busy.drop(this)
    this.#busy = false
    this.#socket.pause()
  }

  resume(): void {
    this.#paused = false
    if (!this.#busy) this.#socket.resume()
  }

  end(): void {
    this.#socket.end(() => this.#socket.destroySoon())
  }

  destroy(): void {
    this.#loop.busy.drop(this)
    this.#socket.destroy()
  }

  receiveNow(): boolean {
    if (this.#socket.destroyed) return false
    const place = this.#events.target() ?? this.#loop.receiveBuffer
    const bytes = receiveNow(this.fd, place)
    // An end, or what went wrong, is for the stream to see.
    if (bytes === 0) return false
    if (bytes > 0) this.#deliver(bytes, place)
    return this.#busy
  }

  givenBack(): void {
    this.#busy = false
    this.#deliveries = 0
    if (!this.#paused) this.#socket.resume()
  }

  /** @returns false if the event loop is to read no more */
  #read(bytes: number, place: Uint8Array): boolean {
    this.#deliver(bytes, place)
    if (this.#paused) return false
    if (!this.#isBusy() || !this.#loop.busy.take(this)) return true
    this.#busy = true
    this.#socket.pause()
    return false
  }

  #deliver(bytes: number, place: Uint8Array): void {
    if (place === this.#loop.receiveBuffer) this.#events.received(this.#loop.receiveBuffer.subarray(0, bytes))
    else this.#events.receivedInPlace(bytes)
  }

  #isBusy(): boolean {
    const now = performance.now()
    if (now - this.#burstStartMs > BUSY_MS) {
      this.#burstStartMs = now
      this.#deliveries = 0
    }
    return ++this.#deliveries >= BUSY_DELIVERIES
  }

  #writeLater(parts: readonly Uint8Array[], sent: () => void): void {
    const socket = this.#socket
    const last = parts.length - 1
    socket.cork()
    for (let index = 0; index < last; index++) socket.write(parts[index])
    socket.write(parts[last], sent)
    socket.uncork()
  }
}
