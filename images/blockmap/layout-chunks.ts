/**
 * LayoutChunks: numbers the chunks of a laid-out disk in the order in which its extents first use them; each digest gets one number.
 * The chunks of one tree differ among themselves: those of the largest are numbered without a table, and compared with the few others only
 * where the digests begin alike.
 */
import { ChunkTable, digestWords } from '../chunk/chunk-table.ts'
import type { ChunkColumns } from '../chunk/chunk-table.ts'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import type { Tree } from '../tree/tree.ts'

const DIGEST_WORDS = DIGEST_BYTES / 4

export class LayoutChunks {
  readonly #largest: Tree | undefined
  readonly #largestWords: Uint32Array
  /** By chunk of the largest tree: its number on the disk, or -1. */
  readonly #largestNumbers: Int32Array
  readonly #others: ChunkTable
  /** By chunk of #others: its number on the disk, or -1. */
  readonly #otherNumbers: Int32Array
  /** 1 for each 16 bits that a digest of #others begins with. */
  readonly #otherBeginnings = new Uint8Array(0x10000)
  /** Of each tree but the largest: number among #others, by chunk. */
  readonly #otherOf = new Map<Tree, Uint32Array>()
  #count = 0
  readonly #words: Uint32Array
  readonly #bytes: Uint32Array

  /** @param others what was generated; chunks of smaller trees are added */
  constructor(trees: readonly Tree[], others: ChunkTable) {
    this.#largest = trees.reduce<Tree | undefined>((largest, tree) => (largest !== undefined && largest.chunkCount >= tree.chunkCount ? largest : tree), undefined)
    this.#largestWords = digestWords(this.#largest?.chunkDigests ?? new Uint8Array())
    this.#largestNumbers = new Int32Array(this.#largest?.chunkCount ?? 0).fill(-1)
    for (const tree of trees) {
      if (tree !== this.#largest) this.#otherOf.set(tree, Uint32Array.from(tree.chunkBytes, (bytes, chunk) => others.add(tree.chunkDigest(chunk), bytes)))
    }
    this.#others = others
    this.#otherNumbers = new Int32Array(others.count).fill(-1)
    for (let other = 0; other < others.count; other++) this.#otherBeginnings[beginning(others.digest(other), 0)] = 1
    const room = this.#largestNumbers.length + others.count
    this.#words = new Uint32Array(room * DIGEST_WORDS)
    this.#bytes = new Uint32Array(room)
  }

  /** Number on the disk of a chunk of a tree. @throws VarveError FORMAT_INVALID if two say different lengths of one digest */
  of(tree: Tree, chunk: number): number {
    if (tree !== this.#largest) return this.ofOther(this.#otherOf.get(tree)![chunk])
    let number = this.#largestNumbers[chunk]
    if (number >= 0) return number
    const isAlone = this.#otherBeginnings[beginning(tree.chunkDigests, chunk * DIGEST_BYTES)] === 0
    const other = isAlone ? -1 : this.#others.find(this.#largestWords, chunk, tree.chunkBytes[chunk])
    number = other >= 0 ? this.ofOther(other) : this.#append(this.#largestWords, chunk, tree.chunkBytes[chunk])
    this.#largestNumbers[chunk] = number
    return number
  }

  /** Number on the disk of a chunk that was generated. @param other its number in the table that was given */
  ofOther(other: number): number {
    if (this.#otherNumbers[other] < 0) this.#otherNumbers[other] = this.#append(this.#others.words, other, this.#others.bytes(other))
    return this.#otherNumbers[other]
  }

  /** The columns of the chunks that have a number. */
  columns(): ChunkColumns {
    return { chunkDigests: new Uint8Array(this.#words.buffer, 0, this.#count * DIGEST_BYTES), chunkBytes: this.#bytes.subarray(0, this.#count) }
  }

  #append(words: Uint32Array, chunk: number, bytes: number): number {
    const number = this.#count++
    const from = chunk * DIGEST_WORDS
    const to = number * DIGEST_WORDS
    for (let word = 0; word < DIGEST_WORDS; word++) this.#words[to + word] = words[from + word]
    this.#bytes[number] = bytes
    return number
  }
}

function beginning(digests: Uint8Array, at: number): number {
  return digests[at] | (digests[at + 1] << 8)
}
