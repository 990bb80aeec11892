/**
 * Pack scan: walks the records of a pack file without the index, and finds its way behind damage.
 * Every byte is taken as coming from outside; memory is one window.
 */
import { fstatSync, readSync } from 'node:fs'
import { decompress } from '../chunk/codec.ts'
import { digestOf, digestToHex } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { PACK_HEADER_BYTES, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, decodeRecordHeader, nextRecordMagic } from './pack-format.ts'
import type { RecordHeader } from './pack-format.ts'

/** A whole record fits, and several. */
const DATA_WINDOW_BYTES = 4 * RECORD_BYTES_MAX
/** When only headers are wanted. */
const HEADER_WINDOW_BYTES = 4096

/** A record, or a stretch that is none. */
export interface ScannedRecord {
  offset: number
  /** Bytes of the record or of the stretch. */
  length: number
  /** Undefined for a stretch without a valid header. */
  header?: RecordHeader
  /** What is wrong; undefined for a good record. */
  problem?: string
}

/**
 * The records of a pack in order, from behind the pack's header.
 * @param to end of what is looked at, bytes from the start of the file
 * @param readData false: headers only
 */
export function* scanPack(fd: number, { to, readData }: { to: number; readData: boolean }): Generator<ScannedRecord> {
  const window = new Window(fd, Math.min(to, fstatSync(fd).size), readData ? DATA_WINDOW_BYTES : HEADER_WINDOW_BYTES)
  for (let at = PACK_HEADER_BYTES; at < window.end; ) {
    const header = headerAt(window, at)
    if (header === undefined) {
      const next = nextHeader(window, at + 1)
      yield { offset: at, length: next - at, problem: `no valid record in ${next - at} bytes` }
      at = next
      continue
    }
    const length = RECORD_HEADER_BYTES + header.stored
    yield { offset: at, length, header, problem: readData ? contentProblem(window.bytes(at, length).subarray(RECORD_HEADER_BYTES), header) : undefined }
    at += length
  }
}

/** What is wrong with a payload; undefined if it holds the content that its header names. */
export function contentProblem(payload: Uint8Array, header: RecordHeader): string | undefined {
  try {
    const actual = digestOf(decompress(header.codec, payload, header.raw))
    return Buffer.compare(actual, header.digest) === 0 ? undefined : `content hashes to ${digestToHex(actual)}`
  } catch (error) {
    return (error as Error).message
  }
}

/** A valid header at `at` whose payload ends inside the window's file. */
function headerAt(window: Window, at: number): RecordHeader | undefined {
  if (at + RECORD_HEADER_BYTES > window.end) return undefined
  const header = decodeRecordHeader(window.bytes(at, RECORD_HEADER_BYTES), 0)
  return header !== undefined && at + RECORD_HEADER_BYTES + header.stored <= window.end ? header : undefined
}

/** Place of the first valid header at `from` or behind it; the end if there is none. */
function nextHeader(window: Window, from: number): number {
  let at = from
  while (at + RECORD_HEADER_BYTES <= window.end) {
    const bytes = window.rest(at, RECORD_HEADER_BYTES)
    const found = nextRecordMagic(bytes, 0)
    if (found < 0) at += bytes.length - 3
    else if (found > 0) at += found
    else if (headerAt(window, at) !== undefined) return at
    else at++
  }
  return window.end
}

/** Part of a file in memory. */
class Window {
  readonly #fd: number
  readonly #buffer: Buffer
  #start = 0
  #filled = 0
  /** No byte at or behind it is looked at. */
  readonly end: number

  constructor(fd: number, end: number, windowBytes: number) {
    this.#fd = fd
    this.end = end
    this.#buffer = Buffer.allocUnsafeSlow(windowBytes)
  }

  /** `length` bytes at `at`, valid until the next call. The caller keeps inside `end`. */
  bytes(at: number, length: number): Buffer {
    return this.rest(at, length).subarray(0, length)
  }

  /** All that is in memory from `at` on, at least `length` bytes. */
  rest(at: number, length: number): Buffer {
    if (at < this.#start || at + length > this.#start + this.#filled) this.#fill(at)
    return this.#buffer.subarray(at - this.#start, this.#filled)
  }

  #fill(at: number): void {
    this.#start = at
    this.#filled = 0
    const wanted = Math.min(this.#buffer.length, this.end - at)
    while (this.#filled < wanted) {
      const bytes = readSync(this.#fd, this.#buffer, this.#filled, wanted - this.#filled, at + this.#filled)
      if (bytes === 0) {
        // The file became shorter while it was read: what is missing reads as zeroes, which no record is.
        this.#buffer.fill(0, this.#filled, wanted)
        this.#filled = wanted
      } else this.#filled += bytes
    }
  }
}

/** Reads all of `target`. @throws VarveError PACK_INVALID where the file ends before */
export function readFully(fd: number, target: Uint8Array, position: number): void {
  for (let done = 0; done < target.length; ) {
    const bytes = readSync(fd, target, done, target.length - done, position + done)
    if (bytes === 0) throw new VarveError('PACK_INVALID', `the pack ends after ${done} of ${target.length} bytes`)
    done += bytes
  }
}
