/**
 * Columns that grow: numbers of one kind, packed, without an object for each. For what is built row by row, in millions of rows.
 */

type TypedArray = Uint8Array | Uint16Array | Uint32Array | Float64Array

const ROWS_FIRST = 256

export class Column<T extends TypedArray> {
  /** Rows beyond `length` are zero. Replaced when the column grows: do not keep it over a push. */
  values: T
  length = 0

  /** @param empty a typed array of the wanted kind */
  constructor(empty: T) {
    this.values = larger(empty, ROWS_FIRST)
  }

  /** @returns the number of the row */
  push(value: number): number {
    if (this.length === this.values.length) this.values = larger(this.values, this.length + (this.length >>> 1))
    this.values[this.length] = value
    return this.length++
  }

  /** Forgets all rows, and gives their memory back. */
  clear(): void {
    this.values = larger(this.values.subarray(0, 0) as T, 0)
    this.length = 0
  }

  /** Appends the rows of another array of numbers. */
  append(rows: ArrayLike<number>): void {
    const needed = this.length + rows.length
    if (needed > this.values.length) this.values = larger(this.values, Math.max(needed, this.length + (this.length >>> 1)))
    this.values.set(rows, this.length)
    this.length = needed
  }
}

function larger<T extends TypedArray>(values: T, rows: number): T {
  const grown = new (values.constructor as new (length: number) => T)(rows)
  grown.set(values)
  return grown
}
