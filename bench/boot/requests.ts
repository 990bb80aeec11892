/**
 * Counts what a client asks for over a line, from the bytes that it sends: NBD (the protocol's "Transmission", doc/proto.md of NBD), and the stream
 * between agent and server (docs/formats/stream.md). So all variants are counted by one judge, at the same place.
 */

export interface RequestCounts {
  /** Messages that are answered. */
  requests: number
  /** Of these, what somebody waits for: reads of a guest, chunks that were missed. */
  misses: number
}

interface Message extends RequestCounts {
  /** With its payload. */
  bytes: number
}

/** @returns the message at the start of `bytes`; undefined if more of it is needed to tell */
type Parser = (bytes: Buffer) => Message | undefined

const NBD_OPTION_MAGIC = 0x49484156
const NBD_REQUEST_MAGIC = 0x25609513
const NBD_READ = 0
const NBD_WRITE = 1
const STREAM_UPGRADE = 'varve-stream/1'
/** Frames that are answered. */
const STREAM_ANSWERED = new Set([1, 2, 3])
const STREAM_GET = 3
const DIGEST_BYTES = 32
/** What a message may take before its length is known. */
const HEAD_BYTES_MAX = 64 << 10

/** One direction of one connection. */
class Requests {
  readonly #parse: Parser
  #held: Buffer = Buffer.alloc(0)
  /** Of a payload that is still to come. */
  #skipBytes = 0

  constructor(parse: Parser) {
    this.#parse = parse
  }

  take(bytes: Buffer, counts: RequestCounts): void {
    const skipped = Math.min(this.#skipBytes, bytes.length)
    this.#skipBytes -= skipped
    let held = this.#held.length === 0 ? bytes.subarray(skipped) : Buffer.concat([this.#held, bytes.subarray(skipped)])
    while (held.length > 0) {
      const message = this.#parse(held)
      if (message === undefined) {
        if (held.length > HEAD_BYTES_MAX) throw new Error('a client sends what is not the protocol that it was said to speak')
        break
      }
      counts.requests += message.requests
      counts.misses += message.misses
      this.#skipBytes = Math.max(0, message.bytes - held.length)
      held = held.subarray(message.bytes)
    }
    // A copy: what the socket read into is its own.
    this.#held = Buffer.from(held)
  }
}

function nbdParser(): Parser {
  let greeted = false
  return (bytes) => {
    if (bytes.length < 4) return undefined
    if (!greeted) {
      greeted = true
      return { bytes: 4, requests: 0, misses: 0 }
    }
    const magic = bytes.readUInt32BE(0)
    if (magic === NBD_OPTION_MAGIC) return bytes.length < 16 ? undefined : { bytes: 16 + bytes.readUInt32BE(12), requests: 1, misses: 0 }
    if (magic !== NBD_REQUEST_MAGIC) throw new Error(`an NBD request starts with ${magic.toString(16)}`)
    if (bytes.length < 28) return undefined
    const type = bytes.readUInt16BE(6)
    return { bytes: 28 + (type === NBD_WRITE ? bytes.readUInt32BE(24) : 0), requests: 1, misses: type === NBD_READ ? 1 : 0 }
  }
}

function streamParser(): Parser {
  let framed = false
  return (bytes) => {
    if (framed) return frame(bytes)
    const end = bytes.indexOf('\r\n\r\n')
    if (end < 0) return undefined
    const head = bytes.toString('latin1', 0, end)
    framed = new RegExp(`^upgrade: *${STREAM_UPGRADE}`, 'im').test(head)
    return { bytes: end + 4 + Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0), requests: 1, misses: 0 }
  }
}

function frame(bytes: Buffer): Message | undefined {
  if (bytes.length < 6) return undefined
  const payloadBytes = bytes.readUInt32LE(0)
  const type = bytes[4]
  const missed = type === STREAM_GET && bytes[5] === 0
  return { bytes: 5 + payloadBytes, requests: STREAM_ANSWERED.has(type) ? 1 : 0, misses: missed ? (payloadBytes - 1) / DIGEST_BYTES : 0 }
}

/** All connections of a line. */
export class RequestCounter {
  readonly counts: RequestCounts = { requests: 0, misses: 0 }
  readonly #parser: () => Parser
  readonly #connections = new Map<number, Requests>()

  constructor(protocol: 'nbd' | 'stream') {
    this.#parser = protocol === 'nbd' ? nbdParser : streamParser
  }

  /** @throws Error if it is not the protocol */
  take(connection: number, bytes: Buffer): void {
    let requests = this.#connections.get(connection)
    if (requests === undefined) this.#connections.set(connection, (requests = new Requests(this.#parser())))
    requests.take(bytes, this.counts)
  }
}
