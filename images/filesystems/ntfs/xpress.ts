/**
 * XPRESS with Huffman codes ([MS-XCA] 2.2): one table of 512 code words, for literals, and for lengths and distances of matches.
 */
import { invalid } from './format.ts'
import { BitReader, HuffmanCode, copyMatch } from './huffman-code.ts'

const SYMBOLS = 512
const TABLE_BYTES = SYMBOLS / 2
const FIRST_MATCH = 256
const LENGTH_MIN = 3

/** Fills all of `into`. @throws VarveError FORMAT_INVALID */
export function decompressXpress(from: Uint8Array, into: Uint8Array): void {
  if (from.length < TABLE_BYTES) throw invalid('compressed data is cut short')
  const code = new HuffmanCode(Uint8Array.from({ length: SYMBOLS }, (_, symbol) => (from[symbol >> 1] >> (symbol % 2 === 0 ? 0 : 4)) & 15))
  const bits = new BitReader(from, TABLE_BYTES)
  for (let out = 0; out < into.length;) {
    const symbol = code.read(bits)
    if (symbol < FIRST_MATCH) {
      into[out++] = symbol
      continue
    }
    const length = readLength(bits, symbol & 15) + LENGTH_MIN
    const distanceBits = (symbol - FIRST_MATCH) >> 4
    out = copyMatch(into, out, 2 ** distanceBits + bits.read(distanceBits), length)
  }
}

/** Long lengths go on in a byte, longer ones in two more. */
function readLength(bits: BitReader, short: number): number {
  if (short < 15) return short
  const byte = bits.byte()
  return byte < 255 ? byte + 15 : bits.byte() | (bits.byte() << 8)
}
