/** A set of numbers, 0 .. 2^53 - 1, kept as bits in pages: dense parts take a bit a number, empty and full pages nothing. */
const PAGE_BITS = 4096
const FULL = new Uint8Array(PAGE_BITS / 8).fill(0xff)

export class PagedBits {
  readonly #pages = new Map<number, Uint8Array>()

  has(number: number): boolean {
    return this.hasAny(number, 1)
  }

  add(number: number): void {
    this.addRange(number, 1)
  }

  /** True if one of `first .. first + count - 1` is in the set. */
  hasAny(first: number, count: number): boolean {
    for (const { page, from, to } of pagesOf(first, count)) {
      const bits = this.#pages.get(page)
      if (bits === undefined) continue
      for (let bit = from; bit < to; bit++) if ((bits[bit >> 3] & (1 << (bit & 7))) !== 0) return true
    }
    return false
  }

  addRange(first: number, count: number): void {
    for (const { page, from, to } of pagesOf(first, count)) {
      let bits = this.#pages.get(page)
      if (bits === FULL) continue
      if (to - from === PAGE_BITS) {
        this.#pages.set(page, FULL)
        continue
      }
      if (bits === undefined) this.#pages.set(page, bits = new Uint8Array(PAGE_BITS / 8))
      for (let bit = from; bit < to; bit++) bits[bit >> 3] |= 1 << (bit & 7)
    }
  }
}

function* pagesOf(first: number, count: number): Generator<{ page: number; from: number; to: number }> {
  for (let at = first; at < first + count;) {
    const from = at % PAGE_BITS
    const to = Math.min(PAGE_BITS, from + first + count - at)
    yield { page: (at - from) / PAGE_BITS, from, to }
    at += to - from
  }
}
