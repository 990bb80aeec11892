/**
 * OverlayRecent: the file that keeps what was answered and not flushed when the process dies and the system lives. All content that was written is
 * in the system's cache then; the states of its sectors would be in the memory of the process alone. So they are written here before the answer, and
 * never synced: the file counts only in the cache that it was written in. Bytes, and why each crash is safe: docs/formats/overlay.md#recent
 */
import { VarveError } from '../errors.ts'
import { readWhole } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { readNumber, RECORD_BYTES, writeNumber } from './overlay-journal.ts'
import type { Frame, Visit } from './overlay-journal.ts'
import { SectorState } from './overlay-sectors.ts'

/** When it has grown beyond this, a commit that ends begins it anew, bytes. */
const RESTART_BYTES = 64 << 10
/** It does not grow beyond this, bytes: nothing more is recorded until it is begun anew. */
export const RECENT_BYTES_MAX = 32 << 20
const MAGIC = Buffer.from('VARVERCT')
const HEADER_BYTES = 48
const NAME = 'recent'

export class OverlayRecent {
  readonly #files: OverlayFiles
  readonly #directory: string
  readonly #incarnation: Uint8Array | undefined
  readonly #record = Buffer.alloc(RECORD_BYTES)
  /** -1 while nothing is recorded: then there is no such file. */
  #fd = -1
  #bytes = 0
  /** The last record, if it was added to the file that there is. */
  #first = 0
  #count = 0
  #state: SectorState = SectorState.below

  /** Records nothing before it is begun. @param incarnation of the cache that the overlay's data is in, see OverlayFiles; without, nothing is ever recorded */
  constructor(files: OverlayFiles, directory: string, incarnation: Uint8Array | undefined) {
    this.#files = files
    this.#directory = directory
    this.#incarnation = incarnation
  }

  static exists(files: OverlayFiles, directory: string): boolean {
    return files.exists(`${directory}/${NAME}`)
  }

  static remove(files: OverlayFiles, directory: string): void {
    files.remove(`${directory}/${NAME}`)
  }

  get isRecording(): boolean {
    return this.#fd >= 0
  }

  /** True if beginning anew makes it shorter, or makes it record again. */
  get wantsRestart(): boolean {
    return this.#incarnation !== undefined && (!this.isRecording || this.#bytes > RESTART_BYTES)
  }

  /**
   * Begins anew. If that cannot be done, nothing is recorded.
   * @param frame all runs whose state the journal does not have
   * @throws if what was recorded before cannot be done away with
   */
  restart(frame: Frame): void {
    const fresh = `${this.#directory}/${NAME}.new`
    try {
      this.close()
      this.#fd = this.#files.open(fresh, 'create')
      this.#files.truncate(this.#fd, 0)
      const bytes = Buffer.concat([MAGIC, Buffer.alloc(8), this.#incarnation!, frame.records])
      if (bytes.length > RECENT_BYTES_MAX) throw new RangeError('too many runs')
      this.#files.write(this.#fd, bytes, 0)
      this.#files.rename(fresh, `${this.#directory}/${NAME}`)
      this.#bytes = bytes.length
      this.#count = 0
    } catch {
      this.#stop()
    }
  }

  /**
   * A run of sectors has this state from now on. If that cannot be written down, nothing is recorded until it is begun anew.
   * @throws if what was recorded before cannot be done away with
   */
  add(first: number, count: number, state: SectorState): void {
    if (!this.isRecording) return
    if (this.#count > 0 && state === this.#state && first === this.#first + this.#count) {
      this.#count += count
    } else {
      if (this.#bytes + RECORD_BYTES > RECENT_BYTES_MAX) return this.#stop()
      this.#first = first
      this.#count = count
      this.#state = state
      this.#bytes += RECORD_BYTES
    }
    writeNumber(this.#record, this.#first * 4 + state, 0)
    writeNumber(this.#record, this.#count, 8)
    try {
      this.#files.write(this.#fd, this.#record, this.#bytes - RECORD_BYTES)
    } catch {
      this.#stop()
    }
  }

  /** Records nothing more, and does away with what was. @throws if that cannot be done */
  clear(): void {
    try {
      this.close()
    } finally {
      OverlayRecent.remove(this.#files, this.#directory)
    }
  }

  /** Records nothing more; what was recorded stays. */
  close(): void {
    const fd = this.#fd
    this.#fd = -1
    if (fd >= 0) this.#files.close(fd)
  }

  /**
   * The disk is full, say. The guest's write does not fail for that: it is as safe as one is without this file. But a history that does not go on may
   * not stay: it would take back what the journal says later.
   */
  #stop(): void {
    try {
      this.close()
    } catch {
      // It is closed all the same.
    }
    OverlayRecent.remove(this.#files, this.#directory)
  }
}

/** What was recorded in the cache that is there now, for `visitRecent`; undefined if nothing was. @param incarnation see OverlayRecent */
export function readRecent(files: OverlayFiles, directory: string, incarnation: Uint8Array | undefined): Buffer | undefined {
  if (incarnation === undefined || !OverlayRecent.exists(files, directory)) return undefined
  const bytes = readWhole(files, `${directory}/${NAME}`, RECENT_BYTES_MAX)
  const isOwn = bytes !== undefined && bytes.length >= HEADER_BYTES && bytes.subarray(0, 8).equals(MAGIC) && bytes.subarray(16, HEADER_BYTES).equals(incarnation)
  return isOwn ? bytes : undefined
}

/**
 * Visits the records in the order in which they were made: later ones win.
 * @param bytes of the whole file
 * @throws VarveError OVERLAY_INVALID
 */
export function visitRecent(bytes: Buffer, { directory, sectorCount, visit }: { directory: string; sectorCount: number; visit: Visit }): void {
  for (let at = HEADER_BYTES; at + RECORD_BYTES <= bytes.length; at += RECORD_BYTES) {
    const place = readNumber(bytes, at)
    const count = readNumber(bytes, at + 8)
    const state = place % 4
    const first = (place - state) / 4
    if ((state !== SectorState.data && state !== SectorState.zero) || count < 1 || first + count > sectorCount) {
      throw new VarveError('OVERLAY_INVALID', `${directory}/${NAME}: the record at byte ${at} says that ${count} sectors from ${first} have state ${state}; without this file the disk is as it was flushed last`)
    }
    visit(first, count, state)
  }
}
