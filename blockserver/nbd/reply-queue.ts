/**
 * Replies of one connection on their way out: built in slabs, gathered into few writes.
 * Within one turn nothing is written before `flush`; memory is given back when the kernel has taken it.
 */
import {
  EXTENDED_HEADER_BYTES, type Framing, NBD_EXTENDED_REPLY_MAGIC, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_ERROR_OFFSET, NBD_REPLY_TYPE_NONE,
  NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, SIMPLE_REPLY_BYTES, STRUCTURED_HEADER_BYTES, writeUint16, writeUint32, writeUint64,
} from './protocol.ts'
import type { DeviceView } from '@varve/images/device/block-device.ts'
import type { Slab, SlabPool } from './slab.ts'
import type { Outgoing, Transport } from './transport.ts'

/** Neighbouring replies in one slab; or memory of the device. */
interface Piece {
  bytes: Uint8Array
  from: number
  to: number
  slab: Slab | undefined
  regions: number
}

/** What replies repeat of their request, as it was sent: its cookie and, in extended headers, its offset. */
export interface Cookie {
  cookieHigh: number
  cookieLow: number
  offsetHigh: number
  offsetLow: number
}

/** What is written at once. */
class Batch implements Outgoing {
  parts: Uint8Array[]
  readonly pieces: Piece[]
  readonly bytes: number
  readonly requests: number
  #views: DeviceView[]
  readonly #done: (batch: Batch) => void

  constructor(gathered: { pieces: Piece[]; bytes: number; requests: number; views: DeviceView[] }, done: (batch: Batch) => void) {
    this.pieces = gathered.pieces
    this.bytes = gathered.bytes
    this.requests = gathered.requests
    this.parts = gathered.pieces.map(({ bytes, from, to }) => from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to))
    this.#views = gathered.views
    this.#done = done
  }

  /** The device's memory is for all of its readers. */
  detach(): void {
    if (this.#views.length === 0) return
    this.parts = this.pieces.map(({ bytes, slab }, index) => slab === undefined ? Buffer.from(bytes) : this.parts[index])
    this.release()
  }

  release(): void {
    for (const view of this.#views) view.release()
    this.#views = []
  }

  sent(): void {
    this.#done(this)
  }
}

export class ReplyQueue {
  readonly framing: Framing
  /** Bytes of the header of a chunk. */
  readonly chunkHeaderBytes: number
  readonly #slabs: SlabPool
  readonly #transport: Transport
  readonly #freed: (requests: number) => void
  #pieces: Piece[] = []
  #views: DeviceView[] = []
  #gatheredBytes = 0
  #gatheredRequests = 0
  /** Batches that the kernel has not taken whole. */
  readonly #writing = new Set<Batch>()
  #unsentBytes = 0
  #discarded = false
  readonly #onSent = (batch: Batch) => this.#sent(batch)

  /** @param freed called when replies are with the kernel: requests that no longer count as in flight */
  constructor({ slabs, transport, framing, freed }: { slabs: SlabPool; transport: Transport; framing: Framing; freed: (requests: number) => void }) {
    this.framing = framing
    this.chunkHeaderBytes = framing === 'extended' ? EXTENDED_HEADER_BYTES : STRUCTURED_HEADER_BYTES
    this.#slabs = slabs
    this.#transport = transport
    this.#freed = freed
  }

  /** True if a view is released soon. */
  get takesViews(): boolean {
    return this.#transport.isPrompt
  }

  /** Bytes gathered and not yet handed to the transport. */
  get gatheredBytes(): number {
    return this.#gatheredBytes
  }

  /** Bytes that the kernel has not taken, gathered ones included. */
  get unsentBytes(): number {
    return this.#gatheredBytes + this.#unsentBytes
  }

  /** Appends a finished part of a slab that the caller had cut; the queue releases it. @param requests 1 with the last part of a reply */
  append(slab: Slab, from: number, to: number, requests: number): void {
    if (this.#discarded) {
      this.#slabs.release(slab, 1)
      this.#freed(requests)
      return
    }
    const last = this.#pieces.at(-1)
    if (last !== undefined && last.slab === slab && last.to === from) {
      last.to = to
      last.regions++
    } else this.#pieces.push({ bytes: slab.bytes, from, to, slab, regions: 1 })
    this.#gatheredBytes += to - from
    this.#gatheredRequests += requests
  }

  /** Appends what a view shows, as the last part of a reply; the queue releases it. */
  appendView(view: DeviceView): void {
    if (this.#discarded) {
      view.release()
      this.#freed(1)
      return
    }
    for (const bytes of view.parts) {
      this.#pieces.push({ bytes, from: 0, to: bytes.length, slab: undefined, regions: 0 })
      this.#gatheredBytes += bytes.length
    }
    this.#views.push(view)
    this.#gatheredRequests++
  }

  /** Success without payload. Structured replies are for reads, errors and status; what else succeeds is answered as briefly as may be. */
  success(cookie: Cookie): void {
    if (this.framing === 'extended') this.emptyChunk(cookie)
    else this.#simpleReply(cookie, 0)
  }

  /** The reply of one chunk with nothing in it. */
  emptyChunk(cookie: Cookie): void {
    const { slab, from, to } = this.#slabs.cut(this.chunkHeaderBytes)
    this.writeChunkHeader(slab.bytes, from, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, cookie, 0)
    this.append(slab, from, to, 1)
  }

  /** @param message for people @param offset where it happened, for commands whose client can use that */
  error(cookie: Cookie, error: number, message: string, offset?: number): void {
    if (this.framing === 'simple') {
      this.#simpleReply(cookie, error)
      return
    }
    const text = Buffer.from(message)
    const payloadBytes = 6 + text.length + (offset === undefined ? 0 : 8)
    const { slab, from, to } = this.#slabs.cut(this.chunkHeaderBytes + payloadBytes)
    const type = offset === undefined ? NBD_REPLY_TYPE_ERROR : NBD_REPLY_TYPE_ERROR_OFFSET
    this.writeChunkHeader(slab.bytes, from, NBD_REPLY_FLAG_DONE, type, cookie, payloadBytes)
    const at = from + this.chunkHeaderBytes
    writeUint32(slab.bytes, at, error)
    writeUint16(slab.bytes, at + 4, text.length)
    slab.bytes.set(text, at + 6)
    if (offset !== undefined) writeUint64(slab.bytes, at + 6 + text.length, offset)
    this.append(slab, from, to, 1)
  }

  /** Not for simple framing. */
  writeChunkHeader(bytes: Uint8Array, at: number, flags: number, type: number, cookie: Cookie, payloadBytes: number): void {
    const extended = this.framing === 'extended'
    writeUint32(bytes, at, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC)
    writeUint16(bytes, at + 4, flags)
    writeUint16(bytes, at + 6, type)
    writeUint32(bytes, at + 8, cookie.cookieHigh)
    writeUint32(bytes, at + 12, cookie.cookieLow)
    if (!extended) {
      writeUint32(bytes, at + 16, payloadBytes)
      return
    }
    writeUint32(bytes, at + 16, cookie.offsetHigh)
    writeUint32(bytes, at + 20, cookie.offsetLow)
    writeUint32(bytes, at + 24, 0)
    writeUint32(bytes, at + 28, payloadBytes)
  }

  #simpleReply(cookie: Cookie, error: number): void {
    const { slab, from, to } = this.#slabs.cut(SIMPLE_REPLY_BYTES)
    writeSimpleHeader(slab.bytes, from, error, cookie)
    this.append(slab, from, to, 1)
  }

  /** Writes all that was gathered. */
  flush(): void {
    if (this.#gatheredBytes === 0) return
    const batch = this.#take()
    this.#unsentBytes += batch.bytes
    if (this.#transport.write(batch)) this.#free(batch)
    else this.#writing.add(batch)
  }

  /** Gives all memory back, and that of all that comes. For a connection that is closed. */
  discard(): void {
    this.#discarded = true
    for (const batch of this.#writing) this.#free(batch)
    this.#writing.clear()
    const batch = this.#take()
    this.#unsentBytes += batch.bytes
    this.#free(batch)
  }

  #take(): Batch {
    const batch = new Batch({ pieces: this.#pieces, bytes: this.#gatheredBytes, requests: this.#gatheredRequests, views: this.#views }, this.#onSent)
    this.#pieces = []
    this.#views = []
    this.#gatheredBytes = 0
    this.#gatheredRequests = 0
    return batch
  }

  #sent(batch: Batch): void {
    if (this.#writing.delete(batch)) this.#free(batch)
  }

  #free(batch: Batch): void {
    batch.release()
    for (const { slab, regions } of batch.pieces) if (slab !== undefined) this.#slabs.release(slab, regions)
    this.#unsentBytes -= batch.bytes
    this.#freed(batch.requests)
  }
}

export function writeSimpleHeader(bytes: Uint8Array, at: number, error: number, cookie: Cookie): void {
  writeUint32(bytes, at, NBD_SIMPLE_REPLY_MAGIC)
  writeUint32(bytes, at + 4, error)
  writeUint32(bytes, at + 8, cookie.cookieHigh)
  writeUint32(bytes, at + 12, cookie.cookieLow)
}
