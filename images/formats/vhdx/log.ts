/**
 * The log of a VHDX image: what was written to it, but perhaps not yet to its place, is laid over the file, in memory. Nothing is written.
 * [MS-VHDX] 2.3. A sector of the log has one role, told by its first bytes, so that no two entries can claim it, and all of them are checked in linear time.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import type { Piece } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import { bytesPiece } from '../computed-parts.ts'
import { lastUpTo } from '../ordered-keys.ts'
import { readPart } from '../table-pages.ts'
import { MIB, NO_GUID, checksumOf, invalid } from './format.ts'
import type { VhdxHeader } from './format.ts'

const LOG_BYTES_MAX = 32 << 20
/** Writes of the log, in all. */
const WRITES_MAX = 1 << 18
const SECTOR_BYTES = 4096
const ENTRY_HEADER_BYTES = 64
const DESCRIPTOR_BYTES = 32

/** One entry of the log. */
interface LogEntry {
  /** In the log, bytes. */
  position: number
  /** Where the oldest entry is that is needed still, when this one was written. */
  tail: number
  sequence: bigint
  /** The file was at least so long. */
  flushedFileBytes: number
  /** The file becomes at least so long. */
  lastFileBytes: number
  bytes: Buffer
  descriptors: number
}

/** A part of the file as the log has it. */
interface LogWrite {
  offset: number
  end: number
  /** Without them, zeroes. */
  bytes?: Uint8Array
}

/**
 * The file as it is after its log was replayed; `file` itself if there is nothing to replay.
 * @param file borrowed
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export async function replayedFile(file: ReadableDisk, { logGuid, logVersion, logBytes, logOffset }: VhdxHeader): Promise<ReadableDisk> {
  if (logGuid === NO_GUID || logBytes === 0) return file
  if (logVersion !== 0) throw new VarveError('FORMAT_UNSUPPORTED', `VHDX: the version of its log is ${logVersion}, of which only 0 is read`)
  if (logOffset < MIB || logOffset % MIB !== 0 || logBytes % MIB !== 0) throw invalid(`its log at ${logOffset}+${logBytes} is not at whole MiB`)
  if (logBytes > LOG_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHDX: its log of ${logBytes} bytes is longer than ${LOG_BYTES_MAX}`)
  const log = await readPart(file, logOffset, logBytes, 'the log')
  const entries = activeEntries(log, logGuid)
  let sizeBytes = file.sizeBytes
  const writes: LogWrite[] = []
  for (const entry of entries) {
    if (entry.flushedFileBytes > file.sizeBytes) throw invalid(`its file has ${file.sizeBytes} bytes, but had ${entry.flushedFileBytes} when its log was written`)
    writesOf(entry, writes)
    sizeBytes = Math.max(sizeBytes, entry.lastFileBytes)
  }
  for (const write of writes) if (write.bytes !== undefined) sizeBytes = Math.max(sizeBytes, write.end)
  if (!Number.isSafeInteger(sizeBytes)) throw invalid(`its log makes the file ${sizeBytes} bytes long`)
  return writes.length === 0 && sizeBytes === file.sizeBytes ? file : overlaid(file, sizeBytes, writes)
}

/** Entries that are replayed, in order: of the sequence whose last entry is the newest, those from its tail on. */
function activeEntries(log: Buffer, guid: string): LogEntry[] {
  // The log goes round: twice in a row, it has every entry in one piece.
  const ring = { bytes: Buffer.concat([log, log]), length: log.length, guid }
  let active: LogEntry[] = []
  let found = false
  for (let position = 0; position < log.length;) {
    const sequence = sequenceAt(ring, position)
    const last = sequence.at(-1)
    position += sequence.reduce((sum, { bytes }) => sum + bytes.length, 0) || SECTOR_BYTES
    if (last === undefined) continue
    found = true
    const tail = sequence.findIndex((entry) => entry.position === last.tail)
    // QEMU keeps one entry at a time, and no account of its tail.
    if (tail < 0 && sequence.length > 1) continue
    if (active.length === 0 || last.sequence >= active[active.length - 1].sequence) active = sequence.slice(Math.max(tail, 0))
  }
  // A log that was begun, but whose first entry was cut short, is empty.
  if (found && active.length === 0) throw invalid('its log has entries, but lacks those before them')
  return active
}

interface LogRing {
  bytes: Buffer
  /** Of the log. */
  length: number
  guid: string
}

/** Entries from a position on that follow each other. */
function sequenceAt(log: LogRing, start: number): LogEntry[] {
  const entries: LogEntry[] = []
  for (let length = 0; length < log.length;) {
    const entry = entryAt(log, (start + length) % log.length)
    if (entry === undefined || length + entry.bytes.length > log.length) break
    if (entries.length > 0 && entry.sequence !== entries[entries.length - 1].sequence + 1n) break
    entries.push(entry)
    length += entry.bytes.length
  }
  return entries
}

/** [MS-VHDX] 2.3.1: an entry that is whole, or undefined. */
function entryAt(log: LogRing, position: number): LogEntry | undefined {
  const header = log.bytes.subarray(position, position + ENTRY_HEADER_BYTES)
  const length = header.readUInt32LE(8)
  const sequence = header.readBigUInt64LE(16)
  const descriptors = header.readUInt32LE(24)
  if (header.toString('latin1', 0, 4) !== 'loge' || header.toString('hex', 32, 48) !== log.guid || sequence === 0n) return undefined
  if (length === 0 || length % SECTOR_BYTES !== 0 || length > log.length || ENTRY_HEADER_BYTES + descriptors * DESCRIPTOR_BYTES > length) return undefined
  const bytes = log.bytes.subarray(position, position + length)
  if (!hasForm(bytes, descriptors, sequence) || header.readUInt32LE(4) !== checksumOf(bytes)) return undefined
  return {
    position,
    tail: header.readUInt32LE(12),
    sequence,
    flushedFileBytes: Number(header.readBigUInt64LE(48)),
    lastFileBytes: Number(header.readBigUInt64LE(56)),
    bytes,
    descriptors,
  }
}

/** True if descriptors and data sectors are those of the entry, and all that there is. */
function hasForm(bytes: Buffer, descriptors: number, sequence: bigint): boolean {
  let dataAt = dataOffset(descriptors)
  for (let index = 0; index < descriptors; index++) {
    const at = ENTRY_HEADER_BYTES + index * DESCRIPTOR_BYTES
    const signature = bytes.toString('latin1', at, at + 4)
    if (bytes.readBigUInt64LE(at + 24) !== sequence || bytes.readUInt32LE(at + 16) % SECTOR_BYTES !== 0) return false
    if (signature === 'zero') {
      if (bytes.readUInt32LE(at + 8) % SECTOR_BYTES !== 0) return false
      continue
    }
    if (signature !== 'desc' || dataAt + SECTOR_BYTES > bytes.length || bytes.toString('latin1', dataAt, dataAt + 4) !== 'data') return false
    if ((BigInt(bytes.readUInt32LE(dataAt + 4)) << 32n) + BigInt(bytes.readUInt32LE(dataAt + SECTOR_BYTES - 4)) !== sequence) return false
    dataAt += SECTOR_BYTES
  }
  return dataAt === bytes.length
}

/** Where data sectors begin in an entry: behind whole sectors of header and descriptors. */
function dataOffset(descriptors: number): number {
  return Math.ceil((ENTRY_HEADER_BYTES + descriptors * DESCRIPTOR_BYTES) / SECTOR_BYTES) * SECTOR_BYTES
}

/** Adds what an entry writes, in order. */
function writesOf({ bytes, descriptors }: LogEntry, writes: LogWrite[]): void {
  let dataAt = dataOffset(descriptors)
  if (writes.length + descriptors > WRITES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHDX: its log holds more than ${WRITES_MAX} writes`)
  for (let index = 0; index < descriptors; index++) {
    const at = ENTRY_HEADER_BYTES + index * DESCRIPTOR_BYTES
    const offset = Number(bytes.readBigUInt64LE(at + 16))
    if (bytes.toString('latin1', at, at + 4) === 'zero') {
      writes.push({ offset, end: offset + Number(bytes.readBigUInt64LE(at + 8)) })
      continue
    }
    const sector = Buffer.from(bytes.subarray(dataAt, dataAt + SECTOR_BYTES))
    // The descriptor keeps the bytes whose place in the data sector the log needs itself.
    bytes.copy(sector, 0, at + 8, at + 16)
    bytes.copy(sector, SECTOR_BYTES - 4, at + 4, at + 8)
    writes.push({ offset, end: offset + SECTOR_BYTES, bytes: sector })
    dataAt += SECTOR_BYTES
  }
}

/** The file with `writes` made one after the other. */
function overlaid(file: ReadableDisk, sizeBytes: number, writes: readonly LogWrite[]): ReadableDisk {
  const { bounds, writeOf } = lastWrites(writes, sizeBytes)
  const locate = (offset: number, length: number): Piece => {
    const part = lastUpTo(bounds, offset)
    const untilNext = Math.min(length, (bounds[part + 1] ?? sizeBytes) - offset)
    const write = part < 0 || writeOf[part] < 0 ? undefined : writes[writeOf[part]]
    if (write?.bytes !== undefined) return bytesPiece(write.bytes, write.offset, { offset, length: untilNext })
    if (write !== undefined || offset >= file.sizeBytes) return { length: untilNext, at: 0, type: 'hole' }
    return { length: Math.min(untilNext, file.sizeBytes - offset), source: file, at: offset }
  }
  return new PiecewiseDevice({ sizeBytes, locate })
}

/** Which write was the last of each part of the file: of that from a bound to the next, -1 if none. */
function lastWrites(writes: readonly LogWrite[], sizeBytes: number): { bounds: Float64Array; writeOf: Int32Array } {
  const bounds = [...new Set(writes.flatMap(({ offset, end }) => [Math.min(offset, sizeBytes), Math.min(end, sizeBytes)]))].sort((a, b) => a - b)
  const indexOf = new Map(bounds.map((bound, index) => [bound, index]))
  const writeOf = new Int32Array(bounds.length).fill(-1)
  // From the last write to the first, each takes what is free; `free` leads from a part to the next that may be.
  const free = Int32Array.from({ length: bounds.length + 1 }, (_, index) => index)
  const nextFree = (index: number): number => {
    while (free[index] !== index) index = free[index] = free[free[index]]
    return index
  }
  for (let write = writes.length - 1; write >= 0; write--) {
    const end = indexOf.get(Math.min(writes[write].end, sizeBytes))!
    for (let index = nextFree(indexOf.get(Math.min(writes[write].offset, sizeBytes))!); index < end; index = nextFree(index)) {
      writeOf[index] = write
      free[index] = index + 1
    }
  }
  return { bounds: Float64Array.from(bounds), writeOf }
}
