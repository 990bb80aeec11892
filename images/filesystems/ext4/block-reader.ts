/**
 * BlockReader: reads of a volume in windows, the last of which are kept: inodes, directories and maps stand close to each other.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import type { Answer } from '../filesystem.ts'

/** The largest block of ext4, so that no block lies in two windows. Bytes. */
const WINDOW_BYTES = 64 << 10
const WINDOWS_MAX = 512

export class BlockReader {
  readonly #volume: ReadableDisk
  readonly #windows = new Map<number, Buffer>()

  /** @param volume borrowed */
  constructor(volume: ReadableDisk) {
    this.#volume = volume
  }

  /** A range inside the volume; perhaps a view of what is kept: not to be written to. */
  bytes(offset: number, length: number): Answer<Buffer> {
    const from = offset - (offset % WINDOW_BYTES)
    if (offset + length > from + WINDOW_BYTES) return this.#read(offset, length)
    const kept = this.#windows.get(from)
    if (kept !== undefined) return kept.subarray(offset - from, offset - from + length)
    const window = this.#read(from, Math.min(WINDOW_BYTES, this.#volume.sizeBytes - from))
    if (!(window instanceof Promise)) return this.#keep(from, window).subarray(offset - from, offset - from + length)
    return window.then((bytes) => this.#keep(from, bytes).subarray(offset - from, offset - from + length))
  }

  #read(offset: number, length: number): Answer<Buffer> {
    const bytes = Buffer.allocUnsafeSlow(length)
    const pending = this.#volume.read(bytes, offset)
    return pending === undefined ? bytes : pending.then(() => bytes)
  }

  #keep(from: number, window: Buffer): Buffer {
    if (this.#windows.size >= WINDOWS_MAX) this.#windows.delete(this.#windows.keys().next().value!)
    this.#windows.set(from, window)
    return window
  }
}

/** What is wrong with a filesystem. */
export function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `ext4: ${what}`)
}

export function unsupported(what: string): VarveError {
  return new VarveError('FORMAT_UNSUPPORTED', `ext4: ${what}`)
}
