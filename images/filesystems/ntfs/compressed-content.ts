/**
 * Content that NTFS compresses: in units of so many clusters, each stored as it is (all its clusters are there), as nothing (a hole, zeroes),
 * or compressed by LZNT1 in its first clusters, the others being a hole.
 */
import { RecentlyUsed } from '../recently-used.ts'
import type { FileExtent } from '../filesystem.ts'
import type { Content, ContentPlace } from './content.ts'
import { exceeded, invalid } from './format.ts'
import { decompressLznt1 } from './lznt1.ts'
import type { RunList } from './run-list.ts'
import { readRuns } from './run-list.ts'

/** Windows compresses on clusters of at most 4 KiB, 16 of them at once. */
const UNIT_BYTES_MAX = 64 << 10
/** Decompressed units that are kept of one file. */
const UNITS_KEPT_MAX = 4

export class CompressedContent implements Content {
  readonly sizeBytes: number
  readonly #place: ContentPlace
  readonly #runs: RunList
  readonly #initializedBytes: number
  readonly #unitClusters: number
  readonly #unitBytes: number
  /** By number of the unit. */
  readonly #kept = new RecentlyUsed<Buffer>(UNITS_KEPT_MAX)

  constructor(place: ContentPlace, runs: RunList, { sizeBytes, initializedBytes, unitClusters }: { sizeBytes: number; initializedBytes: number; unitClusters: number }) {
    this.#place = place
    this.#runs = runs
    this.sizeBytes = sizeBytes
    this.#initializedBytes = initializedBytes
    this.#unitClusters = unitClusters
    this.#unitBytes = unitClusters * place.geometry.clusterBytes
    if (this.#unitBytes > UNIT_BYTES_MAX) throw exceeded(`a file compressed in units of ${this.#unitBytes} bytes; at most ${UNIT_BYTES_MAX} are read`)
  }

  get runs(): number {
    return this.#runs.count
  }

  extents(): FileExtent[] {
    const extents: FileExtent[] = []
    const unitsEnd = Math.ceil(this.#initializedBytes / this.#unitBytes)
    for (let unit = 0, index = 0; unit < unitsEnd;) {
      const start = unit * this.#unitClusters
      while (index + 1 < this.#runs.count && this.#runs.run(index + 1).first <= start) index++
      const run = this.#runs.run(index)
      const runUnits = Math.floor((run.first + run.count - start) / this.#unitClusters)
      // All units of one run are alike, but for one that it shares with the next, or that the file ends in.
      const units = Math.max(1, Math.min(unitsEnd - unit, runUnits))
      const { dataClusters, isWhole } = runUnits >= 1 ? { dataClusters: run.place === undefined ? 0 : this.#unitClusters, isWhole: true } : this.#unitShape(unit)
      const fileOffset = unit * this.#unitBytes
      const length = Math.min(units * this.#unitBytes, this.#initializedBytes - fileOffset)
      if (dataClusters > 0 && isWhole) this.#addWhole(extents, fileOffset, length)
      else if (dataClusters > 0) addCompressed(extents, fileOffset, length)
      unit += units
    }
    return extents
  }

  /** Clusters of a unit that hold data, all before its hole; it is whole, stored as it is, if it has none. */
  #unitShape(unit: number): { dataClusters: number; isWhole: boolean } {
    const start = unit * this.#unitClusters
    const end = Math.min(start + this.#unitClusters, this.#runs.clusters)
    let dataClusters = 0
    for (let at = start, index = this.#runs.indexOf(start); at < end; index++) {
      const run = this.#runs.run(index)
      const next = Math.min(end, run.first + run.count)
      if (run.place !== undefined) {
        if (dataClusters < at - start) throw invalid('a compressed unit has a hole before its end')
        dataClusters += next - at
      }
      at = next
    }
    return { dataClusters, isWhole: dataClusters === end - start }
  }

  /** Adds what is stored as it is, run by run. */
  #addWhole(extents: FileExtent[], fileOffset: number, length: number): void {
    const { clusterBytes } = this.#place.geometry
    for (let at = fileOffset, index = this.#runs.indexOf(fileOffset / clusterBytes); at < fileOffset + length; index++) {
      const run = this.#runs.run(index)
      const end = Math.min(fileOffset + length, (run.first + run.count) * clusterBytes)
      extents.push({ fileOffset: at, length: end - at, diskOffset: run.place! * clusterBytes + at - run.first * clusterBytes })
      at = end
    }
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    const initialized = Math.max(0, Math.min(into.length, this.#initializedBytes - offset))
    for (let at = 0; at < initialized;) {
      const unit = Math.floor((offset + at) / this.#unitBytes)
      const from = offset + at - unit * this.#unitBytes
      const length = Math.min(this.#unitBytes - from, initialized - at)
      await this.#readUnit(unit, into.subarray(at, at + length), from)
      at += length
    }
    into.fill(0, initialized)
  }

  async #readUnit(unit: number, into: Uint8Array, from: number): Promise<void> {
    const kept = this.#kept.get(unit)
    if (kept !== undefined) {
      into.set(kept.subarray(from, from + into.length))
      return
    }
    const { dataClusters, isWhole } = this.#unitShape(unit)
    const { clusterBytes } = this.#place.geometry
    if (isWhole || dataClusters === 0) {
      await readRuns(this.#place.disk, this.#runs, clusterBytes, into, unit * this.#unitBytes + from)
      return
    }
    const compressed = Buffer.allocUnsafe(dataClusters * clusterBytes)
    await readRuns(this.#place.disk, this.#runs, clusterBytes, compressed, unit * this.#unitBytes)
    const content = Buffer.allocUnsafe(this.#unitBytes)
    decompressLznt1(compressed, content)
    this.#kept.set(unit, content)
    into.set(content.subarray(from, from + into.length))
  }
}

function addCompressed(extents: FileExtent[], fileOffset: number, length: number): void {
  const last = extents.at(-1)
  if (last !== undefined && last.diskOffset === undefined && last.fileOffset + last.length === fileOffset) last.length += length
  else extents.push({ fileOffset, length })
}
