/**
 * Sparse extents of VMDK: grains found by a directory of tables. Hosted sparse and stream-optimized ones ("KDMV") and those of ESX ("COWD"):
 * Virtual Disk Format 5.0, "Hosted Sparse Extents", "ESX Server Sparse Extents", "Stream-Optimized Compressed Sparse Extents". All numbers are little-endian.
 */
import { inflateSync } from 'node:zlib'
import type { ReadableDisk } from '../../device/block-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import { CompressedClusters } from '../compressed-clusters.ts'
import type { CompressedCluster } from '../compressed-clusters.ts'
import { TablePages, filePiece, readPart, repeatedPlace } from '../table-pages.ts'
import { SECTOR_BYTES, VMDK_DESCRIPTOR_BYTES_MAX, checkedBytes, invalid } from './descriptor.ts'

const GRAIN_BYTES_MAX = 32 << 20
/** Of those that are decompressed, whole, when a part is read. */
const COMPRESSED_GRAIN_BYTES_MAX = 2 << 20
const TABLE_ENTRIES_MAX = 512
const COWD_TABLE_ENTRIES = 4096
const DIRECTORY_BYTES_MAX = 32 << 20
const ENTRY_BYTES = 4

/** Bits of flags. */
const NEWLINES = 1
const ZERO_GRAINS = 4
const MARKERS = 0x2_0000
/** Where the directory is, if the footer has to say it. */
const AT_END = 0xffff_ffff_ffff_ffffn
const DEFLATE = 1
/** Grain marker: number of the first sector, bytes that follow. */
const MARKER_BYTES = 12
const MARKER_FOOTER = 3
/** What deflate adds to what cannot be compressed, and more. */
const EXPANSION_BYTES_MAX = 64 << 10

/** Entry of a table for a grain that reads as zeroes. */
const ZEROED = 1

export interface SparseHeader {
  sizeBytes: number
  grainBytes: number
  tableEntries: number
  /** Bytes from the start of the file. */
  directoryOffset: number
  hasZeroGrains: boolean
  compressed: boolean
  hasMarkers: boolean
  /** Its writer did not end cleanly. */
  unclean: boolean
  /** Of the descriptor inside; 0 if there is none. */
  descriptorOffset: number
  descriptorBytes: number
}

/** @param file begins with KDMV @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
export async function readSparseHeader(file: ReadableDisk): Promise<SparseHeader> {
  const head = await readPart(file, 0, SECTOR_BYTES, 'the header')
  // The footer is the header as it is known at the end.
  const header = head.readBigUInt64LE(56) === AT_END ? await readFooter(file) : head
  const version = header.readUInt32LE(4)
  const flags = header.readUInt32LE(8)
  if (version < 1 || version > 3) throw new VarveError('FORMAT_UNSUPPORTED', `VMDK version ${version}, which is not read; convert it with 'qemu-img convert'`)
  if ((flags & NEWLINES) !== 0 && header.toString('latin1', 73, 77) !== '\n \r\n') throw invalid('line ends in it were changed when it was copied as text')
  const compression = header.readUInt16LE(77)
  if (compression > DEFLATE) throw new VarveError('FORMAT_UNSUPPORTED', `VMDK: compression of type ${compression} is not known; convert it with 'qemu-img convert'`)
  return checkedHeader({
    sizeBytes: checkedBytes(sectors(header, 12)),
    grainBytes: checkedBytes(sectors(header, 20)),
    tableEntries: header.readUInt32LE(44),
    directoryOffset: checkedBytes(sectors(header, 56)),
    hasZeroGrains: (flags & ZERO_GRAINS) !== 0,
    compressed: compression === DEFLATE,
    hasMarkers: (flags & MARKERS) !== 0,
    unclean: head[72] !== 0,
    descriptorOffset: checkedBytes(sectors(head, 28)),
    descriptorBytes: Math.min(checkedBytes(sectors(head, 36)), VMDK_DESCRIPTOR_BYTES_MAX),
  }, TABLE_ENTRIES_MAX)
}

/** @param file begins with COWD @throws VarveError as above */
export async function readCowdHeader(file: ReadableDisk): Promise<SparseHeader> {
  const header = await readPart(file, 0, SECTOR_BYTES, 'the header')
  const version = header.readUInt32LE(4)
  if (version !== 1) throw new VarveError('FORMAT_UNSUPPORTED', `VMDK: a sparse extent of ESX of version ${version}, which is not read; convert it with 'qemu-img convert'`)
  return checkedHeader({
    sizeBytes: header.readUInt32LE(12) * SECTOR_BYTES,
    grainBytes: header.readUInt32LE(16) * SECTOR_BYTES,
    tableEntries: COWD_TABLE_ENTRIES,
    directoryOffset: header.readUInt32LE(20) * SECTOR_BYTES,
    hasZeroGrains: false,
    compressed: false,
    hasMarkers: false,
    unclean: false,
    descriptorOffset: 0,
    descriptorBytes: 0,
  }, COWD_TABLE_ENTRIES)
}

function sectors(header: Buffer, at: number): number {
  return Number(header.readBigUInt64LE(at))
}

/** Three sectors at the end: footer marker, footer, end-of-stream marker. */
async function readFooter(file: ReadableDisk): Promise<Buffer> {
  const end = file.sizeBytes - (file.sizeBytes % SECTOR_BYTES)
  if (end < 4 * SECTOR_BYTES) throw invalid('the image is cut short: its footer is missing')
  const bytes = await readPart(file, end - 3 * SECTOR_BYTES, 3 * SECTOR_BYTES, 'the footer')
  const isMarker = (at: number, type: number) => bytes.readUInt32LE(at + 8) === 0 && bytes.readUInt32LE(at + 12) === type
  if (!isMarker(0, MARKER_FOOTER) || bytes.toString('latin1', SECTOR_BYTES, SECTOR_BYTES + 4) !== 'KDMV' || !isMarker(2 * SECTOR_BYTES, 0)) throw invalid('the image is cut short: it does not end with a footer')
  return bytes.subarray(SECTOR_BYTES, 2 * SECTOR_BYTES)
}

function checkedHeader(header: SparseHeader, entriesMax: number): SparseHeader {
  const { grainBytes, tableEntries } = header
  if (grainBytes === 0 || !Number.isInteger(Math.log2(grainBytes))) throw invalid(`grains of ${grainBytes} bytes`)
  const grainBytesMax = header.compressed ? COMPRESSED_GRAIN_BYTES_MAX : GRAIN_BYTES_MAX
  if (grainBytes > grainBytesMax) throw new VarveError('LIMIT_EXCEEDED', `VMDK: grains of ${grainBytes} bytes; at most ${grainBytesMax} are read`)
  if (tableEntries === 0 || tableEntries > entriesMax) throw invalid(`grain tables of ${tableEntries} entries`)
  return header
}

export class SparseExtent {
  readonly sizeBytes: number
  readonly #file: ReadableDisk
  readonly #header: SparseHeader
  /** Sectors where the tables are, 0 where there is none. */
  readonly #directory: Uint32Array
  readonly #tables: TablePages
  readonly #compressed: CompressedClusters

  private constructor(file: ReadableDisk, header: SparseHeader, directory: Uint32Array) {
    this.sizeBytes = header.sizeBytes
    this.#file = file
    this.#header = header
    this.#directory = directory
    this.#tables = new TablePages(file)
    this.#compressed = new CompressedClusters({ file, clusterBytes: header.grainBytes, decompress: (bytes, grain) => inflated(bytes, grain, header) })
  }

  /** @param file borrowed @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  static async open(file: ReadableDisk, header: SparseHeader): Promise<SparseExtent> {
    const count = Math.ceil(header.sizeBytes / (header.grainBytes * header.tableEntries))
    checkDirectoryBytes(count * ENTRY_BYTES)
    const bytes = await readPart(file, header.directoryOffset, count * ENTRY_BYTES, 'the grain directory')
    const directory = Uint32Array.from({ length: count }, (_, index) => bytes.readUInt32LE(index * ENTRY_BYTES))
    const twice = repeatedPlace(directory)
    if (twice !== undefined) throw invalid(`the grain table in sector ${twice} is used twice`)
    return new SparseExtent(file, header, directory)
  }

  get directoryBytes(): number {
    return this.#directory.byteLength
  }

  /** As PiecewiseOptions.locate; a hole is what the parent has. */
  locate(offset: number, length: number): Piece {
    const { grainBytes, tableEntries } = this.#header
    const grain = Math.floor(offset / grainBytes)
    const index = Math.floor(grain / tableEntries)
    const table = this.#directory[index]
    if (table === 0) return { length: this.#withoutTable(index, offset, length), at: 0, type: 'hole' }
    const first = grain % tableEntries
    const last = Math.min(tableEntries - 1, first + Math.floor((offset + length - 1) / grainBytes) - grain)
    const entries = this.#tables.at(table * SECTOR_BYTES + first * ENTRY_BYTES, (last - first + 1) * ENTRY_BYTES)
    const within = offset - grain * grainBytes
    const entry = entries.readUInt32LE(0)
    const type = this.#typeOf(entry)
    if (type === 'data' && this.#header.compressed) return this.#compressedPiece(entry, offset - within, { within, length })
    const stride = grainBytes / SECTOR_BYTES
    let count = 1
    while (count * ENTRY_BYTES < entries.length) {
      const next = entries.readUInt32LE(count * ENTRY_BYTES)
      if (this.#typeOf(next) !== type || (type === 'data' && next !== entry + count * stride)) break
      count++
    }
    const run = Math.min(length, count * grainBytes - within)
    if (type !== 'data') return { length: run, at: 0, type }
    // Grains begin at any sector, so that the run ends before one that the file cuts short.
    const start = entry * SECTOR_BYTES
    return filePiece(this.#file, { at: start + within, length: run, clusterStart: start, clusterBytes: grainBytes })
  }

  /** Bytes from `offset` on, up to `length`, that have no tables. */
  #withoutTable(index: number, offset: number, length: number): number {
    const spanBytes = this.#header.tableEntries * this.#header.grainBytes
    let end = index + 1
    while (end * spanBytes < offset + length && this.#directory[end] === 0) end++
    return Math.min(length, end * spanBytes - offset)
  }

  #typeOf(entry: number): 'data' | 'zero' | 'hole' {
    return entry === 0 ? 'hole' : entry === ZEROED && this.#header.hasZeroGrains ? 'zero' : 'data'
  }

  #compressedPiece(sector: number, grainStart: number, { within, length }: { within: number; length: number }): Piece {
    const { grainBytes, sizeBytes } = this.#header
    const at = sector * SECTOR_BYTES
    const rest = this.#file.sizeBytes - at
    if (rest <= MARKER_BYTES) throw invalid(`the image is cut short: a grain at byte ${at} is behind its end, byte ${this.#file.sizeBytes}`)
    const contentBytes = Math.min(grainBytes, sizeBytes - grainStart)
    const source = this.#compressed.source({ at, length: Math.min(rest, MARKER_BYTES + grainBytes + EXPANSION_BYTES_MAX), contentBytes })
    return { length: Math.min(length, contentBytes - within), source, at: within, type: 'data' }
  }
}

/** @param directoryBytes of all extents of a disk, as one file may be many of them @throws VarveError LIMIT_EXCEEDED */
export function checkDirectoryBytes(directoryBytes: number): void {
  if (directoryBytes > DIRECTORY_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VMDK: directories of ${directoryBytes} bytes; at most ${DIRECTORY_BYTES_MAX} are read`)
}

function inflated(bytes: Buffer, { at, contentBytes }: CompressedCluster, { hasMarkers, grainBytes }: SparseHeader): Uint8Array {
  const size = hasMarkers ? bytes.readUInt32LE(8) : bytes.length
  const start = hasMarkers ? MARKER_BYTES : 0
  if (size === 0 || start + size > bytes.length) throw damaged(at)
  let content: Uint8Array
  try {
    content = inflateSync(bytes.subarray(start, start + size), { maxOutputLength: grainBytes })
  } catch (cause) {
    throw damaged(at, cause)
  }
  // The last grain may end with the disk.
  if (content.length < contentBytes) throw damaged(at)
  return content
}

function damaged(at: number, cause?: unknown): VarveError {
  return new VarveError('FORMAT_INVALID', `VMDK: the compressed grain at byte ${at} is damaged`, { cause })
}
