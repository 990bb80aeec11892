/**
 * Key table: numbers keys of a fixed length in the order in which they are first added; each stands in it once. The keys themselves are in the
 * scratch file, in memory are twelve bytes or so for each: its hash and its slot.
 */
import { Column, ScratchColumn } from './column.ts'
import { HASH_SECRET, SlotTable } from './slot-table.ts'
import type { Workspace } from './workspace.ts'

export class KeyTable {
  readonly #words: number
  /** By key. */
  readonly keys: ScratchColumn<Uint32Array>
  readonly #hashes: Column<Uint32Array>
  readonly #slots: SlotTable
  #sought: Uint32Array = new Uint32Array()
  #soughtHash = 0
  readonly #found: Uint32Array

  /** @param words of 32 bits in a key; divides 256 */
  constructor(space: Workspace, words: number) {
    this.#words = words
    this.keys = new ScratchColumn(space, new Uint32Array())
    this.#hashes = new Column(space, new Uint32Array())
    this.#found = new Uint32Array(words)
    const hashes = this.#hashes
    this.#slots = new SlotTable(space, {
      get count() {
        return hashes.length
      },
      isEntered: () => true,
      hashOf: (row) => hashes.values[row],
      isSought: (row) => hashes.values[row] === this.#soughtHash && this.#hasSought(row),
    })
  }

  get count(): number {
    return this.keys.length / this.#words
  }

  /** Number of a key, or -1. */
  find(key: Uint32Array): number {
    this.#sought = key
    this.#soughtHash = hashOf(key)
    return this.#slots.find(this.#soughtHash)
  }

  /** Number of a key, `count` if it is new. */
  add(key: Uint32Array): number {
    const found = this.find(key)
    if (found >= 0) return found
    const row = this.#hashes.push(this.#soughtHash)
    this.keys.append(key)
    this.#slots.put(this.#soughtHash, row)
    return row
  }

  /** Forgets the keys from number `count` on. */
  truncate(count: number): void {
    for (let row = this.count - 1; row >= count; row--) this.#slots.removeLast(row)
    this.#hashes.truncate(count)
    this.keys.truncate(count * this.#words)
  }

  /** Keys stay, but can be found no more; the memory is for others. */
  close(): void {
    this.#slots.clear()
    this.#hashes.clear()
  }

  #hasSought(row: number): boolean {
    this.keys.read(row * this.#words, this.#found)
    for (let word = 0; word < this.#words; word++) if (this.#found[word] !== this.#sought[word]) return false
    return true
  }
}

function hashOf(key: Uint32Array): number {
  let hash = HASH_SECRET
  for (const word of key) {
    hash = Math.imul(hash ^ word, 0x9e3779b1)
    hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b)
  }
  return (hash ^ (hash >>> 13)) >>> 0
}
