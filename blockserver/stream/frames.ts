/**
 * Frames of the stream between agent and server: types, limits, and the reader that takes a byte stream apart. Bytes: docs/formats/stream.md
 * What is in a payload is its sender's and receiver's affair.
 */
import { VarveError } from '@varve/images/errors.ts'
import { DIGEST_BYTES } from '@varve/images/chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '@varve/images/chunk/limits.ts'

export const STREAM_PROTOCOL = 'varve-stream/1'
export const STREAM_PATH = '/v1/stream'

/** From the server. */
export const ServerFrame = { HELLO: 1, DISK: 2, CHUNK: 3, CHUNK_ERROR: 4, PONG: 5, ERROR: 6 } as const
/** From the agent. */
export const AgentFrame = { AUTH: 1, OPEN: 2, GET: 3, CANCEL: 4, WINDOW: 5, PING: 6, HEAT: 7, BOOT: 8 } as const
/** Of GET: lower is more urgent. */
export const Priority = { MISS: 0, BOOT: 1, FILL: 2 } as const
export type Priority = (typeof Priority)[keyof typeof Priority]

export const FRAME_HEADER_BYTES = 5
export const CHUNK_HEADER_BYTES = DIGEST_BYTES + 5
export const CHALLENGE_BYTES = 32
/** Payload of any frame. */
export const FRAME_BYTES_MAX = CHUNK_BYTES_MAX + 64
/** Digests of one GET. */
export const GET_DIGESTS_MAX = 32768
/** Digests that wait on one connection. */
export const WAITING_DIGESTS_MAX = 65536

export function frameHeader(type: number, payloadBytes: number): Buffer {
  const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES)
  header.writeUInt32LE(payloadBytes, 0)
  header[4] = type
  return header
}

export function frame(type: number, ...parts: readonly Uint8Array[]): Buffer {
  return Buffer.concat([frameHeader(type, parts.reduce((sum, part) => sum + part.length, 0)), ...parts])
}

export function jsonFrame(type: number, value: object): Buffer {
  return frame(type, Buffer.from(JSON.stringify(value)))
}

/** What is signed by AUTH. */
export function signedChallenge(challenge: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`${STREAM_PROTOCOL}\0`, 'latin1'), challenge])
}

/** Takes frames out of a stream of bytes. Holds one frame at most. */
export class FrameReader {
  readonly #take: (type: number, payload: Buffer) => void
  /** What came of a frame that is not whole, and how many bytes it needs to be so. */
  #parts: Buffer[] = []
  #held = 0
  #wanted = FRAME_HEADER_BYTES
  /** Payload of the frames that are still to come, at most. */
  bytesMax = FRAME_BYTES_MAX

  /** @param take is called with each frame; the payload is only good until it returns */
  constructor(take: (type: number, payload: Buffer) => void) {
    this.#take = take
  }

  /** @throws VarveError PROTOCOL_INVALID, and what `take` throws */
  push(bytes: Buffer): void {
    let rest = bytes
    if (this.#held > 0) {
      // Only what the frame, or its header, lacks is joined to what was held.
      for (;;) {
        const lacking = this.#wanted - this.#held
        if (rest.length < lacking) return this.#hold(rest)
        this.#hold(rest.subarray(0, lacking))
        rest = rest.subarray(lacking)
        const joined = this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts)
        this.#parts = [joined]
        const whole = FRAME_HEADER_BYTES + this.#payloadBytes(joined)
        if (joined.length < whole) {
          this.#wanted = whole
          continue
        }
        this.#parts = []
        this.#held = 0
        this.#wanted = FRAME_HEADER_BYTES
        this.#take(joined[4], joined.subarray(FRAME_HEADER_BYTES))
        break
      }
    }
    while (rest.length >= FRAME_HEADER_BYTES) {
      const end = FRAME_HEADER_BYTES + this.#payloadBytes(rest)
      if (rest.length < end) {
        this.#wanted = end
        break
      }
      this.#take(rest[4], rest.subarray(FRAME_HEADER_BYTES, end))
      rest = rest.subarray(end)
    }
    if (rest.length > 0) this.#hold(rest)
  }

  #hold(bytes: Buffer): void {
    this.#parts.push(bytes)
    this.#held += bytes.length
  }

  #payloadBytes(header: Buffer): number {
    const bytes = header.readUInt32LE(0)
    if (bytes > this.bytesMax) throw new VarveError('PROTOCOL_INVALID', `a frame of ${bytes} bytes; at most ${this.bytesMax} are allowed`)
    return bytes
  }
}
