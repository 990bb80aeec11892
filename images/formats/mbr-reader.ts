/**
 * Partitions of an MBR: four primary ones, and those of an extended one, which are a chain of sectors. Sectors are of 512 bytes.
 * Bytes: UEFI specification 2.10, section 5.2.1; the chain is what PC systems agree on, and Linux reads it so.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import { PARTITION_TABLE_OFFSET, SECTOR_BYTES, SIGNATURE_OFFSET, TYPE_GPT_PROTECTIVE } from './mbr.ts'

const ENTRIES = 4
const ENTRY_BYTES = 16
const FIRST_LOGICAL = 5
/** Types of partitions that hold others. */
const EXTENDED_TYPES = [0x05, 0x0f, 0x85]
/** Logical partitions, and links of the chain; Linux follows 100 links. */
const LOGICAL_MAX = 128

export interface MbrPartition {
  /** 1 .. 4 for primary ones, from 5 on for logical ones. */
  number: number
  type: number
  /** Bytes from the start of the disk. */
  firstByte: number
  byteLength: number
}

export interface MbrTable {
  /** In the order of their numbers; extended ones are not among them. */
  partitions: MbrPartition[]
  /** One of the entries says that the disk has a GPT. */
  isProtective: boolean
  /** What is wrong with it, in words. */
  notices: string[]
}

interface Entry {
  type: number
  /** Sectors. */
  start: number
  length: number
}

/** @returns undefined if there is no table: neither a signature, nor four entries that can be */
export async function readMbr(disk: ReadableDisk): Promise<MbrTable | undefined> {
  const entries = await readEntries(disk, 0)
  if (entries === undefined) return undefined
  const table: MbrTable = { partitions: [], isProtective: entries.some(({ type }) => type === TYPE_GPT_PROTECTIVE), notices: [] }
  for (const [index, entry] of entries.entries()) {
    if (isUsed(entry) && !isExtended(entry)) addPartition(table, disk, index + 1, entry)
  }
  const extended = entries.find((entry) => isUsed(entry) && isExtended(entry))
  if (extended !== undefined) await addLogical(table, disk, extended)
  return table
}

async function addLogical(table: MbrTable, disk: ReadableDisk, extended: Entry): Promise<void> {
  const visited = new Set<number>()
  let number = FIRST_LOGICAL
  for (let sector: number | undefined = extended.start; sector !== undefined;) {
    if (visited.has(sector)) return void table.notices.push('the chain of logical partitions leads back into itself')
    if (visited.size === LOGICAL_MAX) return void table.notices.push(`the chain of logical partitions has more than ${LOGICAL_MAX} links`)
    visited.add(sector)
    const entries = await readEntries(disk, sector)
    if (entries === undefined) return void table.notices.push(`the chain of logical partitions leads to sector ${sector}, where there is none`)
    for (const entry of entries) {
      if (!isUsed(entry) || isExtended(entry)) continue
      if (number - FIRST_LOGICAL === LOGICAL_MAX) return void table.notices.push(`there are more than ${LOGICAL_MAX} logical partitions`)
      addPartition(table, disk, number++, { ...entry, start: sector + entry.start })
    }
    const next = entries.find((entry) => isExtended(entry) && entry.length > 0)
    sector = next && extended.start + next.start
  }
}

function addPartition({ partitions, notices }: MbrTable, disk: ReadableDisk, number: number, { type, start, length }: Entry): void {
  if (type === TYPE_GPT_PROTECTIVE) return
  if ((start + length) * SECTOR_BYTES > disk.sizeBytes) notices.push(`partition ${number} reaches beyond the end of the disk, and is left out`)
  else partitions.push({ number, type, firstByte: start * SECTOR_BYTES, byteLength: length * SECTOR_BYTES })
}

async function readEntries(disk: ReadableDisk, sector: number): Promise<Entry[] | undefined> {
  if ((sector + 1) * SECTOR_BYTES > disk.sizeBytes) return undefined
  const bytes = Buffer.alloc(SECTOR_BYTES)
  await disk.read(bytes, sector * SECTOR_BYTES)
  if (bytes.readUInt16LE(SIGNATURE_OFFSET) !== 0xaa55) return undefined
  const entries: Entry[] = []
  for (let at = PARTITION_TABLE_OFFSET; at < PARTITION_TABLE_OFFSET + ENTRIES * ENTRY_BYTES; at += ENTRY_BYTES) {
    // What starts with another byte is the code of a boot sector without a table.
    if (bytes[at] !== 0 && bytes[at] !== 0x80) return undefined
    entries.push({ type: bytes[at + 4], start: bytes.readUInt32LE(at + 8), length: bytes.readUInt32LE(at + 12) })
  }
  return entries
}

function isExtended({ type }: Entry): boolean {
  return EXTENDED_TYPES.includes(type)
}

function isUsed({ type, start, length }: Entry): boolean {
  return type !== 0 && start > 0 && length > 0
}
