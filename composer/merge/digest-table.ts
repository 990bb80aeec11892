/**
 * DigestTable: numbers distinct digests in the order in which they come. An open-addressing table over one array of digests;
 * no object and no string per digest. Slots are chosen with secret factors, since the digests of a tree come from outside
 * and could be made to fall into one slot.
 */
import { randomFillSync } from 'node:crypto'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'

const WORDS = 8

export class DigestTable {
  #count = 0
  readonly #words: Uint32Array<ArrayBuffer>
  readonly #bytes: Uint32Array
  /** Number + 1 of the digest in each slot, 0 where free; a power of two, at most half full. */
  readonly #slots: Uint32Array
  readonly #factors = randomFillSync(new Uint32Array(WORDS))
  readonly #probe = new Uint32Array(WORDS)
  readonly #probeBytes = Buffer.from(this.#probe.buffer)

  /** @param countMax how many distinct digests may come */
  constructor(countMax: number) {
    this.#words = new Uint32Array(countMax * WORDS)
    this.#bytes = new Uint32Array(countMax)
    this.#slots = new Uint32Array(2 ** Math.ceil(Math.log2(countMax * 2 + 1)))
  }

  /**
   * @param from array that holds the 32 bytes of the digest at `offset`
   * @param bytes length of its chunk
   * @returns the digest's number
   * @throws VarveError FORMAT_INVALID if the digest has come before with another length
   */
  add(from: Uint8Array, offset: number, bytes: number): number {
    const probe = this.#probe
    this.#probeBytes.set(offset === 0 && from.length === 32 ? from : from.subarray(offset, offset + 32))
    const slots = this.#slots
    const words = this.#words
    let slot = this.#hash(probe) & (slots.length - 1)
    for (; slots[slot] !== 0; slot = (slot + 1) & (slots.length - 1)) {
      const at = (slots[slot] - 1) * WORDS
      let word = 0
      while (word < WORDS && words[at + word] === probe[word]) word++
      if (word < WORDS) continue
      const known = slots[slot] - 1
      if (this.#bytes[known] !== bytes) {
        throw new VarveError('FORMAT_INVALID', `the layers give chunk ${digestToHex(this.#probeBytes)} two lengths, ${this.#bytes[known]} and ${bytes} bytes; import them again`)
      }
      return known
    }
    words.set(probe, this.#count * WORDS)
    this.#bytes[this.#count] = bytes
    slots[slot] = ++this.#count
    return this.#count - 1
  }

  /** 32 bytes each, by number. */
  digests(): Uint8Array {
    return new Uint8Array(this.#words.buffer.slice(0, this.#count * WORDS * 4))
  }

  /** Length of the chunk of each, by number. */
  bytes(): Uint32Array {
    return this.#bytes.slice(0, this.#count)
  }

  #hash(words: Uint32Array): number {
    let hash = 0
    for (let word = 0; word < WORDS; word++) {
      hash = Math.imul(hash ^ words[word], this.#factors[word] | 1)
      hash ^= hash >>> 15
    }
    return hash >>> 0
  }
}
