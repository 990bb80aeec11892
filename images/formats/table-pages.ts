/**
 * TablePages: tables of an image file, read in pages of which the last used are kept; and other parts of it, checked against its size.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import type { Piece } from '../device/piecewise-device.ts'
import { VarveError } from '../errors.ts'

/** Bytes that are read at once; entries of tables do not cross pages. */
const PAGE_BYTES = 16 << 10
/** 1 MiB: in qcow2 with clusters of 64 KiB, the tables of 8 GiB of disk. An image may be made of many files, each with its own. */
const PAGES_MAX = 64

export class TablePages {
  readonly #file: ReadableDisk
  /** By page number, the last used at the end. */
  readonly #pages = new Map<number, Buffer>()
  #last = -1
  #lastPage: Buffer = Buffer.alloc(0)

  /** @param file borrowed; reads of its tables must complete at once, as a disk's extents are told at once: otherwise TypeError */
  constructor(file: ReadableDisk) {
    this.#file = file
  }

  /**
   * Bytes of a table from `offset`, up to `length` of them: as many as the page holds. A view, good until the next call.
   * @throws VarveError FORMAT_INVALID if the file ends before
   */
  at(offset: number, length: number): Buffer {
    checkPart(this.#file, offset, length, 'a table')
    const number = Math.floor(offset / PAGE_BYTES)
    const page = number === this.#last ? this.#lastPage : this.#page(number)
    const from = offset - number * PAGE_BYTES
    return page.subarray(from, Math.min(page.length, from + length))
  }

  #page(number: number): Buffer {
    let page = this.#pages.get(number)
    if (page === undefined) {
      const offset = number * PAGE_BYTES
      page = Buffer.alloc(Math.min(PAGE_BYTES, this.#file.sizeBytes - offset))
      if (this.#file.read(page, offset) instanceof Promise) throw new TypeError('tables of an image cannot be read at once')
      if (this.#pages.size >= PAGES_MAX) this.#pages.delete(this.#pages.keys().next().value!)
    } else {
      this.#pages.delete(number)
    }
    this.#pages.set(number, page)
    this.#last = number
    this.#lastPage = page
    return page
  }
}

/** @param what for the message @throws VarveError FORMAT_INVALID */
export async function readPart(file: ReadableDisk, offset: number, length: number, what: string): Promise<Buffer> {
  checkPart(file, offset, length, what)
  const bytes = Buffer.alloc(length)
  await file.read(bytes, offset)
  return bytes
}

/**
 * Data that stands in a file as it is. What its last cluster lacks, because the file ends within it, reads as zeroes.
 * @param clusterStart of the cluster that `at` is in
 * @throws VarveError FORMAT_INVALID if all of that is behind the end of the file
 */
export function filePiece(file: ReadableDisk, { at, length, clusterStart, clusterBytes }: { at: number; length: number; clusterStart: number; clusterBytes: number }): Piece {
  if (at < file.sizeBytes) return { length: Math.min(length, file.sizeBytes - at), source: file, at, type: 'data' }
  checkPart(file, clusterStart, 1, 'data')
  return { length: Math.min(length, clusterStart + clusterBytes - at), at: 0, type: 'zero' }
}

/**
 * The first place that is among `places` twice. A table, or a block with its bitmap, that is named many times would make a small file a disk with more extents than can be listed.
 * @param none stands for no place
 */
export function repeatedPlace(places: Float64Array | Uint32Array, none = 0): number | undefined {
  const sorted = places.toSorted()
  return sorted.find((place, index) => index > 0 && place !== none && place === sorted[index - 1])
}

function checkPart(file: ReadableDisk, offset: number, length: number, what: string): void {
  if (offset + length > file.sizeBytes) throw new VarveError('FORMAT_INVALID', `the image is cut short: ${what} at byte ${offset} is behind its end, byte ${file.sizeBytes}`)
}
