/**
 * MemoryDevice: a disk in memory, of which only what was written takes room. Nothing outlives the process.
 */
import { VarveError } from '../errors.ts'
import { appendExtent, checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent } from './block-device.ts'

/** Unit of allocation, bytes. */
const PAGE_BYTES = 4096

export class MemoryDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = PAGE_BYTES
  readonly readOnly: boolean
  /** By page number; a page that is not there reads as zeroes. */
  readonly #pages = new Map<number, Uint8Array>()
  #closed = false

  constructor(sizeBytes: number, { readOnly = false }: { readOnly?: boolean } = {}) {
    this.sizeBytes = sizeBytes
    this.readOnly = readOnly
  }

  /** A disk that holds `content`. */
  static of(content: Uint8Array, { readOnly = false }: { readOnly?: boolean } = {}): MemoryDevice {
    const device = new MemoryDevice(content.length, { readOnly })
    device.#write(content, 0)
    return device
  }

  read(into: Uint8Array, offset: number): void {
    this.#check(offset, into.length)
    for (let at = 0; at < into.length;) {
      const [page, from, length] = this.#place(offset + at, into.length - at)
      const bytes = this.#pages.get(page)
      if (bytes === undefined) into.fill(0, at, at + length)
      else into.set(bytes.subarray(from, from + length), at)
      at += length
    }
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#checkWritable(offset, bytes.length)
    this.#write(bytes, offset)
  }

  #write(bytes: Uint8Array, offset: number): void {
    for (let at = 0; at < bytes.length;) {
      const [page, from, length] = this.#place(offset + at, bytes.length - at)
      let into = this.#pages.get(page)
      if (into === undefined) this.#pages.set(page, into = new Uint8Array(PAGE_BYTES))
      into.set(bytes.subarray(at, at + length), from)
      at += length
    }
  }

  trim(offset: number, length: number): void {
    this.#checkWritable(offset, length)
    const end = offset + length
    for (let at = offset; at < end;) {
      const [page, from, count] = this.#place(at, end - at)
      if (count === PAGE_BYTES) this.#pages.delete(page)
      else this.#pages.get(page)?.fill(0, from, from + count)
      at += count
    }
  }

  writeZeroes(offset: number, length: number): void {
    this.trim(offset, length)
  }

  flush(): void {
    this.#check(0, 0)
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#check(offset, length)
    const extents: DeviceExtent[] = []
    const end = offset + length
    for (let at = offset; at < end && extents.length <= most;) {
      const [page, , count] = this.#place(at, end - at)
      appendExtent(extents, at, count, this.#pages.has(page) ? 'data' : 'hole')
      at += count
    }
    return extents.slice(0, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true
    this.#pages.clear()
  }

  /** Page of a byte, the byte's place in it, and how many of `length` bytes lie in it. */
  #place(offset: number, length: number): [page: number, from: number, length: number] {
    const from = offset % PAGE_BYTES
    return [(offset - from) / PAGE_BYTES, from, Math.min(length, PAGE_BYTES - from)]
  }

  #checkWritable(offset: number, length: number): void {
    this.#check(offset, length)
    if (this.readOnly) throw new VarveError('READ_ONLY', 'this disk in memory is read-only')
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }
}
