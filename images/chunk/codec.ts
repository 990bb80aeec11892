/**
 * Codecs: how the bytes of a chunk are kept. Each chunk is compressed by itself; docs/formats/chunk.md.
 */
import { createRequire } from 'node:module'
import { VarveError } from '../errors.ts'
import { zstdCompressInto, zstdDecompressInto } from '../native/zstd.ts'
import { CHUNK_BYTES_MAX } from './limits.ts'

export type Codec = 'none' | 'lz4' | 'zstd'

/** By their number in formats. */
export const CODECS: readonly Codec[] = ['none', 'lz4', 'zstd']

/** Level of zstd where none is given; figures in docs/formats/chunk.md#codecs. */
export const ZSTD_LEVEL_DEFAULT = 2

/** Loaded when it is first needed: most processes meet no lz4. */
const lz4 = (): typeof import('lz4-napi') => (loadedLz4 ??= createRequire(import.meta.url)('lz4-napi') as typeof import('lz4-napi'))
let loadedLz4: typeof import('lz4-napi') | undefined

/** lz4: bytes of the raw length that stands before the block. */
const LZ4_PREFIX_BYTES = 4

export interface CodecOptions {
  codec: Codec
  /** Of zstd only: -7 .. 19. */
  level?: number
}

/** Largest size at which a compressed form is worth having: 1/32 (3%) smaller than the content. */
export function worthwhileBytes(rawBytes: number): number {
  return rawBytes - Math.max(rawBytes >>> 5, 1)
}

/**
 * Compresses into `target`, which has room for `source` as it is.
 * @returns the codec that was used (`none` where the asked one does not shrink by 3%), and the bytes written
 */
export function compressInto(target: Uint8Array, source: Uint8Array, options: CodecOptions): { codec: Codec; length: number } {
  const room = worthwhileBytes(source.length)
  if (options.codec === 'zstd') {
    const length = zstdCompressInto(target.subarray(0, room), source, options.level ?? ZSTD_LEVEL_DEFAULT)
    if (length > 0) return { codec: 'zstd', length }
  } else if (options.codec === 'lz4') {
    const block = lz4().compressSync(asBuffer(source))
    if (block.length <= room) {
      target.set(block)
      return { codec: 'lz4', length: block.length }
    }
  }
  target.set(source)
  return { codec: 'none', length: source.length }
}

/** Compresses into new bytes; `bytes` itself where it does not shrink by 3%. */
export function compress(bytes: Uint8Array, options: CodecOptions): { codec: Codec; bytes: Uint8Array } {
  if (options.codec === 'none') return { codec: 'none', bytes }
  const target = Buffer.allocUnsafe(bytes.length)
  const { codec, length } = compressInto(target, bytes, options)
  return codec === 'none' ? { codec, bytes } : { codec, bytes: target.subarray(0, length) }
}

/**
 * The content again: exactly `rawBytes` bytes, whatever `bytes` says of itself. New memory, except for `none`.
 * @param rawBytes 1 .. CHUNK_BYTES_MAX
 * @throws VarveError FORMAT_INVALID if `bytes` is not that codec's form of so many bytes; LIMIT_EXCEEDED
 */
export function decompress(codec: Codec, bytes: Uint8Array, rawBytes: number): Uint8Array {
  if (!(rawBytes >= 1 && rawBytes <= CHUNK_BYTES_MAX)) throw new VarveError('LIMIT_EXCEEDED', `a chunk of ${rawBytes} bytes; 1 .. ${CHUNK_BYTES_MAX} are allowed`)
  if (codec === 'none' && bytes.length === rawBytes) return bytes
  const target = Buffer.allocUnsafeSlow(rawBytes)
  decompressInto(target, codec, bytes)
  return target
}

/**
 * As `decompress`, into memory of just the content's length.
 * @throws VarveError FORMAT_INVALID; what is in `target` is then undefined
 */
export function decompressInto(target: Uint8Array, codec: Codec, bytes: Uint8Array): void {
  if (codec === 'zstd') {
    if (zstdDecompressInto(target, bytes)) return
  } else {
    const content = codec === 'none' ? bytes : lz4Decompress(bytes, target.length)
    if (content?.length === target.length) {
      target.set(content)
      return
    }
  }
  throw new VarveError('FORMAT_INVALID', `${bytes.length} bytes are not the ${codec} form of a chunk of ${target.length} bytes`)
}

/** The package allocates what the prefix says, so that is looked at first. */
function lz4Decompress(bytes: Uint8Array, rawBytes: number): Uint8Array | undefined {
  if (bytes.length <= LZ4_PREFIX_BYTES) return undefined
  const stated = bytes[0] | (bytes[1] << 8) | (bytes[2] << 16) | (bytes[3] << 24)
  if (stated !== rawBytes) return undefined
  try {
    const content = lz4().uncompressSync(bytes)
    return content.length === rawBytes ? content : undefined
  } catch {
    return undefined
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
