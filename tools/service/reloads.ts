/**
 * Reloads: what SIGHUP does to `varve serve`. On a terminal it says that the terminal is gone, and ends the service.
 */
import type { Logger } from 'pino'
import { loadSettings, type SettingsOverrides } from './config-file.ts'
import type { Notifier } from './notifier.ts'
import type { Service } from './service.ts'

export interface ReloadsOptions {
  /** As it was found or named at the start. */
  file: string | undefined
  overrides: SettingsOverrides
  log: Logger
  notifier: Notifier
}

export class Reloads implements Disposable {
  readonly #options: ReloadsOptions
  #service: Service | undefined
  #status = ''
  #wanted = false
  readonly #onHangup = () => {
    this.#wanted = true
    this.#reload()
  }

  /** From now on SIGHUP is remembered. */
  constructor(options: ReloadsOptions) {
    this.#options = options
    process.on('SIGHUP', process.stdin.isTTY ? hangUp : this.#onHangup)
  }

  /** From now on it is done. @param status what the service manager is told after each reload */
  begin(service: Service, status: string): void {
    this.#service = service
    this.#status = status
    this.#reload()
  }

  end(): void {
    this.#service = undefined
  }

  [Symbol.dispose](): void {
    process.off('SIGHUP', this.#onHangup)
    process.off('SIGHUP', hangUp)
  }

  #reload(): void {
    const service = this.#service
    if (service === undefined || !this.#wanted) return
    this.#wanted = false
    const { file, overrides, log, notifier } = this.#options
    notifier.reloading()
    try {
      const { settings, mistakes, file: found } = loadSettings(file, overrides)
      if (mistakes.length > 0) log.error({ mistakes }, 'the configuration has mistakes; that of before stays')
      else {
        service.apply(settings)
        log.info({ config: found }, 'configuration reloaded')
      }
    } catch (error) {
      log.error({ err: error }, 'the configuration cannot be used; that of before stays')
    }
    notifier.ready(this.#status)
  }
}

function hangUp(): void {
  process.kill(process.pid, 'SIGTERM')
}
