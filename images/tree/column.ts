/**
 * Columns that grow: numbers of one kind, packed, without an object for each. For what is built row by row, in millions of rows.
 * `Column` is in memory; `ScratchColumn` keeps its last rows there, and the others in the scratch file of a workspace.
 */
import type { Workspace } from './workspace.ts'

export type TypedArray = Uint8Array | Uint16Array | Uint32Array | Float64Array

const ROWS_FIRST = 256
/** From here on a column grows in place, in a range of addresses that is reserved for it: moved, it would be there twice for a while, with room to spare. Bytes. */
const RESERVED_FROM_BYTES = 1 << 20
/** Addresses reserved. The workspace ends before. Bytes. */
const RESERVED_BYTES = 2 ** 30
/** A block of a column in the scratch file, bytes. */
const BLOCK_BYTES = 256 << 10

export class Column<T extends TypedArray> {
  /** Rows beyond `length` are undefined. Replaced when the column grows: do not keep it over a push. */
  values: T
  length = 0
  readonly #space: Workspace

  /** @param empty a typed array of the wanted kind */
  constructor(space: Workspace, empty: T) {
    this.#space = space
    space.take(ROWS_FIRST * empty.BYTES_PER_ELEMENT)
    this.values = made(empty, ROWS_FIRST)
  }

  /** @returns the number of the row */
  push(value: number): number {
    if (this.length === this.values.length) this.#reserve(this.length + 1)
    this.values[this.length] = value
    return this.length++
  }

  /** Appends the rows of another array of numbers. */
  append(rows: ArrayLike<number>): void {
    this.#reserve(this.length + rows.length)
    this.values.set(rows, this.length)
    this.length += rows.length
  }

  /** Makes the column so long; new rows are undefined. */
  extend(length: number): void {
    this.#reserve(length)
    this.length = length
  }

  /** Forgets the rows behind `length`. */
  truncate(length: number): void {
    this.length = Math.min(this.length, length)
  }

  /** Forgets all rows, and gives their memory back at once. */
  clear(): void {
    this.#space.take(-this.values.byteLength)
    release(this.values)
    this.values = made(this.values, 0)
    this.length = 0
  }

  #reserve(rows: number): void {
    if (rows <= this.values.length) return
    const { BYTES_PER_ELEMENT } = this.values
    const buffer = this.values.buffer as ArrayBuffer
    const wanted = Math.max(rows, this.values.length + Math.min(this.values.length, (RESERVED_FROM_BYTES / 2 + (this.values.byteLength >>> 5)) / BYTES_PER_ELEMENT))
    const bytes = Math.ceil((wanted * BYTES_PER_ELEMENT) / 8) * 8
    this.#space.take(bytes - this.values.byteLength)
    if (buffer.resizable) {
      buffer.resize(bytes)
      return
    }
    const grown = bytes < RESERVED_FROM_BYTES ? new ArrayBuffer(bytes) : new ArrayBuffer(bytes, { maxByteLength: RESERVED_BYTES })
    const values = viewOf(this.values, grown)
    values.set(this.values)
    release(this.values)
    this.values = values
  }
}

export class ScratchColumn<T extends TypedArray> {
  length = 0
  readonly #space: Workspace
  readonly #blockRows: number
  /** The last rows, from `#tailFrom` on. */
  #tail: T
  #tailFrom = 0
  /** Where the blocks before them are. */
  #blocks: number[] = []
  /** One of those blocks. */
  #cached: T | undefined
  #cachedBlock = -1
  readonly #one: T

  /** @param empty a typed array of the wanted kind */
  constructor(space: Workspace, empty: T) {
    this.#space = space
    this.#blockRows = BLOCK_BYTES / empty.BYTES_PER_ELEMENT
    this.#tail = made(empty, ROWS_FIRST)
    this.#one = made(empty, 1)
  }

  /** @returns the number of the row */
  push(value: number): number {
    const at = this.length - this.#tailFrom
    if (at === this.#tail.length) return this.#pushInNewRoom(value)
    this.#tail[at] = value
    return this.length++
  }

  append(rows: ArrayLike<number>): void {
    const at = this.length - this.#tailFrom
    if (at + rows.length <= this.#tail.length) {
      this.#tail.set(rows, at)
      this.length += rows.length
    } else {
      for (let row = 0; row < rows.length; row++) this.push(rows[row])
    }
  }

  get(row: number): number {
    return row >= this.#tailFrom ? this.#tail[row - this.#tailFrom] : this.#block(Math.floor(row / this.#blockRows))[row % this.#blockRows]
  }

  set(row: number, value: number): void {
    if (!(row < this.length)) throw new RangeError('a column has no such row')
    if (row >= this.#tailFrom) {
      this.#tail[row - this.#tailFrom] = value
      return
    }
    const block = this.#block(Math.floor(row / this.#blockRows))
    block[row % this.#blockRows] = value
    this.#space.overwrite(this.#place(row), bytesOf(block.subarray(row % this.#blockRows, (row % this.#blockRows) + 1)))
  }

  /** As `get`, past the block that is kept at hand: for reads here and there. */
  peek(row: number): number {
    if (row >= this.#tailFrom) return this.#tail[row - this.#tailFrom]
    this.#space.read(this.#place(row), bytesOf(this.#one))
    return this.#one[0]
  }

  /** Fills `target` with the rows from `row` on, past the block that is kept at hand. */
  read(row: number, target: T): void {
    for (let done = 0; done < target.length; ) {
      const from = row + done
      const inTail = from >= this.#tailFrom
      const rows = Math.min(target.length - done, inTail ? this.length - from : this.#blockRows - (from % this.#blockRows))
      if (!(rows > 0)) throw new RangeError('a column has no such rows')
      if (inTail) target.set(this.#tail.subarray(from - this.#tailFrom, from - this.#tailFrom + rows), done)
      else this.#space.read(this.#place(from), bytesOf(target.subarray(done, done + rows)))
      done += rows
    }
  }

  /** What the rows take, bytes. */
  get bytes(): number {
    return this.length * this.#tail.BYTES_PER_ELEMENT
  }

  /** All rows in their order, in views that are valid until the next one. */
  *pieces(): Generator<T> {
    for (let block = 0; block < this.#blocks.length; block++) yield this.#block(block)
    if (this.length > this.#tailFrom) yield this.#tail.subarray(0, this.length - this.#tailFrom) as T
  }

  /**
   * Some rows in an order of the caller's, in views that are valid until the next one. Each block is read once for many rows.
   * @param order numbers of rows @param width columns side by side: each number stands for so many neighbouring rows; divides 256
   */
  *gathered(order: Iterable<Uint32Array>, width = 1): Generator<T> {
    const itemsMax = GATHERED_BYTES / (this.#tail.BYTES_PER_ELEMENT * width)
    const blockItems = this.#blockRows / width
    let result = made(this.#tail, 0)
    for (const all of order) {
      for (let from = 0; from < all.length; from += itemsMax) {
        const part = all.subarray(from, from + itemsMax)
        if (part.length * width > result.length) {
          release(result)
          result = made(this.#tail, part.length * width)
        }
        for (const { block, places } of byBlock(part, blockItems, this.#tailFrom / this.#blockRows)) {
          const rows = block === this.#blocks.length ? this.#tail : this.#block(block)
          const first = block * blockItems
          for (const place of places) {
            const row = (part[place] - first) * width
            for (let index = 0; index < width; index++) result[place * width + index] = rows[row + index]
          }
        }
        yield result.subarray(0, part.length * width) as T
      }
    }
    release(result)
  }

  /** Forgets the rows behind `length`. */
  truncate(length: number): void {
    if (length < this.#tailFrom) {
      const block = Math.floor(length / this.#blockRows)
      this.#tail.set(this.#block(block))
      this.#tailFrom = block * this.#blockRows
      this.#blocks.length = block
      this.#cachedBlock = -1
    }
    this.length = Math.min(this.length, length)
  }

  /** Forgets all rows. What they take of the scratch file goes with it. */
  clear(): void {
    release(this.#tail)
    if (this.#cached !== undefined) release(this.#cached)
    this.#cached = undefined
    this.#cachedBlock = -1
    this.#tail = made(this.#tail, 0)
    this.#tailFrom = 0
    this.#blocks = []
    this.length = 0
  }

  #pushInNewRoom(value: number): number {
    if (this.#tail.length >= this.#blockRows && this.#space.hasFile) {
      this.#blocks.push(this.#space.write(bytesOf(this.#tail)))
      this.#tailFrom = this.length
    } else {
      const rows = Math.max(this.#tail.length * 2, ROWS_FIRST)
      const values = made(this.#tail, this.#space.hasFile ? Math.min(rows, this.#blockRows) : rows)
      values.set(this.#tail)
      release(this.#tail)
      this.#tail = values
    }
    this.#tail[this.length - this.#tailFrom] = value
    return this.length++
  }

  #block(block: number): T {
    if (block === this.#cachedBlock) return this.#cached!
    this.#cached ??= made(this.#tail, this.#blockRows)
    this.#cachedBlock = -1
    this.#space.read(this.#blocks[block], bytesOf(this.#cached))
    this.#cachedBlock = block
    return this.#cached
  }

  #place(row: number): number {
    return this.#blocks[Math.floor(row / this.#blockRows)] + (row % this.#blockRows) * this.#tail.BYTES_PER_ELEMENT
  }
}

/** Rows gathered at once, bytes. In an order that has nothing to do with that of the column, each time all of it is read. */
const GATHERED_BYTES = 8 << 20

/** Places in `order` by the block that their item is in, blocks ascending. @param last block that ends the column, and takes all that is behind it */
function* byBlock(order: Uint32Array, blockItems: number, last: number): Generator<{ block: number; places: Uint32Array }> {
  const blockOf = (item: number) => Math.min(Math.floor(item / blockItems), last)
  const ends = new Uint32Array(last + 2)
  for (const item of order) ends[blockOf(item) + 1]++
  for (let block = 0; block <= last; block++) ends[block + 1] += ends[block]
  const next = ends.slice()
  const places = new Uint32Array(order.length)
  for (let place = 0; place < order.length; place++) places[next[blockOf(order[place])]++] = place
  for (let block = 0; block <= last; block++) if (ends[block + 1] > ends[block]) yield { block, places: places.subarray(ends[block], ends[block + 1]) }
}

function viewOf<T extends TypedArray>(kind: T, buffer: ArrayBuffer): T {
  return new (kind.constructor as new (buffer: ArrayBuffer) => T)(buffer)
}

function made<T extends TypedArray>(kind: T, rows: number): T {
  return viewOf(kind, new ArrayBuffer(rows * kind.BYTES_PER_ELEMENT))
}

function bytesOf(values: TypedArray): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}

/** Gives memory back now, not when it is collected. */
function release(values: TypedArray): void {
  ;(values.buffer as ArrayBuffer).transfer(0)
}
