/**
 * Chunk list: digests in the order in which somebody is to fetch them: a boot set, or what to fill a disk with. Bytes: docs/formats/stream.md
 */
import { DIGEST_BYTES } from './digest.ts'
import { digestWords, repeatedDigest } from './chunk-table.ts'
import { VarveError } from '../errors.ts'

/** A list has no more digests than this. */
export const CHUNK_LIST_MAX = 1 << 24
/** Version of the format that is written; the only one that is read. */
const VERSION = 1

const MAGIC = Buffer.from('VARVLIST', 'latin1')
const HEADER_BYTES = 16

/**
 * @param digests 32 bytes each, one after the other, none twice
 * @throws VarveError LIMIT_EXCEEDED
 */
export function encodeChunkList(digests: Uint8Array): Uint8Array {
  if (digests.length % DIGEST_BYTES !== 0) throw new RangeError(`${digests.length} bytes are not whole digests`)
  const count = digests.length / DIGEST_BYTES
  checkCount(count)
  const header = Buffer.alloc(HEADER_BYTES)
  MAGIC.copy(header)
  header.writeUInt32LE(VERSION, 8)
  header.writeUInt32LE(count, 12)
  return Buffer.concat([header, digests])
}

/**
 * @returns the digests, 32 bytes each, one after the other; starts at a multiple of 4 bytes of its buffer
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export function decodeChunkList(bytes: Uint8Array): Uint8Array {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.length < HEADER_BYTES || !view.subarray(0, MAGIC.length).equals(MAGIC)) throw new VarveError('FORMAT_INVALID', 'chunk list: does not start with VARVLIST')
  const version = view.readUInt32LE(8)
  if (version !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `chunk list: version ${version} is not known; this is version ${VERSION}`)
  const count = view.readUInt32LE(12)
  checkCount(count)
  if (bytes.length !== HEADER_BYTES + count * DIGEST_BYTES) throw new VarveError('FORMAT_INVALID', `chunk list: ${count} digests in ${bytes.length} bytes`)
  const digests = Uint8Array.prototype.slice.call(bytes, HEADER_BYTES)
  const repeated = repeatedDigest(digestWords(digests))
  if (repeated >= 0) throw new VarveError('FORMAT_INVALID', `chunk list: digest ${repeated} stands in it twice`)
  return digests
}

function checkCount(count: number): void {
  if (count > CHUNK_LIST_MAX) throw new VarveError('LIMIT_EXCEEDED', `chunk list: ${count} digests are more than ${CHUNK_LIST_MAX}`)
}
