/**
 * DigestTable: numbers distinct digests in the order in which they come. An open-addressing table over one array of digests;
 * no object and no string per digest. Slots are chosen with secret factors, since the digests of a tree come from outside
 * and could be made to fall into one slot.
 */
import { randomFillSync } from 'node:crypto'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'

const WORDS = 8
const COUNT_INITIAL = 1024

export class DigestTable {
  #count = 0
  #words = new Uint32Array(COUNT_INITIAL * WORDS)
  #bytes = new Uint32Array(COUNT_INITIAL)
  /** Number + 1 of the digest in each slot, 0 where free; a power of two, at most half full. */
  #slots = new Uint32Array(COUNT_INITIAL * 2)
  readonly #factors = randomFillSync(new Uint32Array(WORDS))
  readonly #probe = new Uint32Array(WORDS)
  readonly #probeBytes = Buffer.from(this.#probe.buffer)

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
    let slot = this.#hash(probe, 0) & (slots.length - 1)
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
    if ((this.#count + 1) * WORDS > words.length) {
      this.#grow()
      return this.add(from, offset, bytes)
    }
    this.#words.set(probe, this.#count * WORDS)
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

  #hash(words: Uint32Array, at: number): number {
    let hash = 0
    for (let word = 0; word < WORDS; word++) {
      hash = Math.imul(hash ^ words[at + word], this.#factors[word] | 1)
      hash ^= hash >>> 15
    }
    return hash >>> 0
  }

  #grow(): void {
    const words = new Uint32Array(this.#words.length * 2)
    words.set(this.#words)
    this.#words = words
    const bytes = new Uint32Array(this.#bytes.length * 2)
    bytes.set(this.#bytes)
    this.#bytes = bytes
    const slots = new Uint32Array(this.#slots.length * 2)
    for (let index = 0; index < this.#count; index++) {
      let slot = this.#hash(words, index * WORDS) & (slots.length - 1)
      while (slots[slot] !== 0) slot = (slot + 1) & (slots.length - 1)
      slots[slot] = index + 1
    }
    this.#slots = slots
  }
}
