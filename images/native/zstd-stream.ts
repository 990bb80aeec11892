/**
 * Zstandard streams by libzstd, called through koffi: any number of frames, skippable ones among them, one after the other.
 * node:zlib ends after the first frame, and layers of images are written in thousands (seekable formats, parallel compressors). Single chunks: zstd.ts.
 */
import koffi from 'koffi'
import type { LibraryHandle } from 'koffi'
import { VarveError } from '../errors.ts'
import { bindZstd } from './zstd.ts'

const INPUT_BYTES = 1 << 20
const OUTPUT_BYTES = 1 << 20
/** Largest window that is accepted, bytes: what `zstd -d` accepts unasked. */
const WINDOW_BYTES_MAX = 1 << 27

/** struct ZSTD_inBuffer and ZSTD_outBuffer, zstd.h: address, then these. */
const SIZE = 1
const POSITION = 2

type Context = unknown

interface Library {
  create(): Context
  free(context: Context): number
  sizeOf(context: Context): number
  setMaxWindow(context: Context, bytes: number): number
  decompress(context: Context, output: BigUint64Array, input: BigUint64Array): number | bigint
  isError(code: number | bigint): number
  errorName(code: number | bigint): string
}

let library: Library | undefined

function bind(handle: LibraryHandle): Library {
  return {
    create: handle.func('void *ZSTD_createDStream(void)'),
    free: handle.func('size_t ZSTD_freeDStream(void *context)'),
    sizeOf: handle.func('size_t ZSTD_sizeof_DStream(void *context)'),
    setMaxWindow: handle.func('size_t ZSTD_DCtx_setMaxWindowSize(void *context, size_t bytes)'),
    decompress: handle.func('size_t ZSTD_decompressStream(void *context, _Inout_ void *output, _Inout_ void *input)'),
    isError: handle.func('unsigned int ZSTD_isError(size_t code)'),
    errorName: handle.func('const char *ZSTD_getErrorName(size_t code)'),
  }
}

/**
 * Content of a stream of frames, in one buffer that is used again. Bytes behind the last frame must be another frame.
 * @param take is told what libzstd takes for the window, and gives back, bytes: up to 128 MiB; it may throw
 * @throws VarveError FORMAT_INVALID, LIBRARY_MISSING
 */
export async function* zstdDecompressed(source: AsyncIterable<Uint8Array>, take: (bytes: number) => void = () => undefined): AsyncGenerator<Uint8Array, void> {
  const zstd = (library ??= bindZstd(bind))
  const context = zstd.create()
  if (context === null) throw new Error('libzstd: out of memory')
  let taken = 0
  try {
    zstd.setMaxWindow(context, WINDOW_BYTES_MAX)
    const input = Buffer.allocUnsafeSlow(INPUT_BYTES)
    const output = Buffer.allocUnsafeSlow(OUTPUT_BYTES)
    const inputState = new BigUint64Array([BigInt(koffi.address(input)), 0n, 0n])
    const outputState = new BigUint64Array([BigInt(koffi.address(output)), BigInt(OUTPUT_BYTES), 0n])
    // 0 after a whole frame, otherwise a hint of how much is still to come.
    let left: number | bigint = 0
    for await (const chunk of source) {
      for (let at = 0; at < chunk.length; at += INPUT_BYTES) {
        const part = chunk.subarray(at, at + INPUT_BYTES)
        input.set(part)
        inputState[SIZE] = BigInt(part.length)
        inputState[POSITION] = 0n
        // A full output may hide more, even if all input is taken.
        for (let isFull = false; isFull || inputState[POSITION] < inputState[SIZE]; ) {
          outputState[POSITION] = 0n
          const before = inputState[POSITION]
          left = zstd.decompress(context, outputState, inputState)
          if (zstd.isError(left) !== 0) throw damaged(zstd.errorName(left))
          const size = Number(zstd.sizeOf(context))
          take(size - taken)
          taken = size
          const length = Number(outputState[POSITION])
          if (length > 0) yield output.subarray(0, length)
          isFull = length === OUTPUT_BYTES
          if (length === 0 && before === inputState[POSITION]) break
        }
      }
    }
    if (Number(left) !== 0) throw damaged('it ends in the middle of a frame')
  } finally {
    zstd.free(context)
    take(-taken)
  }
}

function damaged(problem: string): VarveError {
  return new VarveError('FORMAT_INVALID', `the zstd stream is damaged or cut short: ${problem}`)
}
