/**
 * Session: serves one mount from its descriptor of /dev/fuse, in the thread that starts it. Requests are read and answered without a turn of the
 * event loop while they follow each other; the thread then waits for both in poll(2). What an answer waits for gets its turn at once.
 */
import { closeSync } from 'node:fs'
import { Socket } from 'node:net'
import type { Logger } from 'pino'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { eventLoopOf } from '../event-loop.ts'
import { POLLIN, PollSet, socketPair } from '../nbd/socket-calls.ts'
import { NOTHING_YET, UNMOUNTED, readRequest, writeAnswer } from './device-calls.ts'
import { EINTR, ETIMEDOUT, Refusal, errnoOf } from './errno.ts'
import type { Operations, Reply } from './operations.ts'
import { IN_HEADER_BYTES, OUT_HEADER_BYTES, Opcode, Request, putOutHeader } from './protocol.ts'

/** How long the event loop waits at most for its turn while requests come without a pause. */
const TURN_MS = 5
/** And while nothing comes. */
const WAIT_MS = 500
/** A request that is not answered by then has failed: whoever asked is not kept for ever. */
const REQUEST_MS_MAX = 60_000
/** Buffers of requests that wait for their answers and need their bytes meanwhile. */
const BUFFERS_KEPT_MAX = 16
/** Failures that are told. */
const FAILURES_LOGGED_MAX = 100

/** How often a request is looked for before it is waited for: some 50 us. */
const TRIES_MAX = 128
/** Trying is put off for a while when it was of no use more often than not. */
const CREDIT_MAX = 8
const CREDIT_RETRY = -64

interface Pending {
  sinceMs: number
}

export class Session {
  readonly #fd: number
  readonly #operations: Operations
  readonly #log: Logger
  readonly #pending = new Map<number, Pending>()
  readonly #buffers: Buffer[] = []
  readonly #poll = new PollSet(2)
  readonly #waker: readonly [Socket, Socket]
  readonly #ended = Promise.withResolvers<void>()
  #request: Buffer
  #stopped = false
  #failures = 0
  /** Above 0: trying has been of use. */
  #credit = CREDIT_MAX
  #lookedMs = 0

  /** @param fd of /dev/fuse, which the session closes when it ends */
  constructor(fd: number, operations: Operations, log: Logger) {
    this.#fd = fd
    this.#operations = operations
    this.#log = log
    this.#request = Buffer.allocUnsafeSlow(operations.requestBytesMax)
    const pair = socketPair()
    if (pair === undefined) throw new VarveError('LIMIT_EXCEEDED', 'the process may have no more open files')
    // What the event loop waits for, so that it is found, and kept.
    this.#waker = [new Socket({ fd: pair[0] }), new Socket({ fd: pair[1] })]
    this.#waker[0].resume()
    setImmediate(() => setImmediate(() => this.#start(pair[0])))
  }

  /** Resolves when there will be no more requests: the mount is gone. */
  get ended(): Promise<void> {
    return this.#ended.promise
  }

  /** Lets go of the mount, in use or not: whoever uses it gets errors. */
  stop(): void {
    if (this.#stopped) return
    this.#stopped = true
    closeSync(this.#fd)
    for (const socket of this.#waker) socket.destroy()
    this.#pending.clear()
    this.#ended.resolve()
  }

  #start(watchedFd: number): void {
    const eventLoop = eventLoopOf(watchedFd)
    this.#poll.add(this.#fd, POLLIN)
    if (eventLoop >= 0) this.#poll.add(eventLoop, POLLIN)
    const waitMs = eventLoop >= 0 ? WAIT_MS : TURN_MS
    const turn = (): void => {
      if (this.#stopped) return
      try {
        this.#run(waitMs)
      } catch (error) {
        this.#log.error({ err: error }, 'a mount cannot be served any more')
        this.stop()
      }
      if (!this.#stopped) setImmediate(turn)
    }
    turn()
  }

  /** Until the event loop wants its turn. */
  #run(waitMs: number): void {
    const startMs = performance.now()
    this.#failOverdue(startMs)
    for (let served = 0; !this.#stopped; served++) {
      const length = served === 0 ? readRequest(this.#fd, this.#request) : this.#next()
      if (length === UNMOUNTED) {
        this.stop()
      } else if (length === NOTHING_YET) {
        this.#poll.wait(waitMs)
        if (this.#poll.seen(1) !== 0 || performance.now() - startMs >= TURN_MS) return
      } else if (!this.#serve(this.#request.subarray(0, length)) || (served % 16 === 15 && performance.now() - startMs >= TURN_MS)) {
        return
      }
    }
  }

  /** A program that waits for each answer sends its next request sooner than this thread could fall asleep and be woken. */
  #next(): number {
    const first = readRequest(this.#fd, this.#request)
    if (first !== NOTHING_YET || (this.#credit <= 0 && ++this.#credit <= 0)) return first
    for (let tries = 0; tries < TRIES_MAX; tries++) {
      const length = readRequest(this.#fd, this.#request)
      if (length === NOTHING_YET) continue
      this.#credit = Math.min(CREDIT_MAX, this.#credit + 1)
      return length
    }
    if (--this.#credit === 0) this.#credit = CREDIT_RETRY
    return NOTHING_YET
  }

  /** @returns false if the answer waits for something */
  #serve(bytes: Buffer): boolean {
    const unique = bytes.length < IN_HEADER_BYTES ? 0 : bytes.readUInt32LE(8) + bytes.readUInt32LE(12) * 2 ** 32
    try {
      const request = new Request(bytes)
      switch (request.opcode) {
        case Opcode.forget:
        case Opcode.batchForget:
          return true
        case Opcode.interrupt:
          this.#interrupt(request)
          return true
      }
      const reply = this.#operations.handle(request)
      if (!(reply instanceof Promise)) {
        this.#answer(unique, reply)
        return true
      }
      this.#answerLater(request, reply)
      return false
    } catch (error) {
      this.#fail(unique, bytes.length < IN_HEADER_BYTES ? 0 : bytes.readUInt32LE(4), error)
      return true
    }
  }

  #answerLater(request: Request, reply: Promise<Reply>): void {
    const { unique, opcode } = request
    const pending = { sinceMs: performance.now() }
    this.#pending.set(unique, pending)
    // The bytes of a WRITE are used until it is answered.
    const used = this.#request
    this.#request = this.#buffers.pop() ?? Buffer.allocUnsafeSlow(used.length)
    const isAwaited = (): boolean => {
      if (this.#buffers.length < BUFFERS_KEPT_MAX) this.#buffers.push(used)
      // Otherwise it was interrupted, or took too long, and perhaps another has its number.
      return this.#pending.get(unique) === pending && this.#pending.delete(unique)
    }
    reply.then((done) => {
      if (isAwaited()) this.#answer(unique, done)
      else done.release?.()
    }, (error: unknown) => {
      if (isAwaited()) this.#fail(unique, opcode, error)
    }).catch((error: unknown) => {
      this.#log.error({ err: error }, 'a mount cannot be served any more')
      this.stop()
    })
  }

  #answer(unique: number, reply: Reply): void {
    const { head, parts = [] } = reply
    try {
      const length = parts.reduce((sum, part) => sum + part.length, head.length)
      putOutHeader(head, { length, errno: 0, unique })
      writeAnswer(this.#fd, parts.length === 0 ? [head] : [head, ...parts])
    } finally {
      reply.release?.()
    }
  }

  #fail(unique: number, opcode: number, error: unknown): void {
    const errno = errnoOf(error)
    const head = Buffer.alloc(OUT_HEADER_BYTES)
    putOutHeader(head, { length: OUT_HEADER_BYTES, errno, unique })
    writeAnswer(this.#fd, [head])
    if (error instanceof Refusal || this.#failures > FAILURES_LOGGED_MAX) return
    const isLast = this.#failures++ === FAILURES_LOGGED_MAX
    if (isLast) this.#log.warn('further failures are not told')
    else if (isVarveError(error)) this.#log.warn({ code: error.code, request: opcode }, error.message)
    else this.#log.error({ err: error, request: opcode }, 'a request failed')
  }

  /** Whoever asked has been given a signal: it hears so at once. A request that is not known any more was answered. */
  #interrupt(request: Request): void {
    const interrupted = request.u64(0)
    if (this.#pending.delete(interrupted)) this.#fail(interrupted, Opcode.interrupt, new Refusal(EINTR))
  }

  #failOverdue(nowMs: number): void {
    if (nowMs - this.#lookedMs < WAIT_MS) return
    this.#lookedMs = nowMs
    for (const [unique, { sinceMs }] of this.#pending) {
      // They are in the order in which they came.
      if (nowMs - sinceMs < REQUEST_MS_MAX) break
      this.#pending.delete(unique)
      this.#log.warn({ waitedMs: nowMs - sinceMs }, 'a request was not answered in time')
      this.#fail(unique, 0, new Refusal(ETIMEDOUT))
    }
  }
}
