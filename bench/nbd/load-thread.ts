/**
 * One connection under load, in a thread that blocks on it. Requests are encoded beforehand; after each read from the socket, as many
 * requests as were answered go out in one write. Payloads that are read are passed over while the clock runs; a sample is checked after it.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { parentPort } from 'node:worker_threads'
import { NBD_CMD_DISC, NBD_CMD_READ, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC, REQUEST_HEADER_BYTES, SIMPLE_REPLY_BYTES } from '@varve/blockserver/nbd/protocol.ts'
import { connectBlocking, readExactly, readSome, writeFully } from './blocking-socket.ts'
import { handshake } from './handshake.ts'
import type { ThreadFigures, ThreadLoad, ThreadMessage } from './load.ts'

/** As much as the level-2 cache holds with room to spare. */
const RECEIVE_BYTES = 256 << 10
const SAMPLES = 16

const receive = Buffer.allocUnsafeSlow(RECEIVE_BYTES)

parentPort!.on('message', (load: ThreadLoad) => {
  let fd: number | undefined
  try {
    fd = connectBlocking(load.address)
    handshake(fd, load.exportName)
    say({ state: 'connected' })
    const gate = new Int32Array(load.gate)
    Atomics.add(gate, 0, 1)
    Atomics.wait(gate, 1, 0)
    const figures = new TimedLoad(fd, load).run()
    say({ state: 'timed' })
    checkSample(fd, load, figures.sent)
    writeFully(fd, requestBytes(NBD_CMD_DISC, 0, 0))
    say({ state: 'done', figures })
  } catch (error) {
    say({ state: 'failed', message: `${load.address} ${load.exportName}: ${error instanceof Error ? error.stack : String(error)}` })
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
})

function say(message: ThreadMessage): void {
  parentPort!.postMessage(message)
}

class TimedLoad {
  readonly #fd: number
  readonly #load: ThreadLoad
  readonly #requests: Buffer
  readonly #strideBytes: number
  readonly #payloadBytes: number
  readonly #sentAt: Float64Array
  readonly #latencies: number[] = []
  #next = 0
  #sent = 0

  constructor(fd: number, load: ThreadLoad) {
    this.#fd = fd
    this.#load = load
    this.#requests = Buffer.from(load.requests)
    this.#strideBytes = load.requests.byteLength / load.count
    this.#payloadBytes = load.command === 'read' ? load.requestBytes : 0
    this.#sentAt = new Float64Array(load.count)
  }

  run(): ThreadFigures {
    const { depth, leadMs, timedMs, once, count } = this.#load
    const started = performance.now()
    const timedFrom = started + leadMs
    const end = timedFrom + timedMs
    let last = started
    let requests = 0
    let inFlight = Math.min(depth, count)
    let held = 0
    // Cookie of the reply whose payload comes, or -1, and how much of it is to come.
    let open = -1
    let skip = 0
    this.#send(inFlight, started)
    while (inFlight > 0) {
      const filled = held + readSome(this.#fd, receive, held, RECEIVE_BYTES - held)
      const now = performance.now()
      let at = 0
      let answered = 0
      const timed = now >= timedFrom
      for (;;) {
        if (open >= 0) {
          const part = Math.min(skip, filled - at)
          at += part
          skip -= part
          if (skip > 0) break
          answered++
          if (timed) this.#latencies.push(now - this.#sentAt[open])
        }
        open = -1
        if (filled - at < SIMPLE_REPLY_BYTES) break
        open = replyCookie(at)
        if (open >= count) throw new Error(`a reply to request ${open}, which was not made`)
        at += SIMPLE_REPLY_BYTES
        skip = this.#payloadBytes
      }
      held = filled - at
      if (held > 0) receive.copyWithin(0, at, filled)
      if (answered === 0) continue
      // What comes late is not counted, but its latency is: a server that hangs gains nothing.
      if (timed && now <= end) requests += answered
      last = now
      const more = now >= end ? 0 : once ? Math.min(answered, count - this.#sent) : answered
      inFlight -= answered - more
      if (more > 0) this.#send(more, now)
    }
    return { requests, seconds: (Math.min(last, end) - timedFrom) / 1000, latenciesUs: Float32Array.from(this.#latencies, (ms) => ms * 1000), sent: this.#sent }
  }

  #send(requests: number, now: number): void {
    this.#sent += requests
    while (requests > 0) {
      const part = Math.min(requests, this.#load.count - this.#next)
      this.#sentAt.fill(now, this.#next, this.#next + part)
      writeFully(this.#fd, this.#requests, this.#next * this.#strideBytes, part * this.#strideBytes)
      this.#next = (this.#next + part) % this.#load.count
      requests -= part
    }
  }
}

/** Cookie of the reply whose header is in the receive buffer at `at`. @throws Error if it is not a reply of success */
function replyCookie(at: number): number {
  if (receive.readUInt32BE(at) !== NBD_SIMPLE_REPLY_MAGIC) throw new Error(`a reply has magic number ${receive.readUInt32BE(at).toString(16)}`)
  if (receive.readUInt32BE(at + 4) !== 0) throw new Error(`a request failed with ${receive.readUInt32BE(at + 4)}`)
  return receive.readUInt32BE(at + 12)
}

function requestBytes(command: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(REQUEST_HEADER_BYTES)
  bytes.writeUInt32BE(NBD_REQUEST_MAGIC)
  bytes.writeUInt16BE(command, 6)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}

/** Reads some of what was read or written again, and compares: reads with the raw file, writes with what was sent. */
function checkSample(fd: number, load: ThreadLoad, sent: number): void {
  const requests = Buffer.from(load.requests)
  const strideBytes = requests.length / load.count
  const asked = Math.min(sent, load.count)
  const got = Buffer.alloc(load.requestBytes)
  const raw = openSync(load.rawFile, 'r')
  try {
    for (let sample = 0; sample < Math.min(SAMPLES, asked); sample++) {
      const at = Math.floor((sample * asked) / Math.min(SAMPLES, asked)) * strideBytes
      const offset = Number(requests.readBigUInt64BE(at + 16))
      writeFully(fd, requestBytes(NBD_CMD_READ, offset, load.requestBytes))
      readExactly(fd, receive, 0, SIMPLE_REPLY_BYTES)
      replyCookie(0)
      readExactly(fd, got)
      let expected: Buffer = requests.subarray(at + REQUEST_HEADER_BYTES, at + strideBytes)
      if (load.command === 'read') {
        expected = Buffer.alloc(load.requestBytes)
        readSync(raw, expected, 0, load.requestBytes, offset)
      }
      if (!got.equals(expected)) throw new Error(`${load.requestBytes} bytes at ${offset} are not what they must be`)
    }
  } finally {
    closeSync(raw)
  }
}
