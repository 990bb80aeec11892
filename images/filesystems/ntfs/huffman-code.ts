/**
 * Canonical Huffman codes, and the bits that XPRESS and LZX are written in: units of 16 bits, little-endian, the highest bit first.
 */
import { invalid } from './format.ts'

/** Longest code word, bits. */
const CODE_BITS_MAX = 16
/** Code words up to so many bits are found by one look. */
const TABLE_BITS = 10

export class BitReader {
  readonly #bytes: Uint8Array
  #at = 0
  /** The next bits, in the upper part of `#count`, of which there are always at least 16: behind the end they are zero. */
  #bits = 0
  #count = 0
  /** Units that were read behind the end. */
  #missing = 0

  constructor(bytes: Uint8Array, at = 0) {
    this.#bytes = bytes
    this.#at = at
    this.#fill()
  }

  #fill(): void {
    while (this.#count < 16) {
      const unit = this.#at + 2 <= this.#bytes.length ? this.#bytes[this.#at] | (this.#bytes[this.#at + 1] << 8) : 0
      // Two units are looked at ahead of need.
      if (this.#at + 2 > this.#bytes.length && ++this.#missing > 2) throw invalid('compressed data is cut short')
      this.#at += 2
      this.#bits = ((this.#bits << 16) | unit) >>> 0
      this.#count += 16
    }
  }

  /** The next 16 bits. */
  peek(): number {
    return (this.#bits >>> (this.#count - 16)) & 0xffff
  }

  /** @param count 0 .. 16 */
  skip(count: number): void {
    this.#count -= count
    if (this.#count < 16) this.#fill()
  }

  /** @param count 0 .. 16 */
  read(count: number): number {
    const value = this.peek() >>> (16 - count)
    this.skip(count)
    return value
  }

  /** A byte that stands between the units: behind those that were read ahead. */
  byte(): number {
    if (this.#at >= this.#bytes.length) throw invalid('compressed data is cut short')
    return this.#bytes[this.#at++]
  }

  /** Drops the bits up to the next unit, and gives back what was read ahead of it. @returns where that unit is */
  align(): number {
    // A whole unit of padding is there if the bits end at one.
    const ahead = this.#count % 16 === 0 ? this.#count / 16 - 1 : Math.floor(this.#count / 16)
    return this.#at - 2 * ahead
  }
}

export class HuffmanCode {
  /** By the next 10 bits: symbol and, above it, length of its code word; 0 if it is longer or none. */
  readonly #table = new Uint32Array(1 << TABLE_BITS)
  /** Symbols in the order of their code words. */
  readonly #symbols: Uint16Array
  /** By length: the first code word that is longer, as 16 bits; and what is to be added to a code word for its place in `#symbols`. */
  readonly #ends = new Uint32Array(CODE_BITS_MAX + 1)
  readonly #shifts = new Int32Array(CODE_BITS_MAX + 1)

  /** @param lengths of the code words of the symbols, bits, 0 for none @throws VarveError FORMAT_INVALID for more code words than there can be */
  constructor(lengths: Uint8Array) {
    const counts = new Uint32Array(CODE_BITS_MAX + 1)
    for (const length of lengths) counts[length]++
    counts[0] = 0
    const next = new Uint32Array(CODE_BITS_MAX + 2)
    let code = 0
    let place = 0
    for (let length = 1; length <= CODE_BITS_MAX; length++) {
      next[length] = place
      this.#shifts[length] = place - code
      code += counts[length]
      place += counts[length]
      if (code > 2 ** length) throw invalid('a Huffman code has too many words')
      this.#ends[length] = code << (CODE_BITS_MAX - length)
      code <<= 1
    }
    this.#symbols = new Uint16Array(place)
    for (const [symbol, length] of lengths.entries()) {
      if (length === 0) continue
      const at = next[length]++
      this.#symbols[at] = symbol
      if (length > TABLE_BITS) continue
      const word = (at - this.#shifts[length]) << (TABLE_BITS - length)
      this.#table.fill((length << 16) | symbol, word, word + (1 << (TABLE_BITS - length)))
    }
  }

  /** @throws VarveError FORMAT_INVALID for bits that are no code word */
  read(bits: BitReader): number {
    const ahead = bits.peek()
    const found = this.#table[ahead >>> (16 - TABLE_BITS)]
    if (found !== 0) {
      bits.skip(found >>> 16)
      return found & 0xffff
    }
    for (let length = TABLE_BITS + 1; length <= CODE_BITS_MAX; length++) {
      if (ahead >= this.#ends[length]) continue
      bits.skip(length)
      return this.#symbols[(ahead >>> (CODE_BITS_MAX - length)) + this.#shifts[length]]
    }
    throw invalid('compressed data has bits that are no code word')
  }
}

/** Copies what was written before; it may overlap itself. @returns where it ends @throws VarveError FORMAT_INVALID */
export function copyMatch(into: Uint8Array, out: number, distance: number, length: number): number {
  if (distance > out || out + length > into.length) throw invalid('compressed data refers to what there is not')
  for (let at = out; at < out + length; at++) into[at] = into[at - distance]
  return out + length
}
