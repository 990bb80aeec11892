/**
 * Name column: names by entry as bytes, one after the other. Names come and go as strings in latin1, one character a byte.
 */
import { Column } from './column.ts'
import type { Workspace } from './workspace.ts'

export class NameColumn {
  readonly #bytes: Column<Uint8Array>
  /** Where the name of an entry starts; it ends where the next one does. */
  readonly #starts: Column<Uint32Array>

  constructor(space: Workspace) {
    this.#bytes = new Column(space, new Uint8Array())
    this.#starts = new Column(space, new Uint32Array())
    this.#starts.push(0)
  }

  get count(): number {
    return this.#starts.length - 1
  }

  push(name: string): void {
    const start = this.#bytes.length
    this.#bytes.extend(start + name.length)
    const { values } = this.#bytes
    for (let at = 0; at < name.length; at++) values[start + at] = name.charCodeAt(at)
    this.#starts.push(this.#bytes.length)
  }

  get(entry: number): string {
    return Buffer.prototype.latin1Slice.call(this.#bytes.values, this.#starts.values[entry], this.#starts.values[entry + 1])
  }

  /** Bytes of a name. */
  length(entry: number): number {
    return this.#starts.values[entry + 1] - this.#starts.values[entry]
  }

  /** Copies a name. @returns where it ends in `target` */
  copy(entry: number, target: Uint8Array, at: number): number {
    const { values } = this.#bytes
    const end = this.#starts.values[entry + 1]
    for (let from = this.#starts.values[entry]; from < end; from++) target[at++] = values[from]
    return at
  }

  equals(entry: number, name: string): boolean {
    const start = this.#starts.values[entry]
    if (this.#starts.values[entry + 1] - start !== name.length) return false
    const { values } = this.#bytes
    for (let at = 0; at < name.length; at++) if (values[start + at] !== name.charCodeAt(at)) return false
    return true
  }

  /** Negative, zero or positive, as the bytes of the one come before, are or come after those of the other. */
  compare(one: number, other: number): number {
    const { values } = this.#bytes
    let a = this.#starts.values[one]
    let b = this.#starts.values[other]
    const aEnd = this.#starts.values[one + 1]
    const bEnd = this.#starts.values[other + 1]
    while (a < aEnd && b < bEnd) {
      const difference = values[a++] - values[b++]
      if (difference !== 0) return difference
    }
    return aEnd - a - (bEnd - b)
  }

  /** FNV-1a of a name, begun with a number. */
  hash(entry: number, begin: number): number {
    let value = begin
    const { values } = this.#bytes
    const end = this.#starts.values[entry + 1]
    for (let at = this.#starts.values[entry]; at < end; at++) value = Math.imul(value ^ values[at], FNV_PRIME)
    return value
  }

  truncate(count: number): void {
    this.#starts.truncate(count + 1)
    this.#bytes.truncate(this.#starts.values[count])
  }

  clear(): void {
    this.#bytes.clear()
    this.#starts.clear()
  }
}

const FNV_PRIME = 0x01000193

/** What NameColumn.hash gives for the same name. */
export function nameHash(name: string, begin: number): number {
  let value = begin
  for (let at = 0; at < name.length; at++) value = Math.imul(value ^ name.charCodeAt(at), FNV_PRIME)
  return value
}
