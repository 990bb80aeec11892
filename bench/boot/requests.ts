/**
 * Counts what a client asks for over a line, and what it gets unasked by any guest, from the bytes of the line: NBD (the protocol's "Transmission",
 * doc/proto.md of NBD), and the stream between agent and server (docs/formats/stream.md). So all variants are counted by one judge, at the same place.
 */

export interface RequestCounts {
  /** Messages that are answered. */
  requests: number
  /** Of these, what somebody waits for: reads of a guest, chunks that were missed. */
  misses: number
  /** Down the line, of chunks that only the fill asked for: it uses what the boot leaves of the line. */
  fillBytes: number
}

/** Takes the message at the start of `bytes` into account. @returns its length, with its payload; undefined if more of it is needed to tell */
type Parser = (bytes: Buffer) => number | undefined

const NBD_OPTION_MAGIC = 0x49484156
const NBD_REQUEST_MAGIC = 0x25609513
const NBD_READ = 0
const NBD_WRITE = 1
const STREAM_UPGRADE = 'varve-stream/1'
const FRAME_HEAD_BYTES = 5
/** Frames of an agent that are answered. */
const STREAM_ANSWERED = new Set([1, 2, 3])
const STREAM_GET = 3
const STREAM_CHUNK = 3
const PRIORITY_MISS = 0
const PRIORITY_FILL = 2
const DIGEST_BYTES = 32
/** What is held of a message before its length, or its digests, are known. */
const HELD_BYTES_MAX = (1 << 20) + (64 << 10)

/** One direction of one connection. */
class Messages {
  readonly #parse: Parser
  #held: Buffer = Buffer.alloc(0)
  /** Of a payload that is still to come. */
  #skipBytes = 0

  constructor(parse: Parser) {
    this.#parse = parse
  }

  take(bytes: Buffer): void {
    const skipped = Math.min(this.#skipBytes, bytes.length)
    this.#skipBytes -= skipped
    let held = this.#held.length === 0 ? bytes.subarray(skipped) : Buffer.concat([this.#held, bytes.subarray(skipped)])
    while (held.length > 0) {
      const messageBytes = this.#parse(held)
      if (messageBytes === undefined) {
        if (held.length > HELD_BYTES_MAX) throw new Error('a line carries what is not the protocol that it was said to carry')
        break
      }
      this.#skipBytes = Math.max(0, messageBytes - held.length)
      held = held.subarray(messageBytes)
    }
    // A copy: what the socket read into is its own.
    this.#held = Buffer.from(held)
  }
}

function nbdRequests(counts: RequestCounts): Parser {
  let greeted = false
  return (bytes) => {
    if (bytes.length < 4) return undefined
    if (!greeted) {
      greeted = true
      return 4
    }
    const magic = bytes.readUInt32BE(0)
    if (magic !== NBD_OPTION_MAGIC && magic !== NBD_REQUEST_MAGIC) throw new Error(`an NBD request starts with ${magic.toString(16)}`)
    if (bytes.length < (magic === NBD_OPTION_MAGIC ? 16 : 28)) return undefined
    counts.requests++
    if (magic === NBD_OPTION_MAGIC) return 16 + bytes.readUInt32BE(12)
    const type = bytes.readUInt16BE(6)
    if (type === NBD_READ) counts.misses++
    return 28 + (type === NBD_WRITE ? bytes.readUInt32BE(24) : 0)
  }
}

/** HTTP until the upgrade, frames from then on. */
function framesAfter(upgrade: RegExp, options: { onHead?: () => void; frame: Parser }): Parser {
  let framed = false
  return (bytes) => {
    if (framed) return options.frame(bytes)
    const end = bytes.indexOf('\r\n\r\n')
    if (end < 0) return undefined
    const head = bytes.toString('latin1', 0, end)
    framed = upgrade.test(head)
    options.onHead?.()
    return end + 4 + Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0)
  }
}

/** @param priorities most urgent priority with which each chunk was asked for, by its digest */
function streamRequests(counts: RequestCounts, priorities: Map<string, number>): Parser {
  return framesAfter(new RegExp(`^upgrade: *${STREAM_UPGRADE}`, 'im'), {
    onHead: () => counts.requests++,
    frame(bytes) {
      if (bytes.length < FRAME_HEAD_BYTES) return undefined
      const frameBytes = FRAME_HEAD_BYTES + bytes.readUInt32LE(0)
      const type = bytes[4]
      if (type === STREAM_GET) {
        if (bytes.length < frameBytes) return undefined
        const priority = bytes[FRAME_HEAD_BYTES]
        for (let at = FRAME_HEAD_BYTES + 1; at < frameBytes; at += DIGEST_BYTES) {
          if (priority === PRIORITY_MISS) counts.misses++
          const digest = bytes.toString('latin1', at, at + DIGEST_BYTES)
          priorities.set(digest, Math.min(priority, priorities.get(digest) ?? priority))
        }
      }
      if (STREAM_ANSWERED.has(type)) counts.requests++
      return frameBytes
    },
  })
}

function streamAnswers(counts: RequestCounts, priorities: ReadonlyMap<string, number>): Parser {
  return framesAfter(/^HTTP\/1\.1 101 /, {
    frame(bytes) {
      if (bytes.length < FRAME_HEAD_BYTES) return undefined
      const frameBytes = FRAME_HEAD_BYTES + bytes.readUInt32LE(0)
      if (bytes.length < Math.min(frameBytes, FRAME_HEAD_BYTES + DIGEST_BYTES)) return undefined
      if (bytes[4] === STREAM_CHUNK && priorities.get(bytes.toString('latin1', FRAME_HEAD_BYTES, FRAME_HEAD_BYTES + DIGEST_BYTES)) === PRIORITY_FILL) counts.fillBytes += frameBytes
      return frameBytes
    },
  })
}

/** All connections of a line. */
export class RequestCounter {
  readonly counts: RequestCounts = { requests: 0, misses: 0, fillBytes: 0 }
  readonly #protocol: 'nbd' | 'stream'
  readonly #priorities = new Map<string, number>()
  readonly #sent = new Map<number, Messages>()
  readonly #received = new Map<number, Messages>()

  constructor(protocol: 'nbd' | 'stream') {
    this.#protocol = protocol
  }

  /** What a client sends. @throws Error if it is not the protocol */
  sent(connection: number, bytes: Buffer): void {
    const parser = (): Parser => (this.#protocol === 'nbd' ? nbdRequests(this.counts) : streamRequests(this.counts, this.#priorities))
    messagesOf(this.#sent, connection, parser).take(bytes)
  }

  /** What a server answers. @throws Error if it is not the protocol */
  received(connection: number, bytes: Buffer): void {
    // Of NBD, each byte was asked for by somebody who waits.
    if (this.#protocol === 'stream') messagesOf(this.#received, connection, () => streamAnswers(this.counts, this.#priorities)).take(bytes)
  }
}

function messagesOf(connections: Map<number, Messages>, connection: number, parser: () => Parser): Messages {
  let messages = connections.get(connection)
  if (messages === undefined) connections.set(connection, (messages = new Messages(parser())))
  return messages
}
