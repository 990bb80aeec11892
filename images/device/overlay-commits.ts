/**
 * OverlayCommits: makes what was written to an overlay durable. At most one commit is under way; all who ask meanwhile share the one that follows it.
 * Little goes into the log, content and all, at the cost of one sync; much is synced where it lies, and the journal says what it is.
 * Order of writes and why each crash is safe: docs/formats/overlay.md#commit
 */
import { VarveError } from '../errors.ts'
import { ChangedRuns } from './changed-runs.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { Frame } from './overlay-journal.ts'
import type { OverlayJournal } from './overlay-journal.ts'
import { LOG_FRAME_SECTORS_MAX, LogFrame } from './overlay-log.ts'
import type { OverlayLog } from './overlay-log.ts'
import type { OverlayRecent } from './overlay-recent.ts'
import { OVERLAY_SECTOR_BYTES } from './overlay-sectors.ts'
import type { OverlaySectors } from './overlay-sectors.ts'

/** Changed runs that are held before a commit starts by itself, so that a guest that never flushes does not fill the memory. */
const CHANGED_RUNS_MAX = 1 << 20

export interface CommitParts {
  /** For people. */
  directory: string
  files: OverlayFiles
  /** Of the disk. */
  sizeBytes: number
  dataFd: number
  sectors: OverlaySectors
  journal: OverlayJournal
  log: OverlayLog
  recent: OverlayRecent
  /** Runs whose state is not in the journal. */
  changed: ChangedRuns
}

/** Changes that are not durable yet; which they are is known while they are few enough for the log. */
class PendingRuns {
  readonly #runs = new ChangedRuns()
  #sectors = 0

  get isEmpty(): boolean {
    return this.#sectors === 0
  }

  /** True if they do not go into the log. */
  get isMuch(): boolean {
    return this.#sectors > LOG_FRAME_SECTORS_MAX
  }

  add(first: number, count: number): void {
    this.#sectors += count
    if (this.isMuch) this.#runs.take()
    else this.#runs.add(first, count)
  }

  /** Becomes much: nobody knows which they are. */
  loseCount(): void {
    this.add(0, Infinity)
  }

  takeFrom(other: PendingRuns): void {
    if (other.isMuch) this.loseCount()
    const runs = other.take()
    for (let index = 0; index < runs.length; index += 2) this.add(runs[index], runs[index + 1] - runs[index])
  }

  /** First sector and end of each run, in order. */
  take(): Float64Array {
    this.#sectors = 0
    return this.#runs.take()
  }
}

export class OverlayCommits {
  readonly #parts: CommitParts
  readonly #changed: ChangedRuns
  #changedRunsMax = CHANGED_RUNS_MAX
  /** What calls with FUA wrote, and what all others did. */
  readonly #forced = new PendingRuns()
  readonly #plain = new PendingRuns()
  #sealed = false
  /** The commit under way. */
  #commit: Promise<void> | undefined
  /** The one that is about to begin, or waits for that under way: one for all who ask meanwhile. */
  #nextCommit: Promise<void> | undefined
  /** True if one of them waits for everything, and not for calls with FUA only. */
  #nextCoversAll = false
  #failure: VarveError | undefined

  constructor(parts: CommitParts) {
    this.#parts = parts
    this.#changed = parts.changed
  }

  /** Why nothing more is accepted: after a failed sync nobody knows what is durable. */
  get failure(): VarveError | undefined {
    return this.#failure
  }

  /**
   * Notes that sectors were written or zeroed.
   * @param change.state true if one of them had another state
   * @returns with `fua`, when they are durable
   * @throws VarveError OVERLAY_FAILED
   */
  note(first: number, count: number, change: { state: boolean; fua: boolean }): void | Promise<void> {
    if (change.state) {
      this.#changed.add(first, count)
      this.#record(first, count)
    }
    if (change.fua) {
      this.#forced.add(first, count)
      return this.#request(false)
    }
    this.#plain.add(first, count)
    if (this.#changed.count > this.#changedRunsMax && this.#commit === undefined && this.#nextCommit === undefined) {
      // If it fails, the flush that follows finds out: what failed is tried again, or refused for good.
      this.#request(true).catch(() => { this.#changedRunsMax *= 2 })
    }
  }

  /** Everything noted is durable when this completes. @throws VarveError OVERLAY_FAILED */
  flush(): void | Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    return this.#isPending ? this.#request(true) : this.#commit
  }

  /** Nothing is noted from now on. When this resolves everything is durable without the log. @throws VarveError OVERLAY_FAILED */
  async seal(): Promise<void> {
    this.#sealed = true
    await this.flush()
  }

  /** Resolves when no commit is under way. */
  async ended(): Promise<void> {
    await Promise.allSettled([this.#commit, this.#nextCommit])
  }

  get #isPending(): boolean {
    return !this.#forced.isEmpty || !this.#plain.isEmpty || (this.#sealed && this.#parts.log.holdsFrames)
  }

  #request(coversAll: boolean): Promise<void> {
    this.#nextCoversAll ||= coversAll
    this.#nextCommit ??= this.#start()
    return this.#nextCommit
  }

  /** Begins when the commit under way has ended; if there is none, once the calls that were read together have all been made. */
  async #start(): Promise<void> {
    await this.#commit?.catch(() => {})
    const coversAll = this.#nextCoversAll
    this.#nextCoversAll = false
    this.#commit = this.#nextCommit
    this.#nextCommit = undefined
    try {
      await this.#commitNow(coversAll)
    } finally {
      this.#commit = undefined
    }
  }

  async #commitNow(coversAll: boolean): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    if (coversAll) this.#plain.takeFrom(this.#forced)
    const pending = coversAll ? this.#plain : this.#forced
    const goesToLog = !this.#sealed && !pending.isMuch && !this.#isInPlace && this.#appendToLog(pending)
    await (goesToLog ? this.#sync(() => this.#parts.log.sync()) : this.settle())
  }

  /** True if all that changed is content that the journal knows of, and not much: then syncing the data is one sync too, and writes nothing twice. */
  get #isInPlace(): boolean {
    return this.#changed.count === 0 && !this.#parts.log.holdsFrames && !this.#plain.isMuch
  }

  /** @returns false if the log has no room, or cannot be written to */
  #appendToLog(pending: PendingRuns): boolean {
    const { files, dataFd, sectors, log, sizeBytes } = this.#parts
    const runs = pending.take()
    const frame = new LogFrame()
    for (let index = 0; index < runs.length; index += 2) sectors.forRuns(runs[index], runs[index + 1], (first, count, state) => frame.add(first, count, state))
    if (!log.hasRoom(frame)) return false
    try {
      log.append(frame, (content, first) => {
        const offset = first * OVERLAY_SECTOR_BYTES
        const length = Math.min(content.length, sizeBytes - offset)
        files.read(dataFd, content.subarray(0, length), offset)
        content.fill(0, length)
      })
      return true
    } catch {
      // The disk is full, say. A frame may be there all the same: none may follow it in its place, and it may not count for long.
      log.retire()
      return false
    }
  }

  /** Makes everything durable without the log. */
  async settle(): Promise<void> {
    const { files, dataFd, sectors, journal, log, recent } = this.#parts
    const runs = this.#changed.take()
    this.#plain.take()
    this.#forced.take()
    const frame = this.#frameOf(runs)
    const whole = journal.wantsRewrite ? new Frame() : undefined
    if (whole !== undefined) sectors.forRuns(0, sectors.sectorCount, (first, count, state) => whole.add(first, count, state))
    await this.#sync(() => files.sync(dataFd))
    const rewritten = whole !== undefined && (await this.#sync(() => journal.rewrite(whole))) === undefined
    if (!rewritten && (frame.recordCount > 0 || log.holdsFrames)) await this.#appendToJournal(frame, runs)
    log.restart(journal.position)
    if (!this.#sealed && recent.wantsRestart) this.#restartRecent()
  }

  /** The states that these runs have now. */
  #frameOf(runs: Float64Array): Frame {
    const frame = new Frame()
    for (let index = 0; index < runs.length; index += 2) this.#parts.sectors.forRuns(runs[index], runs[index + 1], (first, count, state) => frame.add(first, count, state))
    return frame
  }

  /** Writes down the states that sectors have from now on, so that they outlive the process: before the call is answered that changed them. */
  #record(first: number, count: number): void {
    const { sectors, recent } = this.#parts
    if (!recent.isRecording) return
    try {
      sectors.forRuns(first, first + count, (runFirst, runCount, state) => recent.add(runFirst, runCount, state))
    } catch (cause) {
      throw this.#fail(cause)
    }
  }

  /** The journal has all but what changed while it was written. */
  #restartRecent(): void {
    const runs = this.#changed.take()
    this.#changed.putBack(runs)
    try {
      this.#parts.recent.restart(this.#frameOf(runs))
    } catch (cause) {
      throw this.#fail(cause)
    }
  }

  async #appendToJournal(frame: Frame, runs: Float64Array): Promise<void> {
    const { journal, log } = this.#parts
    try {
      journal.append(frame)
    } catch (error) {
      // The disk is full, say. Nothing was promised: the runs go with the next commit. The frame may be there all the same, and end the log's count.
      this.#changed.putBack(runs)
      this.#plain.loseCount()
      log.retire()
      throw error
    }
    await this.#sync(() => journal.sync())
  }

  async #sync<Result>(sync: () => Promise<Result>): Promise<Result> {
    try {
      return await sync()
    } catch (cause) {
      // What the cache shows may not be what the disk gets: at the next opening what the log holds is to be written again.
      try {
        this.#parts.recent.clear()
      } catch {
        // Then it is believed.
      }
      throw this.#fail(cause)
    }
  }

  #fail(cause: unknown): VarveError {
    this.#failure ??= new VarveError('OVERLAY_FAILED', `overlay ${this.#parts.directory} could not be made durable (${(cause as Error).message}); check the disk that it is on, and open it again`, { cause })
    return this.#failure
  }
}
