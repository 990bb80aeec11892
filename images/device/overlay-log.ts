/**
 * OverlayLog: the file that makes small changes of an overlay durable in one go, content and all. Frames stand one behind the other in room that was
 * written before, so that syncing them costs no change of the file's own metadata. They count until the journal goes on: then the overlay's data is
 * durable, and the log is begun again at its start. Bytes, order of writes and why each crash is safe: docs/formats/overlay.md#log
 */
import { crc32c } from '@node-rs/crc32'
import { VarveError } from '../errors.ts'
import { readWhole } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { readNumber, RECORD_BYTES, writeNumber } from './overlay-journal.ts'
import type { JournalPosition } from './overlay-journal.ts'
import { OVERLAY_SECTOR_BYTES, SectorState } from './overlay-sectors.ts'

/** Sectors that one frame holds at most; where more has changed, syncing the data costs less than writing it twice. */
export const LOG_FRAME_SECTORS_MAX = 1024
/** The log does not grow beyond this, bytes. */
export const LOG_BYTES_MAX = 16 << 20
/** The file is doubled when it is full, and grows by so much at least and at most, bytes. */
const GROWTH_BYTES_MIN = 64 << 10
const GROWTH_BYTES_MAX = 1 << 20
const FRAME_MAGIC = 0x46474f4c
const FRAME_HEADER_BYTES = 48
const NAME = 'log'
const ZEROES = new Uint8Array(GROWTH_BYTES_MAX)

/** A run of sectors in a frame. `content`, of sectors that are data: as long as they are, the last sector of a disk filled up with zeroes. */
export type LogVisit = (first: number, count: number, state: SectorState, content: Uint8Array | undefined) => void

/** What one commit makes durable: runs of sectors, and the content of those that are data. */
export class LogFrame {
  readonly #runs: number[] = []
  #sectors = 0

  /** Runs come in order and do not overlap. */
  add(first: number, count: number, state: SectorState): void {
    this.#runs.push(first, count, state)
    if (state === SectorState.data) this.#sectors += count
  }

  get bytes(): number {
    const length = FRAME_HEADER_BYTES + this.#recordsBytes + this.#sectors * OVERLAY_SECTOR_BYTES
    return Math.ceil(length / OVERLAY_SECTOR_BYTES) * OVERLAY_SECTOR_BYTES
  }

  get #recordsBytes(): number {
    return (this.#runs.length / 3) * RECORD_BYTES
  }

  /**
   * Makes the frame's bytes.
   * @param into of `bytes` bytes
   * @param read fills its argument with the content of sectors from `first` on
   */
  seal(into: Buffer, { nonce, sequence }: JournalPosition, index: number, read: (content: Buffer, first: number) => void): void {
    let record = FRAME_HEADER_BYTES
    let content = FRAME_HEADER_BYTES + this.#recordsBytes
    for (let run = 0; run < this.#runs.length; run += 3) {
      const [first, count, state] = [this.#runs[run], this.#runs[run + 1], this.#runs[run + 2]]
      writeNumber(into, first * 4 + state, record)
      writeNumber(into, count, record + 8)
      record += RECORD_BYTES
      if (state !== SectorState.data) continue
      read(into.subarray(content, content + count * OVERLAY_SECTOR_BYTES), first)
      content += count * OVERLAY_SECTOR_BYTES
    }
    into.fill(0, content)
    into.writeUInt32LE(FRAME_MAGIC, 0)
    into.set(nonce, 8)
    writeNumber(into, sequence, 16)
    writeNumber(into, index, 24)
    into.writeUInt32LE(this.#runs.length / 3, 32)
    into.writeUInt32LE(this.#sectors, 36)
    into.writeUInt32LE(crc32c(into.subarray(FRAME_HEADER_BYTES, content)), 40)
    into.writeUInt32LE(0, 44)
    into.writeUInt32LE(crc32c(into.subarray(8, FRAME_HEADER_BYTES)), 4)
  }
}

export class OverlayLog {
  readonly #files: OverlayFiles
  readonly #fd: number
  /** Bytes of the file, all of which have been written. */
  #fileBytes: number
  #position: JournalPosition
  #bytes = 0
  #index = 0
  #retired = false
  #buffer = Buffer.alloc(0)

  private constructor(files: OverlayFiles, fd: number, position: JournalPosition) {
    this.#files = files
    this.#fd = fd
    this.#fileBytes = files.sizeBytes(fd)
    this.#position = position
  }

  /** Makes an empty one; its name is durable when the directory is. */
  static create(files: OverlayFiles, directory: string): void {
    const fd = files.open(`${directory}/${NAME}`, 'create')
    try {
      files.truncate(fd, 0)
    } finally {
      files.close(fd)
    }
  }

  /** Opens the log for frames that follow `position`. @throws VarveError OVERLAY_INVALID */
  static open(files: OverlayFiles, directory: string, position: JournalPosition): OverlayLog {
    return new OverlayLog(files, files.open(existingPath(files, directory), 'write'), position)
  }

  /**
   * Reads the frames that count.
   * @returns true if there are any
   * @throws VarveError OVERLAY_INVALID
   */
  static replay(files: OverlayFiles, directory: string, options: { position: JournalPosition; sectorCount: number; visit: LogVisit }): boolean {
    const path = existingPath(files, directory)
    const bytes = readWhole(files, path, LOG_BYTES_MAX)
    if (bytes === undefined) throw new VarveError('OVERLAY_INVALID', `${path} is larger than ${LOG_BYTES_MAX} bytes`)
    return readLog(bytes, { ...options, path }) > 0
  }

  /** True if there are frames that count, or what may be taken for one: the journal must go on before the log is done with. */
  get holdsFrames(): boolean {
    return this.#index > 0 || this.#retired
  }

  hasRoom(frame: LogFrame): boolean {
    return !this.#retired && this.#bytes + frame.bytes <= LOG_BYTES_MAX
  }

  /** Takes no more frames until it is begun again: one may be there that was never acknowledged. */
  retire(): void {
    this.#retired = true
  }

  /** Writes a frame behind the last one; it counts, and is durable, once `sync` has resolved. @param read see LogFrame.seal */
  append(frame: LogFrame, read: (content: Buffer, first: number) => void): void {
    const length = frame.bytes
    if (this.#buffer.length < length) this.#buffer = Buffer.allocUnsafeSlow(length)
    const bytes = this.#buffer.subarray(0, length)
    frame.seal(bytes, this.#position, this.#index, read)
    while (this.#fileBytes < this.#bytes + length) {
      const growth = Math.min(GROWTH_BYTES_MAX, Math.max(GROWTH_BYTES_MIN, this.#fileBytes))
      this.#files.write(this.#fd, ZEROES.subarray(0, growth), this.#fileBytes)
      this.#fileBytes += growth
    }
    this.#files.write(this.#fd, bytes, this.#bytes)
    this.#bytes += length
    this.#index++
  }

  sync(): Promise<void> {
    return this.#files.sync(this.#fd)
  }

  /** Begins again at the start: what the frames held is durable elsewhere, and the journal has gone on to `position`. */
  restart(position: JournalPosition): void {
    this.#position = position
    this.#bytes = 0
    this.#index = 0
    this.#retired = false
  }

  /** Gives the room back. */
  clear(): void {
    this.#files.truncate(this.#fd, 0)
    this.#fileBytes = 0
  }

  close(): void {
    this.#files.close(this.#fd)
  }
}

function existingPath(files: OverlayFiles, directory: string): string {
  const path = `${directory}/${NAME}`
  if (!files.exists(path)) throw new VarveError('OVERLAY_INVALID', `${path} is missing`)
  return path
}

/**
 * Reads the bytes of a log.
 * @returns how many frames count
 * @throws VarveError OVERLAY_INVALID
 */
export function readLog(bytes: Buffer, { position, sectorCount, visit, path }: { position: JournalPosition; sectorCount: number; visit: LogVisit; path: string }): number {
  let at = 0
  let index = 0
  for (; ; index++) {
    const length = frameBytes(bytes, at, position, index)
    if (length < 0) break
    visitFrame(bytes, at, { sectorCount, visit, path })
    at += length
  }
  // As in the journal: a frame is only begun once the one before it is durable.
  for (let after = at; after + FRAME_HEADER_BYTES <= bytes.length; after += OVERLAY_SECTOR_BYTES) {
    const found = frameIndex(bytes, after, position)
    if (found > index) throw new VarveError('OVERLAY_INVALID', `${path}: frame ${index} at byte ${at} is damaged, and frame ${found} follows`)
  }
  return index
}

/** Index of the frame whose header stands at `at`, or -1 if none does that counts. */
function frameIndex(bytes: Buffer, at: number, { nonce, sequence }: JournalPosition): number {
  if (at + FRAME_HEADER_BYTES > bytes.length || bytes.readUInt32LE(at) !== FRAME_MAGIC) return -1
  if (Buffer.compare(bytes.subarray(at + 8, at + 16), nonce) !== 0 || readNumber(bytes, at + 16) !== sequence) return -1
  if (crc32c(bytes.subarray(at + 8, at + FRAME_HEADER_BYTES)) !== bytes.readUInt32LE(at + 4)) return -1
  return readNumber(bytes, at + 24)
}

/** Bytes of the whole frame `index` at `at`, or -1 if it is not there or not whole. */
function frameBytes(bytes: Buffer, at: number, position: JournalPosition, index: number): number {
  if (frameIndex(bytes, at, position) !== index) return -1
  const length = FRAME_HEADER_BYTES + bytes.readUInt32LE(at + 32) * RECORD_BYTES + bytes.readUInt32LE(at + 36) * OVERLAY_SECTOR_BYTES
  const sectorEnd = Math.ceil(length / OVERLAY_SECTOR_BYTES) * OVERLAY_SECTOR_BYTES
  if (at + sectorEnd > bytes.length || crc32c(bytes.subarray(at + FRAME_HEADER_BYTES, at + length)) !== bytes.readUInt32LE(at + 40)) return -1
  return sectorEnd
}

function visitFrame(bytes: Buffer, at: number, { sectorCount, visit, path }: { sectorCount: number; visit: LogVisit; path: string }): void {
  const records = at + FRAME_HEADER_BYTES
  const recordsEnd = records + bytes.readUInt32LE(at + 32) * RECORD_BYTES
  const contentEnd = recordsEnd + bytes.readUInt32LE(at + 36) * OVERLAY_SECTOR_BYTES
  let content = recordsEnd
  let previousEnd = 0
  for (let record = records; record < recordsEnd; record += RECORD_BYTES) {
    const place = readNumber(bytes, record)
    const count = readNumber(bytes, record + 8)
    const state = place % 4
    const first = (place - state) / 4
    const known = state === SectorState.data || state === SectorState.zero
    const length = state === SectorState.data ? count * OVERLAY_SECTOR_BYTES : 0
    if (!known || count < 1 || first < previousEnd || first + count > sectorCount || content + length > contentEnd) {
      throw new VarveError('OVERLAY_INVALID', `${path}: the record at byte ${record} says that ${count} sectors from ${first} have state ${state}`)
    }
    visit(first, count, state, length === 0 ? undefined : bytes.subarray(content, content + length))
    content += length
    previousEnd = first + count
  }
  if (content !== contentEnd) throw new VarveError('OVERLAY_INVALID', `${path}: the frame at byte ${at} holds content that it does not name`)
}
