/**
 * GPT: writes primary and backup header, 128 entries each, protective MBR. Reading: gpt-reader.ts.
 * Bytes: UEFI specification 2.10, section 5.3; the disks that we lay out: docs/formats/disk.md.
 */
import { crc32 } from 'node:zlib'
import type { LayoutSink } from '../blockmap/layout-sink.ts'
import { SECTOR_BYTES, protectiveMbr } from './mbr.ts'

/** Types of partitions, as text. */
export const PartitionType = {
  efiSystem: 'c12a7328-f81f-11d2-ba4b-00c93ec93b8b',
  biosBoot: '21686148-6449-6e6f-744e-656564454649',
  linuxRootX64: '4f68bce3-e8cd-4db1-96e7-fbcaf984b709',
} as const

const HEADER_BYTES = 92
const ENTRY_BYTES = 128
const ENTRY_COUNT = 128
const TABLE_BYTES = ENTRY_BYTES * ENTRY_COUNT
const TABLE_SECTORS = TABLE_BYTES / SECTOR_BYTES
const NAME_UNITS_MAX = 36

/** Bytes at the start of the disk that belong to the table: MBR, header, entries. */
export const GPT_HEAD_BYTES = SECTOR_BYTES * (2 + TABLE_SECTORS)
/** Bytes at the end of the disk that belong to the table: entries, header. */
export const GPT_TAIL_BYTES = SECTOR_BYTES * (1 + TABLE_SECTORS)

export interface GptPartition {
  /** Text form, 8-4-4-4-12 hexadecimal digits. */
  typeGuid: string
  /** Text form; unique to the partition. */
  guid: string
  /** Up to 36 UTF-16 units. */
  name: string
  /** Bytes from the start of the disk, a multiple of 512. */
  firstByte: number
  /** Bytes, a multiple of 512, at least 512. */
  byteLength: number
  /** Bits of UEFI 2.10, table 5.8; default none. */
  attributes?: bigint
}

export interface GptOptions {
  /** A multiple of 512. */
  diskBytes: number
  /** Text form. */
  diskGuid: string
  /** In the order of their numbers, first is 1; up to 128, not overlapping. */
  partitions: readonly GptPartition[]
  /** What a BIOS runs, up to 440 bytes. */
  bootCode?: Uint8Array
}

/**
 * Writes both copies of the partition table and the protective MBR.
 * @throws RangeError for partitions outside the disk, overlapping or unaligned: the caller's bug
 */
export function writeGpt(sink: LayoutSink, options: GptOptions): void {
  const { diskBytes, partitions, bootCode } = options
  checkPartitions(diskBytes, partitions)
  const table = partitionTable(partitions)
  const lastSector = diskBytes / SECTOR_BYTES - 1
  const head = new Uint8Array(GPT_HEAD_BYTES)
  head.set(protectiveMbr(diskBytes, bootCode))
  head.set(header(options, table, { self: 1, other: lastSector, table: 2 }), SECTOR_BYTES)
  head.set(table, SECTOR_BYTES * 2)
  sink.bytes(0, head)
  const tail = new Uint8Array(GPT_TAIL_BYTES)
  tail.set(table)
  tail.set(header(options, table, { self: lastSector, other: 1, table: lastSector - TABLE_SECTORS }), TABLE_BYTES)
  sink.bytes(diskBytes - GPT_TAIL_BYTES, tail)
}

function checkPartitions(diskBytes: number, partitions: readonly GptPartition[]): void {
  if (!Number.isSafeInteger(diskBytes) || diskBytes % SECTOR_BYTES !== 0) throw new RangeError(`a disk of ${diskBytes} bytes is not whole sectors`)
  if (partitions.length > ENTRY_COUNT) throw new RangeError(`${partitions.length} partitions do not fit a GPT`)
  let end = GPT_HEAD_BYTES
  for (const { firstByte, byteLength, name } of partitions.toSorted((a, b) => a.firstByte - b.firstByte)) {
    if (firstByte % SECTOR_BYTES !== 0 || byteLength % SECTOR_BYTES !== 0 || byteLength < SECTOR_BYTES) throw new RangeError(`partition ${name} is not whole sectors`)
    if (firstByte < end) throw new RangeError(`partition ${name} overlaps what lies before it`)
    end = firstByte + byteLength
  }
  if (end > diskBytes - GPT_TAIL_BYTES) throw new RangeError('the last partition ends behind the room for partitions')
}

function header(options: GptOptions, table: Uint8Array, lba: { self: number; other: number; table: number }): Uint8Array {
  const bytes = Buffer.alloc(SECTOR_BYTES)
  bytes.write('EFI PART', 0, 'latin1')
  bytes.writeUInt32LE(0x00010000, 8)
  bytes.writeUInt32LE(HEADER_BYTES, 12)
  bytes.writeBigUInt64LE(BigInt(lba.self), 24)
  bytes.writeBigUInt64LE(BigInt(lba.other), 32)
  bytes.writeBigUInt64LE(BigInt(GPT_HEAD_BYTES / SECTOR_BYTES), 40)
  bytes.writeBigUInt64LE(BigInt((options.diskBytes - GPT_TAIL_BYTES) / SECTOR_BYTES - 1), 48)
  bytes.set(guidBytes(options.diskGuid), 56)
  bytes.writeBigUInt64LE(BigInt(lba.table), 72)
  bytes.writeUInt32LE(ENTRY_COUNT, 80)
  bytes.writeUInt32LE(ENTRY_BYTES, 84)
  bytes.writeUInt32LE(crc32(table), 88)
  bytes.writeUInt32LE(crc32(bytes.subarray(0, HEADER_BYTES)), 16)
  return bytes
}

function partitionTable(partitions: readonly GptPartition[]): Uint8Array {
  const table = Buffer.alloc(TABLE_BYTES)
  partitions.forEach((partition, index) => {
    const entry = table.subarray(index * ENTRY_BYTES, (index + 1) * ENTRY_BYTES)
    if (partition.name.length > NAME_UNITS_MAX) throw new RangeError(`partition name ${partition.name} is too long`)
    entry.set(guidBytes(partition.typeGuid))
    entry.set(guidBytes(partition.guid), 16)
    entry.writeBigUInt64LE(BigInt(partition.firstByte / SECTOR_BYTES), 32)
    entry.writeBigUInt64LE(BigInt((partition.firstByte + partition.byteLength) / SECTOR_BYTES - 1), 40)
    entry.writeBigUInt64LE(partition.attributes ?? 0n, 48)
    entry.write(partition.name, 56, 'utf16le')
  })
  return table
}

/**
 * The 16 bytes of a GUID: its first three groups are little-endian (UEFI specification, appendix A).
 * @param text 8-4-4-4-12 hexadecimal digits
 */
export function guidBytes(text: string): Uint8Array {
  if (!/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(text)) throw new RangeError(`${text} is not a GUID`)
  const bytes = Buffer.from(text.replaceAll('-', ''), 'hex')
  bytes.subarray(0, 4).reverse()
  bytes.subarray(4, 6).reverse()
  bytes.subarray(6, 8).reverse()
  return bytes
}

/** The other way round. @param guid 16 bytes */
export function guidText(guid: Uint8Array): string {
  const groups = [[3, 2, 1, 0], [5, 4], [7, 6], [8, 9], [10, 11, 12, 13, 14, 15]]
  return groups.map((group) => group.map((index) => guid[index].toString(16).padStart(2, '0')).join('')).join('-')
}
