/**
 * Sector bitmaps of an image's blocks: which sectors it holds itself. They are read where they are needed, by way of TablePages.
 */
import type { ReadableDisk } from '../device/block-device.ts'
import { TablePages } from './table-pages.ts'

export interface SectorRun {
  /** True if the image holds these sectors. */
  present: boolean
  /** At least 1. */
  count: number
}

export interface SectorBitmapsOptions {
  /** Where in the file the bitmap of a block begins, bytes; -1 if the file holds all of the block. */
  placeOf: (block: number) => number
  /** Whether the first sector is the highest bit of a byte, as in VHD, or the lowest, as in VHDX. */
  highBitFirst: boolean
}

export class SectorBitmaps {
  readonly #pages: TablePages
  readonly #placeOf: SectorBitmapsOptions['placeOf']
  readonly #highBitFirst: boolean

  /** @param file as of TablePages */
  constructor(file: ReadableDisk, { placeOf, highBitFirst }: SectorBitmapsOptions) {
    this.#pages = new TablePages(file)
    this.#placeOf = placeOf
    this.#highBitFirst = highBitFirst
  }

  /** The sectors of a block from `sector` on that are alike, up to `most`. @throws VarveError FORMAT_INVALID */
  run(block: number, sector: number, most: number): SectorRun {
    const place = this.#placeOf(block)
    if (place < 0) return { present: true, count: most }
    const end = sector + most
    let present: boolean | undefined
    for (let at = sector; at < end;) {
      const first = at >>> 3
      const bytes = this.#pages.at(place + first, ((end + 7) >>> 3) - first)
      present ??= this.#has(bytes[0], at)
      const whole = present ? 0xff : 0
      for (const pageEnd = Math.min(end, (first + bytes.length) * 8); at < pageEnd;) {
        const byte = bytes[(at >>> 3) - first]
        if (at % 8 === 0 && byte === whole) at += 8
        else if (this.#has(byte, at) === present) at++
        else return { present, count: at - sector }
      }
    }
    return { present: present!, count: most }
  }

  #has(byte: number, sector: number): boolean {
    const bit = sector & 7
    return (byte & (this.#highBitFirst ? 0x80 >>> bit : 1 << bit)) !== 0
  }
}
