/**
 * OverlayDevice: durable copy-on-write over another disk. Writes land in a sparse file of the disk's own layout; a journal says which sectors count.
 * What is below never changes. Files, order of writes, and why each crash is safe: docs/formats/overlay.md
 */
import { dirname } from 'node:path'
import { VarveError } from '../errors.ts'
import { appendExtent, checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, DeviceView, WriteOptions, WriteZeroesOptions } from './block-device.ts'
import { ChangedRuns } from './changed-runs.ts'
import { OverlayCommits } from './overlay-commits.ts'
import { localFiles } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { Frame, OVERLAY_BYTES_MAX, OVERLAY_VERSION, OverlayJournal } from './overlay-journal.ts'
import { OverlayLog } from './overlay-log.ts'
import type { LogVisit } from './overlay-log.ts'
import { OverlayRecent, readRecent, visitRecent } from './overlay-recent.ts'
import { OVERLAY_SECTOR_BYTES, OverlaySectors, SectorState } from './overlay-sectors.ts'
import { settled } from './settled.ts'

/** What file systems read and write, mostly: in these units nothing of an overlay is touched in vain. */
export const OVERLAY_BLOCK_BYTES = 4096

export interface OverlayOptions {
  /** Holds the overlay's files; nothing else may be in it. */
  directory: string
  /** The disk below: borrowed, read-only, and the same at every opening. */
  lower: BlockDevice
  /** Names what `lower` shows, 32 bytes: the digest of its block map. Another one than at creation is refused. */
  lowerDigest: Uint8Array
  /** Opens an overlay that nobody writes to any more; takes no lock. */
  readOnly?: boolean
  /** In tests, something that cuts the power. */
  files?: OverlayFiles
}

interface OverlayParts {
  directory: string
  files: OverlayFiles
  lower: BlockDevice
  dataFd: number
  sectors: OverlaySectors
  journal: OverlayJournal
  writing: WritingParts | undefined
}

/** What only an overlay that may be written to has. */
interface WritingParts {
  lockFd: number
  log: OverlayLog
  recent: OverlayRecent
  commits: OverlayCommits
}

/** Content of the two sectors that a write may cover in part, as the disk below has it; fetched where the overlay has nothing. */
interface Edges {
  head?: Uint8Array
  tail?: Uint8Array
}
const NO_EDGES: Edges = {}

export class OverlayDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = OVERLAY_BLOCK_BYTES
  readonly #directory: string
  readonly #files: OverlayFiles
  readonly #dataFd: number
  readonly #sectors: OverlaySectors
  readonly #journal: OverlayJournal
  readonly #writing: WritingParts | undefined
  #lower: BlockDevice
  /** Takes the writes of an overlay that was frozen. */
  #successor: OverlayDevice | undefined
  readonly #inFlight = new Set<Promise<unknown>>()
  #closing: Promise<void> | undefined

  private constructor(parts: OverlayParts) {
    this.sizeBytes = parts.journal.header.sizeBytes
    this.#directory = parts.directory
    this.#files = parts.files
    this.#lower = parts.lower
    this.#dataFd = parts.dataFd
    this.#sectors = parts.sectors
    this.#journal = parts.journal
    this.#writing = parts.writing
  }

  /** True if there is an overlay in the directory; one whose creation was interrupted is none. */
  static exists(directory: string, files: OverlayFiles = localFiles): boolean {
    return OverlayJournal.exists(files, directory)
  }

  /**
   * Makes an overlay that shows all of what is below. It is there and durable when this resolves, or not at all.
   * @throws VarveError LIMIT_EXCEEDED for a disk that is too large, ALREADY_EXISTS
   */
  static async create({ directory, sizeBytes, lowerDigest, files = localFiles }: { directory: string; sizeBytes: number; lowerDigest: Uint8Array; files?: OverlayFiles }): Promise<void> {
    if (sizeBytes > OVERLAY_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a disk of ${sizeBytes} bytes is too large for an overlay, which holds ${OVERLAY_BYTES_MAX}`)
    if (OverlayJournal.exists(files, directory)) throw new VarveError('ALREADY_EXISTS', `there is an overlay in ${directory}`)
    files.makeDirectory(directory)
    await files.syncDirectory(dirname(directory))
    const fd = files.open(`${directory}/data`, 'create')
    try {
      files.truncate(fd, 0)
      files.truncate(fd, sizeBytes)
      await files.sync(fd)
    } finally {
      files.close(fd)
    }
    OverlayLog.create(files, directory)
    await OverlayJournal.create(files, directory, { sizeBytes, lower: lowerDigest })
  }

  /**
   * Opens the overlay in a directory. What it shows is durable when this resolves.
   * @throws VarveError NOT_FOUND, OVERLAY_INVALID, FORMAT_UNSUPPORTED, STORE_LOCKED if a process has it open for writing
   */
  static async open({ directory, lower, lowerDigest, readOnly = false, files = localFiles }: OverlayOptions): Promise<OverlayDevice> {
    if (!OverlayJournal.exists(files, directory)) throw new VarveError('NOT_FOUND', `there is no overlay in ${directory}`)
    await using opened = new AsyncDisposableStack()
    const lockFd = readOnly ? -1 : lockDirectory(files, directory)
    if (!readOnly) opened.defer(() => files.close(lockFd))
    let sectors!: OverlaySectors
    const journal = OverlayJournal.open(files, directory, {
      readOnly,
      visit: header => {
        sectors = new OverlaySectors(Math.ceil(header.sizeBytes / OVERLAY_SECTOR_BYTES))
        return (first, count, state) => void sectors.set(first, count, state)
      },
    })
    opened.defer(() => journal.close())
    checkLower(journal, { directory, lower, lowerDigest })
    const dataFd = openData(files, directory, { readOnly, sizeBytes: lower.sizeBytes })
    opened.defer(() => files.close(dataFd))
    const parts = { directory, files, lower, dataFd, sectors, journal }
    if (readOnly) {
      if (replayLog(parts, () => {}) || changedRecently(parts)) throw new VarveError('OVERLAY_INVALID', `overlay ${directory} was not closed; its owner has to open it first`)
      await Promise.all([files.sync(dataFd), journal.sync(), files.syncDirectory(directory)])
      opened.move()
      return new OverlayDevice({ ...parts, writing: undefined })
    }
    const writing = await recover(parts)
    opened.move()
    return new OverlayDevice({ ...parts, writing: { lockFd, ...writing } })
  }

  /** Makes an overlay whole whose owner did not close it, so that it can be opened read-only. @throws as `open` */
  static async recover(options: OverlayOptions): Promise<void> {
    const { directory, files = localFiles } = options
    const journal = OverlayJournal.open(files, directory, { readOnly: true, visit: () => () => {} })
    journal.close()
    if (!replayLog({ files, directory, journal }, () => {}) && !OverlayRecent.exists(files, directory)) return
    await (await OverlayDevice.open({ ...options, readOnly: false }))[Symbol.asyncDispose]()
  }

  get readOnly(): boolean {
    return this.#writing === undefined || this.#successor !== undefined
  }

  /** Sectors that the overlay holds or has as zeroes: `visit` gets each run, in order. */
  forRuns(visit: (first: number, count: number, state: SectorState) => void): void {
    this.#sectors.forRuns(0, this.#sectors.sectorCount, visit)
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.#check(offset, into.length)
    const end = offset + into.length
    const endSector = Math.ceil(end / OVERLAY_SECTOR_BYTES)
    let awaited: Promise<void>[] | undefined
    try {
      for (let at = offset; at < end;) {
        const sector = Math.floor(at / OVERLAY_SECTOR_BYTES)
        const state = this.#sectors.get(sector)
        const stop = Math.min(end, this.#sectors.runEnd(sector, endSector) * OVERLAY_SECTOR_BYTES)
        const part = stop - at === into.length ? into : into.subarray(at - offset, stop - offset)
        if (state === SectorState.data) {
          this.#files.read(this.#dataFd, part, at)
        } else if (state === SectorState.zero) {
          part.fill(0)
        } else {
          const answer = this.#lower.read(part, at)
          if (answer !== undefined) (awaited ??= []).push(answer)
        }
        at = stop
      }
    } catch (error) {
      if (awaited === undefined) throw error
      awaited.push(Promise.reject(error instanceof Error ? error : new Error(String(error))))
    }
    // All of the overlay's own sectors were read at once, and what is below does not change: the read shows one moment.
    if (awaited !== undefined) return this.#track(settled(awaited))
  }

  view(offset: number, length: number): DeviceView | undefined {
    this.#check(offset, length)
    const sector = Math.floor(offset / OVERLAY_SECTOR_BYTES)
    const endSector = Math.ceil((offset + length) / OVERLAY_SECTOR_BYTES)
    const below = this.#sectors.get(sector) === SectorState.below && this.#sectors.runEnd(sector, endSector) === endSector
    return below ? this.#lower.view?.(offset, length) : undefined
  }

  write(bytes: Uint8Array, offset: number, options: WriteOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, bytes.length)
    const edges = this.#fetchEdges(offset, bytes.length)
    if (!(edges instanceof Promise)) return this.#write(bytes, offset, options, edges)
    return this.#track(edges.then(fetched => (
      this.#successor === undefined ? this.#write(bytes, offset, options, fetched) : this.#successor.write(bytes, offset, options)
    )))
  }

  trim(offset: number, length: number, options: WriteOptions = {}): void | Promise<void> {
    return this.writeZeroes(offset, length, options)
  }

  writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, length)
    const edges = this.#fetchEdges(offset, length)
    if (!(edges instanceof Promise)) return this.#zero(offset, length, options, edges)
    return this.#track(edges.then(fetched => (
      this.#successor === undefined ? this.#zero(offset, length, options, fetched) : this.#successor.writeZeroes(offset, length, options)
    )))
  }

  flush(): void | Promise<void> {
    this.#check(0, 0)
    return this.#writing?.commits.flush()
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#check(offset, length)
    const extents: DeviceExtent[] = []
    const end = offset + length
    const endSector = Math.ceil(end / OVERLAY_SECTOR_BYTES)
    for (let at = offset; at < end && extents.length <= most;) {
      const sector = Math.floor(at / OVERLAY_SECTOR_BYTES)
      const state = this.#sectors.get(sector)
      const stop = Math.min(end, this.#sectors.runEnd(sector, endSector) * OVERLAY_SECTOR_BYTES)
      if (state === SectorState.below) {
        for (const below of this.#lower.extents(at, stop - at, most - extents.length + 2)) {
          appendExtent(extents, below.offset, below.length, below.type)
          at = below.offset + below.length
        }
      } else {
        appendExtent(extents, at, stop - at, state === SectorState.data ? 'data' : 'zero')
        at = stop
      }
    }
    return extents.slice(0, most)
  }

  /** Whether the sector at `offset` is this overlay's own, or what is below shows, and how far that goes: at most to `end`. */
  ownRun(offset: number, end: number): { own: boolean; end: number } {
    const sector = Math.floor(offset / OVERLAY_SECTOR_BYTES)
    const stop = this.#sectors.runEnd(sector, Math.ceil(end / OVERLAY_SECTOR_BYTES)) * OVERLAY_SECTOR_BYTES
    return { own: this.#sectors.get(sector) !== SectorState.below, end: Math.min(end, stop) }
  }

  /**
   * Takes no more writes from this moment on: those under way, and all that come, go to `successor`, whose lower disk this becomes.
   * @returns when all that was written is durable
   */
  freeze(successor: OverlayDevice): Promise<void> {
    const { commits } = this.#checkWritable(0, 0)
    this.#successor = successor
    return commits.seal().then(() => this.#clear())
  }

  /** Puts another disk that shows the same bytes below; the old one may be closed once this returns. Calls under way end on the old one first. */
  async replaceLower(lower: BlockDevice): Promise<void> {
    if (lower.sizeBytes !== this.sizeBytes) throw new RangeError(`a disk of ${lower.sizeBytes} bytes below an overlay of ${this.sizeBytes}`)
    this.#lower = lower
    await Promise.allSettled(this.#inFlight)
  }

  /** Makes everything durable and gives up the overlay; calls under way end first. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await using closing = new AsyncDisposableStack()
    const { lockFd, log, recent, commits } = this.#writing ?? {}
    if (lockFd !== undefined) closing.defer(() => this.#files.close(lockFd))
    closing.defer(() => this.#files.close(this.#dataFd))
    closing.defer(() => this.#journal.close())
    if (log !== undefined) closing.defer(() => log.close())
    if (recent !== undefined) closing.defer(() => recent.close())
    if (commits !== undefined) closing.defer(() => commits.ended())
    await Promise.allSettled(this.#inFlight)
    if (commits === undefined || commits.failure !== undefined) return
    await commits.seal()
    if (this.readOnly) return this.#clear()
    await this.#sealJournal()
    recent!.clear()
  }

  /** Should the last commit be damaged later, this frame tells that from a commit that was cut short. */
  async #sealJournal(): Promise<void> {
    this.#journal.append(new Frame())
    await this.#journal.sync()
  }

  /** What is frozen has no use for them. */
  #clear(): void {
    const { log, recent } = this.#writing!
    try {
      recent.clear()
      log.clear()
    } catch {
      // Everything is durable, and they say nothing else; only room is lost.
    }
  }

  // Writing. Everything happens in one turn once the edges are there, so that calls take effect one after another.

  /** What is below the sectors that a write covers in part, where the overlay has nothing yet. */
  #fetchEdges(offset: number, length: number): Edges | Promise<Edges> {
    if (length === 0 || (offset % OVERLAY_SECTOR_BYTES === 0 && length % OVERLAY_SECTOR_BYTES === 0)) return NO_EDGES
    const end = offset + length
    const firstSector = Math.floor(offset / OVERLAY_SECTOR_BYTES)
    const lastSector = Math.floor((end - 1) / OVERLAY_SECTOR_BYTES)
    const headCut = offset > firstSector * OVERLAY_SECTOR_BYTES || end < this.#endOf(firstSector)
    const tailCut = lastSector > firstSector && end < this.#endOf(lastSector)
    if (!headCut && !tailCut) return NO_EDGES
    const edges: Edges = {}
    const awaited: Promise<void>[] = []
    const fetch = (sector: number): Uint8Array => {
      const start = sector * OVERLAY_SECTOR_BYTES
      const bytes = new Uint8Array(this.#endOf(sector) - start)
      const answer = this.#lower.read(bytes, start)
      if (answer !== undefined) awaited.push(answer)
      return bytes
    }
    try {
      if (headCut && this.#sectors.get(firstSector) === SectorState.below) edges.head = fetch(firstSector)
      if (tailCut && this.#sectors.get(lastSector) === SectorState.below) edges.tail = fetch(lastSector)
    } catch (error) {
      if (awaited.length === 0) throw error
      awaited.push(Promise.reject(error instanceof Error ? error : new Error(String(error))))
    }
    return awaited.length === 0 ? edges : settled(awaited).then(() => edges)
  }

  #write(bytes: Uint8Array, offset: number, options: WriteOptions, edges: Edges): void | Promise<void> {
    if (bytes.length === 0) return
    const end = offset + bytes.length
    const first = Math.floor(offset / OVERLAY_SECTOR_BYTES)
    const count = Math.ceil(end / OVERLAY_SECTOR_BYTES) - first
    try {
      const from = this.#writeEdge(first, offset, end, bytes, edges.head) ? Math.min(end, this.#endOf(first)) : offset
      const last = first + count - 1
      const to = from < end && this.#writeEdge(last, offset, end, bytes, edges.tail) ? last * OVERLAY_SECTOR_BYTES : end
      if (from < to) this.#files.write(this.#dataFd, to - from === bytes.length ? bytes : bytes.subarray(from - offset, to - offset), from)
    } catch (error) {
      this.#noteFailed(first, count)
      throw error
    }
    return this.#writing!.commits.note(first, count, { state: this.#sectors.set(first, count, SectorState.data), fua: options.fua === true })
  }

  /**
   * Writes a whole sector of which offset .. end covers a part, with what it shows elsewhere.
   * @returns false if that is not needed: the sector is covered whole, or lies in the data already
   */
  #writeEdge(sector: number, offset: number, end: number, bytes: Uint8Array, lower: Uint8Array | undefined): boolean {
    const start = sector * OVERLAY_SECTOR_BYTES
    const stop = this.#endOf(sector)
    if (offset <= start && end >= stop) return false
    const state = this.#sectors.get(sector)
    if (state === SectorState.data) return false
    const whole = state === SectorState.zero ? new Uint8Array(stop - start) : lower!
    const from = Math.max(offset, start)
    whole.set(bytes.subarray(from - offset, Math.min(end, stop) - offset), from - start)
    this.#files.write(this.#dataFd, whole, start)
    return true
  }

  #zero(offset: number, length: number, options: WriteZeroesOptions, edges: Edges): void | Promise<void> {
    if (length === 0) return
    const end = offset + length
    const first = Math.floor(offset / OVERLAY_SECTOR_BYTES)
    const last = Math.floor((end - 1) / OVERLAY_SECTOR_BYTES)
    const firstWhole = Math.ceil(offset / OVERLAY_SECTOR_BYTES)
    const endWhole = end === this.sizeBytes ? this.#sectors.sectorCount : Math.floor(end / OVERLAY_SECTOR_BYTES)
    let state = false
    try {
      if (firstWhole < endWhole) state = this.#zeroSectors(firstWhole, endWhole, options.noHole ?? false)
      if (first < firstWhole && this.#zeroEdge(first, offset, Math.min(end, this.#endOf(first)), edges.head)) state = true
      if (last >= endWhole && last >= firstWhole && this.#zeroEdge(last, last * OVERLAY_SECTOR_BYTES, end, last > first ? edges.tail : edges.head)) state = true
    } catch (error) {
      this.#noteFailed(first, last + 1 - first)
      throw error
    }
    return this.#writing!.commits.note(first, last + 1 - first, { state, fua: options.fua === true })
  }

  /** Zeroes a part of one sector. @returns true if its state changed */
  #zeroEdge(sector: number, from: number, to: number, lower: Uint8Array | undefined): boolean {
    const start = sector * OVERLAY_SECTOR_BYTES
    const state = this.#sectors.get(sector)
    if (state === SectorState.zero) return false
    if (state === SectorState.data) {
      this.#files.write(this.#dataFd, new Uint8Array(to - from), from)
      return false
    }
    const whole = lower!
    whole.fill(0, from - start, to - start)
    this.#files.write(this.#dataFd, whole, start)
    return this.#sectors.set(sector, 1, SectorState.data)
  }

  /** @returns true if the state of one of them changed */
  #zeroSectors(first: number, end: number, noHole: boolean): boolean {
    const start = first * OVERLAY_SECTOR_BYTES
    const length = this.#endOf(end - 1) - start
    const isUntouched = this.#sectors.get(first) === SectorState.below && this.#sectors.runEnd(first, end) === end
    const changed = this.#sectors.set(first, end - first, SectorState.zero)
    // Safe before the commit: whether a crash brings back the old state of the sector or not, what is punched reads as zeroes, as was asked.
    if (noHole) this.#files.allocate(this.#dataFd, start, length)
    else if (!isUntouched) this.#files.punch(this.#dataFd, start, length)
    return changed
  }

  /** A call that failed may have changed any of what it was to change: what a read shows now, a flush makes durable. */
  #noteFailed(first: number, count: number): void {
    void this.#writing!.commits.note(first, count, { state: true, fua: false })
  }

  /** Where a sector ends, bytes. */
  #endOf(sector: number): number {
    return Math.min(this.sizeBytes, (sector + 1) * OVERLAY_SECTOR_BYTES)
  }

  #track<Result>(call: Promise<Result>): Promise<Result> {
    const tracked = call.finally(() => this.#inFlight.delete(tracked))
    this.#inFlight.add(tracked)
    return tracked
  }

  #checkWritable(offset: number, length: number): WritingParts {
    this.#check(offset, length)
    if (this.#writing === undefined || this.#successor !== undefined) throw new VarveError('READ_ONLY', `overlay ${this.#directory} is frozen`)
    if (this.#writing.commits.failure !== undefined) throw this.#writing.commits.failure
    return this.#writing
  }

  #check(offset: number, length: number): void {
    if (this.#closing !== undefined) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }
}

/**
 * Takes the lock of a directory for this process. @returns the descriptor that holds it
 * @throws VarveError STORE_LOCKED
 */
export function lockDirectory(files: OverlayFiles, directory: string): number {
  const fd = files.open(`${directory}/lock`, 'create')
  if (files.tryLock(fd)) {
    files.truncate(fd, 0)
    files.write(fd, Buffer.from(`${process.pid}\n`), 0)
    return fd
  }
  const holder = Buffer.alloc(Math.min(20, files.sizeBytes(fd)))
  files.read(fd, holder, 0)
  files.close(fd)
  throw new VarveError('STORE_LOCKED', `overlay ${directory} is in use by process ${holder.toString().trim() || '(not known)'}; stop it first`)
}

/**
 * Makes whole what a process left that did not close: what the log holds goes where it belongs, and everything that is shown from now on is durable.
 * @throws VarveError OVERLAY_INVALID
 */
async function recover({ files, directory, dataFd, sectors, journal }: Omit<OverlayParts, 'writing' | 'lower'>): Promise<Omit<WritingParts, 'lockFd'>> {
  const { sizeBytes, version } = journal.header
  if (version !== OVERLAY_VERSION) await upgrade({ files, directory, dataFd, sectors, journal })
  const incarnation = files.incarnation(dataFd)
  const recorded = readRecent(files, directory, incarnation)
  // Of another cache: from now on what it tells of may be overwritten, so that it must not count even where it was written.
  if (recorded === undefined) OverlayRecent.remove(files, directory)
  const log = OverlayLog.open(files, directory, journal.position)
  const recent = new OverlayRecent(files, directory, incarnation)
  try {
    const changed = new ChangedRuns()
    const commits = new OverlayCommits({ directory, files, sizeBytes, dataFd, sectors, journal, log, recent, changed })
    const visit: LogVisit = (first, count, state, content) => {
      const offset = first * OVERLAY_SECTOR_BYTES
      // If the process died and the system did not, the data holds whatever was written to it, nothing of it older than what the log has.
      if (content !== undefined && recorded === undefined) files.write(dataFd, content.subarray(0, sizeBytes - offset), offset)
      if (sectors.set(first, count, state)) changed.add(first, count)
    }
    if (replayLog({ files, directory, journal }, visit)) log.retire()
    if (recorded !== undefined) visitRecent(recorded, { directory, sectorCount: sectors.sectorCount, visit: (first, count, state) => visit(first, count, state, undefined) })
    // What a killed process left in the cache of the system is shown from now on: a flush may not find it missing later.
    await journal.sync()
    await files.syncDirectory(directory)
    await commits.settle()
    return { log, recent, commits }
  } catch (error) {
    recent.close()
    log.close()
    throw error
  }
}

/** True if the owner died, and states of sectors that it had changed are in no commit. */
function changedRecently({ files, directory, dataFd, sectors }: Pick<OverlayParts, 'files' | 'directory' | 'dataFd' | 'sectors'>): boolean {
  const recorded = readRecent(files, directory, files.incarnation(dataFd))
  if (recorded === undefined) return false
  const { sectorCount } = sectors
  const last = new OverlaySectors(sectorCount)
  visitRecent(recorded, { directory, sectorCount, visit: (first, count, state) => void last.set(first, count, state) })
  let changed = false
  last.forRuns(0, sectorCount, (first, count, state) => { changed ||= sectors.get(first) !== state || sectors.runEnd(first, first + count) < first + count })
  return changed
}

/** An overlay of version 1 has no log, and none of its journal's readers looks for one. */
async function upgrade({ files, directory, dataFd, sectors, journal }: Omit<OverlayParts, 'writing' | 'lower'>): Promise<void> {
  await files.sync(dataFd)
  OverlayLog.create(files, directory)
  const frame = new Frame()
  sectors.forRuns(0, sectors.sectorCount, (first, count, state) => frame.add(first, count, state))
  const failed = await journal.rewrite(frame)
  if (failed !== undefined) throw failed
}

/** Visits what the log holds that the journal does not. @returns true if it holds anything */
function replayLog({ files, directory, journal }: { files: OverlayFiles; directory: string; journal: OverlayJournal }, visit: LogVisit): boolean {
  const { version, sizeBytes } = journal.header
  if (version !== OVERLAY_VERSION) return false
  return OverlayLog.replay(files, directory, { position: journal.position, sectorCount: Math.ceil(sizeBytes / OVERLAY_SECTOR_BYTES), visit })
}

function checkLower(journal: OverlayJournal, { directory, lower, lowerDigest }: { directory: string; lower: BlockDevice; lowerDigest: Uint8Array }): void {
  const { sizeBytes, lower: expected } = journal.header
  if (Buffer.compare(expected, lowerDigest) !== 0) {
    throw new VarveError('OVERLAY_INVALID', `overlay ${directory} belongs on ${Buffer.from(expected).toString('hex')}, not on ${Buffer.from(lowerDigest).toString('hex')}`)
  }
  if (sizeBytes !== lower.sizeBytes) throw new VarveError('OVERLAY_INVALID', `overlay ${directory} is of a disk of ${sizeBytes} bytes, not ${lower.sizeBytes}`)
}

function openData(files: OverlayFiles, directory: string, { readOnly, sizeBytes }: { readOnly: boolean; sizeBytes: number }): number {
  const path = `${directory}/data`
  if (!files.exists(path)) throw new VarveError('OVERLAY_INVALID', `${path} is missing`)
  const fd = files.open(path, readOnly ? 'read' : 'write')
  const found = files.sizeBytes(fd)
  if (found !== sizeBytes) {
    files.close(fd)
    throw new VarveError('OVERLAY_INVALID', `${path} is ${found} bytes, not ${sizeBytes}`)
  }
  return fd
}
