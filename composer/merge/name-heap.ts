/**
 * NameHeap: the names of several directories in one order. A binary heap of cursors, by name and then by place (0 is the topmost layer),
 * so that the entries of one name come together, the topmost first.
 */
import type { Tree } from '@varve/images/tree/tree.ts'

export class NameHeap {
  /** By directory: names of its tree, next entry, end of its entries. */
  readonly #names: string[][]
  readonly #next: number[]
  readonly #end: number[]
  /** Directories that have entries left, as a heap. */
  readonly #heap: number[] = []

  /** @param entries of the directories, one in each tree, topmost layer first */
  constructor(trees: readonly Tree[], entries: readonly number[]) {
    this.#names = trees.map((tree) => tree.names)
    this.#next = entries.map((entry, place) => trees[place].firstChild[entry])
    this.#end = entries.map((entry, place) => this.#next[place] + trees[place].childCount[entry])
    for (let place = 0; place < entries.length; place++) if (this.#next[place] < this.#end[place]) this.#heap.push(place)
    for (let at = (this.#heap.length >>> 1) - 1; at >= 0; at--) this.#sink(at)
  }

  /** Place of the directory with the first name that is left, or -1. */
  get place(): number {
    return this.#heap.length === 0 ? -1 : this.#heap[0]
  }

  /** The first entry that is left; there must be one. */
  get entry(): number {
    return this.#next[this.#heap[0]]
  }

  get name(): string {
    const place = this.#heap[0]
    return this.#names[place][this.#next[place]]
  }

  /** Goes to the next entry. */
  advance(): void {
    const heap = this.#heap
    const place = heap[0]
    if (++this.#next[place] === this.#end[place]) {
      const last = heap.pop()!
      if (heap.length === 0) return
      heap[0] = last
    }
    this.#sink(0)
  }

  #isBefore(a: number, b: number): boolean {
    const nameA = this.#names[a][this.#next[a]]
    const nameB = this.#names[b][this.#next[b]]
    return nameA < nameB || (a < b && nameA === nameB)
  }

  #sink(from: number): void {
    const heap = this.#heap
    const moving = heap[from]
    let at = from
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && this.#isBefore(heap[child + 1], heap[child])) child++
      if (!this.#isBefore(heap[child], moving)) break
      heap[at] = heap[child]
      at = child
    }
    heap[at] = moving
  }
}
