/** A volume of FAT in memory, byte by byte: for what no tool at hand makes. */
import { readFileSync } from 'node:fs'
import { FatImage } from './fat-image.ts'
import type { FatImageOptions } from './fat-image.ts'

export interface ShortEntry {
  /** 11 bytes in latin1. */
  short: string
  attributes?: number
  /** Bits of lower case of Windows NT. */
  lower?: number
  first?: number
  sizeBytes?: number
  /** Date and time of FAT, of creation with hundredths. */
  created?: { date: number; time: number; hundredths: number }
  modified?: { date: number; time: number }
}

export class FatBytes {
  readonly bytes: Buffer
  readonly clusterBytes: number
  readonly #bits: 12 | 16 | 32
  readonly #fatOffset: number
  readonly #fatBytes: number
  readonly #fats: number
  readonly #heapOffset: number
  readonly #rootOffset: number
  #rootEnd: number

  /** @param options of mkfs.fat */
  constructor(options: FatImageOptions) {
    using image = new FatImage(options)
    const bytes = this.bytes = readFileSync(image.path)
    const sectorBytes = bytes.readUInt16LE(11)
    this.#bits = options.bits
    this.#fats = bytes[16]
    this.clusterBytes = bytes[13] * sectorBytes
    this.#fatOffset = bytes.readUInt16LE(14) * sectorBytes
    this.#fatBytes = (bytes.readUInt16LE(22) || bytes.readUInt32LE(36)) * sectorBytes
    const behindFats = this.#fatOffset + this.#fats * this.#fatBytes
    this.#heapOffset = behindFats + bytes.readUInt16LE(17) * 32
    this.#rootOffset = options.bits === 32 ? this.offset(bytes.readUInt32LE(44)) : behindFats
    // Behind the label.
    this.#rootEnd = this.#rootOffset + 32
  }

  offset(cluster: number): number {
    return this.#heapOffset + (cluster - 2) * this.clusterBytes
  }

  /** Writes an entry of the table. @param fat which copy; default all */
  link(cluster: number, next: number, fat?: number): void {
    for (let copy = fat ?? 0; copy <= (fat ?? this.#fats - 1); copy++) {
      const at = this.#fatOffset + copy * this.#fatBytes
      if (this.#bits === 32) this.bytes.writeUInt32LE(next, at + 4 * cluster)
      else if (this.#bits === 16) this.bytes.writeUInt16LE(next, at + 2 * cluster)
      else throw new RangeError('tables of FAT12 are not written')
    }
  }

  /** Links clusters to a chain. */
  chain(...clusters: number[]): void {
    const end = this.#bits === 32 ? 0x0fffffff : 0xffff
    for (const [index, cluster] of clusters.entries()) this.link(cluster, clusters[index + 1] ?? end)
  }

  /** Adds entries to the root. */
  addRoot(...entries: Buffer[]): void {
    for (const entry of entries) this.#rootEnd += entry.copy(this.bytes, this.#rootEnd)
  }

  /** Writes entries from the start of a cluster on. */
  write(cluster: number, ...entries: Buffer[]): void {
    Buffer.concat(entries).copy(this.bytes, this.offset(cluster))
  }
}

export function shortEntry({ short, attributes = 0x20, lower = 0, first = 0, sizeBytes = 0, created, modified }: ShortEntry): Buffer {
  const entry = Buffer.alloc(32)
  entry.write(short, 0, 'latin1')
  entry.set([attributes, lower, created?.hundredths ?? 0], 11)
  entry.writeUInt16LE(created?.time ?? 0, 14)
  entry.writeUInt16LE(created?.date ?? 0, 16)
  entry.writeUInt16LE(first >>> 16, 20)
  entry.writeUInt16LE(modified?.time ?? 0, 22)
  entry.writeUInt16LE(modified?.date ?? 0x21, 24)
  entry.writeUInt16LE(first & 0xffff, 26)
  entry.writeUInt32LE(sizeBytes, 28)
  return entry
}

/** Entries of a long name, as they stand before its short one. */
export function longEntries(name: string, short: string): Buffer[] {
  let checksum = 0
  for (const byte of Buffer.from(short, 'latin1')) checksum = (((checksum & 1) << 7) + (checksum >> 1) + byte) & 0xff
  const count = Math.ceil(name.length / 13)
  const units = Buffer.alloc(count * 26, 0xff)
  units.write(`${name}\0`, 0, 'utf16le')
  return Array.from({ length: count }, (_, index) => {
    const order = count - index
    const entry = Buffer.alloc(32)
    entry.set([order | (index === 0 ? 0x40 : 0)])
    entry.set([0x0f, 0, checksum], 11)
    const part = units.subarray((order - 1) * 26, order * 26)
    part.copy(entry, 1, 0, 10)
    part.copy(entry, 14, 10, 22)
    part.copy(entry, 28, 22, 26)
    return entry
  })
}
