/**
 * Memory for payloads that all connections share. Whoever gets none waits in order; who holds some and does not move is named, to be cut.
 */
export interface BudgetUser {
  /** Bytes of the budget that it holds. */
  readonly sharedBytes: number
  /** When one of its requests was last completed, `performance.now()`. */
  readonly movedAtMs: number
  /** Memory may be had: try again. */
  memoryFreed(): void
  /** It held memory for too long without moving, and others wait. */
  cut(reason: string): void
}

export class MemoryBudget {
  #bytes: number
  #stalledMsMax: number
  readonly #users = new Set<BudgetUser>()
  readonly #waiting = new Set<BudgetUser>()
  #freeBytes: number
  #timer: NodeJS.Timeout | undefined

  constructor(bytes: number, stalledMsMax: number) {
    this.#bytes = bytes
    this.#freeBytes = bytes
    this.#stalledMsMax = stalledMsMax
  }

  /** @returns false if there is not enough: then `memoryFreed` is called when it is worth another try */
  take(user: BudgetUser, bytes: number): boolean {
    if (bytes > this.#freeBytes || (this.#waiting.size > 0 && !this.#waiting.has(user))) {
      this.#waiting.add(user)
      this.#timer ??= setInterval(() => this.#cutStalled(), this.#stalledMsMax / 4).unref()
      return false
    }
    this.#waiting.delete(user)
    this.#freeBytes -= bytes
    this.#users.add(user)
    return true
  }

  /** Less than is in use is less than nothing free, until enough is given back. */
  resize(bytes: number, stalledMsMax: number): void {
    const more = bytes - this.#bytes
    this.#bytes = bytes
    this.#stalledMsMax = stalledMsMax
    this.give(more)
  }

  give(bytes: number): void {
    this.#freeBytes += bytes
    if (this.#waiting.size > 0) setImmediate(() => this.#wake())
  }

  /** It found room of its own, and waits no more. */
  leave(user: BudgetUser): void {
    this.#waiting.delete(user)
  }

  /** The user is gone, and has given back what it held. */
  forget(user: BudgetUser): void {
    this.#users.delete(user)
    if (this.#waiting.delete(user)) this.#wake()
  }

  close(): void {
    clearInterval(this.#timer)
  }

  /** The first in line goes on first; while it still waits, so do all behind it. */
  #wake(): void {
    for (const user of this.#waiting) {
      user.memoryFreed()
      if (this.#waiting.has(user)) return
    }
  }

  #cutStalled(): void {
    if (this.#waiting.size === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
      return
    }
    const since = performance.now() - this.#stalledMsMax
    for (const user of this.#users) {
      if (user.sharedBytes > 0 && user.movedAtMs < since) user.cut('it holds memory that others wait for, and does not move')
    }
  }
}
