/**
 * UseWatch: tells what is read of a disk: its boot, from the first read until the mark, and from then on, now and then, which chunks are used.
 * The mark is a quiet period: nothing is used for the first time any more. All that it does beside reads is done by a timer.
 */
import type { ReadRecorder } from './read-recorder.ts'

/** A boot pauses less than this, ms. */
const QUIET_MS = 15_000
/** Longer is not a boot any more: what was used until then is taken, ms. */
const BOOT_MS_MAX = 600_000
const LOOK_EACH_MS = 1000
/** Uses are told so often, ms. */
const USES_EACH_MS = 300_000

/** What is told of one disk; the views are good until the next read. */
export interface UseListener {
  /** @param chunks numbers of its map, in the order of their first use */
  boot: (chunks: Uint32Array) => void
  /** @param chunks numbers of those that were used since it was last told, ascending */
  uses: (chunks: Uint32Array) => void
}

interface WatchedDisk extends UseListener {
  recorder: ReadRecorder
}

export class UseWatch implements Disposable {
  readonly #timer: NodeJS.Timeout
  #disk: WatchedDisk | undefined
  #firstUseMs: number | undefined
  #usesMs = performance.now()

  constructor() {
    this.#timer = setInterval(() => this.#look(), LOOK_EACH_MS)
    this.#timer.unref()
  }

  /** Watches a disk, instead of the one before. The first one is about to boot; if another comes before the mark, nobody has seen a whole boot. */
  over(recorder: ReadRecorder, listener: UseListener): void {
    if (this.#disk === undefined) recorder.beginBoot()
    else this.#leave(this.#disk)
    this.#disk = { recorder, ...listener }
  }

  /** Uses that were not told are; a boot that did not come to its mark is forgotten. */
  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    if (this.#disk !== undefined) this.#leave(this.#disk)
    this.#disk = undefined
  }

  #leave(disk: WatchedDisk): void {
    disk.recorder.endBoot()
    tellUses(disk)
  }

  #look(): void {
    const disk = this.#disk
    if (disk === undefined) return
    disk.recorder.turn()
    const now = performance.now()
    const lastMs = disk.recorder.firstUseMs
    this.#firstUseMs ??= lastMs
    const isQuiet = lastMs !== undefined && now - lastMs >= QUIET_MS
    if (isQuiet || (this.#firstUseMs !== undefined && now - this.#firstUseMs >= BOOT_MS_MAX)) {
      const record = disk.recorder.endBoot()
      // More than can be noted is no boot.
      if (record !== undefined && !record.cut) disk.boot(record.chunks)
    }
    if (now - this.#usesMs < USES_EACH_MS) return
    this.#usesMs = now
    tellUses(disk)
  }
}

function tellUses({ recorder, uses }: WatchedDisk): void {
  const chunks = recorder.takeUsed()
  if (chunks.length > 0) uses(chunks)
}
