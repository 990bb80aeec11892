/**
 * CachedDisk: keeps windows of a disk that were read last, for metadata, of which neighbours are wanted soon. Read-only; it borrows the disk.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import { RecentlyUsed } from './recently-used.ts'

const WINDOW_BYTES = 32 << 10
const WINDOWS_MAX = 256

export class CachedDisk implements ReadableDisk {
  readonly sizeBytes: number
  readonly #disk: ReadableDisk
  readonly #windows = new RecentlyUsed<Buffer>(WINDOWS_MAX)

  constructor(disk: ReadableDisk) {
    this.#disk = disk
    this.sizeBytes = disk.sizeBytes
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    for (let at = 0; at < into.length;) {
      const number = Math.floor((offset + at) / WINDOW_BYTES)
      const window = this.#window(number)
      if (window instanceof Promise) return this.#readRest(into, offset, at)
      at += copyFrom(window, into, offset - number * WINDOW_BYTES, at)
    }
  }

  async #readRest(into: Uint8Array, offset: number, from: number): Promise<void> {
    for (let at = from; at < into.length;) {
      const number = Math.floor((offset + at) / WINDOW_BYTES)
      at += copyFrom(await this.#window(number), into, offset - number * WINDOW_BYTES, at)
    }
  }

  #window(number: number): Buffer | Promise<Buffer> {
    const kept = this.#windows.get(number)
    if (kept !== undefined) return kept
    const window = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, this.sizeBytes - number * WINDOW_BYTES))
    const done = this.#disk.read(window, number * WINDOW_BYTES)
    if (done !== undefined) return this.#loaded(number, window, done)
    this.#windows.set(number, window)
    return window
  }

  async #loaded(number: number, window: Buffer, done: Promise<void>): Promise<Buffer> {
    await done
    this.#windows.set(number, window)
    return window
  }
}

/** @param from of `into`'s first byte in the window @returns bytes copied to `at` */
function copyFrom(window: Buffer, into: Uint8Array, from: number, at: number): number {
  const start = from + at
  const count = Math.min(into.length - at, window.length - start)
  into.set(window.subarray(start, start + count), at)
  return count
}
