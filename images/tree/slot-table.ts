/**
 * Slot table: finds rows of a table by the hash of their key, with open addressing and no object for a row. What the keys are, and when two
 * are the same, is the owner's matter.
 */
import { randomInt } from 'node:crypto'
import { Column } from './column.ts'
import type { Workspace } from './workspace.ts'

const SLOTS_FIRST = 256
/** So many are full at most; then the table grows a little: memory counts for more here than a few steps of a search. */
const LOAD_MAX = 0.8
const GROWTH = 1.2

/** For those who hash: secret, so that nobody can make up keys that fall into one place. */
export const HASH_SECRET = randomInt(2 ** 32)

export interface SlotRows {
  /** Rows that there are, entered or not. */
  readonly count: number
  /** False for a row that nobody needs to find any more. Two rows with the same key are never both entered. */
  isEntered(row: number): boolean
  /** 32 bits, signed or not. */
  hashOf(row: number): number
  /** True if the row's key is the one that is sought. */
  isSought(row: number): boolean
}

export class SlotTable {
  readonly #rows: SlotRows
  /** Row plus 1, or 0. */
  readonly #slots: Column<Uint32Array>
  #count = 0

  constructor(space: Workspace, rows: SlotRows) {
    this.#rows = rows
    this.#slots = new Column(space, new Uint32Array())
    this.#slots.extend(SLOTS_FIRST)
  }

  /** The row whose key is sought, or -1. @param hash of the key */
  find(hash: number): number {
    return this.#slots.values[this.#slotOf(hash)] - 1
  }

  /** Enters a row, whose key is sought, in place of one with the same key if there is one. */
  put(hash: number, row: number): void {
    const slot = this.#slotOf(hash)
    const isNew = this.#slots.values[slot] === 0
    this.#slots.values[slot] = row + 1
    if (isNew && ++this.#count > this.#slots.length * LOAD_MAX) this.#grow()
  }

  /** Takes out the row that was entered last of all that are in the table; it must not have replaced another. */
  removeLast(row: number): void {
    const { values, length } = this.#slots
    let slot = this.#first(this.#rows.hashOf(row))
    while (values[slot] !== row + 1) slot = slot + 1 === length ? 0 : slot + 1
    // Nothing stands behind it that was entered after it, so that no search would end here too early.
    values[slot] = 0
    this.#count--
  }

  /** Forgets all rows, and gives the memory back. */
  clear(): void {
    this.#slots.clear()
    this.#count = 0
  }

  #first(hash: number): number {
    return Math.floor((hash >>> 0) * (this.#slots.length / 2 ** 32))
  }

  /** Slot of the row whose key is sought, or the free one where it belongs. */
  #slotOf(hash: number): number {
    const { values, length } = this.#slots
    let slot = this.#first(hash)
    for (let found = values[slot]; found !== 0 && !this.#rows.isSought(found - 1); found = values[slot]) slot = slot + 1 === length ? 0 : slot + 1
    return slot
  }

  #grow(): void {
    this.#slots.extend(Math.ceil(this.#slots.length * GROWTH))
    const { values, length } = this.#slots
    values.fill(0)
    this.#count = 0
    for (let row = 0; row < this.#rows.count; row++) {
      if (!this.#rows.isEntered(row)) continue
      let slot = this.#first(this.#rows.hashOf(row))
      while (values[slot] !== 0) slot = slot + 1 === length ? 0 : slot + 1
      values[slot] = row + 1
      this.#count++
    }
  }
}
