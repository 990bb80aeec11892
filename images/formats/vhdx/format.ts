/**
 * Bytes of VHDX: headers, region tables, metadata, entries of the block allocation table. Numbers are little-endian.
 * [MS-VHDX] 2.2 (headers, region tables), 2.5 (block allocation table), 2.6 (metadata).
 */
import { crc32c } from '@node-rs/crc32'
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { guidBytes } from '../gpt.ts'
import { readPart } from '../table-pages.ts'

export const MIB = 1 << 20
export const SIGNATURE = { file: 'vhdxfile', header: 'head', regions: 'regi', metadata: 'metadata' } as const
export const HEADER_OFFSETS = [64 << 10, 128 << 10] as const
export const REGIONS_OFFSETS = [192 << 10, 256 << 10] as const
export const HEADER_BYTES = 4096
export const REGIONS_BYTES = 64 << 10
/** Of the metadata table; items come behind it. */
export const METADATA_TABLE_BYTES = 64 << 10
export const VERSION = 1
/** 64 TiB. */
export const DISK_BYTES_MAX = 2 ** 46
const BLOCK_BYTES_MIN = 1 << 20
export const BLOCK_BYTES_MAX = 256 << 20
/** Bits that a bitmap block of 1 MiB has: sectors of a chunk. */
const CHUNK_SECTORS = 1 << 23

/** GUIDs are compared as 32 hexadecimal digits of their bytes. */
const guid = (text: string): string => Buffer.from(guidBytes(text)).toString('hex')
export const NO_GUID = '0'.repeat(32)
export const REGION = { table: guid('2dc27766-f623-4200-9d64-115e9bfd4a08'), metadata: guid('8b7ca206-4790-4b9a-b8fe-575f050f886e') } as const
export const ITEM = {
  fileParameters: guid('caa16737-fa36-4d43-b3b6-33f0aa44e76b'),
  diskSize: guid('2fa54224-cd1b-4876-b211-5dbed83bf4b8'),
  diskId: guid('beca12ab-b2e6-4523-93ef-c309e000c746'),
  logicalSector: guid('8141bf1d-a96f-4709-ba47-f233a8faab5f'),
  physicalSector: guid('cda348c7-445d-4471-9cc9-e9885251c556'),
  parentLocator: guid('a8d35f2d-b30b-454d-abf7-d3d84834ab0c'),
} as const
/** The type of parent locators that lead to a VHDX. */
const LOCATOR_TYPE = guid('b04aefb7-d19e-4a81-b789-25b8e9445913')

/** States of entries of the block allocation table. */
export const STATE = { notPresent: 0, undefined: 1, zero: 2, unmapped: 3, fullyPresent: 6, partiallyPresent: 7 } as const

const REGION_ENTRY = { bytes: 32, first: 16, max: 2047 } as const
const METADATA_ENTRY = { bytes: 32, first: 32, max: 2047 } as const
const ITEM_BYTES_MAX = 1 << 20
const REQUIRED_REGION = 1
const REQUIRED_ITEM = 4
const HAS_PARENT = 2

export interface VhdxHeader {
  /** 32 hexadecimal digits, as all GUIDs here. Changes when the disk's content does. */
  dataWriteGuid: string
  logGuid: string
  logVersion: number
  logBytes: number
  logOffset: number
}

export interface Region {
  offset: number
  length: number
}

export interface VhdxMetadata {
  blockBytes: number
  hasParent: boolean
  sizeBytes: number
  sectorBytes: number
  /** Of a differencing disk: keys and values of the parent locator. */
  locator: ReadonlyMap<string, string>
}

/** CRC-32C of `bytes` with the four bytes of the checksum itself, at 4, as zeroes. */
export function checksumOf(bytes: Uint8Array): number {
  return crc32c(bytes.subarray(8), crc32c(new Uint8Array(4), crc32c(bytes.subarray(0, 4))))
}

function isSound(bytes: Buffer, signature: string): boolean {
  return bytes.toString('latin1', 0, 4) === signature && bytes.readUInt32LE(4) === checksumOf(bytes)
}

/** The header that was written last. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
export async function readHeader(file: ReadableDisk): Promise<VhdxHeader> {
  const sound: Buffer[] = []
  for (const offset of HEADER_OFFSETS) {
    const bytes = await readPart(file, offset, HEADER_BYTES, 'a header')
    if (isSound(bytes, SIGNATURE.header)) sound.push(bytes)
  }
  if (sound.length === 0) throw invalid('neither of its two headers is sound')
  const sequence = (bytes: Buffer): bigint => bytes.readBigUInt64LE(8)
  const bytes = sound.reduce((one, other) => (sequence(other) > sequence(one) ? other : one))
  if (sound.length === 2 && sequence(sound[0]) === sequence(sound[1]) && !sound[0].equals(sound[1])) throw invalid('its two headers differ, but have the same sequence number')
  const version = bytes.readUInt16LE(66)
  if (version !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `VHDX: its version is ${version}, of which only ${VERSION} is read`)
  return {
    dataWriteGuid: bytes.toString('hex', 32, 48),
    logGuid: bytes.toString('hex', 48, 64),
    logVersion: bytes.readUInt16LE(64),
    logBytes: bytes.readUInt32LE(68),
    logOffset: Number(bytes.readBigUInt64LE(72)),
  }
}

/** Where the block allocation table and the metadata are. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
export async function readRegions(file: ReadableDisk): Promise<{ table: Region; metadata: Region }> {
  for (const offset of REGIONS_OFFSETS) {
    const bytes = await readPart(file, offset, REGIONS_BYTES, 'a region table')
    if (isSound(bytes, SIGNATURE.regions)) return decodeRegions(bytes, file.sizeBytes)
  }
  throw invalid('neither of its two region tables is sound')
}

function decodeRegions(bytes: Buffer, fileBytes: number): { table: Region; metadata: Region } {
  const count = bytes.readUInt32LE(8)
  if (count > REGION_ENTRY.max) throw invalid(`its region table claims ${count} entries`)
  const regions = new Map<string, Region>()
  for (let at = REGION_ENTRY.first; at < REGION_ENTRY.first + count * REGION_ENTRY.bytes; at += REGION_ENTRY.bytes) {
    const id = bytes.toString('hex', at, at + 16)
    const region = { offset: Number(bytes.readBigUInt64LE(at + 16)), length: bytes.readUInt32LE(at + 24) }
    if (!Object.values<string>(REGION).includes(id)) {
      if ((bytes.readUInt32LE(at + 28) & REQUIRED_REGION) !== 0) throw new VarveError('FORMAT_UNSUPPORTED', `VHDX: it requires a region that is not known, ${id}`)
      continue
    }
    if (regions.has(id)) throw invalid('its region table has an entry twice')
    if (region.offset < MIB || region.offset % MIB !== 0 || region.offset + region.length > fileBytes) throw invalid(`its file has ${fileBytes} bytes, but a region lies at ${region.offset}+${region.length}`)
    regions.set(id, region)
  }
  const table = regions.get(REGION.table)
  const metadata = regions.get(REGION.metadata)
  if (table === undefined || metadata === undefined) throw invalid('its region table does not name the block allocation table and the metadata')
  return { table, metadata }
}

/** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
export async function readMetadata(file: ReadableDisk, region: Region): Promise<VhdxMetadata> {
  const items = await readItems(file, region)
  const item = (id: string, name: string, length: number): Buffer => {
    const bytes = items.get(id)
    if (bytes === undefined || bytes.length < length) throw invalid(`its metadata does not tell the ${name}`)
    return bytes
  }
  const parameters = item(ITEM.fileParameters, 'block size', 8)
  const blockBytes = parameters.readUInt32LE(0)
  if (blockBytes < BLOCK_BYTES_MIN || blockBytes > BLOCK_BYTES_MAX || !Number.isInteger(Math.log2(blockBytes))) throw invalid(`its block size is ${blockBytes}, no power of two from ${BLOCK_BYTES_MIN} to ${BLOCK_BYTES_MAX}`)
  const sectorBytes = item(ITEM.logicalSector, 'sector size', 4).readUInt32LE(0)
  if (sectorBytes !== 512 && sectorBytes !== 4096) throw invalid(`its sectors have ${sectorBytes} bytes, neither 512 nor 4096`)
  const sizeBytes = Number(item(ITEM.diskSize, 'disk\'s size', 8).readBigUInt64LE(0))
  checkSize(sizeBytes)
  if (sizeBytes % sectorBytes !== 0) throw invalid(`its disk of ${sizeBytes} bytes is not whole sectors of ${sectorBytes}`)
  const hasParent = (parameters.readUInt32LE(4) & HAS_PARENT) !== 0
  return { blockBytes, hasParent, sizeBytes, sectorBytes, locator: hasParent ? decodeLocator(item(ITEM.parentLocator, 'parent', 20)) : new Map() }
}

/** @throws VarveError LIMIT_EXCEEDED */
export function checkSize(sizeBytes: number): void {
  if (sizeBytes > DISK_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHDX: a disk of ${sizeBytes} bytes is larger than the ${DISK_BYTES_MAX} (64 TiB) that the format holds`)
}

/** Items of the metadata that we know, by id. */
async function readItems(file: ReadableDisk, region: Region): Promise<Map<string, Buffer>> {
  if (region.length < METADATA_TABLE_BYTES) throw invalid(`its metadata region of ${region.length} bytes is too short`)
  const table = await readPart(file, region.offset, METADATA_TABLE_BYTES, 'the metadata table')
  if (table.toString('latin1', 0, 8) !== SIGNATURE.metadata) throw invalid('there is no metadata table where the region table says')
  const count = table.readUInt16LE(10)
  if (count > METADATA_ENTRY.max) throw invalid(`its metadata table claims ${count} entries`)
  const items = new Map<string, Buffer>()
  for (let at = METADATA_ENTRY.first; at < METADATA_ENTRY.first + count * METADATA_ENTRY.bytes; at += METADATA_ENTRY.bytes) {
    const id = table.toString('hex', at, at + 16)
    if (!Object.values<string>(ITEM).includes(id)) {
      if ((table.readUInt32LE(at + 24) & REQUIRED_ITEM) !== 0) throw new VarveError('FORMAT_UNSUPPORTED', `VHDX: it requires metadata that is not known, ${id}`)
      continue
    }
    const offset = table.readUInt32LE(at + 16)
    const length = table.readUInt32LE(at + 20)
    if (items.has(id)) throw invalid('its metadata table has an item twice')
    if (offset < METADATA_TABLE_BYTES || length > ITEM_BYTES_MAX || offset + length > region.length) throw invalid(`an item of its metadata at ${offset}+${length} does not lie in the metadata region`)
    items.set(id, await readPart(file, region.offset + offset, length, 'an item of the metadata'))
  }
  return items
}

/** [MS-VHDX] 2.6.2.6: pairs of text in UTF-16. */
function decodeLocator(bytes: Buffer): Map<string, string> {
  const type = bytes.toString('hex', 0, 16)
  if (type !== LOCATOR_TYPE) throw new VarveError('FORMAT_UNSUPPORTED', `VHDX: its parent is found in a way that is not known, ${type}`)
  const pairs = new Map<string, string>()
  const count = bytes.readUInt16LE(18)
  if (20 + count * 12 > bytes.length) throw invalid(`its parent locator claims ${count} entries, more than it has room for`)
  const text = (offset: number, length: number): string => {
    if (offset + length > bytes.length) throw invalid('an entry of its parent locator lies outside of it')
    return bytes.toString('utf16le', offset, offset + length)
  }
  for (let at = 20; at < 20 + count * 12; at += 12) {
    pairs.set(text(bytes.readUInt32LE(at), bytes.readUInt16LE(at + 8)), text(bytes.readUInt32LE(at + 4), bytes.readUInt16LE(at + 10)))
  }
  return pairs
}

/** Payload blocks for which a chunk's bitmap block has bits. */
export function chunkBlocksOf(blockBytes: number, sectorBytes: number): number {
  return (CHUNK_SECTORS * sectorBytes) / blockBytes
}

export function invalid(problem: string): VarveError {
  return new VarveError('FORMAT_INVALID', `VHDX: ${problem}`)
}
