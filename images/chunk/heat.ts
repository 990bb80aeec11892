/**
 * Heat: in how many reports chunks were used, where older ones count less: half as much for each HALF_LIFE_MS that has passed. Bytes: docs/formats/heat.md
 */
import { DIGEST_BYTES, digestToHex } from './digest.ts'
import type { Digest } from './digest.ts'
import { VarveError } from '../errors.ts'

export const HEAT_CHUNKS_MAX = 1 << 16
export const HALF_LIFE_MS = 7 * 24 * 3600 * 1000
/** What is colder is forgotten: a use after eight half-lives. */
const HEAT_MIN = 1 / 256
const HEAT_MAX = 2 ** 40

const MAGIC = Buffer.from('VARVHEAT', 'latin1')
const VERSION = 1
const HEADER_BYTES = 24
const ENTRY_BYTES = DIGEST_BYTES + 4

export class Heat {
  /** When the values were right, ms since 1970. */
  readonly timeMs: number
  /** By digest in hexadecimal, hottest first. */
  readonly values: ReadonlyMap<string, number>

  private constructor(timeMs: number, values: Iterable<readonly [string, number]>) {
    this.timeMs = timeMs
    const kept = [...values].map(([key, value]): [string, number] => [key, Math.fround(Math.min(value, HEAT_MAX))]).filter(([, value]) => value >= HEAT_MIN)
    this.values = new Map(kept.sort(([keyA, a], [keyB, b]) => b - a || (keyA < keyB ? -1 : 1)).slice(0, HEAT_CHUNKS_MAX))
  }

  static readonly none = new Heat(0, [])

  /** With another report. @param used chunks, each once @param timeMs of now; a clock that went back counts as standing still */
  with(used: Iterable<Digest>, timeMs: number): Heat {
    const now = Math.max(timeMs, this.timeMs)
    const share = 2 ** ((this.timeMs - now) / HALF_LIFE_MS)
    const values = new Map([...this.values].map(([key, value]) => [key, value * share]))
    for (const digest of used) {
      const key = digestToHex(digest)
      values.set(key, (values.get(key) ?? 0) + 1)
    }
    return new Heat(now, values)
  }

  /** Of a chunk, as of `timeMs`; 0 if it is not known. */
  of(digest: Digest): number {
    return this.values.get(digestToHex(digest)) ?? 0
  }

  encode(): Uint8Array {
    const bytes = Buffer.alloc(HEADER_BYTES + this.values.size * ENTRY_BYTES)
    MAGIC.copy(bytes)
    bytes.writeUInt32LE(VERSION, 8)
    bytes.writeUInt32LE(this.values.size, 12)
    bytes.writeBigUInt64LE(BigInt(this.timeMs), 16)
    let at = HEADER_BYTES
    for (const [key, value] of this.values) {
      bytes.write(key, at, 'hex')
      bytes.writeFloatLE(value, at + DIGEST_BYTES)
      at += ENTRY_BYTES
    }
    return bytes
  }

  /** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
  static decode(encoded: Uint8Array): Heat {
    const bytes = Buffer.from(encoded.buffer, encoded.byteOffset, encoded.byteLength)
    if (bytes.length < HEADER_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) throw invalid('does not start with VARVHEAT')
    const version = bytes.readUInt32LE(8)
    if (version !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `heat: version ${version} is not known; this is version ${VERSION}`)
    const count = bytes.readUInt32LE(12)
    if (count > HEAT_CHUNKS_MAX) throw new VarveError('LIMIT_EXCEEDED', `heat: ${count} chunks are more than ${HEAT_CHUNKS_MAX}`)
    const timeMs = Number(bytes.readBigUInt64LE(16))
    if (bytes.length !== HEADER_BYTES + count * ENTRY_BYTES || !Number.isSafeInteger(timeMs)) throw invalid(`${count} chunks in ${bytes.length} bytes`)
    const values = new Map<string, number>()
    for (let at = HEADER_BYTES; at < bytes.length; at += ENTRY_BYTES) {
      const value = bytes.readFloatLE(at + DIGEST_BYTES)
      if (!(value >= HEAT_MIN && value <= HEAT_MAX)) throw invalid(`a chunk of heat ${value}`)
      values.set(bytes.toString('hex', at, at + DIGEST_BYTES), value)
    }
    if (values.size !== count) throw invalid('a chunk stands in it twice')
    return new Heat(timeMs, values)
  }
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `heat: ${what}`)
}
