/**
 * Bytes of a block map: docs/formats/block-map.md. Columns in, bytes out, and back; no meaning beyond that.
 */
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import { digestWords, repeatedDigest } from '../chunk/chunk-table.ts'
import type { ChunkColumns } from '../chunk/chunk-table.ts'
import { BELOW, HOLE, SPECIAL_MIN, ZERO } from './extent-columns.ts'

/** A map has no more extents than this. */
export const EXTENTS_MAX = 1 << 25
/** Version of the format that is written; the only one that is read. */
export const BLOCK_MAP_VERSION = 1

const MAGIC = Buffer.from('VARVEMAP')
const HEADER_BYTES = 48

/** Codes of the refs column. */
const CODE_HOLE = 0
const CODE_ZERO = 1
const CODE_BELOW = 2
/** The chunk that no extent before has used; what is above counts back from it. */
const CODE_NEXT = 3
const CODE_BACK = 4

/** The columns of a block map; see the fields of BlockMap. */
export interface BlockMapColumns extends ChunkColumns {
  sizeBytes: number
  starts: Float64Array
  refs: Uint32Array
  chunkOffsets: Uint32Array
}

/** Whole numbers, seven bits a byte, least first, the high bit says that more follow. */
class VarintWriter {
  #bytes: Uint8Array
  #length = 0

  constructor(capacity: number) {
    this.#bytes = new Uint8Array(capacity + 16)
  }

  write(value: number): void {
    if (this.#length + 8 > this.#bytes.length) {
      const grown = new Uint8Array(this.#bytes.length * 2)
      grown.set(this.#bytes)
      this.#bytes = grown
    }
    let rest = value
    while (rest >= 0x80) {
      this.#bytes[this.#length++] = (rest % 0x80) | 0x80
      rest = Math.floor(rest / 0x80)
    }
    this.#bytes[this.#length++] = rest
  }

  finish(): Uint8Array {
    return this.#bytes.subarray(0, this.#length)
  }
}

/** @param map canonical columns */
export function encodeBlockMap(map: BlockMapColumns): Uint8Array {
  const extentCount = map.starts.length
  const chunkCount = map.chunkBytes.length
  const lengths = new VarintWriter(extentCount * 4)
  const refs = new VarintWriter(extentCount * 2)
  const chunkOffsets = new VarintWriter(extentCount * 2)
  const chunkBytes = new VarintWriter(chunkCount * 3)
  let next = 0
  for (let index = 0; index < extentCount; index++) {
    const end = index + 1 < extentCount ? map.starts[index + 1] : map.sizeBytes
    lengths.write(end - map.starts[index])
    const ref = map.refs[index]
    refs.write(refCode(ref, next))
    if (ref >= SPECIAL_MIN) continue
    if (ref === next) next++
    chunkOffsets.write(map.chunkOffsets[index])
  }
  for (let chunk = 0; chunk < chunkCount; chunk++) chunkBytes.write(map.chunkBytes[chunk])
  const sections = [lengths.finish(), refs.finish(), chunkOffsets.finish(), chunkBytes.finish()]
  const header = Buffer.alloc(HEADER_BYTES)
  header.set(MAGIC, 0)
  header.writeUInt32LE(BLOCK_MAP_VERSION, 8)
  header.writeBigUInt64LE(BigInt(map.sizeBytes), 16)
  header.writeUInt32LE(extentCount, 24)
  header.writeUInt32LE(chunkCount, 28)
  for (let section = 0; section < 4; section++) header.writeUInt32LE(sections[section].length, 32 + section * 4)
  const bytes = Buffer.concat([header, ...sections, map.chunkDigests])
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function refCode(ref: number, next: number): number {
  if (ref === HOLE) return CODE_HOLE
  if (ref === ZERO) return CODE_ZERO
  if (ref === BELOW) return CODE_BELOW
  return ref === next ? CODE_NEXT : CODE_BACK + next - 1 - ref
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `block map: ${what}`)
}

interface Header {
  sizeBytes: number
  extentCount: number
  chunkCount: number
  /** Where lengths, refs, chunk offsets, chunk lengths and digests start; then the end. */
  bounds: number[]
}

function decodeHeader(bytes: Uint8Array): Header {
  if (bytes.length < HEADER_BYTES) throw invalid(`${bytes.length} bytes are too few`)
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (!view.subarray(0, 8).equals(MAGIC)) throw invalid('does not start with VARVEMAP')
  const version = view.readUInt32LE(8)
  if (version !== BLOCK_MAP_VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `block map: version ${version} is not known; this is version ${BLOCK_MAP_VERSION}`)
  if (view.readUInt32LE(12) !== 0) throw invalid('reserved bytes are not zero')
  const sizeBytes = Number(view.readBigUInt64LE(16))
  if (!Number.isSafeInteger(sizeBytes)) throw new VarveError('LIMIT_EXCEEDED', 'block map: the disk is larger than 2^53 - 1 bytes')
  const extentCount = view.readUInt32LE(24)
  const chunkCount = view.readUInt32LE(28)
  if (extentCount > EXTENTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `block map: ${extentCount} extents are more than ${EXTENTS_MAX}`)
  const bounds = [HEADER_BYTES]
  for (let section = 0; section < 4; section++) bounds.push(bounds[section] + view.readUInt32LE(32 + section * 4))
  bounds.push(bounds[4] + chunkCount * DIGEST_BYTES)
  if (bounds[5] !== bytes.length) throw invalid(`sections of ${bounds[5]} bytes in ${bytes.length} bytes`)
  return { sizeBytes, extentCount, chunkCount, bounds }
}

/**
 * Reads `into.length` varints that fill [from, end) exactly.
 * @throws VarveError FORMAT_INVALID
 */
function readColumn(bytes: Uint8Array, from: number, end: number, into: Float64Array | Uint32Array, max: number, what: string): void {
  let at = from
  for (let index = 0; index < into.length; index++) {
    let byte = at < end ? bytes[at++] : 0x100
    let value = byte & 0x7f
    for (let scale = 0x80; byte & 0x80; scale *= 0x80) {
      byte = at < end && scale < 2 ** 56 ? bytes[at++] : 0x100
      value += (byte & 0x7f) * scale
      if (byte === 0) throw invalid(`${what}: a number is longer than it needs to be`)
    }
    if (byte === 0x100) throw invalid(`${what}: the column ends early, or a number is too long`)
    if (value > max) throw invalid(`${what}: ${value} is more than ${max}`)
    into[index] = value
  }
  if (at !== end) throw invalid(`${what}: the column is longer than its count`)
}

/** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
export function decodeBlockMap(bytes: Uint8Array): BlockMapColumns {
  const { sizeBytes, extentCount, chunkCount, bounds } = decodeHeader(bytes)
  // Each number takes a byte or more: counts that the bytes cannot hold are refused before anything is allocated for them.
  if (extentCount > bounds[1] - bounds[0] || extentCount > bounds[2] - bounds[1]) throw invalid(`${extentCount} extents do not fit their columns`)
  if (chunkCount > bounds[4] - bounds[3]) throw invalid(`${chunkCount} chunks do not fit their column`)
  const starts = new Float64Array(extentCount)
  readColumn(bytes, bounds[0], bounds[1], starts, Number.MAX_SAFE_INTEGER, 'lengths')
  lengthsToStarts(starts, sizeBytes)
  const refs = new Uint32Array(extentCount)
  readColumn(bytes, bounds[1], bounds[2], refs, CODE_BACK + chunkCount, 'refs')
  const dataCount = codesToRefs(refs, chunkCount)
  if (dataCount > bounds[3] - bounds[2]) throw invalid(`${dataCount} chunk offsets do not fit their column`)
  const dataOffsets = new Uint32Array(dataCount)
  readColumn(bytes, bounds[2], bounds[3], dataOffsets, CHUNK_BYTES_MAX, 'chunk offsets')
  const chunkBytes = new Uint32Array(chunkCount)
  readColumn(bytes, bounds[3], bounds[4], chunkBytes, CHUNK_BYTES_MAX, 'chunk lengths')
  const chunkDigests = Uint8Array.prototype.slice.call(bytes, bounds[4])
  checkChunks(chunkDigests, chunkBytes)
  const columns = { sizeBytes, starts, refs, chunkOffsets: spread(dataOffsets, refs), chunkDigests, chunkBytes }
  checkExtents(columns)
  return columns
}

/** In place: lengths become starts. */
function lengthsToStarts(column: Float64Array, sizeBytes: number): void {
  let at = 0
  for (let index = 0; index < column.length; index++) {
    const length = column[index]
    if (length === 0) throw invalid(`extent ${index} is empty`)
    column[index] = at
    at += length
    if (at > sizeBytes) throw invalid(`extent ${index} ends beyond the disk`)
  }
  if (at !== sizeBytes) throw invalid(`extents cover ${at} of ${sizeBytes} bytes`)
}

/** In place: codes become refs. @returns the number of extents that hold data */
function codesToRefs(column: Uint32Array, chunkCount: number): number {
  let next = 0
  let dataCount = 0
  for (let index = 0; index < column.length; index++) {
    const code = column[index]
    if (code >= CODE_NEXT) {
      const chunk = code === CODE_NEXT ? next++ : next - 1 - (code - CODE_BACK)
      if (chunk < 0) throw invalid(`extent ${index} refers back to a chunk before the first`)
      column[index] = chunk
      dataCount++
    } else {
      column[index] = code === CODE_HOLE ? HOLE : code === CODE_ZERO ? ZERO : BELOW
    }
  }
  if (next !== chunkCount) throw invalid(`extents use ${next} of ${chunkCount} chunks`)
  return dataCount
}

/** Offsets of data extents only -> a column of all extents. */
function spread(dataOffsets: Uint32Array, refs: Uint32Array): Uint32Array {
  if (dataOffsets.length === refs.length) return dataOffsets
  const chunkOffsets = new Uint32Array(refs.length)
  let data = 0
  for (let index = 0; index < refs.length; index++) if (refs[index] < SPECIAL_MIN) chunkOffsets[index] = dataOffsets[data++]
  return chunkOffsets
}

function checkChunks(chunkDigests: Uint8Array, chunkBytes: Uint32Array): void {
  for (let chunk = 0; chunk < chunkBytes.length; chunk++) if (chunkBytes[chunk] === 0) throw invalid(`chunk ${chunk} is empty`)
  const repeated = repeatedDigest(digestWords(chunkDigests))
  if (repeated >= 0) throw invalid(`chunk ${repeated} stands in it twice`)
}

function checkExtents({ sizeBytes, starts, refs, chunkOffsets, chunkBytes }: BlockMapColumns): void {
  let previousRef = -1
  let previousEnd = 0
  for (let index = 0; index < refs.length; index++) {
    const ref = refs[index]
    const length = (index + 1 < refs.length ? starts[index + 1] : sizeBytes) - starts[index]
    const end = chunkOffsets[index] + length
    if (ref < SPECIAL_MIN && end > chunkBytes[ref]) throw invalid(`extent ${index} ends beyond its chunk`)
    if (ref === previousRef && (ref >= SPECIAL_MIN || previousEnd === chunkOffsets[index])) throw invalid(`extents ${index - 1} and ${index} are one`)
    previousRef = ref
    previousEnd = end
  }
}
