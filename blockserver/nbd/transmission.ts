/**
 * The transmission phase of one connection: requests in, replies out. Bytes: "Transmission" of the NBD specification.
 * All requests of one read are taken up before anything is written. What the device completes at once costs no promise and no turn.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { ServedExport } from './export.ts'
import { RequestRecorder } from './export-recorder.ts'
import type { NbdLimits } from './limits.ts'
import type { BudgetUser, MemoryBudget } from './memory-budget.ts'
import { type SelectedContext, parseStatusPayload, replyBlockStatus, statusPayloadBytes } from './meta-context.ts'
import type { NbdMetrics } from './metrics.ts'
import {
  type Framing, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EINVAL, NBD_ENOTSUP, NBD_ESHUTDOWN,
  NBD_EXTENDED_REQUEST_MAGIC, NBD_REQUEST_MAGIC, errorName, readUint32, readUint64, requestHeaderBytes,
} from './protocol.ts'
import { HOLE_READ_BYTES_MIN, type ReplyPlace, readSparse, readWhole } from './read-reply.ts'
import { type Cookie, ReplyQueue } from './reply-queue.ts'
import { type RequestRules, deviceError, hasPayload, requestError } from './request.ts'
import type { Region, SlabPool } from './slab.ts'
import type { Transport } from './transport.ts'

/** Replies are handed to the kernel when so many bytes are gathered, so that the client starts on them while the rest is made. */
const FLUSH_BYTES = 64 * 1024
/** Payload that one connection may move before others have their turn. */
const TURN_BYTES_MAX = 8 * 1024 * 1024
/** What a request counts for in a turn besides its payload, bytes. */
const TURN_BYTES_PER_REQUEST = 4096
/** With less than this of a payload missing it is read together with what follows it, else straight to its place. */
const DIRECT_BYTES_MIN = 32 * 1024
/** NBD_CMD_CACHE reads in pieces of this size, and lets others have their turn after each. */
const CACHE_PIECE_BYTES = 256 * 1024

export interface TransmissionOptions {
  served: ServedExport
  /** True if this client may not write. */
  readOnly: boolean
  framing: Framing
  /** Selected metadata contexts. */
  contexts: readonly SelectedContext[]
  limits: NbdLimits
  slabs: SlabPool
  budget: MemoryBudget
  metrics: NbdMetrics
  transport: Transport
  /** The peer broke the protocol or a limit; the connection has been destroyed. */
  cut(reason: string): void
  /** The device failed a request. */
  failed(error: unknown, request: string): void
  /** Called once: the connection is closed, and no request uses the device any more. */
  finished(): void
}

/** NBD_CMD_WRITE whose payload is arriving. */
interface ArrivingWrite extends Cookie {
  flags: number
  offset: number
  region: Region
  filledBytes: number
}

/** NBD_CMD_BLOCK_STATUS in its payload form, whose payload is arriving. */
interface ArrivingQuery extends Cookie {
  flags: number
  offset: number
  payload: Buffer
  filledBytes: number
}

/** Payload that is passed over, and then answered by an error. */
interface SkippedPayload extends Cookie {
  type: number
  error: number
  bytesLeft: number
}

export class Transmission implements BudgetUser {
  readonly #options: TransmissionOptions
  readonly #rules: RequestRules
  readonly #place: ReplyPlace
  readonly #replies: ReplyQueue
  readonly #slabs: SlabPool
  readonly #recorder: RequestRecorder
  /** The request that is being taken up. */
  readonly #cookie: Cookie = { cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0 }
  readonly #headerBytes: number
  /** A request header that arrived in parts, or has to wait. */
  readonly #head: Buffer
  #headBytes = 0
  #write: ArrivingWrite | undefined
  #query: ArrivingQuery | undefined
  #skipped: SkippedPayload | undefined
  /** Bytes that arrived and have to wait; meanwhile the transport is paused. */
  #held: Buffer | undefined
  #parsing = false
  #flushScheduled = false
  #turnBytesLeft = TURN_BYTES_MAX
  /** Requests taken up whose reply is not with the kernel. */
  #requestsInFlight = 0
  /** Requests that use the device. */
  #deviceRequests = 0
  /** Payload of requests that use the device or are arriving. */
  #bytesInFlight = 0
  #open = true
  #disconnected = false
  #peerEnded = false
  #draining = false
  #finished = false
  sharedBytes = 0
  movedAtMs = performance.now()

  constructor(options: TransmissionOptions) {
    const { served, readOnly, framing, contexts, limits, slabs, transport } = options
    const { device, minimumBlockBytes = 1 } = served
    this.#options = options
    this.#rules = { sizeBytes: device.sizeBytes, readOnly, framing, contextCount: contexts.length, minimumBlockBytes, requestBytesMax: limits.requestBytesMax }
    this.#headerBytes = requestHeaderBytes(framing)
    this.#head = Buffer.alloc(this.#headerBytes)
    this.#replies = new ReplyQueue({ slabs, transport, framing, freed: (requests) => this.#freed(requests) })
    this.#slabs = slabs
    this.#recorder = new RequestRecorder(options.metrics.acquire(served.name))
    this.#place = { device, slabs, replies: this.#replies }
  }

  /** Takes up what arrived; what has to wait is copied. */
  receive(bytes: Buffer): void {
    if (!this.#open || this.#disconnected) return
    if (this.#held !== undefined) {
      this.#held = Buffer.concat([this.#held, bytes])
      return
    }
    this.#turnBytesLeft = TURN_BYTES_MAX
    this.#run(bytes)
    if (this.#held !== undefined) this.#held = Buffer.from(this.#held)
  }

  /** The place of the next bytes, while much of a large payload is missing. */
  target(): Uint8Array | undefined {
    const write = this.#write
    if (write === undefined || this.#held !== undefined) return undefined
    const at = write.region.from + write.filledBytes
    return write.region.to - at < DIRECT_BYTES_MIN ? undefined : write.region.slab.bytes.subarray(at, write.region.to)
  }

  receivedInPlace(count: number): void {
    const write = this.#write
    if (write === undefined) return
    write.filledBytes += count
    this.movedAtMs = performance.now()
    if (write.region.from + write.filledBytes < write.region.to) return
    this.#recorder.begin(this.movedAtMs)
    this.#startWrite(write)
    this.#flush()
    this.#endIfDone()
  }

  /** The peer sends no more: what it asked for is still answered. */
  ended(): void {
    this.#peerEnded = true
    this.#dropArriving()
    this.#endIfDone()
  }

  /** From now on requests are answered by NBD_ESHUTDOWN; when all that is in flight is answered, the connection is closed. */
  drain(): void {
    this.#draining = true
    this.#endIfDone()
  }

  /** The connection is gone. */
  closed(): void {
    this.#open = false
    this.#held = undefined
    this.#dropArriving()
    this.#replies.discard()
    this.#settle()
    this.#finishIfUnused()
  }

  memoryFreed(): void {
    this.#continue()
  }

  /** @param nowMs `performance.now()` */
  cutIfIdle(nowMs: number, idleMsMax: number): void {
    if (this.#deviceRequests === 0 && nowMs - this.movedAtMs > idleMsMax) this.cut(`nothing was asked for, or taken, for ${idleMsMax} ms`)
  }

  cut(reason: string): void {
    if (!this.#open) return
    this.#options.metrics.connectionsCut++
    this.#options.cut(reason)
    this.#options.transport.destroy()
  }

  // ---- requests in

  #run(bytes: Buffer): void {
    this.#parsing = true
    this.#recorder.begin(performance.now())
    const at = this.#parse(bytes)
    this.#flush()
    this.#parsing = false
    if (this.#disconnected || !this.#open) this.#held = undefined
    else if (at < bytes.length || this.#headBytes === this.#headerBytes) {
      this.#held = bytes.subarray(at)
      this.#options.transport.pause()
      if (this.#turnBytesLeft < 0) this.#inNextTurn(() => this.#continue())
    }
    this.#endIfDone()
  }

  #continue(): void {
    const bytes = this.#held
    if (bytes === undefined || this.#parsing || !this.#open) return
    this.#held = undefined
    this.#turnBytesLeft = TURN_BYTES_MAX
    this.#run(bytes)
    if (this.#held === undefined && !this.#disconnected) this.#options.transport.resume()
  }

  /** @returns bytes taken up; less than all if the rest has to wait */
  #parse(bytes: Buffer): number {
    let at = 0
    while (at < bytes.length || this.#headBytes === this.#headerBytes) {
      if (this.#write !== undefined) {
        at = this.#fillWrite(this.#write, bytes, at)
        continue
      }
      if (this.#query !== undefined) {
        at = this.#fillQuery(this.#query, bytes, at)
        continue
      }
      if (this.#skipped !== undefined) {
        at = this.#skip(this.#skipped, bytes, at)
        continue
      }
      let head = bytes
      let headAt = at
      if (this.#headBytes > 0 || bytes.length - at < this.#headerBytes) {
        const copied = bytes.copy(this.#head, this.#headBytes, at)
        at += copied
        this.#headBytes += copied
        if (this.#headBytes < this.#headerBytes) return at
        head = this.#head
        headAt = 0
      }
      if (this.#turnBytesLeft < 0 || !this.#admitted(head, headAt)) return at
      if (head === bytes) at += this.#headerBytes
      else this.#headBytes = 0
      if (!this.#take(head, headAt)) return bytes.length
      if (this.#replies.gatheredBytes >= FLUSH_BYTES) this.#flush()
    }
    return at
  }

  /** True if there is room for the request; otherwise something in flight makes room later, and goes on then. */
  #admitted(head: Buffer, at: number): boolean {
    const type = (head[at + 6] << 8) | head[at + 7]
    const payload = type === NBD_CMD_READ || type === NBD_CMD_WRITE || type === NBD_CMD_CACHE ? this.#lengthOf(head, at) : 0
    // What is larger is refused and holds no memory.
    const needBytes = payload > this.#rules.requestBytesMax ? 0 : type === NBD_CMD_CACHE ? Math.min(payload, CACHE_PIECE_BYTES) : payload
    this.#turnBytesLeft -= needBytes + TURN_BYTES_PER_REQUEST
    if (this.#hasRoom(needBytes)) return true
    this.#flush()
    return this.#hasRoom(needBytes)
  }

  #hasRoom(needBytes: number): boolean {
    const { inFlightRequestsMax, inFlightBytesMax, unsentBytesMax, ownBytes } = this.#options.limits
    const unsentBytes = this.#replies.unsentBytes
    if (this.#requestsInFlight >= inFlightRequestsMax || unsentBytes > unsentBytesMax) return false
    const heldBytes = this.#bytesInFlight + unsentBytes
    if (heldBytes > 0 && heldBytes + needBytes > inFlightBytesMax) return false
    const sharedBytes = heldBytes + needBytes - ownBytes
    const { budget } = this.#options
    if (sharedBytes <= this.sharedBytes) {
      budget.leave(this)
      return true
    }
    if (!budget.take(this, sharedBytes - this.sharedBytes)) return false
    this.sharedBytes = sharedBytes
    return true
  }

  #lengthOf(head: Buffer, at: number): number {
    return this.#rules.framing === 'extended' ? readUint64(head, at + 24) : readUint32(head, at + 24)
  }

  /** Takes up one request. @returns false if the connection takes up no more */
  #take(head: Buffer, at: number): boolean {
    const { framing, requestBytesMax } = this.#rules
    if (readUint32(head, at) !== (framing === 'extended' ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
      this.cut('a request does not begin with its magic number')
      return false
    }
    const flags = (head[at + 4] << 8) | head[at + 5]
    const type = (head[at + 6] << 8) | head[at + 7]
    const offset = readUint64(head, at + 16)
    const length = this.#lengthOf(head, at)
    if (type === NBD_CMD_DISC) {
      this.#disconnected = true
      return false
    }
    const payloadBytes = hasPayload(framing, type, flags) ? length : 0
    if (framing === 'extended' && payloadBytes > requestBytesMax) {
      this.cut(`a payload of ${payloadBytes} bytes is larger than the maximum of ${requestBytesMax}`)
      return false
    }
    this.#cookie.cookieHigh = readUint32(head, at + 8)
    this.#cookie.cookieLow = readUint32(head, at + 12)
    this.#cookie.offsetHigh = readUint32(head, at + 16)
    this.#cookie.offsetLow = readUint32(head, at + 20)
    this.#requestsInFlight++
    this.#recorder.taken()
    if (this.#draining) this.#skipAndRefuse(type, NBD_ESHUTDOWN, payloadBytes)
    else if (type === NBD_CMD_BLOCK_STATUS && payloadBytes > 0) this.#arriveQuery(flags, offset, payloadBytes)
    else {
      const error = this.#requestError(type, flags, offset, length)
      if (error === 0) this.#start(type, flags, offset, length)
      else this.#skipAndRefuse(type, error, payloadBytes)
    }
    return true
  }

  #skipAndRefuse(type: number, error: number, payloadBytes: number): void {
    if (payloadBytes > 0) this.#skipped = { ...this.#cookie, type, error, bytesLeft: payloadBytes }
    else {
      this.#recorder.started(type)
      this.#refuse(type, error)
    }
  }

  #requestError(type: number, flags: number, offset: number, length: number): number {
    const error = requestError(this.#rules, type, flags, offset, length)
    if (error !== 0 || (flags & NBD_CMD_FLAG_FAST_ZERO) === 0) return error
    return this.#options.served.fastZeroes === true && (flags & NBD_CMD_FLAG_NO_HOLE) === 0 ? 0 : NBD_ENOTSUP
  }

  #fillWrite(write: ArrivingWrite, bytes: Buffer, at: number): number {
    const { region } = write
    const filled = region.from + write.filledBytes
    const count = Math.min(region.to - filled, bytes.length - at)
    bytes.copy(region.slab.bytes, filled, at, at + count)
    write.filledBytes += count
    if (filled + count === region.to) this.#startWrite(write)
    return at + count
  }

  #skip(skipped: SkippedPayload, bytes: Buffer, at: number): number {
    const count = Math.min(skipped.bytesLeft, bytes.length - at)
    skipped.bytesLeft -= count
    if (skipped.bytesLeft === 0) {
      this.#skipped = undefined
      this.#setCookie(skipped)
      this.#recorder.started(skipped.type)
      this.#refuse(skipped.type, skipped.error)
    }
    return at + count
  }

  // ---- commands

  #start(type: number, flags: number, offset: number, length: number): void {
    if (type === NBD_CMD_WRITE) {
      this.#arriveWrite(flags, offset, length)
      return
    }
    this.#recorder.started(type)
    if (type === NBD_CMD_READ) this.#read(flags, offset, length)
    else if (type === NBD_CMD_BLOCK_STATUS) this.#blockStatus(flags, offset, length)
    else this.#carryOut(type, flags, offset, length)
  }

  #read(flags: number, offset: number, length: number): void {
    const cookie = this.#cookie
    const chunks = this.#rules.framing !== 'simple'
    if (length === 0) {
      if (chunks) this.#replies.emptyChunk(cookie)
      else this.#replies.success(cookie)
      return
    }
    let pending: void | Promise<void>
    try {
      const sparse = chunks && length >= HOLE_READ_BYTES_MIN && (flags & NBD_CMD_FLAG_DF) === 0
      pending = sparse ? readSparse(this.#place, offset, length, cookie) : readWhole(this.#place, offset, length, cookie)
    } catch (error) {
      this.#fail(NBD_CMD_READ, error, offset, length)
      return
    }
    if (pending === undefined) this.#recorder.export.bytesRead += length
    else this.#whenDone(pending, NBD_CMD_READ, offset, length, length, () => { this.#recorder.export.bytesRead += length })
  }

  #arriveWrite(flags: number, offset: number, length: number): void {
    const region = this.#slabs.cut(length)
    this.#bytesInFlight += length
    this.#write = { ...this.#cookie, flags, offset, region, filledBytes: 0 }
    if (length === 0) this.#startWrite(this.#write)
  }

  /** All of the payload is there. */
  #startWrite(write: ArrivingWrite): void {
    this.#write = undefined
    const { slab, from, to } = write.region
    const length = to - from
    this.#recorder.started(NBD_CMD_WRITE)
    this.#setCookie(write)
    let pending: void | Promise<void>
    try {
      pending = this.#options.served.device.write(slab.bytes.subarray(from, to), write.offset, { fua: (write.flags & NBD_CMD_FLAG_FUA) !== 0 })
    } catch (error) {
      this.#release(slab, length)
      this.#fail(NBD_CMD_WRITE, error, write.offset, length)
      return
    }
    if (pending === undefined) {
      this.#release(slab, length)
      this.#wrote(this.#cookie, length)
      return
    }
    const done = pending.finally(() => this.#slabs.release(slab, 1))
    this.#bytesInFlight -= length
    this.#whenDone(done, NBD_CMD_WRITE, write.offset, length, length, (cookie) => this.#wrote(cookie, length))
  }

  #wrote(cookie: Cookie, length: number): void {
    this.#recorder.export.bytesWritten += length
    this.#replies.success(cookie)
  }

  #release(slab: Region['slab'], length: number): void {
    this.#slabs.release(slab, 1)
    this.#bytesInFlight -= length
  }

  /** The payload names contexts: no more than there are. */
  #arriveQuery(flags: number, offset: number, payloadBytes: number): void {
    const { contexts } = this.#options
    if (payloadBytes % 4 !== 0 || payloadBytes < statusPayloadBytes(0) || payloadBytes > statusPayloadBytes(contexts.length)) {
      this.#skipAndRefuse(NBD_CMD_BLOCK_STATUS, NBD_EINVAL, payloadBytes)
    } else this.#query = { ...this.#cookie, flags, offset, payload: Buffer.alloc(payloadBytes), filledBytes: 0 }
  }

  #fillQuery(query: ArrivingQuery, bytes: Buffer, at: number): number {
    const count = bytes.copy(query.payload, query.filledBytes, at)
    query.filledBytes += count
    if (query.filledBytes === query.payload.length) {
      this.#query = undefined
      this.#setCookie(query)
      const asked = parseStatusPayload(query.payload, this.#options.contexts)
      const error = asked === undefined ? NBD_EINVAL : this.#requestError(NBD_CMD_BLOCK_STATUS, query.flags, query.offset, asked.length)
      if (asked === undefined || error !== 0) this.#refuse(NBD_CMD_BLOCK_STATUS, error)
      else this.#blockStatus(query.flags, query.offset, asked.length, asked.contexts)
    }
    return at + count
  }

  #blockStatus(flags: number, offset: number, length: number, contexts = this.#options.contexts): void {
    try {
      replyBlockStatus({ contexts, offset, length, one: (flags & NBD_CMD_FLAG_REQ_ONE) !== 0 }, this.#cookie, this.#slabs, this.#replies)
    } catch (error) {
      this.#fail(NBD_CMD_BLOCK_STATUS, error, offset, length)
    }
  }

  /** Commands without payload in either direction. */
  #carryOut(type: number, flags: number, offset: number, length: number): void {
    let pending: void | Promise<void>
    try {
      pending = this.#call(type, flags, offset, length)
    } catch (error) {
      this.#fail(type, error, offset, length)
      return
    }
    if (pending === undefined) this.#replies.success(this.#cookie)
    else this.#whenDone(pending, type, offset, length, type === NBD_CMD_CACHE ? Math.min(length, CACHE_PIECE_BYTES) : 0, (cookie) => this.#replies.success(cookie))
  }

  #call(type: number, flags: number, offset: number, length: number): void | Promise<void> {
    const { device } = this.#options.served
    const fua = (flags & NBD_CMD_FLAG_FUA) !== 0
    if (type === NBD_CMD_FLUSH) return this.#rules.readOnly ? undefined : device.flush()
    if (length === 0) return
    if (type === NBD_CMD_TRIM) return device.trim(offset, length, { fua })
    if (type === NBD_CMD_WRITE_ZEROES) return device.writeZeroes(offset, length, { fua, noHole: (flags & NBD_CMD_FLAG_NO_HOLE) !== 0 })
    return this.#cache(offset, length)
  }

  async #cache(offset: number, length: number): Promise<void> {
    const { slab, from } = this.#slabs.cut(Math.min(length, CACHE_PIECE_BYTES))
    try {
      for (let at = 0; at < length && this.#open; at += CACHE_PIECE_BYTES) {
        const pieceBytes = Math.min(CACHE_PIECE_BYTES, length - at)
        await this.#options.served.device.read(slab.bytes.subarray(from, from + pieceBytes), offset + at)
        await nextTurn()
      }
    } finally {
      this.#slabs.release(slab, 1)
    }
  }

  // ---- replies

  /** @param heldBytes payload in memory until `pending` settles @param reply what success is answered by */
  #whenDone(pending: Promise<void>, type: number, offset: number, length: number, heldBytes: number, reply: (cookie: Cookie) => void): void {
    const cookie = { ...this.#cookie }
    const beganMs = this.#recorder.later(type)
    this.#deviceRequests++
    this.#bytesInFlight += heldBytes
    this.#options.transport.yield()
    const settled = () => {
      this.#recorder.answered(type, beganMs)
      this.#deviceRequests--
      this.#bytesInFlight -= heldBytes
      this.#settle()
      // Nothing else becomes ready in this turn.
      if (this.#deviceRequests === 0) this.#sendReady()
      else this.#scheduleFlush()
    }
    pending.then(
      () => {
        reply(cookie)
        settled()
      },
      (error: unknown) => {
        this.#setCookie(cookie)
        this.#fail(type, error, offset, length)
        settled()
      },
    )
  }

  #fail(type: number, error: unknown, offset: number, length: number): void {
    this.#options.failed(error, `command ${type} at ${offset}, ${length} bytes`)
    this.#refuse(type, deviceError(error), type === NBD_CMD_READ ? offset : undefined)
  }

  /** Answers the current request by an error. */
  #refuse(type: number, error: number, offset?: number): void {
    this.#recorder.failed(type)
    this.#replies.error(this.#cookie, error, `command ${type}: ${errorName(error)}`, offset)
  }

  #setCookie({ cookieHigh, cookieLow, offsetHigh, offsetLow }: Cookie): void {
    this.#cookie.cookieHigh = cookieHigh
    this.#cookie.cookieLow = cookieLow
    this.#cookie.offsetHigh = offsetHigh
    this.#cookie.offsetLow = offsetLow
  }

  #flush(): void {
    this.#replies.flush()
    // What the kernel has taken whole has just been noted by #freed.
    this.#recorder.repliesOut(this.#replies.unsentBytes === 0 ? this.movedAtMs : performance.now())
  }

  #inNextTurn(action: () => void): void {
    setImmediate(action)
    this.#options.transport.yield()
  }

  /** Replies that become ready in one turn go out together. */
  #scheduleFlush(): void {
    if (this.#flushScheduled) return
    this.#flushScheduled = true
    this.#inNextTurn(() => {
      this.#flushScheduled = false
      this.#sendReady()
    })
  }

  #sendReady(): void {
    if (this.#open) {
      this.#replies.flush()
      this.#continue()
      this.#endIfDone()
    } else this.#finishIfUnused()
  }

  /** Replies are with the kernel. */
  #freed(requests: number): void {
    this.#requestsInFlight -= requests
    this.movedAtMs = performance.now()
    if (!this.#open) return
    this.#settle()
    this.#continue()
    this.#endIfDone()
  }

  /** Gives back shared memory that is no longer needed. */
  #settle(): void {
    if (this.sharedBytes === 0) return
    const sharedBytes = Math.max(0, this.#bytesInFlight + this.#replies.unsentBytes - this.#options.limits.ownBytes)
    if (sharedBytes >= this.sharedBytes) return
    const given = this.sharedBytes - sharedBytes
    this.sharedBytes = sharedBytes
    this.#options.budget.give(given)
  }

  // ---- the end

  #dropArriving(): void {
    if (this.#skipped !== undefined || this.#query !== undefined) {
      this.#skipped = undefined
      this.#query = undefined
      this.#requestsInFlight--
      this.#recorder.dropped()
    }
    const write = this.#write
    if (write === undefined) return
    this.#write = undefined
    this.#requestsInFlight--
    this.#recorder.dropped()
    this.#release(write.region.slab, write.region.to - write.region.from)
  }

  #endIfDone(): void {
    if (this.#parsing || !this.#open || this.#requestsInFlight > 0 || this.#deviceRequests > 0) return
    if (!this.#disconnected && !((this.#draining || this.#peerEnded) && this.#held === undefined)) return
    this.#open = false
    this.#options.transport.end()
  }

  #finishIfUnused(): void {
    if (this.#finished || this.#deviceRequests > 0) return
    this.#finished = true
    const { budget, metrics } = this.#options
    metrics.release(this.#recorder.export)
    if (this.sharedBytes > 0) budget.give(this.sharedBytes)
    this.sharedBytes = 0
    budget.forget(this)
    this.#options.finished()
  }
}
