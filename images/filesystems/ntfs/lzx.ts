/**
 * LZX as Windows has it in WIM files and for files that it compresses (WOF): chunks of 32 KiB, each for itself. [MS-PATCH] 2 describes LZX; here the size
 * of a block is one bit or 16, the window is 32 KiB, and calls of x86 code are translated as if the file had 12,000,000 bytes.
 */
import { invalid } from './format.ts'
import { BitReader, HuffmanCode, copyMatch } from './huffman-code.ts'

export const LZX_CHUNK_BYTES = 32 << 10

const LITERALS = 256
/** Of distances, in a window of 32 KiB. */
const SLOTS = 30
const LENGTH_HEADS = 8
const LENGTH_MIN = 2
const MAIN_SYMBOLS = LITERALS + LENGTH_HEADS * SLOTS
const LENGTH_SYMBOLS = 249
const ALIGNED_SYMBOLS = 8
const ALIGNED_BITS = 3
const PRE_SYMBOLS = 20
/** Slots that mean one of the last three distances. */
const REPEAT_SLOTS = 3
const DISTANCE_SHIFT = 2
const BLOCK = { verbatim: 1, aligned: 2, uncompressed: 3 } as const

const SLOT_BITS = Uint8Array.from({ length: SLOTS }, (_, slot) => (slot < 4 ? 0 : (slot >> 1) - 1))
const SLOT_BASES = new Uint32Array(SLOTS)
for (let slot = 1; slot < SLOTS; slot++) SLOT_BASES[slot] = SLOT_BASES[slot - 1] + 2 ** SLOT_BITS[slot - 1]

/** Fills all of `into`, at most 32 KiB. @throws VarveError FORMAT_INVALID */
export function decompressLzx(from: Uint8Array, into: Uint8Array): void {
  new LzxChunk(from, into).run()
  translateCalls(into)
}

class LzxChunk {
  readonly #from: Uint8Array
  readonly #into: Uint8Array
  readonly #mainLengths = new Uint8Array(MAIN_SYMBOLS)
  readonly #lengthLengths = new Uint8Array(LENGTH_SYMBOLS)
  readonly #recent = [1, 1, 1]
  #bits: BitReader
  #out = 0

  constructor(from: Uint8Array, into: Uint8Array) {
    this.#from = from
    this.#into = into
    this.#bits = new BitReader(from)
  }

  run(): void {
    while (this.#out < this.#into.length) {
      const type = this.#bits.read(3)
      const bytes = this.#bits.read(1) === 1 ? LZX_CHUNK_BYTES : this.#bits.read(16)
      if (bytes === 0 || this.#out + bytes > this.#into.length) throw invalid(`a block of ${bytes} bytes of compressed data is too long`)
      if (type === BLOCK.uncompressed) this.#copyBlock(bytes)
      else if (type === BLOCK.verbatim || type === BLOCK.aligned) this.#decompressBlock(bytes, type === BLOCK.aligned ? this.#readAlignedCode() : undefined)
      else throw invalid(`a block of compressed data is of kind ${type}`)
    }
  }

  #copyBlock(bytes: number): void {
    const at = this.#bits.align()
    const start = at + 4 * this.#recent.length
    if (start + bytes > this.#from.length) throw invalid('compressed data is cut short')
    const head = Buffer.from(this.#from.buffer, this.#from.byteOffset + at, 4 * this.#recent.length)
    for (const index of this.#recent.keys()) this.#recent[index] = head.readUInt32LE(4 * index)
    this.#into.set(this.#from.subarray(start, start + bytes), this.#out)
    this.#out += bytes
    if (this.#out < this.#into.length) this.#bits = new BitReader(this.#from, start + bytes + (bytes % 2))
  }

  #readAlignedCode(): HuffmanCode {
    return new HuffmanCode(Uint8Array.from({ length: ALIGNED_SYMBOLS }, () => this.#bits.read(3)))
  }

  #decompressBlock(bytes: number, alignedCode: HuffmanCode | undefined): void {
    this.#readLengths(this.#mainLengths.subarray(0, LITERALS))
    this.#readLengths(this.#mainLengths.subarray(LITERALS))
    this.#readLengths(this.#lengthLengths)
    const mainCode = new HuffmanCode(this.#mainLengths)
    const lengthCode = new HuffmanCode(this.#lengthLengths)
    const block = this.#into.subarray(0, this.#out + bytes)
    while (this.#out < block.length) {
      const symbol = mainCode.read(this.#bits)
      if (symbol < LITERALS) {
        block[this.#out++] = symbol
        continue
      }
      const head = (symbol - LITERALS) % LENGTH_HEADS
      const length = LENGTH_MIN + (head < LENGTH_HEADS - 1 ? head : head + lengthCode.read(this.#bits))
      this.#out = copyMatch(block, this.#out, this.#readDistance((symbol - LITERALS) >> 3, alignedCode), length)
    }
  }

  #readDistance(slot: number, alignedCode: HuffmanCode | undefined): number {
    const recent = this.#recent
    if (slot < REPEAT_SLOTS) {
      const distance = recent[slot]
      recent[slot] = recent[0]
      recent[0] = distance
      return distance
    }
    const slotBits = SLOT_BITS[slot]
    const extra = alignedCode !== undefined && slotBits >= ALIGNED_BITS
      ? this.#bits.read(slotBits - ALIGNED_BITS) * ALIGNED_SYMBOLS + alignedCode.read(this.#bits)
      : this.#bits.read(slotBits)
    const distance = SLOT_BASES[slot] + extra - DISTANCE_SHIFT
    recent[2] = recent[1]
    recent[1] = recent[0]
    recent[0] = distance
    return distance
  }

  /** Lengths of code words are written as differences from those of the block before, by a code of their own. */
  #readLengths(lengths: Uint8Array): void {
    const code = new HuffmanCode(Uint8Array.from({ length: PRE_SYMBOLS }, () => this.#bits.read(4)))
    for (let at = 0; at < lengths.length;) {
      const symbol = code.read(this.#bits)
      if (symbol < 17) {
        lengths[at] = (lengths[at] + 17 - symbol) % 17
        at++
        continue
      }
      const run = symbol === 17 ? 4 + this.#bits.read(4) : symbol === 18 ? 20 + this.#bits.read(5) : 4 + this.#bits.read(1)
      const difference = symbol === 19 ? code.read(this.#bits) : 0
      if (difference > 16) throw invalid('the lengths of a Huffman code are damaged')
      const length = symbol === 19 ? (lengths[at] + 17 - difference) % 17 : 0
      const end = Math.min(at + run, lengths.length)
      lengths.fill(length, at, end)
      at = end
    }
  }
}

const CALL = 0xe8
/** Size of a file that targets are counted in. */
const CALL_FILE_BYTES = 12_000_000
/** At the end of a chunk, calls are left alone. */
const CALL_TAIL_BYTES = 10

/** Puts back the distances in calls of x86 code, which were made absolute. */
function translateCalls(chunk: Uint8Array): void {
  const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length)
  for (let at = bytes.indexOf(CALL); at >= 0 && at < bytes.length - CALL_TAIL_BYTES; at = bytes.indexOf(CALL, at + 5)) {
    const target = bytes.readInt32LE(at + 1)
    if (target < -at || target >= CALL_FILE_BYTES) continue
    bytes.writeInt32LE(target >= 0 ? target - at : target + CALL_FILE_BYTES, at + 1)
  }
}
