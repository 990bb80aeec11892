/**
 * Partitions of a GPT: of its primary table, checked against the backup at the end of the disk; of the backup if the primary one is damaged.
 * Bytes: UEFI specification 2.10, section 5.3. Sectors may be of 512 to 4,096 bytes: a header says where it stands.
 */
import { crc32 } from 'node:zlib'
import type { ReadableDisk } from '../device/block-device.ts'
import { guidText } from './gpt.ts'
import type { GptPartition } from './gpt.ts'

const SIGNATURE = 'EFI PART'
const HEADER_BYTES_MIN = 92
const ENTRY_BYTES_MIN = 128
const NAME_OFFSET = 56
const NAME_BYTES = 72
const SECTOR_BYTES_SEEN = [512, 4096, 1024, 2048]
/** All entries together, bytes; the usual 128 take 16 KiB. */
const ENTRIES_BYTES_MAX = 4 << 20

/** A partition as it is found on a disk. */
export interface FoundPartition extends Required<GptPartition> {
  /** Of its entry, from 1 on. */
  number: number
}

export interface GptTable {
  sectorBytes: number
  diskGuid: string
  /** In the order of their numbers; those that are not inside the disk are left out. */
  partitions: FoundPartition[]
  /** What is wrong with the two tables, in words. */
  notices: string[]
}

interface Header {
  sectorBytes: number
  /** Sector of the other header. */
  other: number
  diskGuid: string
  entries: Buffer
  entryBytes: number
}

/** @returns undefined if neither table is sound */
export async function readGpt(disk: ReadableDisk): Promise<GptTable | undefined> {
  for (const sectorBytes of SECTOR_BYTES_SEEN) {
    const primary = await readHeader(disk, 1, sectorBytes)
    if (typeof primary === 'string') continue
    const notices = []
    const backup = await readHeader(disk, primary.other, sectorBytes)
    if (typeof backup === 'string') notices.push(`the backup of the GPT at sector ${primary.other} ${backup}`)
    else if (!isSame(primary, backup)) notices.push('the GPT and its backup differ; the first is used')
    return tableOf(primary, disk, notices)
  }
  for (const sectorBytes of SECTOR_BYTES_SEEN) {
    const backup = await readHeader(disk, Math.floor(disk.sizeBytes / sectorBytes) - 1, sectorBytes)
    if (typeof backup !== 'string') return tableOf(backup, disk, ['the GPT at the start of the disk is damaged; its backup is used'])
  }
  return undefined
}

/** @returns what is wrong with it, in words */
async function readHeader(disk: ReadableDisk, sector: number, sectorBytes: number): Promise<Header | string> {
  const isInside = (offset: number, length: number): boolean => offset >= 0 && offset + length <= disk.sizeBytes
  if (!isInside(sector * sectorBytes, sectorBytes)) return 'is not on the disk'
  const bytes = Buffer.alloc(sectorBytes)
  await disk.read(bytes, sector * sectorBytes)
  if (bytes.toString('latin1', 0, 8) !== SIGNATURE || bytes.readBigUInt64LE(24) !== BigInt(sector)) return 'is not there'
  const headerBytes = bytes.readUInt32LE(12)
  const checksum = bytes.readUInt32LE(16)
  bytes.writeUInt32LE(0, 16)
  if (headerBytes < HEADER_BYTES_MIN || headerBytes > sectorBytes || crc32(bytes.subarray(0, headerBytes)) !== checksum) return 'is damaged'
  const entriesAt = Number(bytes.readBigUInt64LE(72)) * sectorBytes
  const [count, entryBytes] = [bytes.readUInt32LE(80), bytes.readUInt32LE(84)]
  const length = count * entryBytes
  if (entryBytes < ENTRY_BYTES_MIN || entryBytes % 8 !== 0 || length > ENTRIES_BYTES_MAX || !isInside(entriesAt, length)) return 'has entries that cannot be'
  const entries = Buffer.alloc(length)
  await disk.read(entries, entriesAt)
  if (crc32(entries) !== bytes.readUInt32LE(88)) return 'has damaged entries'
  return { sectorBytes, other: Number(bytes.readBigUInt64LE(32)), diskGuid: guidText(bytes.subarray(56, 72)), entries, entryBytes }
}

function isSame(a: Header, b: Header): boolean {
  return a.diskGuid === b.diskGuid && a.entryBytes === b.entryBytes && a.entries.equals(b.entries)
}

function tableOf({ sectorBytes, diskGuid, entries, entryBytes }: Header, disk: ReadableDisk, notices: string[]): GptTable {
  const partitions: FoundPartition[] = []
  for (let at = 0; at < entries.length; at += entryBytes) {
    const entry = entries.subarray(at, at + entryBytes)
    if (entry.subarray(0, 16).every((byte) => byte === 0)) continue
    const number = at / entryBytes + 1
    const firstByte = Number(entry.readBigUInt64LE(32)) * sectorBytes
    const byteLength = (Number(entry.readBigUInt64LE(40)) + 1) * sectorBytes - firstByte
    if (byteLength <= 0 || firstByte + byteLength > disk.sizeBytes) {
      notices.push(`partition ${number} reaches beyond the end of the disk, and is left out`)
      continue
    }
    const name = entry.toString('utf16le', NAME_OFFSET, NAME_OFFSET + NAME_BYTES).replace(/\0[^]*/, '')
    partitions.push({ number, typeGuid: guidText(entry.subarray(0, 16)), guid: guidText(entry.subarray(16, 32)), name, firstByte, byteLength, attributes: entry.readBigUInt64LE(48) })
  }
  return { sectorBytes, diskGuid, partitions, notices }
}
