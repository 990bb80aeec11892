/**
 * Objects: byte strings of up to 1 GiB (trees, block maps) kept as chunks. An object is named by the digest of its root chunk, which
 * holds it whole if it is short, and otherwise lists its pieces, cut by content so that versions share them.
 * One content has one root. Bytes: docs/formats/object.md.
 */
import { cutContent } from '../chunk/cut.ts'
import { DIGEST_BYTES, digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX, CUT_BYTES_MIN, SEGMENT_BYTES } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import type { ChunkStore, ChunkWriter } from './chunk-store.ts'

/** Largest object that is written or read, bytes. */
export const OBJECT_BYTES_MAX = 1 << 30
/** An object up to this size stands in its root. */
const INLINE_BYTES_MAX = CUT_BYTES_MIN
const HEADER_BYTES = 16
const PIECE_BYTES = DIGEST_BYTES + 4
/** More do not fit a root chunk; pieces of 16 KiB or more need 65536 only for an object at the limit of badly cut content. */
const PIECES_MAX = Math.floor((CHUNK_BYTES_MAX - HEADER_BYTES) / PIECE_BYTES)
const MAGIC = Buffer.from('VARVOBJ1', 'latin1')

interface Root {
  /** Bytes of the object. */
  length: number
  inline?: Uint8Array
  pieces: { digest: Digest; length: number }[]
}

/**
 * Stores `bytes`. Visible and durable once the writer commits.
 * @returns digest of the root chunk
 * @throws VarveError LIMIT_EXCEEDED above OBJECT_BYTES_MAX
 */
export function putObject(writer: ChunkWriter, bytes: Uint8Array): Digest {
  const object = new ObjectWriter(writer)
  object.write(bytes)
  return object.end()
}

/** Stores an object as its bytes come. It holds a segment of them at most. */
export class ObjectWriter {
  readonly #writer: ChunkWriter
  readonly #parts: Uint8Array[] = []
  /** Grows up to a segment. */
  #segment = new Uint8Array(INLINE_BYTES_MAX)
  #filled = 0
  #length = 0

  constructor(writer: ChunkWriter) {
    this.#writer = writer
  }

  /** The next bytes, which the caller may reuse. @throws VarveError LIMIT_EXCEEDED above OBJECT_BYTES_MAX */
  write(bytes: Uint8Array): void {
    this.#length += bytes.length
    if (this.#length > OBJECT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `an object of more than ${OBJECT_BYTES_MAX} bytes, which are the most that are allowed`)
    for (let done = 0; done < bytes.length; ) {
      if (this.#filled === this.#segment.length) this.#makeRoom(bytes.length - done)
      const part = bytes.subarray(done, done + this.#segment.length - this.#filled)
      this.#segment.set(part, this.#filled)
      this.#filled += part.length
      done += part.length
    }
  }

  /** @returns digest of the root chunk; visible and durable once the writer commits */
  end(): Digest {
    const last = this.#segment.subarray(0, this.#filled)
    if (this.#length <= INLINE_BYTES_MAX) return this.#writer.put(Buffer.concat([header(this.#length, 0), last]))
    this.#cut(last)
    if (this.#parts.length > PIECES_MAX) throw new VarveError('LIMIT_EXCEEDED', `an object of ${this.#parts.length} pieces; at most ${PIECES_MAX} are allowed`)
    return this.#writer.put(Buffer.concat([header(this.#length, this.#parts.length), ...this.#parts]))
  }

  /** @param wanted bytes that are at hand */
  #makeRoom(wanted: number): void {
    if (this.#filled === SEGMENT_BYTES) {
      this.#cut(this.#segment)
      this.#filled = 0
      return
    }
    const grown = new Uint8Array(Math.min(SEGMENT_BYTES, Math.max(this.#filled * 2, this.#filled + wanted)))
    grown.set(this.#segment)
    this.#segment = grown
  }

  #cut(content: Uint8Array): void {
    let start = 0
    for (const end of cutContent(content)) {
      this.#parts.push(piece(this.#writer.put(content.subarray(start, end)), end - start))
      start = end
    }
  }
}

/**
 * The bytes of an object. Without a promise if the store answers without one.
 * @throws VarveError FORMAT_INVALID if `digest` does not name an object; CHUNK_MISSING, CHUNK_CORRUPT
 */
export function getObject(store: ChunkStore, digest: Digest): Uint8Array | Promise<Uint8Array> {
  return chained(store.get(digest), (bytes) => {
    const root = decodeRoot(bytes, digest)
    if (root.inline !== undefined) return root.inline
    const object = Buffer.allocUnsafe(root.length)
    return readPieces(store, root, object, 0, 0)
  })
}

/** Digests of all chunks that an object consists of, its root first. Reads the root only. */
export function objectChunks(store: ChunkStore, digest: Digest): Digest[] | Promise<Digest[]> {
  return chained(store.get(digest), (bytes) => [digest, ...decodeRoot(bytes, digest).pieces.map((part) => part.digest)])
}

function readPieces(store: ChunkStore, root: Root, object: Uint8Array, from: number, start: number): Uint8Array | Promise<Uint8Array> {
  let at = start
  for (let index = from; index < root.pieces.length; index++) {
    const content = store.get(root.pieces[index].digest)
    const place = at
    if (content instanceof Promise) {
      return content.then((bytes) => {
        setPiece(object, place, bytes, root.pieces[index])
        return readPieces(store, root, object, index + 1, place + bytes.length)
      })
    }
    setPiece(object, place, content, root.pieces[index])
    at += content.length
  }
  return object
}

function setPiece(object: Uint8Array, at: number, bytes: Uint8Array, expected: Root['pieces'][number]): void {
  if (bytes.length !== expected.length) throw new VarveError('FORMAT_INVALID', `chunk ${digestToHex(expected.digest)} has ${bytes.length} bytes, its object says ${expected.length}`)
  object.set(bytes, at)
}

function header(length: number, pieces: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES)
  MAGIC.copy(bytes)
  bytes.writeUInt32LE(length, 8)
  bytes.writeUInt32LE(pieces, 12)
  return bytes
}

function piece(digest: Digest, length: number): Buffer {
  const bytes = Buffer.alloc(PIECE_BYTES)
  bytes.set(digest)
  bytes.writeUInt32LE(length, DIGEST_BYTES)
  return bytes
}

function decodeRoot(bytes: Uint8Array, digest: Digest): Root {
  const root = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const refuse = (problem: string) => new VarveError('FORMAT_INVALID', `chunk ${digestToHex(digest)} is not the root of an object: ${problem}`)
  if (root.length < HEADER_BYTES || !root.subarray(0, MAGIC.length).equals(MAGIC)) throw refuse('it does not begin as one')
  const length = root.readUInt32LE(8)
  const count = root.readUInt32LE(12)
  if (length > OBJECT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `an object of ${length} bytes; at most ${OBJECT_BYTES_MAX} are allowed`)
  if (count === 0) {
    if (length > INLINE_BYTES_MAX || root.length !== HEADER_BYTES + length) throw refuse(`${root.length} bytes for a content of ${length}`)
    return { length, inline: root.subarray(HEADER_BYTES), pieces: [] }
  }
  if (length <= INLINE_BYTES_MAX || count > PIECES_MAX || root.length !== HEADER_BYTES + count * PIECE_BYTES) throw refuse(`${root.length} bytes for ${count} pieces`)
  const pieces: Root['pieces'] = []
  let sum = 0
  for (let at = HEADER_BYTES; at < root.length; at += PIECE_BYTES) {
    const pieceLength = root.readUInt32LE(at + DIGEST_BYTES)
    if (pieceLength < 1 || pieceLength > CHUNK_BYTES_MAX) throw refuse(`a piece of ${pieceLength} bytes`)
    pieces.push({ digest: root.subarray(at, at + DIGEST_BYTES), length: pieceLength })
    sum += pieceLength
  }
  if (sum !== length) throw refuse(`pieces of ${sum} bytes for a content of ${length}`)
  return { length, pieces }
}

function chained<A, B>(value: A | Promise<A>, next: (value: A) => B | Promise<B>): B | Promise<B> {
  return value instanceof Promise ? value.then(next) : next(value)
}
