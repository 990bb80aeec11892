/**
 * Recent: what was worked out last, by number, so that it need not be worked out again; bounded by what it holds together.
 */

export class Recent<Value> {
  readonly #entries = new Map<number, { value: Value; weight: number }>()
  readonly #entriesMax: number
  readonly #weightMax: number
  #weight = 0

  constructor({ entriesMax, weightMax }: { entriesMax: number; weightMax: number }) {
    this.#entriesMax = entriesMax
    this.#weightMax = weightMax
  }

  get(key: number): Value | undefined {
    const entry = this.#entries.get(key)
    if (entry === undefined) return undefined
    this.#entries.delete(key)
    this.#entries.set(key, entry)
    return entry.value
  }

  /** The last one is kept whatever its weight. */
  keep(key: number, value: Value, weight: number): void {
    this.#weight += weight - (this.#entries.get(key)?.weight ?? 0)
    this.#entries.delete(key)
    this.#entries.set(key, { value, weight })
    for (const [oldest, entry] of this.#entries) {
      if (oldest === key || (this.#entries.size <= this.#entriesMax && this.#weight <= this.#weightMax)) break
      this.#entries.delete(oldest)
      this.#weight -= entry.weight
    }
  }
}
