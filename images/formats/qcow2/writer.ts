/**
 * Computes qcow2 images of disks, version 3: docs/interop/qcow2.rst in QEMU. Nothing is written: tables are made, and data is found, where they are read.
 * Order in the file: header, refcount table, refcount blocks, L1 table, L2 tables, data clusters; those two in the order of the disk, and only where there is something.
 */
import type { BlockDevice, ReadableDisk } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { bytesPiece, computedTable, roundUp } from '../computed-parts.ts'
import type { DiskFormat } from '../disk-image.ts'
import { StoredBlocks, dataRanges, rangesOf } from '../stored-blocks.ts'
import type { DiskRange } from '../stored-blocks.ts'
import { Extension, HEADER_BYTES, L1_BYTES_MAX, QCOW2_MAGIC } from './header.ts'

const CLUSTER_BYTES_MIN = 64 << 10
const SECTOR_BYTES = 512
/** refcount_order: counts of 2^4 bits. */
const REFCOUNT_ORDER = 4
const REFCOUNT_BYTES = 2
const ENTRY_BYTES = 8
/** Upper word of an entry: the reference count is one. */
const COPIED = 0x8000_0000
const ALL_ZEROES = 1
const WORD = 0x1_0000_0000
const BACKING_NAME_BYTES_MAX = 1023

export interface Qcow2OverlayOptions {
  /** Where the disk is not what the backing file shows: in any order. */
  changed: Iterable<DiskRange>
  backing: {
    /** As it shall stand in the image: absolute, or relative to it. */
    name: string
    format: DiskFormat
    /** Of the disk inside. Beyond it, all of the disk is in the image. */
    sizeBytes: number
  }
}

/** A qcow2 image of a whole disk: what is data; zeroes and holes as such. As ComputeImage. */
export async function computeQcow2(disk: BlockDevice): Promise<BlockDevice> {
  const clusterBytes = clusterBytesFor(disk.sizeBytes)
  return image(disk, {
    clusterBytes,
    data: new StoredBlocks(dataRanges(disk, 0, disk.sizeBytes), clusterBytes),
    zero: new StoredBlocks(rangesOf(disk, 'zero', 0, disk.sizeBytes), clusterBytes),
    header: header(disk, clusterBytes),
  })
}

/** A qcow2 image that lies over another and holds what changed. @throws RangeError for a name of more than 1023 bytes */
export async function computeQcow2Overlay(disk: BlockDevice, { changed, backing }: Qcow2OverlayOptions): Promise<BlockDevice> {
  const clusterBytes = clusterBytesFor(disk.sizeBytes)
  const ranges = Array.from(changed, (range) => wholeClusters(range, clusterBytes, disk.sizeBytes))
  // What only this disk has reads as zeroes where nothing is stored: there it is enough to have its data.
  const added = Math.floor(Math.min(backing.sizeBytes, disk.sizeBytes) / clusterBytes) * clusterBytes
  return image(disk, {
    clusterBytes,
    data: new StoredBlocks(dataRangesOfAll(disk, [...ranges, { offset: added, length: disk.sizeBytes - added }]), clusterBytes),
    zero: new StoredBlocks(ranges, clusterBytes),
    header: header(disk, clusterBytes, backing),
  })
}

function* dataRangesOfAll(disk: BlockDevice, ranges: readonly DiskRange[]): Generator<DiskRange, void> {
  for (const { offset, length } of ranges) yield* dataRanges(disk, offset, length)
}

function wholeClusters({ offset, length }: DiskRange, clusterBytes: number, sizeBytes: number): DiskRange {
  const first = offset - (offset % clusterBytes)
  return { offset: first, length: Math.min(sizeBytes, roundUp(offset + length, clusterBytes)) - first }
}

/** As small as the L1 table allows. */
function clusterBytesFor(sizeBytes: number): number {
  let clusterBytes = CLUSTER_BYTES_MIN
  while (l1EntriesFor(sizeBytes, clusterBytes) * ENTRY_BYTES > L1_BYTES_MAX) clusterBytes *= 2
  return clusterBytes
}

function l1EntriesFor(sizeBytes: number, clusterBytes: number): number {
  return Math.ceil(sizeBytes / (clusterBytes * (clusterBytes / ENTRY_BYTES)))
}

/** What does not depend on where things are. */
function header(disk: BlockDevice, clusterBytes: number, backing?: Qcow2OverlayOptions['backing']): Buffer {
  const bytes = Buffer.alloc(clusterBytes)
  bytes.writeUInt32BE(QCOW2_MAGIC, 0)
  bytes.writeUInt32BE(3, 4)
  bytes.writeUInt32BE(Math.log2(clusterBytes), 20)
  bytes.writeBigUInt64BE(BigInt(roundUp(disk.sizeBytes, SECTOR_BYTES)), 24)
  bytes.writeUInt32BE(REFCOUNT_ORDER, 96)
  bytes.writeUInt32BE(HEADER_BYTES, 100)
  if (backing === undefined) return bytes
  const name = Buffer.from(backing.name)
  if (name.length === 0 || name.length > BACKING_NAME_BYTES_MAX) throw new RangeError(`a backing file's name of ${name.length} bytes`)
  const format = backing.format === 'vhd' ? 'vpc' : backing.format
  bytes.writeUInt32BE(Extension.backingFormat, HEADER_BYTES)
  bytes.writeUInt32BE(format.length, HEADER_BYTES + 4)
  bytes.write(format, HEADER_BYTES + 8, 'latin1')
  // Followed by the end of extensions, which is zeroes.
  const nameAt = HEADER_BYTES + 8 + roundUp(format.length, 8) + 8
  bytes.set(name, nameAt)
  bytes.writeBigUInt64BE(BigInt(nameAt), 8)
  bytes.writeUInt32BE(name.length, 16)
  return bytes
}

interface ImageParts {
  clusterBytes: number
  data: StoredBlocks
  /** Clusters that read as zeroes, whatever is below, unless they are data. */
  zero: StoredBlocks
  header: Buffer
}

/** Where things are in the file: numbers of clusters. */
interface Layout {
  refcountTable: number
  refcountBlocks: number
  l1: number
  l2: number
  data: number
  end: number
}

function image(disk: BlockDevice, { clusterBytes, data, zero, header }: ImageParts): BlockDevice {
  const l1Entries = l1EntriesFor(disk.sizeBytes, clusterBytes)
  const l2Entries = clusterBytes / ENTRY_BYTES
  const tables = new StoredBlocks(spans([data, zero]), l2Entries)
  const layout = layOut({ clusterBytes, l1Entries, tables: tables.count, data: data.count })
  header.writeUInt32BE(l1Entries, 36)
  header.writeBigUInt64BE(BigInt(layout.l1 * clusterBytes), 40)
  header.writeBigUInt64BE(BigInt(layout.refcountTable * clusterBytes), 48)
  header.writeUInt32BE(layout.refcountBlocks - layout.refcountTable, 56)
  const parts: [start: number, table: ReadableDisk][] = [
    [layout.refcountTable, entries(layout.refcountBlocks - layout.refcountTable, (bytes, first, end) => {
      for (let block = first; block < Math.min(end, layout.l1 - layout.refcountBlocks); block++) writeEntry(bytes, block - first, (layout.refcountBlocks + block) * clusterBytes, 0)
    })],
    [layout.refcountBlocks, computedTable(REFCOUNT_BYTES, (layout.l1 - layout.refcountBlocks) * clusterBytes, (bytes, first, end) => {
      for (let at = 1; at < 2 * (Math.min(end, layout.end) - first); at += REFCOUNT_BYTES) bytes[at] = 1
    })],
    [layout.l1, entries(layout.l2 - layout.l1, (bytes, first, end) => {
      for (const run of tables.runs(first, end)) {
        for (let index = 0; index < run.count; index++) writeEntry(bytes, run.first - first + index, (layout.l2 + run.rank + index) * clusterBytes, COPIED)
      }
    })],
    [layout.l2, entries(layout.data - layout.l2, (bytes, first, end) => {
      // From places among the tables to clusters of the disk, one table at a time.
      for (let at = first; at < end;) {
        const table = Math.floor(at / l2Entries)
        const stop = Math.min(end, (table + 1) * l2Entries)
        const cluster = tables.blockAt(table) * l2Entries + (at - table * l2Entries)
        l2Table(bytes.subarray((at - first) * ENTRY_BYTES, (stop - first) * ENTRY_BYTES), cluster, cluster + stop - at)
        at = stop
      }
    })],
  ]

  function entries(clusters: number, fill: (bytes: Buffer, first: number, end: number) => void): ReadableDisk {
    return computedTable(ENTRY_BYTES, clusters * clusterBytes, fill)
  }

  function l2Table(bytes: Buffer, first: number, end: number): void {
    for (const run of zero.runs(first, end)) {
      for (let index = 0; index < run.count; index++) bytes[(run.first - first + index) * ENTRY_BYTES + ENTRY_BYTES - 1] = ALL_ZEROES
    }
    for (const run of data.runs(first, end)) {
      for (let index = 0; index < run.count; index++) writeEntry(bytes, run.first - first + index, (layout.data + run.rank + index) * clusterBytes, COPIED)
    }
  }

  function locate(offset: number, length: number): Piece {
    const cluster = Math.floor(offset / clusterBytes)
    if (cluster === 0) return bytesPiece(header, 0, { offset, length })
    if (cluster >= layout.data) return data.piece(disk, offset - layout.data * clusterBytes, length)
    const [start, table] = parts.findLast(([start]) => start <= cluster)!
    const at = offset - start * clusterBytes
    return { length: Math.min(length, table.sizeBytes - at), source: table, at, type: 'data' }
  }

  return new PiecewiseDevice({ sizeBytes: layout.end * clusterBytes, locate })
}

/** Runs of clusters as ranges, of which a "block" is a table's worth. */
function* spans(all: readonly StoredBlocks[]): Generator<DiskRange, void> {
  for (const blocks of all) for (const { first, count } of blocks.runs(0, Infinity)) yield { offset: first, length: count }
}

/** All clusters of the file are counted, those that hold the counts too. */
function layOut({ clusterBytes, l1Entries, tables, data }: { clusterBytes: number; l1Entries: number; tables: number; data: number }): Layout {
  const l1Clusters = Math.max(1, Math.ceil((l1Entries * ENTRY_BYTES) / clusterBytes))
  let blocks = 1
  for (;;) {
    const tableClusters = Math.ceil((blocks * ENTRY_BYTES) / clusterBytes)
    const refcountBlocks = 1 + tableClusters
    const l1 = refcountBlocks + blocks
    const l2 = l1 + l1Clusters
    const end = l2 + tables + data
    const needed = Math.ceil((end * REFCOUNT_BYTES) / clusterBytes)
    if (needed <= blocks) return { refcountTable: 1, refcountBlocks, l1, l2, data: l2 + tables, end }
    blocks = needed
  }
}

function writeEntry(bytes: Buffer, index: number, place: number, flags: number): void {
  bytes.writeUInt32BE((Math.floor(place / WORD) | flags) >>> 0, index * ENTRY_BYTES)
  bytes.writeUInt32BE(place % WORD, index * ENTRY_BYTES + 4)
}
