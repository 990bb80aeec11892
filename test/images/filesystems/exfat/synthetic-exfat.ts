/**
 * exFAT volumes entry by entry, for what no tool at hand makes: huge, damaged, or with what Windows alone writes. Sparse in memory.
 * Specified by Microsoft's "exFAT file system specification".
 */
import { MemoryDevice } from '@varve/images/device/memory-device.ts'

export interface SyntheticExfatOptions {
  sizeBytes: number
  sectorShift?: number
  clusterShift?: number
  fats?: 1 | 2
  /** Which FAT, and which bitmap. */
  active?: 0 | 1
  flags?: number
}

export interface SyntheticFile {
  name: string
  sizeBytes?: number
  validBytes?: number
  first?: number
  isContiguous?: boolean
  attributes?: number
  /** Of all three times: date and time as in FAT, offset as in exFAT. */
  stamp?: number
  hundredths?: number
  utcOffset?: number
  hash?: number
  /** Entries behind those of the name. */
  more?: Buffer[]
}

const END = 0xffffffff
const UPPER = [0xffff, 0x61, ...Array.from({ length: 26 }, (_, index) => 0x41 + index), 0xffff, 0x10000 - 0x7b]

export class SyntheticExfat {
  readonly device: MemoryDevice
  readonly sectorBytes: number
  readonly clusterBytes: number
  readonly clusters: number
  readonly fatBytes: number
  readonly heapOffset: number
  readonly root: number
  /** The first cluster that nothing uses. */
  readonly free: number
  readonly #options: Required<SyntheticExfatOptions>

  constructor(options: SyntheticExfatOptions) {
    this.#options = { sectorShift: 9, clusterShift: 12, fats: 1, active: 0, flags: 0, ...options }
    const { sizeBytes, sectorShift, clusterShift, fats, active } = this.#options
    this.sectorBytes = 1 << sectorShift
    this.clusterBytes = 1 << clusterShift
    this.fatBytes = this.#whole(Math.ceil(sizeBytes / this.clusterBytes + 2) * 4, this.sectorBytes)
    this.heapOffset = this.#whole(24 * this.sectorBytes + fats * this.fatBytes, this.clusterBytes)
    this.clusters = Math.floor((sizeBytes - this.heapOffset) / this.clusterBytes)
    this.device = new MemoryDevice(sizeBytes)
    const bitmapBytes = Math.ceil(this.clusters / 8)
    const bitmapClusters = Math.ceil(bitmapBytes / this.clusterBytes)
    const upCase = Buffer.from(Uint16Array.from(UPPER).buffer)
    this.root = 2 + bitmapClusters + 1
    this.free = this.root + 1
    this.use(range(2, bitmapClusters))
    this.use([this.root - 1])
    this.use([this.root])
    this.device.write(upCase, this.offset(this.root - 1))
    const entries = [label('Synthetic'), structure(0x81, { first: 2, sizeBytes: bitmapBytes, flags: active }), structure(0x82, { first: this.root - 1, sizeBytes: upCase.length, checksum: sum32(upCase) })]
    // The other bitmap of TexFAT, which is not to be read.
    if (fats === 2) entries.splice(1, 0, structure(0x81, { first: 0xdead, sizeBytes: bitmapBytes, flags: 1 - active }))
    this.write(this.root, entries)
    this.writeBoot()
  }

  offset(cluster: number): number {
    return this.heapOffset + (cluster - 2) * this.clusterBytes
  }

  /** Links clusters to a chain, and marks them as used. */
  use(clusters: readonly number[]): void {
    for (const [index, cluster] of clusters.entries()) {
      this.link(cluster, clusters[index + 1] ?? END)
      this.mark(cluster)
    }
  }

  /** Entry of the active FAT. */
  link(cluster: number, next: number): void {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(next)
    this.device.write(bytes, 24 * this.sectorBytes + this.#options.active * this.fatBytes + 4 * cluster)
  }

  /** Marks a cluster as used. */
  mark(cluster: number): void {
    const place = this.offset(2) + ((cluster - 2) >> 3)
    const byte = Buffer.alloc(1)
    this.device.read(byte, place)
    byte[0] |= 1 << ((cluster - 2) & 7)
    this.device.write(byte, place)
  }

  /** Writes entries one after the other, from the start of a cluster on. */
  write(cluster: number, entries: readonly Buffer[]): void {
    this.device.write(Buffer.concat(entries), this.offset(cluster))
  }

  /** Entries in the root, behind the volume's own. */
  writeRoot(...entries: Buffer[]): void {
    this.device.write(Buffer.concat(entries), this.offset(this.root) + 32 * (this.#options.fats === 2 ? 4 : 3))
  }

  /** Both boot regions. @param change to the boot sector, before the checksum is made */
  writeBoot(change: (sector: Buffer) => void = () => {}): void {
    const { sizeBytes, sectorShift, clusterShift, fats, active, flags } = this.#options
    const region = Buffer.alloc(12 * this.sectorBytes)
    region.set([0xeb, 0x76, 0x90])
    region.write('EXFAT   ', 3, 'latin1')
    region.writeBigUInt64LE(BigInt(sizeBytes / this.sectorBytes), 72)
    region.writeUInt32LE(24, 80)
    region.writeUInt32LE(this.fatBytes / this.sectorBytes, 84)
    region.writeUInt32LE(this.heapOffset / this.sectorBytes, 88)
    region.writeUInt32LE(this.clusters, 92)
    region.writeUInt32LE(this.root, 96)
    region.writeUInt32LE(0x1234abcd, 100)
    region.writeUInt16LE(0x100, 104)
    region.writeUInt16LE(flags | active, 106)
    region.set([sectorShift, clusterShift - sectorShift, fats, 0x80, 0xff], 108)
    region.writeUInt16LE(0xaa55, 510)
    change(region)
    sumBoot(region, this.sectorBytes)
    this.device.write(region, 0)
    this.device.write(region, region.length)
  }

  #whole(bytes: number, unit: number): number {
    return Math.ceil(bytes / unit) * unit
  }
}

/** Makes the checksum sector of a boot region right. */
export function sumBoot(region: Buffer, sectorBytes: number): void {
  const sum = sum32(region.subarray(0, 11 * sectorBytes), [106, 107, 112])
  for (let at = 11 * sectorBytes; at < 12 * sectorBytes; at += 4) region.writeUInt32LE(sum, at)
}

/** Entries of a file or directory. */
export function fileEntries({ name, sizeBytes = 0, validBytes = sizeBytes, first = 0, isContiguous = false, attributes = 0x20, stamp = 0x5a21_0000, hundredths = 0, utcOffset = 0, hash, more = [] }: SyntheticFile): Buffer {
  const units = Buffer.from(name, 'utf16le')
  const names = Array.from({ length: Math.ceil(name.length / 15) }, (_, index) => {
    const entry = Buffer.alloc(32)
    entry[0] = 0xc1
    units.copy(entry, 2, index * 30, (index + 1) * 30)
    return entry
  })
  const [file, stream] = [Buffer.alloc(32), Buffer.alloc(32)]
  const all = [file, stream, ...names, ...more]
  file.set([0x85, all.length - 1])
  file.writeUInt16LE(attributes, 4)
  for (const at of [8, 12, 16]) file.writeUInt32LE(stamp, at)
  file.set([hundredths, hundredths, utcOffset, utcOffset, utcOffset], 20)
  stream.set([0xc0, isContiguous ? 3 : 1, 0, name.length])
  stream.writeUInt16LE(hash ?? sum16(Buffer.from(name.replace(/[a-z]/g, (letter) => letter.toUpperCase()), 'utf16le')), 4)
  stream.writeBigUInt64LE(BigInt(validBytes), 8)
  stream.writeUInt32LE(first, 20)
  stream.writeBigUInt64LE(BigInt(sizeBytes), 24)
  const set = Buffer.concat(all)
  sumSet(set)
  return set
}

/** Makes the checksum of a file's entries right. */
export function sumSet(set: Buffer): void {
  set.writeUInt16LE(sum16(set, [2, 3]), 2)
}

function label(text: string): Buffer {
  const entry = Buffer.alloc(32)
  entry.set([0x83, text.length])
  entry.write(text, 2, 'utf16le')
  return entry
}

function structure(type: number, { first, sizeBytes, flags = 0, checksum = 0 }: { first: number; sizeBytes: number; flags?: number; checksum?: number }): Buffer {
  const entry = Buffer.alloc(32)
  entry.set([type, flags])
  if (checksum !== 0) entry.writeUInt32LE(checksum, 4)
  entry.writeUInt32LE(first, 20)
  entry.writeBigUInt64LE(BigInt(sizeBytes), 24)
  return entry
}

function sum32(bytes: Uint8Array, without: readonly number[] = []): number {
  let sum = 0
  for (const [at, byte] of bytes.entries()) if (!without.includes(at)) sum = (((sum << 31) | (sum >>> 1)) + byte) >>> 0
  return sum
}

function sum16(bytes: Uint8Array, without: readonly number[] = []): number {
  let sum = 0
  for (const [at, byte] of bytes.entries()) if (!without.includes(at)) sum = (((sum << 15) | (sum >>> 1)) + byte) & 0xffff
  return sum
}

function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => first + index)
}
