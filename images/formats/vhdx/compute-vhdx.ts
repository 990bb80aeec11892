/**
 * Computes dynamic VHDX images of disks, whose log is empty. Nothing is written: each part is found, or made, where it is read.
 * [MS-VHDX], revision 8.0: the parts are in the order of section 2.1, each at whole MiB.
 */
import type { Digest } from '../../chunk/digest.ts'
import type { BlockDevice } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { bytesPiece, computedTable, layoutDigest, roundUp, uniqueId } from '../computed-parts.ts'
import type { ComputeOptions } from '../computed-parts.ts'
import { StoredBlocks, dataRanges, rangesOf } from '../stored-blocks.ts'
import { HEADER_BYTES, HEADER_OFFSETS, ITEM, METADATA_TABLE_BYTES, MIB, REGION, REGIONS_BYTES, REGIONS_OFFSETS, SIGNATURE, STATE, VERSION, checkSize, checksumOf, chunkBlocksOf } from './format.ts'

const SECTOR_BYTES = 512
const PHYSICAL_SECTOR_BYTES = 4096
const BLOCK_BYTES = 2 << 20
/** With more blocks they become larger: readers keep the whole table in memory, which this makes 16 MiB. */
const BLOCKS_MAX = 1 << 21
const ENTRY_BYTES = 8
const CREATOR = 'Varve'
const LOG = { offset: MIB, length: MIB }
const METADATA = { offset: 2 * MIB, length: MIB }
const TABLE_OFFSET = 3 * MIB
/** Flags of metadata items. */
const REQUIRED = 4
const OF_DISK = 2

/** A part of the file that is at hand. */
interface Part {
  offset: number
  bytes: Uint8Array
}

/** A dynamic VHDX image: what is data, and what was written as zeroes. As ComputeImage. @throws VarveError LIMIT_EXCEEDED above 64 TiB */
export async function computeVhdx(disk: BlockDevice, { digest = layoutDigest(disk) }: ComputeOptions = {}): Promise<BlockDevice> {
  const sizeBytes = roundUp(disk.sizeBytes, SECTOR_BYTES)
  checkSize(sizeBytes)
  let blockBytes = BLOCK_BYTES
  while (sizeBytes / blockBytes > BLOCKS_MAX) blockBytes *= 2
  const blocks = Math.ceil(sizeBytes / blockBytes)
  const chunkBlocks = chunkBlocksOf(blockBytes, SECTOR_BYTES)
  const entries = blocks + Math.max(0, Math.ceil(blocks / chunkBlocks) - 1)
  const tableBytes = Math.max(MIB, roundUp(entries * ENTRY_BYTES, MIB))
  const stored = new StoredBlocks(dataRanges(disk, 0, disk.sizeBytes), blockBytes)
  const blocksOffset = TABLE_OFFSET + tableBytes
  const blocksEnd = blocksOffset + stored.count * blockBytes

  /** Entry of a payload block: one of a bitmap block stands behind those of each chunk. */
  const entryOf = (block: number): number => block + Math.floor(block / chunkBlocks)
  const blockOf = (entry: number): number => Math.min(blocks, entry - Math.floor(entry / (chunkBlocks + 1)))
  const table = computedTable(ENTRY_BYTES, tableBytes, (bytes, first, end) => {
    const [firstBlock, endBlock] = [blockOf(first), blockOf(end)]
    const start = firstBlock * blockBytes
    for (const { offset, length } of rangesOf(disk, 'zero', start, Math.min(endBlock * blockBytes, disk.sizeBytes) - start)) {
      const zeroEnd = offset + length === disk.sizeBytes ? blocks : Math.floor((offset + length) / blockBytes)
      for (let block = Math.ceil(offset / blockBytes); block < zeroEnd; block++) bytes[(entryOf(block) - first) * ENTRY_BYTES] = STATE.zero
    }
    for (const run of stored.runs(firstBlock, endBlock)) {
      for (let index = 0; index < run.count; index++) {
        const place = blocksOffset + (run.rank + index) * blockBytes
        bytes.writeBigUInt64LE(BigInt(place) | BigInt(STATE.fullyPresent), (entryOf(run.first + index) - first) * ENTRY_BYTES)
      }
    }
  })
  const parts = headParts({ sizeBytes, blockBytes, tableBytes, digest })
  const locate = (offset: number, length: number): Piece => {
    if (offset < TABLE_OFFSET) return partPiece(parts, offset, Math.min(length, TABLE_OFFSET - offset))
    if (offset < blocksOffset) return { length: Math.min(length, blocksOffset - offset), source: table, at: offset - TABLE_OFFSET, type: 'data' }
    return stored.piece(disk, offset - blocksOffset, length)
  }
  return new PiecewiseDevice({ sizeBytes: blocksEnd, locate })
}

/** The part that holds `offset`, or nothing up to the next. */
function partPiece(parts: readonly Part[], offset: number, length: number): Piece {
  for (const { offset: start, bytes } of parts) {
    if (offset < start) return { length: Math.min(length, start - offset), at: 0, type: 'hole' }
    if (offset < start + bytes.length) return bytesPiece(bytes, start, { offset, length })
  }
  return { length, at: 0, type: 'hole' }
}

/** All that stands before the block allocation table, in order. */
function headParts({ sizeBytes, blockBytes, tableBytes, digest }: { sizeBytes: number; blockBytes: number; tableBytes: number; digest: Digest }): Part[] {
  const regions = regionTable(tableBytes)
  const identifier = Buffer.from(`${SIGNATURE.file}${Buffer.from(CREATOR, 'utf16le').toString('latin1')}`, 'latin1')
  const { table, items } = metadata({ sizeBytes, blockBytes, digest })
  return [
    { offset: 0, bytes: identifier },
    ...HEADER_OFFSETS.map((offset, index) => ({ offset, bytes: header(index + 1, digest) })),
    ...REGIONS_OFFSETS.map((offset) => ({ offset, bytes: regions })),
    { offset: METADATA.offset, bytes: table },
    { offset: METADATA.offset + METADATA_TABLE_BYTES, bytes: items },
  ]
}

function header(sequence: number, digest: Digest): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES)
  bytes.write(SIGNATURE.header, 0, 'latin1')
  bytes.writeBigUInt64LE(BigInt(sequence), 8)
  bytes.set(uniqueId(digest, 'vhdx file'), 16)
  bytes.set(uniqueId(digest, 'vhdx data'), 32)
  // No id of a log: there is nothing to replay.
  bytes.writeUInt16LE(VERSION, 66)
  bytes.writeUInt32LE(LOG.length, 68)
  bytes.writeBigUInt64LE(BigInt(LOG.offset), 72)
  return sealed(bytes)
}

function regionTable(tableBytes: number): Buffer {
  const bytes = Buffer.alloc(REGIONS_BYTES)
  bytes.write(SIGNATURE.regions, 0, 'latin1')
  bytes.writeUInt32LE(2, 8)
  const regions = [[REGION.table, TABLE_OFFSET, tableBytes], [REGION.metadata, METADATA.offset, METADATA.length]] as const
  regions.forEach(([id, offset, length], index) => {
    const at = 16 + index * 32
    bytes.write(id, at, 'hex')
    bytes.writeBigUInt64LE(BigInt(offset), at + 16)
    bytes.writeUInt32LE(length, at + 24)
    bytes.writeUInt32LE(1, at + 28)
  })
  return sealed(bytes)
}

function metadata({ sizeBytes, blockBytes, digest }: { sizeBytes: number; blockBytes: number; digest: Digest }): { table: Buffer; items: Buffer } {
  const number = (value: number, bytes: number): Buffer => {
    const item = Buffer.alloc(bytes)
    item.writeUIntLE(value, 0, Math.min(bytes, 6))
    return item
  }
  const known = [
    [ITEM.fileParameters, number(blockBytes, 8), REQUIRED],
    [ITEM.diskSize, number(sizeBytes, 8), REQUIRED | OF_DISK],
    [ITEM.diskId, Buffer.from(uniqueId(digest, 'vhdx disk')), REQUIRED | OF_DISK],
    [ITEM.logicalSector, number(SECTOR_BYTES, 4), REQUIRED | OF_DISK],
    [ITEM.physicalSector, number(PHYSICAL_SECTOR_BYTES, 4), REQUIRED | OF_DISK],
  ] as const
  const table = Buffer.alloc(32 + known.length * 32)
  table.write(SIGNATURE.metadata, 0, 'latin1')
  table.writeUInt16LE(known.length, 10)
  let offset = METADATA_TABLE_BYTES
  known.forEach(([id, item, flags], index) => {
    const at = 32 + index * 32
    table.write(id, at, 'hex')
    table.writeUInt32LE(offset, at + 16)
    table.writeUInt32LE(item.length, at + 20)
    table.writeUInt32LE(flags, at + 24)
    offset += item.length
  })
  return { table, items: Buffer.concat(known.map(([, item]) => item)) }
}

function sealed(bytes: Buffer): Buffer {
  bytes.writeUInt32LE(checksumOf(bytes), 4)
  return bytes
}
