/**
 * Sparse files in tar archives: which parts of the file the member's data is. Four ways: the old GNU header, and GNU.sparse 0.0, 0.1 and 1.0 in PAX.
 * GNU tar manual, "Storing Sparse Files".
 */
import { VarveError } from '../errors.ts'
import type { ByteStream } from './byte-stream.ts'
import type { PaxRecords } from './pax.ts'
import { paxNumber } from './pax.ts'
import { TAR_BLOCK_BYTES, tarNumber } from './tar-header.ts'

/** Parts of one file that are accepted. */
export const SPARSE_PARTS_MAX = 1_000_000

export interface SparsePart {
  /** In the file, bytes. */
  offset: number
  length: number
}

/** Parts of one file, ascending, disjoint, not empty, inside the file. Packed: there may be a million. */
export class SparseParts implements Iterable<SparsePart> {
  /** Offset and length of each. */
  readonly #numbers: Float64Array

  constructor(numbers: Float64Array) {
    this.#numbers = numbers
  }

  get count(): number {
    return this.#numbers.length / 2
  }

  at(index: number): SparsePart {
    return { offset: this.#numbers[2 * index], length: this.#numbers[2 * index + 1] }
  }

  *[Symbol.iterator](): Generator<SparsePart> {
    for (let index = 0; index < this.count; index++) yield this.at(index)
  }
}

export interface SparseMap {
  parts: SparseParts
  /** Of the file, holes included. */
  sizeBytes: number
}

/** Entries in the header itself, and in each block that continues it. */
const HEADER_ENTRIES_OFFSET = 386
const HEADER_ENTRIES = 4
const HEADER_CONTINUES_OFFSET = 482
const HEADER_REAL_SIZE_OFFSET = 483
const BLOCK_ENTRIES = 21
const BLOCK_CONTINUES_OFFSET = 504
const ENTRY_BYTES = 24

/**
 * Map of an old GNU sparse member (type S): in its header, and in the blocks that follow it.
 * @param header the member's header block
 * @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED
 */
export async function readOldGnuMap(header: Uint8Array, stream: ByteStream, storedBytes: number): Promise<SparseMap> {
  const where = { offset: stream.position, field: 'sparse' }
  const numbers: number[] = []
  const sizeBytes = tarNumber(header, HEADER_REAL_SIZE_OFFSET, 12, where)
  const collect = (block: Uint8Array, from: number, count: number) => {
    for (let at = from; at < from + count * ENTRY_BYTES; at += ENTRY_BYTES) {
      if (block[at + 12] === 0) break
      numbers.push(tarNumber(block, at, 12, where), tarNumber(block, at + 12, 12, where))
    }
    if (numbers.length > 2 * SPARSE_PARTS_MAX) throw tooMany()
  }
  collect(header, HEADER_ENTRIES_OFFSET, HEADER_ENTRIES)
  let continues = header[HEADER_CONTINUES_OFFSET] !== 0
  while (continues) {
    const block = await stream.read(TAR_BLOCK_BYTES)
    if (block.length < TAR_BLOCK_BYTES) throw new VarveError('FORMAT_INVALID', 'the tar archive ends in the map of a sparse file')
    collect(block, 0, BLOCK_ENTRIES)
    continues = block[BLOCK_CONTINUES_OFFSET] !== 0
  }
  return checked(Float64Array.from(numbers), sizeBytes, storedBytes)
}

/** Map of GNU.sparse 0.0 or 0.1, which is all in the records. @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
export function readPaxMap(records: PaxRecords, storedBytes: number): SparseMap {
  const sizeBytes = paxNumber(records.values.get('GNU.sparse.size') ?? records.values.get('GNU.sparse.realsize') ?? '', 'GNU.sparse.size')
  const map = records.values.get('GNU.sparse.map')
  const texts = map === undefined ? records.sparse : map === '' ? [] : map.split(',')
  if (texts.length > 2 * SPARSE_PARTS_MAX) throw tooMany()
  return checked(Float64Array.from(texts, (text) => paxNumber(text, 'GNU.sparse.map')), sizeBytes, storedBytes)
}

/**
 * Map of GNU.sparse 1.0: lines with numbers at the start of the member's data, filled up to a whole block.
 * @returns the map, and the bytes of data that it took
 * @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED
 */
export async function readDataMap(records: PaxRecords, stream: ByteStream, storedBytes: number): Promise<{ map: SparseMap; mapBytes: number }> {
  const sizeBytes = paxNumber(records.values.get('GNU.sparse.realsize') ?? '', 'GNU.sparse.realsize')
  let numbers: Float64Array | undefined
  let filled = 0
  let mapBytes = 0
  let line = ''
  while (numbers === undefined || filled < numbers.length) {
    if (mapBytes + TAR_BLOCK_BYTES > storedBytes) throw new VarveError('FORMAT_INVALID', 'the map of a sparse file does not end')
    const block = await stream.read(TAR_BLOCK_BYTES)
    if (block.length < TAR_BLOCK_BYTES) throw new VarveError('FORMAT_INVALID', 'the tar archive ends in the map of a sparse file')
    mapBytes += TAR_BLOCK_BYTES
    for (let at = 0; at < block.length && filled !== numbers?.length; at++) {
      if (block[at] !== 0x0a) {
        line += String.fromCharCode(block[at])
        continue
      }
      const number = paxNumber(line, 'sparse map')
      line = ''
      if (numbers === undefined) {
        if (number > SPARSE_PARTS_MAX) throw tooMany()
        if (number < 0) throw new VarveError('FORMAT_INVALID', 'the map of a sparse file has a negative number of parts')
        numbers = new Float64Array(2 * number)
      } else {
        numbers[filled++] = number
      }
    }
    if (line.length > 20) throw new VarveError('FORMAT_INVALID', 'the map of a sparse file has a line that is no number')
  }
  return { map: checked(numbers, sizeBytes, storedBytes - mapBytes), mapBytes }
}

/** @param numbers offset and length of each part; the map takes them over */
function checked(numbers: Float64Array, sizeBytes: number, storedBytes: number): SparseMap {
  const refuse = (problem: string) => new VarveError('FORMAT_INVALID', `the map of a sparse file ${problem}`)
  if (numbers.length % 2 !== 0) throw refuse('has an offset without a length')
  if (sizeBytes < 0) throw refuse('has a negative size')
  let filled = 0
  let end = 0
  let dataBytes = 0
  for (let at = 0; at < numbers.length; at += 2) {
    const offset = numbers[at]
    const length = numbers[at + 1]
    if (offset < end || length < 0 || offset + length > sizeBytes) throw refuse('has parts that overlap or lie outside the file')
    end = offset + length
    dataBytes += length
    // An empty part at the end only says how long the file is.
    if (length === 0) continue
    numbers[filled++] = offset
    numbers[filled++] = length
  }
  if (dataBytes !== storedBytes) throw refuse(`has ${dataBytes} bytes of data, its member ${storedBytes}`)
  return { parts: new SparseParts(numbers.subarray(0, filled)), sizeBytes }
}

function tooMany(): VarveError {
  return new VarveError('LIMIT_EXCEEDED', `a sparse file in more than ${SPARSE_PARTS_MAX} parts`)
}
