/**
 * Computes VMDK images of disks: monolithicSparse, version 1. Virtual Disk Format 5.0, "Hosted Sparse Extents". Nothing is written: tables are made,
 * and data is found, where they are read. Order in the file: header, descriptor, redundant grain directory and its tables, grain directory and its tables, grains.
 */
import type { BlockDevice } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import { bytesPiece, computedTable, layoutDigest, roundUp, uniqueId } from '../computed-parts.ts'
import type { ComputeOptions } from '../computed-parts.ts'
import { StoredBlocks, dataRanges } from '../stored-blocks.ts'
import { NO_PARENT, SECTOR_BYTES } from './descriptor.ts'

const GRAIN_SECTORS = 128
const GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
const TABLE_ENTRIES = 512
const ENTRY_BYTES = 4
const TABLE_SECTORS = (TABLE_ENTRIES * ENTRY_BYTES) / SECTOR_BYTES
const DESCRIPTOR_SECTOR = 1
const DESCRIPTOR_SECTORS = 20
/** Entries of tables are 32-bit numbers of sectors. */
const SECTORS_MAX = 2 ** 32
/** Bits of flags: line ends can be checked, the redundant directory is there. */
const NEWLINES = 1
const REDUNDANT = 2
/** Geometry of a SCSI disk, as the descriptor of its adapter implies. */
const HEADS = 255
const TRACK_SECTORS = 63
const FILE_NAME_BYTES_MAX = 255

export interface ComputeVmdkOptions extends ComputeOptions {
  /** What the file shall be called, which its descriptor names. */
  fileName?: string
}

/** Where things are in the file: numbers of sectors. */
interface Layout {
  /** Directories, each followed by its tables: the redundant one, and the other. */
  directories: readonly [number, number]
  directorySectors: number
  tables: number
  grains: number
}

/**
 * A VMDK image of a disk: what is data; all else is not in the image, and reads as zeroes. As ComputeImage.
 * @throws VarveError LIMIT_EXCEEDED for more than 2 TiB of data
 */
export async function computeVmdk(disk: BlockDevice, { digest = layoutDigest(disk), fileName = 'disk.vmdk' }: ComputeVmdkOptions = {}): Promise<BlockDevice> {
  const stored = new StoredBlocks(dataRanges(disk, 0, disk.sizeBytes), GRAIN_BYTES)
  const capacity = Math.ceil(disk.sizeBytes / SECTOR_BYTES)
  const layout = layOut(capacity)
  const endSector = layout.grains + stored.count * GRAIN_SECTORS
  if (endSector > SECTORS_MAX) throw new VarveError('LIMIT_EXCEEDED', `a VMDK image holds at most 2 TiB; with this disk it would be ${endSector * SECTOR_BYTES} bytes`)
  const head = Buffer.concat([header(capacity, layout), descriptor({ capacity, cid: Buffer.from(uniqueId(digest, 'vmdk')).readUInt32LE(0), fileName })])
  const [redundant, primary] = layout.directories
  const tablesAt = (directory: number) => directory + layout.directorySectors
  const tables = computedTable(ENTRY_BYTES, layout.tables * TABLE_SECTORS * SECTOR_BYTES, (bytes, first, end) => {
    for (const run of stored.runs(first, end)) {
      for (let index = 0; index < run.count; index++) bytes.writeUInt32LE(layout.grains + (run.rank + index) * GRAIN_SECTORS, (run.first - first + index) * ENTRY_BYTES)
    }
  })

  function locate(offset: number, length: number): Piece {
    if (offset < head.length) return bytesPiece(head, 0, { offset, length })
    const grains = layout.grains * SECTOR_BYTES
    if (offset >= grains) return stored.piece(disk, offset - grains, length)
    const start = offset < primary * SECTOR_BYTES ? redundant : primary
    if (offset < tablesAt(start) * SECTOR_BYTES) return directoryPiece(start, offset, length)
    return tablePiece(offset - tablesAt(start) * SECTOR_BYTES, length, (start === redundant ? primary : layout.grains) * SECTOR_BYTES - offset)
  }

  function directoryPiece(start: number, offset: number, length: number): Piece {
    const source = computedTable(ENTRY_BYTES, layout.directorySectors * SECTOR_BYTES, (bytes, first, end) => {
      for (let index = first; index < Math.min(end, layout.tables); index++) bytes.writeUInt32LE(tablesAt(start) + index * TABLE_SECTORS, (index - first) * ENTRY_BYTES)
    })
    const at = offset - start * SECTOR_BYTES
    return { length: Math.min(length, source.sizeBytes - at), source, at, type: 'data' }
  }

  /** Tables are there for all of the disk; those that have no grains are holes of the image. @param rest bytes up to what follows all tables */
  function tablePiece(offset: number, length: number, rest: number): Piece {
    if (offset >= tables.sizeBytes) return { length: Math.min(length, rest), at: 0, type: 'hole' }
    const first = Math.floor(offset / ENTRY_BYTES)
    const run = stored.runs(first, Infinity).next().value
    const tableOf = (entry: number) => entry - (entry % TABLE_ENTRIES)
    const nextUsed = run === undefined ? tables.sizeBytes : tableOf(run.first) * ENTRY_BYTES
    if (nextUsed > offset) return { length: Math.min(length, nextUsed - offset), at: 0, type: 'hole' }
    const end = (tableOf(run!.first + run!.count - 1) + TABLE_ENTRIES) * ENTRY_BYTES
    return { length: Math.min(length, end - offset), source: tables, at: offset, type: 'data' }
  }

  return new PiecewiseDevice({ sizeBytes: endSector * SECTOR_BYTES, locate })
}

function layOut(capacity: number): Layout {
  const tables = Math.ceil(capacity / (TABLE_ENTRIES * GRAIN_SECTORS))
  const directorySectors = Math.max(1, Math.ceil((tables * ENTRY_BYTES) / SECTOR_BYTES))
  const redundant = DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS
  const primary = redundant + directorySectors + tables * TABLE_SECTORS
  return { directories: [redundant, primary], directorySectors, tables, grains: roundUp(primary + directorySectors + tables * TABLE_SECTORS, GRAIN_SECTORS) }
}

function header(capacity: number, { directories: [redundant, primary], grains }: Layout): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES)
  bytes.write('KDMV', 0, 'latin1')
  bytes.writeUInt32LE(1, 4)
  bytes.writeUInt32LE(NEWLINES | REDUNDANT, 8)
  bytes.writeBigUInt64LE(BigInt(capacity), 12)
  bytes.writeBigUInt64LE(BigInt(GRAIN_SECTORS), 20)
  bytes.writeBigUInt64LE(BigInt(DESCRIPTOR_SECTOR), 28)
  bytes.writeBigUInt64LE(BigInt(DESCRIPTOR_SECTORS), 36)
  bytes.writeUInt32LE(TABLE_ENTRIES, 44)
  bytes.writeBigUInt64LE(BigInt(redundant), 48)
  bytes.writeBigUInt64LE(BigInt(primary), 56)
  bytes.writeBigUInt64LE(BigInt(grains), 64)
  bytes.write('\n \r\n', 73, 'latin1')
  return bytes
}

function descriptor({ capacity, cid, fileName }: { capacity: number; cid: number; fileName: string }): Buffer {
  if (/["\r\n\0]/.test(fileName) || Buffer.byteLength(fileName) > FILE_NAME_BYTES_MAX) throw new RangeError(`a VMDK image cannot be called ${JSON.stringify(fileName)}`)
  const bytes = Buffer.alloc(DESCRIPTOR_SECTORS * SECTOR_BYTES)
  // The highest numbers stand for no disk, and for one that has a longer id.
  const cidText = (cid >= 0xffff_fffe ? 1 : cid).toString(16).padStart(8, '0')
  bytes.write([
    '# Disk DescriptorFile',
    'version=1',
    'encoding="UTF-8"',
    `CID=${cidText}`,
    `parentCID=${NO_PARENT}`,
    'createType="monolithicSparse"',
    '',
    '# Extent description',
    `RW ${capacity} SPARSE "${fileName}"`,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    'ddb.virtualHWVersion = "4"',
    `ddb.geometry.cylinders = "${Math.floor(capacity / (HEADS * TRACK_SECTORS))}"`,
    `ddb.geometry.heads = "${HEADS}"`,
    `ddb.geometry.sectors = "${TRACK_SECTORS}"`,
    'ddb.adapterType = "lsilogic"',
    '',
  ].join('\n'))
  return bytes
}
