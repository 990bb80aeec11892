/**
 * Builds VHDX images for tests from [MS-VHDX], by another route than ours: whole files in memory, as a test wants them, right or wrong.
 */
import { randomUUID } from 'node:crypto'

const MIB = 1 << 20
const SECTOR = 4096

export interface BuiltBlock {
  /** Of [MS-VHDX] 2.5.1. */
  state: number
  /** Content of the block, if it is in the file. */
  bytes?: Buffer
  /** For a block that is there in part: its sectors that are. */
  present?: Set<number>
}

export interface BuiltLogWrite {
  fileOffset: number
  /** 4096 bytes, or the length of a run of zeroes. */
  content: Buffer | number
}

export interface BuiltLogEntry {
  /** Sector of the log where it begins. */
  sector: number
  sequence: number
  /** Sector of the log. */
  tail: number
  writes: BuiltLogWrite[]
  flushedBytes?: number
  lastBytes?: number
}

export interface BuiltVhdx {
  sizeBytes: number
  blockBytes?: number
  sectorBytes?: number
  blocks?: Map<number, BuiltBlock>
  /** Keys and values of the parent locator; makes it a differencing image. */
  locator?: Record<string, string>
  log?: { entries: BuiltLogEntry[]; sectors?: number }
  dataWriteGuid?: string
  /** Further entries of the region table: GUID, and whether it is required. */
  regions?: [string, boolean][]
  /** Further items of the metadata. */
  items?: [string, boolean][]
  /** Sequence numbers of both headers. */
  sequences?: [number, number]
}

export interface BuiltPlaces {
  bytes: Buffer
  /** Bytes from the start of the file. */
  log: number
  metadata: number
  table: number
  blocks: number
}

/** CRC-32C, bit by bit. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1
  }
  return ~crc >>> 0
}

/** Puts a checksum at byte 4 right. */
export function seal(bytes: Buffer): Buffer {
  bytes.writeUInt32LE(0, 4)
  bytes.writeUInt32LE(crc32c(bytes), 4)
  return bytes
}

export function guid(text: string): Buffer {
  const hex = text.replaceAll(/[{}-]/g, '')
  const bytes = Buffer.from(hex, 'hex')
  return Buffer.concat([bytes.subarray(0, 4).reverse(), bytes.subarray(4, 6).reverse(), bytes.subarray(6, 8).reverse(), bytes.subarray(8)])
}

function header(sequence: number, { dataWriteGuid, log }: BuiltVhdx, logGuid: Buffer, logOffset: number): Buffer {
  const bytes = Buffer.alloc(4096)
  bytes.write('head')
  bytes.writeBigUInt64LE(BigInt(sequence), 8)
  guid(randomUUID()).copy(bytes, 16)
  guid(dataWriteGuid ?? randomUUID()).copy(bytes, 32)
  if (log !== undefined) logGuid.copy(bytes, 48)
  bytes.writeUInt16LE(1, 66)
  bytes.writeUInt32LE((log?.sectors ?? 256) * SECTOR, 68)
  bytes.writeBigUInt64LE(BigInt(logOffset), 72)
  return seal(bytes)
}

/** One entry of a log, its sectors in a row. */
export function logEntry({ sequence, tail, writes, flushedBytes, lastBytes }: BuiltLogEntry, logGuid: Buffer, fileBytes: number): Buffer {
  const data = writes.filter((write) => typeof write.content !== 'number')
  const head = Buffer.alloc(Math.ceil((64 + 32 * writes.length) / SECTOR) * SECTOR)
  head.write('loge')
  head.writeUInt32LE(head.length + data.length * SECTOR, 8)
  head.writeUInt32LE(tail * SECTOR, 12)
  head.writeBigUInt64LE(BigInt(sequence), 16)
  head.writeUInt32LE(writes.length, 24)
  logGuid.copy(head, 32)
  head.writeBigUInt64LE(BigInt(flushedBytes ?? fileBytes), 48)
  head.writeBigUInt64LE(BigInt(lastBytes ?? fileBytes), 56)
  const sectors: Buffer[] = []
  writes.forEach(({ fileOffset, content }, index) => {
    const at = 64 + 32 * index
    head.writeBigUInt64LE(BigInt(fileOffset), at + 16)
    head.writeBigUInt64LE(BigInt(sequence), at + 24)
    if (typeof content === 'number') {
      head.write('zero', at)
      head.writeBigUInt64LE(BigInt(content), at + 8)
      return
    }
    head.write('desc', at)
    content.copy(head, at + 4, 4092, 4096)
    content.copy(head, at + 8, 0, 8)
    const sector = Buffer.from(content)
    sector.write('data')
    sector.writeUInt32LE(Math.floor(sequence / 2 ** 32), 4)
    sector.writeUInt32LE(sequence % 2 ** 32, 4092)
    sectors.push(sector)
  })
  return seal(Buffer.concat([head, ...sectors]))
}

export function buildVhdx(options: BuiltVhdx): BuiltPlaces {
  const { sizeBytes, blockBytes = MIB, sectorBytes = 512, blocks = new Map<number, BuiltBlock>(), locator, sequences = [7, 8] } = options
  const logBytes = (options.log?.sectors ?? 256) * SECTOR
  const chunk = (2 ** 23 * sectorBytes) / blockBytes
  const count = Math.ceil(sizeBytes / blockBytes)
  const chunks = Math.ceil(count / chunk)
  const tableBytes = Math.ceil((chunks * (chunk + 1) * 8) / MIB) * MIB
  // The metadata behind the table: no order is prescribed.
  const places = { log: MIB, table: MIB + logBytes, metadata: MIB + logBytes + tableBytes, blocks: MIB + logBytes + tableBytes + MIB }
  const table = Buffer.alloc(tableBytes)
  const parts: Buffer[] = []
  let next = places.blocks
  const place = (bytes: Buffer, state: number): bigint => {
    parts.push(bytes)
    next += bytes.length
    return BigInt(next - bytes.length) | BigInt(state)
  }
  const bitmaps = new Map<number, Buffer>()
  for (const [block, { state, bytes, present }] of blocks) {
    table.writeBigUInt64LE(bytes === undefined ? BigInt(state) : place(bytes, state), 8 * (block + Math.floor(block / chunk)))
    if (present === undefined) continue
    const bitmap = bitmaps.get(Math.floor(block / chunk)) ?? Buffer.alloc(MIB)
    bitmaps.set(Math.floor(block / chunk), bitmap)
    for (const sector of present) {
      const bit = (block % chunk) * (blockBytes / sectorBytes) + sector
      bitmap[bit >>> 3] |= 1 << (bit & 7)
    }
  }
  for (const [index, bitmap] of bitmaps) table.writeBigUInt64LE(place(bitmap, 6), 8 * (index * (chunk + 1) + chunk))

  const head = Buffer.alloc(places.table)
  head.write('vhdxfile')
  const logGuid = guid(randomUUID())
  header(sequences[0], options, logGuid, places.log).copy(head, 64 << 10)
  header(sequences[1], options, logGuid, places.log).copy(head, 128 << 10)
  const regions = regionTable([['2dc27766-f623-4200-9d64-115e9bfd4a08', true, places.table, tableBytes], ['8b7ca206-4790-4b9a-b8fe-575f050f886e', true, places.metadata, MIB], ...(options.regions ?? []).map(([id, required]) => [id, required, places.metadata, MIB] as const)])
  regions.copy(head, 192 << 10)
  regions.copy(head, 256 << 10)
  for (const entry of options.log?.entries ?? []) {
    const bytes = logEntry(entry, logGuid, next)
    for (let at = 0; at < bytes.length; at += SECTOR) bytes.copy(head, places.log + ((entry.sector * SECTOR + at) % logBytes), at, at + SECTOR)
  }
  const metadata = metadataRegion({ sizeBytes, blockBytes, sectorBytes, locator, items: options.items ?? [] })
  return { ...places, bytes: Buffer.concat([head, table, metadata, ...parts]) }
}

function regionTable(entries: readonly (readonly [string, boolean, number, number])[]): Buffer {
  const bytes = Buffer.alloc(64 << 10)
  bytes.write('regi')
  bytes.writeUInt32LE(entries.length, 8)
  entries.forEach(([id, required, offset, length], index) => {
    const at = 16 + 32 * index
    guid(id).copy(bytes, at)
    bytes.writeBigUInt64LE(BigInt(offset), at + 16)
    bytes.writeUInt32LE(length, at + 24)
    bytes.writeUInt32LE(required ? 1 : 0, at + 28)
  })
  return seal(bytes)
}

function metadataRegion({ sizeBytes, blockBytes, sectorBytes, locator, items }: { sizeBytes: number; blockBytes: number; sectorBytes: number; locator?: Record<string, string>; items: [string, boolean][] }): Buffer {
  const number = (value: number, bytes: number): Buffer => {
    const item = Buffer.alloc(bytes)
    item.writeUIntLE(value, 0, Math.min(6, bytes))
    return item
  }
  const parameters = number(blockBytes, 8)
  if (locator !== undefined) parameters.writeUInt32LE(2, 4)
  const all: [string, Buffer, number][] = [
    ['caa16737-fa36-4d43-b3b6-33f0aa44e76b', parameters, 4],
    ['2fa54224-cd1b-4876-b211-5dbed83bf4b8', number(sizeBytes, 8), 6],
    ['beca12ab-b2e6-4523-93ef-c309e000c746', guid(randomUUID()), 6],
    ['8141bf1d-a96f-4709-ba47-f233a8faab5f', number(sectorBytes, 4), 6],
    ['cda348c7-445d-4471-9cc9-e9885251c556', number(4096, 4), 6],
    ...items.map(([id, required]): [string, Buffer, number] => [id, Buffer.alloc(8), required ? 4 : 0]),
  ]
  if (locator !== undefined) all.push(['a8d35f2d-b30b-454d-abf7-d3d84834ab0c', parentLocator(locator), 4])
  const region = Buffer.alloc(MIB)
  region.write('metadata')
  region.writeUInt16LE(all.length, 10)
  let next = 64 << 10
  all.forEach(([id, item, flags], index) => {
    const at = 32 + 32 * index
    guid(id).copy(region, at)
    region.writeUInt32LE(next, at + 16)
    region.writeUInt32LE(item.length, at + 20)
    region.writeUInt32LE(flags, at + 24)
    item.copy(region, next)
    next += item.length
  })
  return region
}

function parentLocator(pairs: Record<string, string>): Buffer {
  const entries = Object.entries(pairs)
  const head = Buffer.alloc(20 + 12 * entries.length)
  guid('b04aefb7-d19e-4a81-b789-25b8e9445913').copy(head)
  head.writeUInt16LE(entries.length, 18)
  const texts: Buffer[] = []
  let next = head.length
  entries.forEach((pair, index) => {
    const at = 20 + 12 * index
    pair.forEach((text, which) => {
      const bytes = Buffer.from(text, 'utf16le')
      head.writeUInt32LE(next, at + 4 * which)
      head.writeUInt16LE(bytes.length, at + 8 + 2 * which)
      texts.push(bytes)
      next += bytes.length
    })
  })
  return Buffer.concat([head, ...texts])
}
