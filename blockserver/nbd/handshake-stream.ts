/**
 * A connection's bytes as the handshake reads them: so many, one after another. Bounded: what is not asked for pauses the transport.
 */
import type { Transport } from './transport.ts'

/** The connection ended, or its time was up. */
export class StreamEnded extends Error {
  override name = 'StreamEnded'
}

/** Bytes that may wait unread before the transport is paused. */
const WAITING_BYTES_MAX = 64 * 1024

export class HandshakeStream {
  #transport: Transport
  #waiting: Buffer[] = []
  #waitingBytes = 0
  #wantedBytes = 0
  #paused = false
  #arrived: { resolve: () => void; reject: (error: Error) => void } | undefined
  #ended: StreamEnded | undefined

  constructor(transport: Transport) {
    this.#transport = transport
  }

  /** True if bytes have come that nobody has asked for. */
  get hasWaiting(): boolean {
    return this.#waitingBytes > 0
  }

  /** From here on bytes go by another transport, which is not paused. */
  replaceTransport(transport: Transport): void {
    this.#transport = transport
    this.#paused = false
  }

  receive(bytes: Buffer): void {
    this.#waiting.push(Buffer.from(bytes))
    this.#waitingBytes += bytes.length
    if (this.#waitingBytes >= this.#wantedBytes) {
      this.#arrived?.resolve()
      if (this.#waitingBytes - this.#wantedBytes > WAITING_BYTES_MAX) this.#pause()
    }
  }

  /** Nothing more comes; what waits can still be read. */
  end(reason: string): void {
    this.#ended ??= new StreamEnded(reason)
    this.#arrived?.reject(this.#ended)
  }

  /** @param count at most a few times 64 KiB; the caller has checked it @throws StreamEnded */
  async read(count: number): Promise<Buffer> {
    await this.#want(count)
    const all = this.#waiting.length === 1 ? this.#waiting[0] : Buffer.concat(this.#waiting)
    this.#waiting = all.length > count ? [all.subarray(count)] : []
    this.#waitingBytes -= count
    return all.subarray(0, count)
  }

  /** Passes over bytes without keeping them. */
  async skip(count: number): Promise<void> {
    for (let left = count; left > 0;) {
      await this.#want(1)
      left -= (await this.read(Math.min(left, this.#waitingBytes))).length
    }
  }

  /** Completes when the kernel has taken the bytes, so that a peer that does not read is not answered further. @throws StreamEnded */
  async write(bytes: Buffer): Promise<void> {
    if (this.#ended !== undefined) throw this.#ended
    await new Promise<void>((sent) => { if (this.#transport.write({ parts: [bytes], detach: () => undefined, sent })) sent() })
  }

  /** What waits unread: it belongs to the next phase. Nothing is read here any more. */
  rest(): Buffer {
    const rest = Buffer.concat(this.#waiting)
    this.#waiting = []
    this.#waitingBytes = 0
    return rest
  }

  async #want(count: number): Promise<void> {
    if (this.#waitingBytes >= count) return
    if (this.#ended !== undefined) throw this.#ended
    this.#wantedBytes = count
    this.#resume()
    try {
      await new Promise<void>((resolve, reject) => { this.#arrived = { resolve, reject } })
    } finally {
      this.#arrived = undefined
      this.#wantedBytes = 0
    }
  }

  #pause(): void {
    if (this.#paused) return
    this.#paused = true
    this.#transport.pause()
  }

  #resume(): void {
    if (!this.#paused) return
    this.#paused = false
    this.#transport.resume()
  }
}
