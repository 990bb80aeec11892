/**
 * ChunkTable: numbers chunks in the order in which they are first added; each digest stands in it once.
 * Open addressing over one column of digests: no object and no string per chunk.
 */
import { randomFillSync } from 'node:crypto'
import { DIGEST_BYTES, digestToHex } from './digest.ts'
import type { Digest } from './digest.ts'
import { VarveError } from '../errors.ts'

const DIGEST_WORDS = DIGEST_BYTES / 4
/**
 * Secret multipliers, one for each half of a word, so that nobody can make up digests that fall into one place of the table:
 * sums of 16-bit values times random 32-bit numbers are as good as random in their upper 17 bits, for any two different digests.
 */
const MULTIPLIERS = randomFillSync(new Uint32Array(DIGEST_WORDS * 2))

/** In `repeatedDigest`: so that one digest in 32 shares its place by chance. */
const PLACES_PER_DIGEST = 32
const PLACE_BITS_MAX = 27

export interface ChunkColumns {
  /** 32 bytes a chunk; starts at a multiple of 4 bytes of its buffer. */
  chunkDigests: Uint8Array
  chunkBytes: Uint32Array
}

/** A column of digests as eight words a digest, a view. */
export function digestWords(chunkDigests: Uint8Array): Uint32Array {
  return new Uint32Array(chunkDigests.buffer, chunkDigests.byteOffset, chunkDigests.length / 4)
}

/**
 * Number of a digest that stands earlier in its column too, or -1. The first bits of a digest tell nearly all apart, at a fraction of what
 * a table costs; only those that share them are entered in one.
 * @param words the column, eight words a digest
 */
export function repeatedDigest(words: Uint32Array): number {
  const count = words.length / DIGEST_WORDS
  const bits = Math.min(Math.max(Math.ceil(Math.log2(count * PLACES_PER_DIGEST)), 5), PLACE_BITS_MAX)
  const shift = 32 - bits
  const taken = new Int32Array(2 ** (bits - 5))
  const shared = new Int32Array(2 ** (bits - 5))
  let sharing = 0
  for (let chunk = 0; chunk < count; chunk++) {
    const place = words[chunk * DIGEST_WORDS] >>> shift
    const bit = 1 << (place & 31)
    if ((taken[place >>> 5] & bit) === 0) {
      taken[place >>> 5] |= bit
    } else {
      shared[place >>> 5] |= bit
      sharing++
    }
  }
  if (sharing === 0) return -1
  const table = new ChunkTable(sharing * 2)
  for (let chunk = 0; chunk < count; chunk++) {
    const place = words[chunk * DIGEST_WORDS] >>> shift
    if ((shared[place >>> 5] & (1 << (place & 31))) === 0) continue
    const number = table.count
    if (table.addFrom(words, chunk, 1) !== number) return chunk
  }
  return -1
}

export class ChunkTable {
  #count = 0
  #digests: Uint8Array<ArrayBuffer>
  #words: Uint32Array
  #bytes: Uint32Array
  /** Chunk number + 1, or 0; a power of two, at most half full. */
  #slots: Uint32Array

  /** @param capacity chunks expected; it grows as needed */
  constructor(capacity = 64) {
    const room = Math.max(capacity, 8)
    this.#digests = new Uint8Array(room * DIGEST_BYTES)
    this.#words = new Uint32Array(this.#digests.buffer)
    this.#bytes = new Uint32Array(room)
    this.#slots = new Uint32Array(2 ** Math.ceil(Math.log2(room * 2)))
  }

  get count(): number {
    return this.#count
  }

  /**
   * Number of a chunk, a new one if its digest is not in the table yet.
   * @param bytes length of the chunk
   * @throws VarveError FORMAT_INVALID if the chunk is in the table with another length
   */
  add(digest: Digest, bytes: number): number {
    if (this.#count === this.#bytes.length) this.#grow()
    const end = this.#count * DIGEST_BYTES
    for (let index = 0; index < DIGEST_BYTES; index++) this.#digests[end + index] = digest[index]
    return this.#number(bytes)
  }

  /** As `add`, of a chunk of a column of digests. @param words the column, eight words a digest */
  addFrom(words: Uint32Array, chunk: number, bytes: number): number {
    if (this.#count === this.#bytes.length) this.#grow()
    const from = chunk * DIGEST_WORDS
    const end = this.#count * DIGEST_WORDS
    for (let word = 0; word < DIGEST_WORDS; word++) this.#words[end + word] = words[from + word]
    return this.#number(bytes)
  }

  /** Number of a chunk of a column of digests that is in the table, or -1. @param words the column, eight words a digest */
  find(words: Uint32Array, chunk: number, bytes: number): number {
    const count = this.#count
    const found = this.addFrom(words, chunk, bytes)
    if (found < count) return found
    this.#slots[this.#find(found)] = 0
    this.#count = count
    return -1
  }

  /** As `find`, whatever the chunk's length is. */
  findAny(words: Uint32Array, chunk: number): number {
    if (this.#count === this.#bytes.length) this.#grow()
    const from = chunk * DIGEST_WORDS
    const end = this.#count * DIGEST_WORDS
    for (let word = 0; word < DIGEST_WORDS; word++) this.#words[end + word] = words[from + word]
    return this.#slots[this.#find(this.#count)] - 1
  }

  /** Number of the chunk whose digest stands behind the last one: that place is kept for it if it is new. */
  #number(bytes: number): number {
    const slot = this.#find(this.#count)
    const found = this.#slots[slot] - 1
    if (found < 0) {
      this.#bytes[this.#count] = bytes
      this.#slots[slot] = ++this.#count
      return this.#count - 1
    }
    if (this.#bytes[found] !== bytes) {
      throw new VarveError('FORMAT_INVALID', `chunk ${digestToHex(this.digest(found))} is said to be ${this.#bytes[found]} bytes and ${bytes} bytes`)
    }
    return found
  }

  /** The digests, eight words each; a view that is valid until the next chunk is added. */
  get words(): Uint32Array {
    return this.#words
  }

  /** Length of a chunk, bytes. */
  bytes(chunk: number): number {
    return this.#bytes[chunk]
  }

  /** The columns: 32 bytes a chunk, and lengths. */
  columns(): ChunkColumns {
    return { chunkDigests: this.#digests.slice(0, this.#count * DIGEST_BYTES), chunkBytes: this.#bytes.slice(0, this.#count) }
  }

  /** The columns of some of the chunks. @param chunks their numbers, in the new order */
  columnsOf(chunks: Uint32Array): ChunkColumns {
    const words = new Uint32Array(chunks.length * DIGEST_WORDS)
    const chunkBytes = new Uint32Array(chunks.length)
    for (let index = 0; index < chunks.length; index++) {
      const from = chunks[index] * DIGEST_WORDS
      const to = index * DIGEST_WORDS
      for (let word = 0; word < DIGEST_WORDS; word++) words[to + word] = this.#words[from + word]
      chunkBytes[index] = this.#bytes[chunks[index]]
    }
    return { chunkDigests: new Uint8Array(words.buffer), chunkBytes }
  }

  /** 32 bytes, a view that is valid until the next chunk is added. */
  digest(chunk: number): Digest {
    return this.#digests.subarray(chunk * DIGEST_BYTES, (chunk + 1) * DIGEST_BYTES)
  }

  /** Slot that holds the digest at `chunk` of the column, or the free one where it belongs. */
  #find(chunk: number): number {
    const words = this.#words
    const mask = this.#slots.length - 1
    const at = chunk * DIGEST_WORDS
    const hash = hashOf(words, at)
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const found = this.#slots[slot] - 1
      if (found < 0 || this.#same(found * DIGEST_WORDS, at)) return slot
    }
  }

  #same(one: number, other: number): boolean {
    const words = this.#words
    for (let word = 0; word < DIGEST_WORDS; word++) if (words[one + word] !== words[other + word]) return false
    return true
  }

  #grow(): void {
    const room = this.#bytes.length * 2
    const digests = new Uint8Array(room * DIGEST_BYTES)
    digests.set(this.#digests)
    this.#digests = digests
    this.#words = new Uint32Array(digests.buffer)
    const bytes = new Uint32Array(room)
    bytes.set(this.#bytes)
    this.#bytes = bytes
    this.#slots = new Uint32Array(this.#slots.length * 2)
    const mask = this.#slots.length - 1
    for (let chunk = 0; chunk < this.#count; chunk++) {
      let slot = hashOf(this.#words, chunk * DIGEST_WORDS) & mask
      while (this.#slots[slot] !== 0) slot = (slot + 1) & mask
      this.#slots[slot] = chunk + 1
    }
  }
}

/** 32 bits of the digest of eight words from `at`; the last step spreads the good upper bits of the sum over all. */
function hashOf(words: Uint32Array, at: number): number {
  let sum = 0
  for (let word = 0; word < DIGEST_WORDS; word++) {
    const value = words[at + word]
    sum = (sum + Math.imul(value & 0xffff, MULTIPLIERS[2 * word]) + Math.imul(value >>> 16, MULTIPLIERS[2 * word + 1])) | 0
  }
  sum = Math.imul(sum ^ (sum >>> 16), 0x85ebca6b)
  sum = Math.imul(sum ^ (sum >>> 13), 0xc2b2ae35)
  return sum ^ (sum >>> 16)
}
