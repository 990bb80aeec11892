/**
 * Disk learning: the home learns from the boot of a served disk, and from how often its chunks are used.
 */
import type { Logger } from 'pino'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { MapDevice } from '@varve/images/device/map-device.ts'
import { RecordingDevice } from '@varve/images/device/recording-device.ts'
import { UseWatch } from '@varve/images/device/use-watch.ts'
import type { Home } from '@varve/images/store/home.ts'
import { recordBoot, recordHeat } from './boot-lists.ts'

export interface DiskLearningOptions {
  home: Home
  log: Logger
  /** For the log. */
  name: string
}

export class DiskLearning implements AsyncDisposable {
  readonly #options: DiskLearningOptions
  readonly #watch = new UseWatch()
  /** What is being learned, one after the other. */
  #learning: Promise<unknown> = Promise.resolve()

  constructor(options: DiskLearningOptions) {
    this.#options = options
  }

  /** Learns from a disk, instead of the one before. @param map what `device` shows */
  over(device: MapDevice, map: Digest): RecordingDevice {
    const { home, log, name } = this.#options
    const recording = new RecordingDevice(device)
    this.#watch.over(recording.recorder, {
      boot: (chunks) => this.#learn('a boot', async () => {
        if (await recordBoot(home, map, chunks)) log.info({ export: name, chunks: chunks.length }, 'learned from a boot')
      }),
      uses: (chunks) => this.#learn('uses', () => recordHeat(home, map, chunks)),
    })
    return recording
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch[Symbol.dispose]()
    await this.#learning
  }

  /** What cannot be learned now is learned another time. */
  #learn(what: string, work: () => Promise<void>): void {
    const { log, name } = this.#options
    this.#learning = this.#learning.then(work).catch((error: unknown) => log.warn({ err: error, export: name }, `could not learn from ${what}`))
  }
}
