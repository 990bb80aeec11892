/**
 * OverlayJournal: the file that says which sectors of an overlay are data, zero, or those of the disk below.
 * Appended to at each commit, and from time to time written anew. Bytes, order of writes and why each crash is safe: docs/formats/overlay.md
 */
import { crc32c } from '@node-rs/crc32'
import { randomBytes } from 'node:crypto'
import { VarveError } from '../errors.ts'
import { OVERLAY_SECTOR_BYTES, SectorState } from './overlay-sectors.ts'
import { publishFresh, readWhole, writeFresh, writeWhole } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'

/** Version of the format that is written. Version 1 is read: it has no log, and counts in blocks of 4096 bytes. */
export const OVERLAY_VERSION = 2
/** An overlay's disk is not larger than this, bytes (64 TiB). */
export const OVERLAY_BYTES_MAX = 2 ** 46
/** No reader takes a journal larger than this, bytes. */
export const JOURNAL_BYTES_MAX = 2 ** 32 - 1

/** What a power cut leaves whole: no two frames share a sector, so that none that is durable is written to again. Bytes. */
const SECTOR_BYTES = OVERLAY_SECTOR_BYTES
const MAGIC = Buffer.from('VARVEOVL')
const FRAME_MAGIC = 0x4d415246
/** What records count in, bytes, by version. */
const UNIT_BYTES: Readonly<Record<number, number | undefined>> = { 1: 4096, [OVERLAY_VERSION]: OVERLAY_SECTOR_BYTES }
const FRAME_HEADER_BYTES = 32
export const RECORD_BYTES = 16
/** A journal shorter than this is not written anew, bytes. */
const REWRITE_BYTES_MIN = 4 << 20
/** A journal is written anew when it has grown to this many times what it was when it was last. */
const REWRITE_GROWTH = 4
const NAME = 'map'

export interface OverlayHeader {
  /** Of the format. */
  version: number
  /** Bytes of the disk. */
  sizeBytes: number
  /** Names what lies below the overlay: 32 bytes. */
  lower: Uint8Array
  /** Of this journal file; its frames carry it, so that those of another are never taken for its own. */
  nonce: Uint8Array
}

export interface JournalContent {
  header: OverlayHeader
  /** Bytes of the file that hold header and frames; what follows was never acknowledged. */
  validBytes: number
  /** Sequence of the frame that is appended next. */
  nextSequence: number
}

/** A place between two frames of a journal. */
export interface JournalPosition {
  /** Of the journal, 8 bytes. */
  nonce: Uint8Array
  /** Of the frame that is appended next. */
  sequence: number
}

export type Visit = (first: number, count: number, state: SectorState) => void

/** The records of one commit: collected, then sealed as a frame. */
export class Frame {
  #bytes = Buffer.allocUnsafe(SECTOR_BYTES)
  #length = FRAME_HEADER_BYTES

  get recordCount(): number {
    return (this.#length - FRAME_HEADER_BYTES) / RECORD_BYTES
  }

  /** The records alone; valid until the next is added. */
  get records(): Uint8Array {
    return this.#bytes.subarray(FRAME_HEADER_BYTES, this.#length)
  }

  /** Runs come in order and do not overlap. */
  add(first: number, count: number, state: SectorState): void {
    if (this.#length + RECORD_BYTES > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(this.#bytes.length * 2)
      grown.set(this.#bytes)
      this.#bytes = grown
    }
    writeNumber(this.#bytes, first * 4 + state, this.#length)
    writeNumber(this.#bytes, count, this.#length + 8)
    this.#length += RECORD_BYTES
  }

  /** The frame's bytes, whole sectors. */
  seal(nonce: Uint8Array, sequence: number): Uint8Array {
    const bytes = this.#bytes
    const end = Math.ceil(this.#length / SECTOR_BYTES) * SECTOR_BYTES
    bytes.writeUInt32LE(FRAME_MAGIC, 0)
    bytes.set(nonce, 8)
    writeNumber(bytes, sequence, 16)
    bytes.writeUInt32LE(this.recordCount, 24)
    bytes.writeUInt32LE(crc32c(bytes.subarray(FRAME_HEADER_BYTES, this.#length)), 28)
    bytes.writeUInt32LE(crc32c(bytes.subarray(8, FRAME_HEADER_BYTES)), 4)
    bytes.fill(0, this.#length, end)
    return bytes.subarray(0, end)
  }
}

/** 8 bytes, little-endian; up to 2^53. */
export function writeNumber(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % 0x1_0000_0000, at)
  bytes.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4)
}

export function readNumber(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 0x1_0000_0000
}

export class OverlayJournal {
  readonly #files: OverlayFiles
  readonly #directory: string
  #header: OverlayHeader
  #fd: number
  #bytes: number
  #rewrittenBytes: number
  #nextSequence: number

  private constructor(files: OverlayFiles, directory: string, fd: number, content: JournalContent) {
    this.#files = files
    this.#directory = directory
    this.#fd = fd
    this.#header = content.header
    this.#bytes = content.validBytes
    this.#rewrittenBytes = content.validBytes
    this.#nextSequence = content.nextSequence
  }

  static exists(files: OverlayFiles, directory: string): boolean {
    return files.exists(`${directory}/${NAME}`)
  }

  /** Writes a journal that says nothing yet. It is there whole and durable when this resolves, or not at all. */
  static create(files: OverlayFiles, directory: string, { sizeBytes, lower }: { sizeBytes: number; lower: Uint8Array }): Promise<void> {
    const bytes = wholeJournal({ version: OVERLAY_VERSION, sizeBytes, lower, nonce: randomBytes(8) }, new Frame())
    return writeWhole(files, { directory, name: NAME, bytes })
  }

  /**
   * Reads the journal of an overlay, and cuts off what follows the last whole frame if it is to be appended to.
   * @param visit gets the runs in the order in which they were committed: later ones win
   * @throws VarveError OVERLAY_INVALID, FORMAT_UNSUPPORTED
   */
  static open(files: OverlayFiles, directory: string, { readOnly, visit }: { readOnly: boolean; visit: (header: OverlayHeader) => Visit }): OverlayJournal {
    const path = `${directory}/${NAME}`
    const bytes = readWhole(files, path, JOURNAL_BYTES_MAX)
    if (bytes === undefined) throw new VarveError('OVERLAY_INVALID', `${path} is larger than ${JOURNAL_BYTES_MAX} bytes`)
    const content = readJournal(bytes, visit, path)
    const fd = files.open(path, readOnly ? 'read' : 'write')
    if (!readOnly && content.validBytes < bytes.length) files.truncate(fd, content.validBytes)
    return new OverlayJournal(files, directory, fd, content)
  }

  get header(): OverlayHeader {
    return this.#header
  }

  /** What the log's frames name that follow the last frame of this journal; no longer once one more is appended. */
  get position(): JournalPosition {
    return { nonce: this.#header.nonce, sequence: this.#nextSequence }
  }

  /** True once the journal is so long that a commit should rather write it anew. */
  get wantsRewrite(): boolean {
    return this.#bytes > REWRITE_BYTES_MIN && this.#bytes > this.#rewrittenBytes * REWRITE_GROWTH
  }

  /** Writes a frame behind the last one; it counts, and is durable, once `sync` has resolved. */
  append(frame: Frame): void {
    const bytes = frame.seal(this.#header.nonce, this.#nextSequence)
    if (this.#bytes + bytes.length > JOURNAL_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the journal of overlay ${this.#directory} would be larger than ${JOURNAL_BYTES_MAX} bytes`)
    this.#files.write(this.#fd, bytes, this.#bytes)
    this.#bytes += bytes.length
    this.#nextSequence++
  }

  sync(): Promise<void> {
    return this.#files.sync(this.#fd)
  }

  /**
   * Puts a new journal into the place of this one, durable when this resolves.
   * @param frame all runs of the overlay
   * @returns why there is no room for it, say: then this one stands, and can be appended to
   */
  async rewrite(frame: Frame): Promise<Error | undefined> {
    const header = { ...this.#header, version: OVERLAY_VERSION, nonce: randomBytes(8) }
    const bytes = wholeJournal(header, frame)
    const file = { directory: this.#directory, name: NAME, bytes }
    try {
      await writeFresh(this.#files, file)
    } catch (error) {
      this.#rewrittenBytes = this.#bytes
      return error as Error
    }
    await publishFresh(this.#files, file)
    const fd = this.#files.open(`${this.#directory}/${NAME}`, 'write')
    this.#files.close(this.#fd)
    this.#fd = fd
    this.#header = header
    this.#bytes = bytes.length
    this.#rewrittenBytes = bytes.length
    this.#nextSequence = 1
    return undefined
  }

  close(): void {
    this.#files.close(this.#fd)
  }
}

/** A journal of one frame. */
export function wholeJournal(header: OverlayHeader, frame: Frame): Buffer {
  const sector = Buffer.alloc(SECTOR_BYTES)
  sector.set(MAGIC)
  sector.writeUInt32LE(header.version, 8)
  sector.writeUInt32LE(UNIT_BYTES[header.version]!, 12)
  writeNumber(sector, header.sizeBytes, 16)
  sector.set(header.nonce, 24)
  sector.set(header.lower, 32)
  sector.writeUInt32LE(crc32c(sector.subarray(0, SECTOR_BYTES - 4)), SECTOR_BYTES - 4)
  return Buffer.concat([sector, frame.seal(header.nonce, 0)])
}

function readHeader(bytes: Buffer, path: string): OverlayHeader {
  const invalid = (what: string): VarveError => new VarveError('OVERLAY_INVALID', `${path}: ${what}`)
  if (bytes.length < SECTOR_BYTES) throw invalid(`${bytes.length} bytes are too few for a header`)
  if (!bytes.subarray(0, 8).equals(MAGIC)) throw invalid('does not start with VARVEOVL')
  const version = bytes.readUInt32LE(8)
  const unitBytes = UNIT_BYTES[version]
  if (unitBytes === undefined) throw new VarveError('FORMAT_UNSUPPORTED', `${path}: version ${version} is not known; this is version ${OVERLAY_VERSION}`)
  if (crc32c(bytes.subarray(0, SECTOR_BYTES - 4)) !== bytes.readUInt32LE(SECTOR_BYTES - 4)) throw invalid('the header is damaged')
  if (bytes.readUInt32LE(12) !== unitBytes) throw invalid(`units of ${bytes.readUInt32LE(12)} bytes`)
  const sizeBytes = readNumber(bytes, 16)
  if (sizeBytes > OVERLAY_BYTES_MAX) throw invalid(`a disk of ${sizeBytes} bytes is larger than ${OVERLAY_BYTES_MAX}`)
  return { version, sizeBytes, nonce: bytes.subarray(24, 32), lower: bytes.subarray(32, 64) }
}

/**
 * Reads the bytes of a journal.
 * @param visit is asked once the header is read, and then gets the runs
 * @throws VarveError OVERLAY_INVALID, FORMAT_UNSUPPORTED
 */
export function readJournal(bytes: Buffer, visit: (header: OverlayHeader) => Visit, path: string): JournalContent {
  const header = readHeader(bytes, path)
  const unitBytes = UNIT_BYTES[header.version]!
  const visitRun = inSectors(visit(header), header.sizeBytes, unitBytes)
  const unitCount = Math.ceil(header.sizeBytes / unitBytes)
  let at = SECTOR_BYTES
  let sequence = 0
  for (; ; sequence++) {
    const length = frameBytes(bytes, at, header.nonce, sequence)
    if (length < 0) break
    visitFrame(bytes, at, { unitCount, visitRun, path })
    at += length
  }
  if (sequence === 0) throw new VarveError('OVERLAY_INVALID', `${path}: the first frame is damaged`)
  // A commit is only begun once the one before it is durable. So if any frame follows, what is between was durable and is damaged;
  // if none does, it is the rest of a commit that was under way.
  for (let after = at; after + FRAME_HEADER_BYTES <= bytes.length; after += SECTOR_BYTES) {
    const found = frameSequence(bytes, after, header.nonce)
    if (found >= 0 && found !== sequence) throw new VarveError('OVERLAY_INVALID', `${path}: frame ${sequence} at byte ${at} is damaged, and frame ${found} follows`)
  }
  return { header, validBytes: at, nextSequence: sequence }
}

/** Passes runs on in sectors; the last block of a disk may not be whole. */
function inSectors(visit: Visit, sizeBytes: number, unitBytes: number): Visit {
  const unitSectors = unitBytes / OVERLAY_SECTOR_BYTES
  if (unitSectors === 1) return visit
  const sectorCount = Math.ceil(sizeBytes / OVERLAY_SECTOR_BYTES)
  return (first, count, state) => visit(first * unitSectors, Math.min(count * unitSectors, sectorCount - first * unitSectors), state)
}

/** Sequence of the frame whose header stands at `at`, or -1. */
function frameSequence(bytes: Buffer, at: number, nonce: Uint8Array): number {
  if (at + FRAME_HEADER_BYTES > bytes.length || bytes.readUInt32LE(at) !== FRAME_MAGIC) return -1
  if (Buffer.compare(bytes.subarray(at + 8, at + 16), nonce) !== 0) return -1
  if (crc32c(bytes.subarray(at + 8, at + FRAME_HEADER_BYTES)) !== bytes.readUInt32LE(at + 4)) return -1
  const sequence = readNumber(bytes, at + 16)
  return Number.isSafeInteger(sequence) ? sequence : -1
}

/** Bytes of the whole frame `sequence` at `at`, or -1 if it is not there or not whole. */
function frameBytes(bytes: Buffer, at: number, nonce: Uint8Array, sequence: number): number {
  if (frameSequence(bytes, at, nonce) !== sequence) return -1
  const end = at + FRAME_HEADER_BYTES + bytes.readUInt32LE(at + 24) * RECORD_BYTES
  const sectorEnd = Math.ceil(end / SECTOR_BYTES) * SECTOR_BYTES
  if (sectorEnd > bytes.length || crc32c(bytes.subarray(at + FRAME_HEADER_BYTES, end)) !== bytes.readUInt32LE(at + 28)) return -1
  return sectorEnd - at
}

function visitFrame(bytes: Buffer, at: number, { unitCount, visitRun, path }: { unitCount: number; visitRun: Visit; path: string }): void {
  const end = at + FRAME_HEADER_BYTES + bytes.readUInt32LE(at + 24) * RECORD_BYTES
  let previousEnd = 0
  for (let record = at + FRAME_HEADER_BYTES; record < end; record += RECORD_BYTES) {
    const place = readNumber(bytes, record)
    const count = readNumber(bytes, record + 8)
    const state = place % 4
    const first = (place - state) / 4
    const known = state === SectorState.data || state === SectorState.zero
    if (!known || count < 1 || first < previousEnd || first + count > unitCount) {
      throw new VarveError('OVERLAY_INVALID', `${path}: the record at byte ${record} says that ${count} units from ${first} have state ${state}`)
    }
    visitRun(first, count, state)
    previousEnd = first + count
  }
}
