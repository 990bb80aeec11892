/**
 * UseWatch: learns from what is read of a served disk: its boot, from the first read until the mark, and from then on how often chunks are used.
 * The mark is a quiet period: nothing is used for the first time any more. All that it does beside reads is done by a timer.
 */
import type { Logger } from 'pino'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { MapDevice } from '@varve/images/device/map-device.ts'
import { RecordingDevice } from '@varve/images/device/recording-device.ts'
import type { Home } from '@varve/images/store/home.ts'
import { recordBoot, recordHeat } from './boot-lists.ts'

export interface UseWatchOptions {
  home: Home
  log: Logger
  /** For the log. */
  name: string
}

/** A boot pauses less than this: on an emulated processor, a kernel unpacks its initrd for ten seconds and more. Ms. */
const QUIET_MS = 30_000
/** Longer is not a boot any more: what was used until then is taken, ms. */
const BOOT_MS_MAX = 600_000
const LOOK_EACH_MS = 1000
/** Uses are added to what is known so often, ms. */
const HEAT_EACH_MS = 300_000

interface WatchedDisk {
  device: RecordingDevice
  /** Digest of its map. */
  map: Digest
}

export class UseWatch implements AsyncDisposable {
  readonly #options: UseWatchOptions
  readonly #timer: NodeJS.Timeout
  #disk: WatchedDisk | undefined
  #firstUseMs: number | undefined
  #heatMs = performance.now()
  /** What is being learned, one after the other. */
  #learning: Promise<unknown> = Promise.resolve()

  constructor(options: UseWatchOptions) {
    this.#options = options
    this.#timer = setInterval(() => this.#look(), LOOK_EACH_MS)
    this.#timer.unref()
  }

  /**
   * Watches a disk, instead of the one before. The first one is about to boot; if another comes before the mark, nobody has seen a whole boot.
   * @param map what `device` shows
   */
  over(device: MapDevice, map: Digest): RecordingDevice {
    const recording = new RecordingDevice(device)
    if (this.#disk === undefined) recording.beginBoot()
    else this.#leave(this.#disk)
    this.#disk = { device: recording, map }
    return recording
  }

  /** Uses that were not reported are; a boot that did not come to its mark is forgotten. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    if (this.#disk !== undefined) this.#leave(this.#disk)
    await this.#learning
  }

  #leave(disk: WatchedDisk): void {
    disk.device.endBoot()
    this.#reportHeat(disk)
  }

  #look(): void {
    const disk = this.#disk
    if (disk === undefined) return
    const now = performance.now()
    const lastMs = disk.device.firstUseMs
    this.#firstUseMs ??= lastMs
    const isQuiet = lastMs !== undefined && now - lastMs >= QUIET_MS
    if (isQuiet || (this.#firstUseMs !== undefined && now - this.#firstUseMs >= BOOT_MS_MAX)) this.#reportBoot(disk)
    if (now - this.#heatMs < HEAT_EACH_MS) return
    this.#heatMs = now
    this.#reportHeat(disk)
  }

  #reportBoot({ device, map }: WatchedDisk): void {
    const record = device.endBoot()
    // More than can be noted is no boot.
    if (record === undefined || record.cut) return
    const { home, log, name } = this.#options
    this.#learn('a boot', async () => {
      if (await recordBoot(home, map, record.chunks)) log.info({ export: name, chunks: record.chunks.length }, 'learned from a boot')
    })
  }

  #reportHeat({ device, map }: WatchedDisk): void {
    const uses = device.takeUses()
    if (uses.chunks.length > 0) this.#learn('uses', () => recordHeat(this.#options.home, map, uses))
  }

  /** What cannot be learned now is learned another time. */
  #learn(what: string, work: () => Promise<void>): void {
    const { log, name } = this.#options
    this.#learning = this.#learning.then(work).catch((error: unknown) => log.warn({ err: error, export: name }, `could not learn from ${what}`))
  }
}
