/**
 * Content columns: the contents of a TreeBuilder's files, and the chunks that they consist of.
 *
 * Of the content of a file, one word stays in memory (InodeColumns.content): 0 is empty; a chunk number plus 1 is that chunk; with the highest bit,
 * it is where the content's first segment is. A segment is a count of words, where the next segment is (or 0), and the words: a chunk number, or
 * HOLE and the hole's bytes, low and high word.
 */
import { DIGEST_BYTES, digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { ScratchColumn } from './column.ts'
import { KeyTable } from './key-table.ts'
import { CONTENT_BYTES_MAX } from './limits.ts'
import { HOLE } from './tree.ts'
import type { Workspace } from './workspace.ts'

export const DIGEST_WORDS = DIGEST_BYTES / 4

const SEGMENTS_BIT = 0x8000_0000
const SEGMENT_HEADER_WORDS = 2
const WORDS_READ = 8192
const TWO_32 = 2 ** 32

export class ContentColumns {
  readonly #chunks: KeyTable
  readonly chunkBytes: ScratchColumn<Uint32Array>
  readonly #words: ScratchColumn<Uint32Array>
  readonly #digest = new Uint32Array(DIGEST_WORDS)
  readonly #digestBytes = new Uint8Array(this.#digest.buffer)

  constructor(space: Workspace) {
    this.#chunks = new KeyTable(space, DIGEST_WORDS)
    this.chunkBytes = new ScratchColumn(space, new Uint32Array())
    this.#words = new ScratchColumn(space, new Uint32Array())
    // No segment is at 0.
    this.#words.push(0)
  }

  get chunkCount(): number {
    return this.#chunks.count
  }

  /** By chunk, eight words each. */
  get chunkDigests(): ScratchColumn<Uint32Array> {
    return this.#chunks.keys
  }

  /** @throws VarveError FORMAT_INVALID if the digest was added with another length */
  addChunk(digest: Digest, bytes: number): number {
    this.#digestBytes.set(digest)
    const chunk = this.#chunks.add(this.#digest)
    if (chunk === this.chunkBytes.length) this.chunkBytes.push(bytes)
    else if (this.bytesOf(chunk) !== bytes) throw new VarveError('FORMAT_INVALID', `chunk ${digestToHex(digest)} is said to be ${this.bytesOf(chunk)} bytes and ${bytes} bytes`)
    return chunk
  }

  /** Bytes of a chunk. */
  bytesOf(chunk: number): number {
    return this.chunkBytes.peek(chunk)
  }

  /** Adds words to a content. @param segment its last segment, or 0 @returns its last segment now */
  addSegment(words: ArrayLike<number>, segment: number): number {
    const at = this.#words.length
    if (at + SEGMENT_HEADER_WORDS + words.length >= SEGMENTS_BIT) throw new VarveError('LIMIT_EXCEEDED', 'the files of the source have more pieces than a tree can hold')
    this.#words.push(words.length)
    this.#words.push(0)
    this.#words.append(words)
    if (segment !== 0) this.#words.set(segment + 1, at)
    return at
  }

  /** Calls `visit` for each piece of a content in file order, with its chunk or HOLE; and the bytes of a hole. @param content as it is in InodeColumns */
  forEachPiece(content: number, visit: (chunk: number, holeBytes: number) => void): void {
    if (content === 0) return
    if (content < SEGMENTS_BIT) {
      visit(content - 1, 0)
      return
    }
    const header = new Uint32Array(SEGMENT_HEADER_WORDS)
    for (let at = content - SEGMENTS_BIT; at !== 0; at = header[1]) {
      this.#words.read(at, header)
      this.#forEachOfSegment(at + SEGMENT_HEADER_WORDS, header[0], visit)
    }
  }

  #forEachOfSegment(from: number, count: number, visit: (chunk: number, holeBytes: number) => void): void {
    const end = from + count
    const hole = new Uint32Array(2)
    const words = new Uint32Array(Math.min(WORDS_READ, count))
    for (let at = from; at < end; ) {
      const read = words.subarray(0, Math.min(words.length, end - at))
      this.#words.read(at, read)
      let index = 0
      for (; index < read.length; index++) {
        if (read[index] !== HOLE) {
          visit(read[index], 0)
          continue
        }
        this.#words.read(at + index + 1, hole)
        visit(HOLE, hole[1] * TWO_32 + hole[0])
        index += 2
      }
      at += index
    }
  }

  /** Forgets all. */
  clear(): void {
    for (const column of [this.#chunks.keys, this.chunkBytes, this.#words]) column.clear()
    this.close()
  }

  /** No chunk is added any more: what only finds them again is for others. */
  close(): void {
    this.#chunks.close()
  }
}

/** Writes the content of one file, piece by piece in file order. A hole that follows a hole becomes one with it. */
export class ContentWriter {
  readonly #columns: ContentColumns
  readonly #setContent: (content: number) => void
  #words: number[] = []
  #holeBytes = 0
  #sizeBytes = 0
  #first = 0
  #last = 0

  /** @param setContent is given what is to be in InodeColumns */
  constructor(columns: ContentColumns, setContent: (content: number) => void) {
    this.#columns = columns
    this.#setContent = setContent
  }

  /** @param bytes of the piece, at least 1; those of the whole chunk */
  add(chunk: number, bytes: number): void {
    if (!(bytes >= 1)) throw new RangeError('a piece is not empty')
    this.#sizeBytes += bytes
    if (this.#sizeBytes > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a file is larger than ${CONTENT_BYTES_MAX} bytes`)
    if (chunk === HOLE) {
      this.#holeBytes += bytes
      return
    }
    if (chunk >= this.#columns.chunkCount || this.#columns.bytesOf(chunk) !== bytes) throw new RangeError('a piece is not the whole of its chunk')
    this.#endHole()
    this.#words.push(chunk)
    if (this.#words.length >= WORDS_READ) this.#endSegment()
  }

  /** The content is complete. */
  end(): void {
    this.#endHole()
    if (this.#first === 0 && this.#words.length === 1) {
      this.#setContent(this.#words[0] + 1)
      return
    }
    if (this.#words.length > 0) this.#endSegment()
    this.#setContent(this.#first === 0 ? 0 : this.#first + SEGMENTS_BIT)
  }

  #endHole(): void {
    if (this.#holeBytes === 0) return
    this.#words.push(HOLE, this.#holeBytes % TWO_32, Math.floor(this.#holeBytes / TWO_32))
    this.#holeBytes = 0
  }

  #endSegment(): void {
    this.#last = this.#columns.addSegment(this.#words, this.#last)
    if (this.#first === 0) this.#first = this.#last
    this.#words = []
  }
}
