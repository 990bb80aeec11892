/**
 * Disk files: the regular files that a walk through the volumes of a disk has found, and where their content lies, in columns.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { FileExtent } from '@varve/images/filesystems/filesystem.ts'
import { Column } from '@varve/images/tree/column.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { RangesBuilder } from '@varve/images/blockmap/ranges.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import { sortedOrder } from '@varve/images/blockmap/sorted-order.ts'
import type { DataPart } from '../file-content.ts'
import type { MountedVolume } from './open-volumes.ts'

/** In `diskOffsets`: the bytes stand nowhere as they are. */
export const NOWHERE = -1

/** A part of a file's content, in one piece in the file and on the disk. */
export interface DiskPart extends DataPart {
  /** Bytes from the start of the disk, or NOWHERE. */
  diskOffset: number
  /** Bytes from the start of the part that the map has from another file that claims them too. */
  claimed: number
}

export class DiskFiles {
  // By file.
  readonly volumes: Column<Uint16Array>
  /** In its filesystem. */
  readonly ids: Column<Float64Array>
  /** In the builder. */
  readonly inodes: Column<Uint32Array>
  readonly sizes: Column<Float64Array>
  /** First of its extents; it ends where the next file's start. */
  readonly #firsts: Column<Uint32Array>
  // By extent.
  readonly #fileOffsets: Column<Float64Array>
  readonly #lengths: Column<Float64Array>
  readonly #diskOffsets: Column<Float64Array>
  /** Bytes of each extent, from its start, that another has: by a sweep over all of them. */
  #claimed: Float64Array | undefined

  constructor(space: Workspace) {
    this.volumes = new Column(space, new Uint16Array())
    this.ids = new Column(space, new Float64Array())
    this.inodes = new Column(space, new Uint32Array())
    this.sizes = new Column(space, new Float64Array())
    this.#firsts = new Column(space, new Uint32Array())
    this.#fileOffsets = new Column(space, new Float64Array())
    this.#lengths = new Column(space, new Float64Array())
    this.#diskOffsets = new Column(space, new Float64Array())
  }

  get count(): number {
    return this.ids.length
  }

  /** Of all files, holes left out. */
  get dataBytes(): number {
    let sum = 0
    for (let extent = 0; extent < this.#lengths.length; extent++) sum += this.#lengths.values[extent]
    return sum
  }

  /** @param file `inode` is its number in the builder @throws VarveError FORMAT_INVALID, before anything was added */
  add(volume: { number: number; of: MountedVolume }, file: { id: number; inode: number; sizeBytes: number }, extents: readonly FileExtent[]): void {
    const { sizeBytes: volumeBytes } = volume.of.view
    const isOutside = ({ length, diskOffset }: FileExtent): boolean => diskOffset !== undefined && !(diskOffset >= 0 && diskOffset + length <= volumeBytes)
    if (extents.some(isOutside)) throw new VarveError('FORMAT_INVALID', 'the file lies partly outside of its volume')
    this.volumes.push(volume.number)
    this.ids.push(file.id)
    this.inodes.push(file.inode)
    this.sizes.push(file.sizeBytes)
    this.#firsts.push(this.#lengths.length)
    for (const { fileOffset, length, diskOffset } of extents) {
      if (diskOffset === undefined) {
        this.#addExtent(fileOffset, length, NOWHERE)
        continue
      }
      for (const place of volume.of.view.places(diskOffset, length)) this.#addExtent(fileOffset + place.offset - diskOffset, place.length, place.diskOffset)
    }
  }

  #addExtent(fileOffset: number, length: number, diskOffset: number): void {
    const last = this.#lengths.length - 1
    const continues = last >= this.#firsts.values[this.#firsts.length - 1] && this.#fileOffsets.values[last] + this.#lengths.values[last] === fileOffset
      && (diskOffset === NOWHERE ? this.#diskOffsets.values[last] === NOWHERE : this.#diskOffsets.values[last] !== NOWHERE && this.#diskOffsets.values[last] + this.#lengths.values[last] === diskOffset)
    if (continues) {
      this.#lengths.values[last] += length
      return
    }
    this.#fileOffsets.push(fileOffset)
    this.#lengths.push(length)
    this.#diskOffsets.push(diskOffset)
  }

  /**
   * Extents that begin on the disk where an extent before them has not ended are another's up to there: two files claim the same blocks.
   * @returns what all files have of the disk
   */
  claim(): Ranges {
    const ranges = new RangesBuilder()
    const claimed = new Float64Array(this.#lengths.length)
    const offsets = Float64Array.from(this.#diskOffsets.values.subarray(0, this.#lengths.length), (offset) => Math.max(offset, 0))
    let end = 0
    for (const extent of sortedOrder(offsets)) {
      if (this.#diskOffsets.values[extent] === NOWHERE) continue
      claimed[extent] = Math.min(Math.max(0, end - offsets[extent]), this.#lengths.values[extent])
      end = Math.max(end, offsets[extent] + this.#lengths.values[extent])
      ranges.add(offsets[extent], this.#lengths.values[extent])
    }
    this.#claimed = claimed
    return ranges.build()
  }

  /** Where on the disk a file begins; NOWHERE if it is not there. */
  startOf(file: number): number {
    let start = NOWHERE
    for (let extent = this.#firsts.values[file]; extent < this.#endOf(file); extent++) {
      const offset = this.#diskOffsets.values[extent]
      if (offset !== NOWHERE && (start === NOWHERE || offset < start)) start = offset
    }
    return start
  }

  /** The file if it is one extent, from its start to its end, on the disk, and claimed by nobody else. */
  onlyPart(file: number): DiskPart | undefined {
    const extent = this.#firsts.values[file]
    const isOne = this.#endOf(file) === extent + 1 && this.#fileOffsets.values[extent] === 0 && this.#lengths.values[extent] === this.sizes.values[file]
    if (!isOne || this.#diskOffsets.values[extent] === NOWHERE || this.#claimed![extent] > 0) return undefined
    return { offset: 0, length: this.#lengths.values[extent], diskOffset: this.#diskOffsets.values[extent], claimed: 0 }
  }

  /** Parts of the file with data; what lies between is holes. */
  dataParts(file: number): DataPart[] {
    const parts: DataPart[] = []
    for (let extent = this.#firsts.values[file]; extent < this.#endOf(file); extent++) {
      const offset = this.#fileOffsets.values[extent]
      const length = this.#lengths.values[extent]
      const last = parts.at(-1)
      if (last !== undefined && last.offset + last.length === offset) last.length += length
      else parts.push({ offset, length })
    }
    return parts
  }

  /** What a run of a file, all of it data, consists of. */
  partsOf(file: number, { offset, length }: DataPart): DiskPart[] {
    const parts: DiskPart[] = []
    const end = offset + length
    for (let extent = this.#extentAt(file, offset); extent < this.#endOf(file) && this.#fileOffsets.values[extent] < end; extent++) {
      const from = Math.max(offset, this.#fileOffsets.values[extent])
      const skipped = from - this.#fileOffsets.values[extent]
      const part = Math.min(end, this.#fileOffsets.values[extent] + this.#lengths.values[extent]) - from
      const diskOffset = this.#diskOffsets.values[extent]
      parts.push({
        offset: from,
        length: part,
        diskOffset: diskOffset === NOWHERE ? NOWHERE : diskOffset + skipped,
        claimed: Math.min(Math.max(0, this.#claimed![extent] - skipped), part),
      })
    }
    return parts
  }

  /** The last of a file's extents that begins at `offset` or before. */
  #extentAt(file: number, offset: number): number {
    let low = this.#firsts.values[file]
    let high = this.#endOf(file)
    while (high - low > 1) {
      const middle = (low + high) >>> 1
      if (this.#fileOffsets.values[middle] <= offset) low = middle
      else high = middle
    }
    return low
  }

  #endOf(file: number): number {
    return file + 1 < this.#firsts.length ? this.#firsts.values[file + 1] : this.#lengths.length
  }

  /** Gives all memory back. */
  clear(): void {
    for (const column of [this.volumes, this.ids, this.inodes, this.sizes, this.#firsts, this.#fileOffsets, this.#lengths, this.#diskOffsets]) column.clear()
    this.#claimed = undefined
  }
}
