/**
 * Compressed streams, known by their first bytes: gzip (RFC 1952) by node:zlib, Zstandard (RFC 8878) by libzstd,
 * xz by the program of that name.
 */
import { spawn } from 'node:child_process'
import { Readable, pipeline } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { VarveError } from '../errors.ts'
import { zstdDecompressed } from '../native/zstd-stream.ts'
import { ByteStream } from './byte-stream.ts'

export type Compression = 'none' | 'gzip' | 'zstd' | 'xz'

/** Bytes that an output buffer holds. */
const OUTPUT_BYTES = 256 << 10
/** Memory that xz may take for its window; its highest preset needs 65 MiB. */
const XZ_MEMORY_LIMIT = '--memlimit-decompress=256MiB'
const MAGIC_BYTES = 6

const GZIP = [0x1f, 0x8b]
const ZSTD = [0x28, 0xb5, 0x2f, 0xfd]
/** A skippable frame may stand first; its lowest four bits are free. */
const ZSTD_SKIPPABLE = [0x2a, 0x4d, 0x18]
const XZ = [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]
const BZIP2 = [0x42, 0x5a, 0x68]
const LZMA_ALONE = [0x5d, 0x00, 0x00]

/**
 * How a stream that begins with `start` is compressed.
 * @param start at least six bytes, fewer only if there are no more
 * @throws VarveError FORMAT_UNSUPPORTED for bzip2 and the like
 */
export function compressionOf(start: Uint8Array): Compression {
  const begins = (magic: readonly number[], at = 0) => magic.every((byte, index) => start[at + index] === byte)
  if (begins(GZIP)) return 'gzip'
  if (begins(ZSTD) || (start[0] >> 4 === 5 && begins(ZSTD_SKIPPABLE, 1))) return 'zstd'
  if (begins(XZ)) return 'xz'
  if (begins(BZIP2) && start[3] >= 0x31 && start[3] <= 0x39) throw unsupported('bzip2', 'bzip2 -dc')
  if (begins(LZMA_ALONE)) throw unsupported('lzma', 'xz -dc')
  return 'none'
}

function unsupported(format: string, command: string): VarveError {
  return new VarveError('FORMAT_UNSUPPORTED', `compressed with ${format}, which is not read; decompress it first, as in '${command} FILE | varve layer import NAME tar:-'`)
}

export interface DecompressedOptions {
  signal?: AbortSignal
  /** Is told what decompressing takes of memory, and gives back, bytes; it may throw. */
  take?: (bytes: number) => void
}

/**
 * The content of a stream that may be compressed.
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIBRARY_MISSING when it is read
 */
export async function decompressed(stream: ByteStream, options: DecompressedOptions = {}): Promise<ByteStream> {
  const compression = compressionOf(await stream.peek(MAGIC_BYTES))
  if (compression === 'none') return stream
  if (compression === 'zstd') return new ByteStream(zstdDecompressed(stream.rest(), options.take))
  return new ByteStream(compression === 'xz' ? throughXz(stream, options.signal) : gunzipped(stream))
}

async function* gunzipped(stream: ByteStream): AsyncGenerator<Uint8Array, void> {
  const decoder = createGunzip({ chunkSize: OUTPUT_BYTES })
  const input = Readable.from(copies(stream.rest()), { objectMode: false })
  try {
    pipeline(input, decoder, () => undefined)
    yield* decoder as AsyncIterable<Uint8Array>
  } catch (cause) {
    throw isZlibError(cause) ? damaged('gzip', (cause as Error).message, cause) : cause
  } finally {
    decoder.destroy()
    input.destroy()
  }
}

/** A stream that reads ahead keeps buffers that the source fills again. */
async function* copies(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
  for await (const chunk of chunks) yield Buffer.from(chunk)
}

/** Errors of zlib have codes of their own; all others come from the source. */
function isZlibError(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return typeof code === 'string' && /^(Z_|ERR_ZLIB)/.test(code)
}

async function* throughXz(stream: ByteStream, signal?: AbortSignal): AsyncGenerator<Uint8Array, void> {
  const xz = spawn('xz', ['-dc', XZ_MEMORY_LIMIT], { stdio: ['pipe', 'pipe', 'pipe'], signal })
  let complaint = ''
  xz.stderr.setEncoding('utf8').on('data', (text: string) => (complaint = (complaint + text).slice(0, 1000)))
  const exit = new Promise<{ status: number | null; error?: NodeJS.ErrnoException }>((resolve) => {
    xz.on('error', (error: NodeJS.ErrnoException) => resolve({ status: null, error }))
    xz.on('close', (status) => resolve({ status }))
  })
  let inputError: unknown
  const input = Readable.from(copies(stream.rest()), { objectMode: false })
  // That xz closes its end early is told by its exit status.
  pipeline(input, xz.stdin, (error) => (inputError = error?.code === 'EPIPE' || error?.code === 'ERR_STREAM_PREMATURE_CLOSE' ? undefined : (error ?? undefined)))
  try {
    yield* xz.stdout as AsyncIterable<Uint8Array>
    const { status, error } = await exit
    if (error?.code === 'ENOENT') throw new VarveError('LIBRARY_MISSING', 'the program xz is not installed; install the package xz-utils', { cause: error })
    if (error !== undefined) throw error
    if (inputError !== undefined) throw inputError as Error
    if (status !== 0) throw damaged('xz', complaint.trim() || `xz ended with status ${status}`)
  } finally {
    input.destroy()
    xz.kill()
    await exit
  }
}

function damaged(compression: Compression, problem: string, cause?: unknown): VarveError {
  return new VarveError('FORMAT_INVALID', `the ${compression} stream is damaged or cut short: ${problem}`, { cause })
}
