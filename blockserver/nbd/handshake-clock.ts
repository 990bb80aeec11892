/**
 * Handshake clock: how long a peer may take for its handshake. It rests while the server itself is at work, as when it opens an export: that may
 * take as long as the disk below takes.
 */
export class HandshakeClock {
  readonly #expired: () => void
  #msLeft: number
  #startMs = 0
  #timer: NodeJS.Timeout | undefined

  constructor(msLeft: number, expired: () => void) {
    this.#msLeft = msLeft
    this.#expired = expired
    this.start()
  }

  /** At least 1. */
  get msLeft(): number {
    return Math.max(1, this.#msLeft - (this.#timer === undefined ? 0 : performance.now() - this.#startMs))
  }

  start(): void {
    this.#startMs = performance.now()
    this.#timer ??= setTimeout(this.#expired, this.#msLeft)
  }

  stop(): void {
    if (this.#timer === undefined) return
    this.#msLeft = this.msLeft
    clearTimeout(this.#timer)
    this.#timer = undefined
  }
}
