/**
 * LZNT1, the compression of NTFS ([MS-XCA] 2.5): chunks of 4 KiB, each stored or as groups of eight literals and references,
 * whose split between distance and length moves as the chunk grows.
 */
import { invalid } from './format.ts'

const CHUNK_BYTES = 4096
const HEAD_COMPRESSED = 0x8000
const HEAD_SIZE_MASK = 0x0fff
const LENGTH_MIN = 3

/**
 * Fills all of `into`; what the stream does not give is zero.
 * @throws VarveError FORMAT_INVALID
 */
export function decompressLznt1(from: Uint8Array, into: Uint8Array): void {
  let out = 0
  for (let at = 0; at + 2 <= from.length && out < into.length;) {
    const head = from[at] | (from[at + 1] << 8)
    if (head === 0) break
    const end = at + (head & HEAD_SIZE_MASK) + 3
    if (end > from.length) throw invalid('a chunk of compressed data reaches beyond it')
    const outEnd = Math.min(out + CHUNK_BYTES, into.length)
    const written = (head & HEAD_COMPRESSED) === 0 ? copyChunk(from.subarray(at + 2, end), into.subarray(out, outEnd)) : decompressChunk(from.subarray(at + 2, end), into.subarray(out, outEnd))
    into.fill(0, out + written, outEnd)
    out = outEnd
    at = end
  }
  into.fill(0, out)
}

/** @returns bytes written */
function copyChunk(from: Uint8Array, into: Uint8Array): number {
  if (from.length > into.length) throw invalid('a chunk of compressed data is too long')
  into.set(from)
  return from.length
}

/** @returns bytes written */
function decompressChunk(from: Uint8Array, into: Uint8Array): number {
  let out = 0
  for (let at = 0; at < from.length;) {
    let flags = from[at++]
    for (let item = 0; item < 8 && at < from.length; item++, flags >>= 1) {
      if ((flags & 1) === 0) {
        if (out === into.length) throw invalid('a chunk of compressed data is too long')
        into[out++] = from[at++]
        continue
      }
      if (at + 2 > from.length) throw invalid('a chunk of compressed data is cut short')
      const reference = from[at] | (from[at + 1] << 8)
      at += 2
      out = copyReference(reference, into, out)
    }
  }
  return out
}

/** @returns where the copy ends */
function copyReference(reference: number, into: Uint8Array, out: number): number {
  // Bits of the distance: enough for all that was written of the chunk, at least 4.
  const distanceBits = out <= 16 ? 4 : 32 - Math.clz32(out - 1)
  const lengthBits = 16 - distanceBits
  const distance = (reference >> lengthBits) + 1
  const end = out + (reference & ((1 << lengthBits) - 1)) + LENGTH_MIN
  if (distance > out || end > into.length) throw invalid('compressed data refers to what there is not')
  for (let at = out; at < end; at++) into[at] = into[at - distance]
  return end
}
