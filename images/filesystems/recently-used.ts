/**
 * RecentlyUsed: what was read or worked out last, by number, up to a weight in all, so that it need not be again.
 */

/** The newest is always kept, whatever its weight. */
export class RecentlyUsed<T> {
  readonly #weightMax: number
  readonly #items = new Map<number, { value: T; weight: number }>()
  #weight = 0

  constructor(weightMax: number) {
    this.#weightMax = weightMax
  }

  get(key: number): T | undefined {
    const item = this.#items.get(key)
    if (item === undefined) return undefined
    this.#items.delete(key)
    this.#items.set(key, item)
    return item.value
  }

  set(key: number, value: T, weight = 1): void {
    this.#weight += weight - (this.#items.get(key)?.weight ?? 0)
    this.#items.delete(key)
    this.#items.set(key, { value, weight })
    for (const [oldest, item] of this.#items) {
      if (this.#weight <= this.#weightMax || oldest === key) break
      this.#items.delete(oldest)
      this.#weight -= item.weight
    }
  }
}
