/**
 * Clusters of a qcow2 image: where each part of the disk is. Sections "Cluster mapping" and "Extended L2 Entries" of docs/interop/qcow2.rst in QEMU.
 */
import { inflateRawSync } from 'node:zlib'
import type { BlockDevice, ReadableDisk } from '../../device/block-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import { zstdDecompressFrames } from '../../native/zstd.ts'
import { CompressedClusters } from '../compressed-clusters.ts'
import type { CompressedCluster } from '../compressed-clusters.ts'
import { TablePages, filePiece } from '../table-pages.ts'
import { invalid } from './header.ts'
import type { Qcow2Header } from './header.ts'

/** Bits 9 .. 55 of an entry in two words are a place; these are the parts of it. */
const HIGH_PLACE = 0x00ff_ffff
const LOW_PLACE = 0xffff_fe00
const WORD = 0x1_0000_0000
/** Bit 63, in the upper word: reference count is one; with an external data file, that a cluster is at place 0. */
const COPIED = 0x8000_0000
/** Bit 62, in the upper word. */
const COMPRESSED = 0x4000_0000
/** Bit 0: reads as zeroes, wherever it is; since version 3, and not with subclusters. */
const ALL_ZEROES = 1
const SUBCLUSTERS = 32

/** Entries of an L2 table. */
export function l2EntriesOf(header: Qcow2Header): number {
  return header.clusterBytes / (header.extendedL2 ? 16 : 8)
}

/** Place that an entry of an L1 or L2 table has. @param at of the entry in `entry` */
export function placeOf(entry: Buffer, at: number): number {
  return (entry.readUInt32BE(at) & HIGH_PLACE) * WORD + ((entry.readUInt32BE(at + 4) & LOW_PLACE) >>> 0)
}

export interface ClustersParts {
  file: ReadableDisk
  /** Holds the clusters; `file` itself, mostly. */
  dataFile: ReadableDisk
  backing?: BlockDevice
  header: Qcow2Header
  /** Places of L2 tables, 0 where there is none. */
  l1: Float64Array
}

/** What an entry says. */
type ClusterKind = 'below' | 'zero' | 'data' | 'compressed'

export class Clusters {
  readonly #file: ReadableDisk
  readonly #dataFile: ReadableDisk
  readonly #hasDataFile: boolean
  readonly #backing: BlockDevice | undefined
  readonly #header: Qcow2Header
  readonly #l1: Float64Array
  readonly #l2Entries: number
  readonly #entryBytes: number
  /** Bytes of what is allocated at a time: a subcluster, or a cluster. */
  readonly #unitBytes: number
  readonly #tables: TablePages
  readonly #compressed: CompressedClusters

  constructor({ file, dataFile, backing, header, l1 }: ClustersParts) {
    this.#file = file
    this.#dataFile = dataFile
    this.#hasDataFile = dataFile !== file
    this.#backing = backing
    this.#header = header
    this.#l1 = l1
    this.#l2Entries = l2EntriesOf(header)
    this.#entryBytes = header.extendedL2 ? 16 : 8
    this.#unitBytes = header.extendedL2 ? header.clusterBytes / SUBCLUSTERS : header.clusterBytes
    this.#tables = new TablePages(file)
    this.#compressed = new CompressedClusters({ file, clusterBytes: header.clusterBytes, decompress: header.compression === 'zlib' ? inflated : unpacked })
  }

  /** As PiecewiseOptions.locate: units that are alike and, if they are data, follow each other in the file too. */
  locate(offset: number, length: number): Piece {
    const { clusterBytes } = this.#header
    const cluster = Math.floor(offset / clusterBytes)
    const l1Index = Math.floor(cluster / this.#l2Entries)
    if (this.#l1[l1Index] === 0) return this.#below(offset, this.#withoutTable(l1Index, offset, length))
    const first = cluster % this.#l2Entries
    const last = Math.min(this.#l2Entries - 1, first + Math.floor((offset + length - 1) / clusterBytes) - cluster)
    const entries = this.#tables.at(this.#l1[l1Index] + first * this.#entryBytes, (last - first + 1) * this.#entryBytes)
    const within = offset - cluster * clusterBytes
    if ((entries.readUInt32BE(0) & COMPRESSED) !== 0) return this.#compressedPiece(entries, within, length)
    return this.#run(entries, offset, within, length)
  }

  /** Bytes from `offset` on, up to `length`, that have no L2 tables. */
  #withoutTable(l1Index: number, offset: number, length: number): number {
    const spanBytes = this.#l2Entries * this.#header.clusterBytes
    let end = l1Index + 1
    while (end * spanBytes < offset + length && this.#l1[end] === 0) end++
    return Math.min(length, end * spanBytes - offset)
  }

  #run(entries: Buffer, offset: number, within: number, length: number): Piece {
    const { clusterBytes } = this.#header
    const unitBytes = this.#unitBytes
    const unitsEach = clusterBytes / unitBytes
    const units = (entries.length / this.#entryBytes) * unitsEach
    const first = Math.floor(within / unitBytes)
    const kind = this.#kind(entries, first, unitsEach)
    const host = kind === 'data' ? this.#host(entries, 0) : 0
    let end = first + 1
    while (end < units && end * unitBytes < within + length && this.#kind(entries, end, unitsEach) === kind) {
      const index = Math.floor(end / unitsEach)
      if (kind === 'data' && end % unitsEach === 0 && this.#host(entries, index) !== host + index * clusterBytes) break
      end++
    }
    const runLength = Math.min(length, end * unitBytes - within)
    if (kind === 'below') return this.#below(offset, runLength)
    if (kind === 'zero') return { length: runLength, at: 0, type: 'zero' }
    const at = host + within
    return filePiece(this.#dataFile, { at, length: runLength, clusterStart: at - (at % clusterBytes), clusterBytes })
  }

  /** @param unit counted from the first entry of `entries` */
  #kind(entries: Buffer, unit: number, unitsEach: number): ClusterKind {
    const at = Math.floor(unit / unitsEach) * this.#entryBytes
    const high = entries.readUInt32BE(at)
    if ((high & COMPRESSED) !== 0) return 'compressed'
    if (unitsEach === 1) {
      const low = entries.readUInt32BE(at + 4)
      if ((low & ALL_ZEROES) !== 0) {
        if (this.#header.version === 2) throw invalid('a cluster of zeroes, which version 2 does not have')
        return 'zero'
      }
      return (high & HIGH_PLACE) !== 0 || (low & LOW_PLACE) !== 0 || this.#isAtStart(high) ? 'data' : 'below'
    }
    const bit = 1 << unit % unitsEach
    const zero = (entries.readUInt32BE(at + 8) & bit) !== 0
    const allocated = (entries.readUInt32BE(at + 12) & bit) !== 0
    if (zero && allocated) throw invalid('a subcluster is zeroes and data at once')
    if (allocated && placeOf(entries, at) === 0 && !this.#isAtStart(high)) throw invalid('a subcluster is data that is nowhere')
    return zero ? 'zero' : allocated ? 'data' : 'below'
  }

  /** Only in a file that holds nothing but data is there a cluster at place 0. */
  #isAtStart(high: number): boolean {
    return this.#hasDataFile && (high & COPIED) !== 0
  }

  #host(entries: Buffer, index: number): number {
    const host = placeOf(entries, index * this.#entryBytes)
    if (host % this.#header.clusterBytes !== 0) throw invalid(`a cluster is at byte ${host} of the file, which is not the border of one`)
    return host
  }

  #below(offset: number, length: number): Piece {
    const rest = this.#backing === undefined ? 0 : this.#backing.sizeBytes - offset
    if (rest <= 0) return { length, at: 0, type: 'hole' }
    return { length: Math.min(length, rest), source: this.#backing, at: offset }
  }

  /** Section "Compressed Clusters Descriptor": a place in bytes, and the sectors of 512 bytes that follow the one in which it is. */
  #compressedPiece(entry: Buffer, within: number, length: number): Piece {
    const { clusterBits, clusterBytes } = this.#header
    if (this.#hasDataFile) throw invalid('a compressed cluster in an image whose data is in another file')
    const high = entry.readUInt32BE(0)
    const placeBits = 70 - clusterBits - 32
    const at = (high & ((1 << placeBits) - 1)) * WORD + entry.readUInt32BE(4)
    const sectors = ((high & (COMPRESSED - 1)) >>> placeBits) + 1
    // What is compressed need not fill its last sector, with which the file may end.
    const end = Math.min(this.#file.sizeBytes, at - (at % 512) + sectors * 512)
    if (end <= at) throw invalid(`the image is cut short: a compressed cluster at byte ${at} is behind its end, byte ${this.#file.sizeBytes}`)
    return { length: Math.min(length, clusterBytes - within), source: this.#compressed.source({ at, length: end - at, contentBytes: clusterBytes }), at: within, type: 'data' }
  }
}

function inflated(bytes: Buffer, { at, contentBytes }: CompressedCluster): Uint8Array {
  let content: Uint8Array
  try {
    content = inflateRawSync(bytes, { maxOutputLength: contentBytes })
  } catch (cause) {
    throw damaged(at, cause)
  }
  if (content.length !== contentBytes) throw damaged(at)
  return content
}

function unpacked(bytes: Buffer, { at, contentBytes }: CompressedCluster): Uint8Array {
  const content = Buffer.allocUnsafeSlow(contentBytes)
  if (!zstdDecompressFrames(content, bytes)) throw damaged(at)
  return content
}

function damaged(at: number, cause?: unknown): VarveError {
  return new VarveError('FORMAT_INVALID', `qcow2: the compressed cluster at byte ${at} is damaged`, { cause })
}
