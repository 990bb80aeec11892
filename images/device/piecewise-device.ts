/**
 * PiecewiseDevice: a read-only disk put together of pieces of others, found one by one: the disk inside an image, or the image of a disk.
 */
import { VarveError } from '../errors.ts'
import { appendExtent, checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, ExtentType, ReadableDisk } from './block-device.ts'
import { settled } from './settled.ts'

/** Reads that one call waits for at a time, so that one over many tiny pieces is bounded in memory. */
const READS_AWAITED_MAX = 64

/** A part of the disk that has its bytes from one place. */
export interface Piece {
  /** Bytes, at least 1. */
  length: number
  /** Holds the bytes; without it they are zeroes. */
  source?: ReadableDisk
  /** First byte in the source; 0 without one. */
  at: number
  /** Of all of the piece; without it what the source says. A piece without a source is `zero` or `hole`. */
  type?: ExtentType
}

export interface PiecewiseOptions {
  sizeBytes: number
  /** The piece that starts at `offset`, not longer than `length`, which is at least 1. */
  locate: (offset: number, length: number) => Piece
  /** Closes what the pieces come from. */
  close?: () => Promise<void>
}

export class PiecewiseDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = 4096
  readonly readOnly = true
  readonly #locate: PiecewiseOptions['locate']
  readonly #close: PiecewiseOptions['close']
  #closed = false

  constructor({ sizeBytes, locate, close }: PiecewiseOptions) {
    this.sizeBytes = sizeBytes
    this.#locate = locate
    this.#close = close
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.#check(offset, into.length)
    return this.#read(into, offset, 0)
  }

  /** Reads what follows the first `done` bytes of `into`. */
  #read(into: Uint8Array, offset: number, done: number): void | Promise<void> {
    const awaited: Promise<void>[] = []
    let failure: { error: unknown } | undefined
    try {
      while (done < into.length && awaited.length < READS_AWAITED_MAX) {
        const { length, source, at } = this.#locate(offset + done, into.length - done)
        const part = into.subarray(done, done + length)
        if (source === undefined) {
          part.fill(0)
        } else {
          const answer = source.read(part, at)
          if (answer instanceof Promise) awaited.push(answer)
        }
        done += length
      }
    } catch (error) {
      if (awaited.length === 0) throw error
      failure = { error }
    }
    if (awaited.length === 0) return
    return settled(awaited).then(() => {
      if (failure !== undefined) throw failure.error as Error
      if (done < into.length) return this.#read(into, offset, done)
    })
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#refuse(offset, bytes.length)
  }

  trim(offset: number, length: number): void {
    this.#refuse(offset, length)
  }

  writeZeroes(offset: number, length: number): void {
    this.#refuse(offset, length)
  }

  flush(): void {
    this.#check(0, 0)
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#check(offset, length)
    const extents: DeviceExtent[] = []
    const end = offset + length
    for (let at = offset; at < end && extents.length <= most;) {
      const piece = this.#locate(at, end - at)
      if (piece.type !== undefined || piece.source?.extents === undefined) {
        appendExtent(extents, at, piece.length, piece.type ?? (piece.source === undefined ? 'hole' : 'data'))
        at += piece.length
        continue
      }
      for (const extent of piece.source.extents(piece.at, piece.length, most + 1 - extents.length)) {
        appendExtent(extents, at, extent.length, extent.type)
        at += extent.length
      }
    }
    return extents.slice(0, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#close?.()
  }

  #refuse(offset: number, length: number): void {
    this.#check(offset, length)
    throw new VarveError('READ_ONLY', 'an image that is read or computed cannot be written')
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }
}
