/**
 * Content of a file that Windows compresses itself (WOF: `compact /exe`, CompactOS): the unnamed stream is one hole, and a stream of its own holds
 * a table of where chunks begin, and the chunks. The data of its reparse point are WOF_EXTERNAL_INFO and
 * FILE_PROVIDER_EXTERNAL_INFO_V1 of the Windows SDK, four numbers of 32 bits: version, provider, version, algorithm.
 */
import type { FileExtent } from '../filesystem.ts'
import { RecentlyUsed } from '../recently-used.ts'
import type { Content } from './content.ts'
import { ATTRIBUTE, invalid, unsupported } from './format.ts'
import { LZX_CHUNK_BYTES, decompressLzx } from './lzx.ts'
import type { MftFile } from './mft.ts'
import { decompressXpress } from './xpress.ts'

export const WOF_STREAM = 'WofCompressedData'

const INFO_BYTES = 16
const PROVIDER_WIM = 1
const PROVIDER_FILE = 2

type Algorithm = { chunkBytes: number; decompress: (from: Uint8Array, into: Uint8Array) => void }
const ALGORITHMS: readonly Algorithm[] = [
  { chunkBytes: 4096, decompress: decompressXpress },
  { chunkBytes: LZX_CHUNK_BYTES, decompress: decompressLzx },
  { chunkBytes: 8192, decompress: decompressXpress },
  { chunkBytes: 16_384, decompress: decompressXpress },
]
/** Offsets of chunks have 8 bytes in files above 4 GiB. */
const SMALL_FILE_BYTES_MAX = 2 ** 32 - 1
const CHUNKS_KEPT_MAX = 4

/** @param data of the reparse point @param sizeBytes of the file @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED, FORMAT_UNSUPPORTED */
export async function openWofContent(file: MftFile, data: Buffer, sizeBytes: number): Promise<Content> {
  if (data.length < INFO_BYTES) throw invalid('a compressed file does not say how')
  const provider = data.readUInt32LE(4)
  if (provider === PROVIDER_WIM) throw unsupported('the content of the file is in a WIM file, which is not read')
  const algorithm = provider === PROVIDER_FILE ? ALGORITHMS[data.readUInt32LE(12)] : undefined
  if (algorithm === undefined) throw unsupported(`the compression ${provider}/${data.readUInt32LE(12)} of Windows is not known`)
  const stream = await file.content(ATTRIBUTE.data, WOF_STREAM, file.mft.disk)
  if (stream === undefined) throw invalid(`record ${file.number} of the MFT has no compressed content`)
  return new WofContent(stream, sizeBytes, algorithm)
}

class WofContent implements Content {
  readonly sizeBytes: number
  readonly #stream: Content
  readonly #algorithm: Algorithm
  readonly #chunks: number
  readonly #offsetBytes: number
  /** By number. */
  readonly #kept = new RecentlyUsed<Buffer>(CHUNKS_KEPT_MAX)

  constructor(stream: Content, sizeBytes: number, algorithm: Algorithm) {
    this.#stream = stream
    this.sizeBytes = sizeBytes
    this.#algorithm = algorithm
    this.#chunks = Math.ceil(sizeBytes / algorithm.chunkBytes)
    this.#offsetBytes = sizeBytes > SMALL_FILE_BYTES_MAX ? 8 : 4
    if (this.#tableBytes > stream.sizeBytes) throw invalid(`${stream.sizeBytes} bytes of compressed content are too few for ${sizeBytes}`)
  }

  /** The first chunk begins behind the table, and is not in it. */
  get #tableBytes(): number {
    return Math.max(0, this.#chunks - 1) * this.#offsetBytes
  }

  get runs(): number {
    return this.#stream.runs
  }

  extents(): FileExtent[] {
    return this.sizeBytes === 0 ? [] : [{ fileOffset: 0, length: this.sizeBytes }]
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    const { chunkBytes } = this.#algorithm
    for (let at = 0; at < into.length;) {
      const number = Math.floor((offset + at) / chunkBytes)
      const from = offset + at - number * chunkBytes
      const chunk = await this.#chunk(number)
      const length = Math.min(chunk.length - from, into.length - at)
      into.set(chunk.subarray(from, from + length), at)
      at += length
    }
  }

  async #chunk(number: number): Promise<Buffer> {
    const kept = this.#kept.get(number)
    if (kept !== undefined) return kept
    const { chunkBytes, decompress } = this.#algorithm
    const chunk = Buffer.alloc(Math.min(chunkBytes, this.sizeBytes - number * chunkBytes))
    const { start, end } = await this.#place(number)
    // What could not be made smaller is stored as it is.
    if (end <= start || end - start > chunk.length || end > this.#stream.sizeBytes) throw invalid(`a compressed chunk of ${end - start} bytes cannot be`)
    if (end - start === chunk.length) await this.#stream.read(chunk, start)
    else {
      const compressed = Buffer.alloc(end - start)
      await this.#stream.read(compressed, start)
      decompress(compressed, chunk)
    }
    this.#kept.set(number, chunk)
    return chunk
  }

  async #place(number: number): Promise<{ start: number; end: number }> {
    const table = this.#tableBytes
    const start = number === 0 ? table : table + await this.#offset(number)
    return { start, end: number === this.#chunks - 1 ? this.#stream.sizeBytes : table + await this.#offset(number + 1) }
  }

  /** Of a chunk but the first, from the end of the table. */
  async #offset(number: number): Promise<number> {
    const bytes = Buffer.alloc(8)
    await this.#stream.read(bytes.subarray(0, this.#offsetBytes), (number - 1) * this.#offsetBytes)
    return bytes.readUInt32LE(0) + bytes.readUInt32LE(4) * 2 ** 32
  }
}
