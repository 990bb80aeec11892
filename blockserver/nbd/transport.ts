/**
 * What carries a connection's bytes. The phases know this, not sockets. A plain socket is read by the event loop, into one buffer that all
 * connections share, or while it is busy by the thread itself (busy-loop.ts); what is written goes to the kernel at once.
 */
import net from 'node:net'
import type { BusyLoop, BusyMember } from './busy-loop.ts'
import { RECEIVE_BUFFER_BYTES } from './limits.ts'
import { duplicate, POLLIN, POLLOUT, receiveNow, sendNow } from './socket-calls.ts'

/** Something to be written. */
export interface Outgoing {
  /** In order. They stay as they are until `sent` is called. */
  readonly parts: readonly Uint8Array[]
  /** It may take long until it is sent: what is kept for it, and others may want, is to be copied. */
  detach(): void
  sent(): void
}

export interface Transport {
  /** True if what is written now is likely to be sent soon, so that it may be in memory that others wait for. */
  readonly isPrompt: boolean
  /** Writes, with one system call where possible. @returns true if the kernel has it all; otherwise `sent` will be called */
  write(outgoing: Outgoing): boolean
  /** No more bytes are delivered until `resume`. */
  pause(): void
  resume(): void
  /** Sends what was written, then closes. */
  end(): void
  /** Closes at once. */
  destroy(): void
  /** What the connection does next is up to a promise or a callback: nothing is waited for before that has had its turn. */
  yield(): void
  /** Gives the connection away as a stream: no event comes any more. For a transport that is paused, and has nothing unsent. */
  giveAway(): net.Socket
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
const BUSY_MS = 20

/** What the plain connections of a thread share. */
export class SocketLoop {
  readonly receiveBuffer = Buffer.allocUnsafeSlow(RECEIVE_BUFFER_BYTES)
  readonly busy: BusyLoop

  constructor(busy: BusyLoop) {
    this.busy = busy
  }
}

/** What is left of something that was sent in part. */
interface Rest {
  outgoing: Outgoing
  sentBytes: number
}

export class SocketTransport implements Transport, BusyMember {
  readonly fd: number
  readonly #loop: SocketLoop
  readonly #events: TransportEvents
  readonly #socket: net.Socket
  #paused = false
  /** Served by the busy loop; the event loop's reading rests. */
  #busy = false
  #deliveries = 0
  #burstStartMs = 0
  /** What the kernel did not take while the connection is busy: sent when it can take more. */
  #rests: Rest[] = []
  /** What it did not take otherwise waits in the stream: what follows goes the same way. */
  #streaming = 0
  #givenAway = false
  /** The device is at work, and nothing was sent since. */
  #yielded = false

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
      this.#leaveBusy()
      if (!this.#givenAway) events.closed(failure)
    })
  }

  get expectsMore(): boolean {
    return !this.#yielded
  }

  get isPrompt(): boolean {
    return this.#busy
  }

  /** Another descriptor of the socket, the caller's. Undefined if there can be none, or the socket is destroyed already: its own may be that of another by now. */
  duplicate(): number | undefined {
    return this.#socket.destroyed ? undefined : duplicate(this.fd)
  }

  write(outgoing: Outgoing): boolean {
    this.#yielded = false
    const rest = { outgoing, sentBytes: 0 }
    if (this.#rests.length > 0) {
      this.#rests.push(rest)
      return false
    }
    // The descriptor of a socket that is destroyed may be that of another by now.
    if (this.#streaming === 0 && !this.#socket.destroyed && this.#send(rest)) return true
    if (this.#busy) {
      this.#rests.push(rest)
      this.#watch()
    } else this.#stream(rest)
    return false
  }

  pause(): void {
    this.#paused = true
    if (this.#busy) this.#watch()
    else this.#socket.pause()
  }

  resume(): void {
    this.#paused = false
    if (this.#busy) this.#watch()
    else this.#socket.resume()
  }

  end(): void {
    this.#leaveBusy()
    this.#socket.end(() => this.#socket.destroySoon())
  }

  destroy(): void {
    this.#leaveBusy()
    this.#socket.destroy()
  }

  yield(): void {
    this.#yielded = true
    this.#loop.busy.yield()
  }

  /** On a descriptor of its own: bytes of this one's stream go to memory of the thread. */
  giveAway(): net.Socket {
    const fd = this.duplicate()
    if (fd === undefined) throw new Error('no descriptor for it')
    this.#givenAway = true
    const socket = new net.Socket({ fd, allowHalfOpen: true })
    this.destroy()
    return socket
  }

  ready(events: number): boolean {
    if (this.#socket.destroyed) return false
    if ((events & POLLOUT) !== 0) this.#sendRests()
    // An end or a failure is for the stream to see.
    if ((events & ~(POLLIN | POLLOUT)) !== 0 && (events & POLLIN) === 0) return false
    return (events & POLLIN) === 0 || this.#paused || !this.#busy ? this.#busy : this.tryReceive() ?? true
  }

  tryReceive(): boolean | undefined {
    if (this.#socket.destroyed) return false
    if (this.#paused) return undefined
    const place = this.#events.target() ?? this.#loop.receiveBuffer
    const bytes = receiveNow(this.fd, place)
    if (bytes < 0) return undefined
    if (bytes > 0) this.#deliver(bytes, place)
    return bytes > 0 && this.#busy
  }

  givenBack(): void {
    this.#busy = false
    this.#deliveries = 0
    for (const rest of this.#rests.splice(0)) this.#stream(rest)
    if (!this.#paused && !this.#socket.destroyed) this.#socket.resume()
  }

  /** @returns false if the event loop is to read no more */
  #read(bytes: number, place: Uint8Array): boolean {
    this.#deliver(bytes, place)
    if (this.#paused) return false
    if (this.#streaming > 0 || !this.#isBusy() || !this.#loop.busy.take(this, POLLIN)) return true
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

  /** Tells the busy loop what is waited for now; if that is nothing, it need not have the connection. */
  #watch(): void {
    const events = (this.#paused ? 0 : POLLIN) | (this.#rests.length > 0 ? POLLOUT : 0)
    if (events === 0) this.#leaveBusy()
    else this.#loop.busy.change(this, events)
  }

  #leaveBusy(): void {
    if (!this.#busy) return
    this.#loop.busy.drop(this)
    this.givenBack()
  }

  /** @returns true if all of it is with the kernel */
  #send(rest: Rest): boolean {
    const bytes = sendNow(this.fd, partsFrom(rest))
    if (bytes > 0) rest.sentBytes += bytes
    return rest.sentBytes === lengthOf(rest.outgoing.parts)
  }

  #sendRests(): void {
    while (this.#rests.length > 0 && this.#send(this.#rests[0])) this.#rests.shift()!.outgoing.sent()
    if (this.#busy && this.#rests.length === 0) this.#watch()
  }

  #stream(rest: Rest): void {
    const socket = this.#socket
    rest.outgoing.detach()
    const parts = partsFrom(rest)
    const last = parts.length - 1
    this.#streaming++
    socket.cork()
    for (let index = 0; index < last; index++) socket.write(parts[index])
    socket.write(parts[last], () => {
      this.#streaming--
      rest.outgoing.sent()
    })
    socket.uncork()
  }
}

/** What is not sent yet. */
function partsFrom({ outgoing: { parts }, sentBytes }: Rest): readonly Uint8Array[] {
  if (sentBytes === 0) return parts
  let index = 0
  let skip = sentBytes
  while (skip >= parts[index].length) skip -= parts[index++].length
  return skip === 0 ? parts.slice(index) : [parts[index].subarray(skip), ...parts.slice(index + 1)]
}

function lengthOf(parts: readonly Uint8Array[]): number {
  let length = 0
  for (const part of parts) length += part.length
  return length
}
