/**
 * Zstandard, called through koffi: one frame in, one frame out, no streams. The code is the libzstd inside the Node executable,
 * which exports it; where that does not, the system's. A call costs about 1 us; the same through node:zlib costs 45 us, more than
 * the work itself for a small chunk (docs/decisions/0002-native-calls.md). Contexts are made at first use, per thread.
 */
import koffi from 'koffi'
import type { LibraryHandle } from 'koffi'
import { VarveError } from '../errors.ts'

/** Any level that libzstd accepts without a window beyond its default limits. */
export const ZSTD_LEVEL_MIN = -7
export const ZSTD_LEVEL_MAX = 19

/** zstd.h: ZSTD_cParameter. */
const ZSTD_C_COMPRESSION_LEVEL = 100
/** First bytes of a frame, RFC 8878 section 3.1.1. Others (legacy formats, skippable frames) are refused: their decoders are not for bytes from outside. */
const ZSTD_MAGIC = [0x28, 0xb5, 0x2f, 0xfd]

type Context = unknown

interface Library {
  createCompress(): Context
  setParameter(context: Context, parameter: number, value: number): number | bigint
  compress(context: Context, target: Uint8Array, targetBytes: number, source: Uint8Array, sourceBytes: number): number | bigint
  freeCompress(context: Context): number | bigint
  createDecompress(): Context
  decompress(context: Context, target: Uint8Array, targetBytes: number, source: Uint8Array, sourceBytes: number): number | bigint
  freeDecompress(context: Context): number | bigint
  frameBytes(source: Uint8Array, sourceBytes: number): number | bigint
}

let library: Library | undefined
let decompressContext: Context
const compressContexts = new Map<number, Context>()

/**
 * Binds functions of libzstd. Names of the system's library are bound `deep`, to itself: otherwise its inner calls would land in Node's libzstd,
 * whose contexts are laid out differently, and corrupt memory.
 * @throws VarveError LIBRARY_MISSING
 */
export function bindZstd<T>(bindTo: (handle: LibraryHandle) => T): T {
  try {
    return bindTo(koffi.load(null))
  } catch {
    try {
      return bindTo(koffi.load('libzstd.so.1', { deep: true }))
    } catch (cause) {
      throw new VarveError('LIBRARY_MISSING', 'the compression library libzstd.so.1 cannot be loaded; install the package libzstd1', { cause })
    }
  }
}

function load(): Library {
  library = bindZstd(bind)
  // A worker thread that ends gives its contexts back; the process itself need not.
  process.once('exit', freeContexts)
  return library
}

function bind(handle: LibraryHandle): Library {
  return {
    createCompress: handle.func('void *ZSTD_createCCtx(void)'),
    setParameter: handle.func('size_t ZSTD_CCtx_setParameter(void *context, int parameter, int value)'),
    compress: handle.func('size_t ZSTD_compress2(void *context, void *target, size_t targetBytes, const void *source, size_t sourceBytes)'),
    freeCompress: handle.func('size_t ZSTD_freeCCtx(void *context)'),
    createDecompress: handle.func('void *ZSTD_createDCtx(void)'),
    decompress: handle.func('size_t ZSTD_decompressDCtx(void *context, void *target, size_t targetBytes, const void *source, size_t sourceBytes)'),
    freeDecompress: handle.func('size_t ZSTD_freeDCtx(void *context)'),
    frameBytes: handle.func('size_t ZSTD_findFrameCompressedSize(const void *source, size_t sourceBytes)'),
  }
}

function freeContexts(): void {
  if (library === undefined) return
  for (const context of compressContexts.values()) library.freeCompress(context)
  compressContexts.clear()
  if (decompressContext !== undefined) library.freeDecompress(decompressContext)
  decompressContext = undefined
}

function compressContext(zstd: Library, level: number): Context {
  const known = compressContexts.get(level)
  if (known !== undefined) return known
  if (!Number.isInteger(level) || level < ZSTD_LEVEL_MIN || level > ZSTD_LEVEL_MAX) {
    throw new RangeError(`zstd level ${level} is not a whole number ${ZSTD_LEVEL_MIN} .. ${ZSTD_LEVEL_MAX}`)
  }
  const context = zstd.createCompress()
  if (context === null) throw new Error('libzstd: out of memory')
  zstd.setParameter(context, ZSTD_C_COMPRESSION_LEVEL, level)
  compressContexts.set(level, context)
  return context
}

/**
 * Compresses `source` into `target` as one frame, which states its content's size and has no checksum.
 * @param target room for the frame; what does not fit is not compressed, so give just the size that is worth having
 * @returns bytes of the frame, or -1 if it does not fit
 * @throws VarveError LIBRARY_MISSING
 */
export function zstdCompressInto(target: Uint8Array, source: Uint8Array, level: number): number {
  const zstd = library ?? load()
  const bytes = zstd.compress(compressContext(zstd, level), target, target.length, source, source.length)
  // Errors are the highest numbers of a size_t.
  return typeof bytes === 'number' && bytes <= target.length ? bytes : -1
}

/**
 * Decompresses `source`, which must be exactly one frame, into `target`, which it must fill exactly.
 * What the frame says of its own sizes decides nothing: memory is that of `target` and of one context.
 * @returns false if it is not such a frame; the content of `target` is then undefined
 * @throws VarveError LIBRARY_MISSING
 */
export function zstdDecompressInto(target: Uint8Array, source: Uint8Array): boolean {
  const zstd = library ?? load()
  for (let index = 0; index < ZSTD_MAGIC.length; index++) if (source[index] !== ZSTD_MAGIC[index]) return false
  if (zstd.frameBytes(source, source.length) !== source.length) return false
  decompressContext ??= zstd.createDecompress()
  if (decompressContext === null) throw new Error('libzstd: out of memory')
  return zstd.decompress(decompressContext, target, target.length, source, source.length) === target.length
}

/**
 * Decompresses frames until they fill `target` exactly; what follows them is passed over.
 * @returns false if they do not; the content of `target` is then undefined
 * @throws VarveError LIBRARY_MISSING
 */
export function zstdDecompressFrames(target: Uint8Array, source: Uint8Array): boolean {
  const zstd = library ?? load()
  decompressContext ??= zstd.createDecompress()
  if (decompressContext === null) throw new Error('libzstd: out of memory')
  let done = 0
  for (let at = 0; done < target.length;) {
    const frame = source.subarray(at)
    for (let index = 0; index < ZSTD_MAGIC.length; index++) if (frame[index] !== ZSTD_MAGIC[index]) return false
    const frameBytes = zstd.frameBytes(frame, frame.length)
    if (typeof frameBytes !== 'number' || frameBytes > frame.length) return false
    const room = target.subarray(done)
    const bytes = zstd.decompress(decompressContext, room, room.length, frame, frameBytes)
    if (typeof bytes !== 'number' || bytes > room.length) return false
    at += frameBytes
    done += bytes
  }
  return true
}
