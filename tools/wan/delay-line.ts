/**
 * Delay line: a TCP proxy that behaves as a long, thin line does. Each byte arrives its delay after it was sent, in order, and no more of them in a
 * second than the line carries; what is on its way is bounded, as the buffers of a real line are, so that a sender feels it. All connections of a
 * line share its rate. It can be cut and mended on command. It has no slow start and loses nothing: for those there is `NetworkLine`, whose queues are the kernel's.
 */
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ListenAddress, formatAddress, listenOn, parseAddress } from '@varve/blockserver/listen-address.ts'

export interface DelayLineOptions {
  /** `HOST:PORT` or `unix:PATH`. */
  listen: string
  target: string
  /** One way. */
  delayMs: number
  /** Each piece is late by up to so much more, at random; order stays. None unless given. */
  jitterMs?: number
  /** In each direction, for all connections together; unlimited unless given. */
  bitsPerSecond?: number
  /** What may wait for its turn on the line in each direction, before senders are held back. 256 KiB unless given. */
  queueBytes?: number
  /** Is shown what a connection, by its number from 0, sends towards the target, when the line takes it. */
  onSent?: (connection: number, bytes: Buffer) => void
  /** The same of what comes from the target. */
  onReceived?: (connection: number, bytes: Buffer) => void
}

export interface DirectionFigures {
  /** Delivered. */
  bytes: number
  /** Most that was waiting or on its way at one time. */
  bytesHeldMost: number
}

interface Piece {
  bytes: Buffer
  /** When the last byte of it is at the other end. */
  dueMs: number
  to: Flow
}

/** One direction of one connection. */
interface Flow {
  readonly from: net.Socket
  readonly into: net.Socket
  heldBytes: number
}

/** One direction of the line. */
class Direction {
  readonly figures: DirectionFigures = { bytes: 0, bytesHeldMost: 0 }
  readonly #delayMs: number
  readonly #jitterMs: number
  readonly #bytesPerMs: number
  readonly #heldBytesMax: number
  /** In the order in which they are due. */
  #pieces: Piece[] = []
  /** Held back until there is room on the line. */
  readonly #waiting = new Set<Flow>()
  #heldBytes = 0
  /** When the line has sent all that it was given. */
  #freeMs = 0
  /** When the last piece is due: none overtakes another. */
  #lastDueMs = 0
  #timer: NodeJS.Timeout | undefined
  #cut = false

  constructor({ delayMs, jitterMs = 0, bitsPerSecond = Infinity, queueBytes = 256 * 1024 }: DelayLineOptions) {
    this.#delayMs = delayMs
    this.#jitterMs = jitterMs
    this.#bytesPerMs = bitsPerSecond / 8000
    const onItsWay = Number.isFinite(bitsPerSecond) ? Math.ceil((delayMs + jitterMs) * this.#bytesPerMs) : Infinity
    this.#heldBytesMax = onItsWay + queueBytes
  }

  take(to: Flow, bytes: Buffer): void {
    const nowMs = performance.now()
    this.#freeMs = Math.max(this.#freeMs, nowMs) + bytes.length / this.#bytesPerMs
    const dueMs = Math.max(this.#lastDueMs, this.#freeMs + this.#delayMs + this.#jitterMs * Math.random())
    this.#lastDueMs = dueMs
    this.#pieces.push({ bytes, dueMs, to })
    to.heldBytes += bytes.length
    this.#heldBytes += bytes.length
    this.figures.bytesHeldMost = Math.max(this.figures.bytesHeldMost, this.#heldBytes)
    if (this.#heldBytes >= this.#heldBytesMax) this.#hold(to)
    this.#schedule(nowMs)
  }

  set cut(cut: boolean) {
    this.#cut = cut
    if (cut) {
      clearTimeout(this.#timer)
      this.#timer = undefined
      return
    }
    // What was on its way when the line broke arrives once it is mended; what follows, behind it.
    const nowMs = performance.now()
    this.#freeMs = Math.max(this.#freeMs, nowMs)
    this.#schedule(nowMs)
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#pieces = []
  }

  #hold(flow: Flow): void {
    flow.from.pause()
    this.#waiting.add(flow)
  }

  #schedule(nowMs: number): void {
    if (this.#cut || this.#timer !== undefined || this.#pieces.length === 0) return
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#deliver()
    }, Math.max(0, this.#pieces[0].dueMs - nowMs))
  }

  #deliver(): void {
    const nowMs = performance.now()
    let delivered = 0
    while (delivered < this.#pieces.length && this.#pieces[delivered].dueMs <= nowMs) {
      const { bytes, to } = this.#pieces[delivered++]
      to.heldBytes -= bytes.length
      this.#heldBytes -= bytes.length
      if (to.into.destroyed) continue
      this.figures.bytes += bytes.length
      if (!to.into.write(bytes)) this.#waitFor(to)
      if (to.heldBytes === 0 && to.from.readableEnded) to.into.end()
    }
    this.#pieces.splice(0, delivered)
    if (this.#heldBytes < this.#heldBytesMax) this.#wake()
    this.#schedule(nowMs)
  }

  /** A receiver that does not read holds back its own sender, and not the line. */
  #waitFor(flow: Flow): void {
    flow.from.pause()
    flow.into.once('drain', () => {
      if (!this.#waiting.has(flow)) flow.from.resume()
    })
  }

  #wake(): void {
    for (const { from, into } of this.#waiting) if (!into.writableNeedDrain) from.resume()
    this.#waiting.clear()
  }
}

export class DelayLine implements AsyncDisposable {
  /** As bound: a port 0 is replaced by the one that was chosen. */
  readonly address: string
  readonly #server: net.Server
  readonly #target: ListenAddress
  readonly #up: Direction
  readonly #down: Direction
  readonly #sockets = new Set<net.Socket>()
  readonly #onSent: DelayLineOptions['onSent']
  readonly #onReceived: DelayLineOptions['onReceived']
  #connections = 0
  #cut = false

  /** @throws VarveError ADDRESS_INVALID */
  static async open(options: DelayLineOptions): Promise<DelayLine> {
    const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true })
    const bound = await listenOn(server, parseAddress(options.listen))
    return new DelayLine(server, formatAddress(bound), options)
  }

  private constructor(server: net.Server, address: string, options: DelayLineOptions) {
    this.address = address
    this.#server = server
    this.#target = parseAddress(options.target)
    this.#up = new Direction(options)
    this.#down = new Direction(options)
    this.#onSent = options.onSent
    this.#onReceived = options.onReceived
    server.on('connection', (socket) => this.#accept(socket, options.delayMs))
  }

  get figures(): { up: DirectionFigures; down: DirectionFigures } {
    return { up: { ...this.#up.figures }, down: { ...this.#down.figures } }
  }

  /** Nothing arrives any more, and nobody is told: connections stay as they are, new ones are not answered. */
  cut(): void {
    this.#setCut(true)
  }

  mend(): void {
    this.#setCut(false)
  }

  /** As a line does that comes back with another address: the connections are gone, and both sides hear so. */
  reset(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy()
  }

  async outage(durationMs: number): Promise<void> {
    this.cut()
    await sleep(durationMs)
    this.mend()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()))
    for (const socket of this.#sockets) socket.destroy()
    this.#up.close()
    this.#down.close()
    await closed
  }

  #setCut(cut: boolean): void {
    this.#cut = cut
    this.#up.cut = cut
    this.#down.cut = cut
  }

  #accept(near: net.Socket, delayMs: number): void {
    this.#keep(near)
    // The other side hears of the connection when its first packet has come all the way.
    setTimeout(() => this.#connect(near), delayMs)
  }

  #connect(near: net.Socket): void {
    if (near.destroyed) return
    if (this.#cut) {
      setTimeout(() => this.#connect(near), 50).unref()
      return
    }
    const far = net.connect({ ...this.#target, allowHalfOpen: true })
    this.#keep(far)
    // What was sent before an orderly end still arrives; a failure goes at once.
    near.once('close', (failed) => { if (failed) far.destroy() })
    far.once('close', (failed) => { if (failed) near.destroy() })
    far.once('connect', () => {
      const connection = this.#connections++
      if (this.#onSent !== undefined) near.on('data', (bytes) => this.#onSent!(connection, bytes))
      if (this.#onReceived !== undefined) far.on('data', (bytes) => this.#onReceived!(connection, bytes))
      this.#carry(this.#up, near, far)
      this.#carry(this.#down, far, near)
    })
  }

  #carry(direction: Direction, from: net.Socket, into: net.Socket): void {
    const flow: Flow = { from, into, heldBytes: 0 }
    from.on('data', (bytes) => direction.take(flow, bytes))
    from.once('end', () => {
      if (flow.heldBytes === 0) into.end()
    })
    from.resume()
  }

  #keep(socket: net.Socket): void {
    this.#sockets.add(socket)
    socket.setNoDelay(true)
    socket.on('error', () => undefined)
    socket.once('close', () => this.#sockets.delete(socket))
  }
}
