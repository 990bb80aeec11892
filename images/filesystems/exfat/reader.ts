/**
 * Reader of exFAT, TexFAT's second table and bitmap included.
 * Specified by Microsoft's "exFAT file system specification"; what is made of it: docs/filesystems.md. All bytes come from outside.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { clearRuns } from '../clear-runs.ts'
import { ClusterFilesystem, ROOT_ID } from '../fat/cluster-filesystem.ts'
import type { DirectoryPiece, FoundName, NodeRecord } from '../fat/cluster-filesystem.ts'
import { ClusterTable } from '../fat/cluster-table.ts'
import type { ClusterRun } from '../fat/cluster-table.ts'
import { DIRECTORY_ENTRY_BYTES } from '../fat/directory.ts'
import { FIRST_CLUSTER } from '../fat/geometry.ts'
import type { PlacedExtent } from '../file-extents.ts'
import { readExfatBoot } from './boot-region.ts'
import type { ExfatBoot } from './boot-region.ts'
import { EntrySetReader, EntryType, labelOf, nameOfSet, recordOf } from './entries.ts'
import { UP_CASE_BYTES_MAX, UpCaseTable } from './up-case-table.ts'

/** Of one directory (section 7.6.7, of its DataLength). */
const DIRECTORY_BYTES_MAX = 256 << 20
/** Ids of what belongs to no directory entry: they stand in the boot sector. */
const BITMAP_ID = 2
const UP_CASE_ID = 3

export class ExfatFilesystem extends ClusterFilesystem {
  readonly type = 'exfat'
  readonly uuid: string
  readonly unclean: boolean
  protected readonly directoryBytesMax = DIRECTORY_BYTES_MAX
  readonly #boot: ExfatBoot
  /** Places of stream entries that are not right behind their file entry: a piece of a directory ends between them. By id. */
  readonly #streamPlaces = new Map<number, number>()
  #label = ''
  #bitmap: readonly PlacedExtent[] = []
  #upCase!: UpCaseTable

  private constructor(volume: ReadableDisk, boot: ExfatBoot) {
    const table = new ClusterTable(volume, { type: 'exfat', offset: boot.fatOffset, bits: 32, clusters: boot.clusters })
    super({ volume, sizeBytes: boot.sizeBytes, clusterBytes: boot.clusterBytes, heapOffset: boot.heapOffset, table })
    this.uuid = boot.uuid
    this.unclean = boot.isDirty
    this.#boot = boot
  }

  /** As openExfat. */
  static async open(volume: ReadableDisk): Promise<ExfatFilesystem> {
    const filesystem = new ExfatFilesystem(volume, await readExfatBoot(volume))
    const { bitmap, upCase, label } = await filesystem.#structures()
    filesystem.#bitmap = await filesystem.#bitmapExtents(bitmap)
    filesystem.#upCase = await filesystem.#readUpCase(upCase)
    if (label !== undefined) filesystem.#label = labelOf(label)
    return filesystem
  }

  get label(): string {
    return this.#label
  }

  protected async *free(): AsyncGenerator<ClusterRun> {
    for await (const { first, count } of clearRuns(this.#bitmapWindows(), this.#boot.clusters)) yield { cluster: FIRST_CLUSTER + first, count }
  }

  async *#bitmapWindows(): AsyncGenerator<Buffer> {
    for await (const { bytes } of this.pieces(this.#bitmap)) yield bytes
  }

  protected rootExtents(): Promise<PlacedExtent[]> {
    return this.place(ROOT_ID, { first: this.#boot.rootCluster, sizeBytes: undefined, validBytes: Infinity, isContiguous: false }, 'the root directory', DIRECTORY_BYTES_MAX / this.blockBytes)
  }

  protected async names(pieces: AsyncIterable<DirectoryPiece>, name: string): Promise<FoundName[]> {
    const found: FoundName[] = []
    const reader = new EntrySetReader(name)
    for await (const { bytes, offset } of pieces) {
      for (const set of reader.read(bytes, offset)) {
        if (set.type !== EntryType.file) continue
        const file = nameOfSet(set, name)
        if (this.#upCase.hash(file.name) !== file.hash) throw this.invalid(`${name} has a name with a wrong hash: ${JSON.stringify(file.name)}`)
        const [id, streamPlace] = set.places
        if (streamPlace !== id + 1) this.#streamPlaces.set(id, streamPlace)
        found.push({ id, name: file.name })
      }
      if (reader.isAtEnd) break
    }
    reader.end()
    return found
  }

  protected async record(id: number): Promise<NodeRecord> {
    return recordOf(await this.entryAt(id), await this.entryAt(this.#streamPlaces.get(id) ?? id + 1), this.sizeBytes)
  }

  protected fold(name: string): string {
    return this.#upCase.fold(name)
  }

  /** What the root directory says of the volume. @throws VarveError FORMAT_INVALID */
  async #structures(): Promise<{ bitmap: Buffer; upCase: Buffer; label: Buffer | undefined }> {
    const found = new Map<number, Buffer>()
    let atEnd = false
    for await (const { bytes } of this.pieces(await this.rootExtents())) {
      for (let at = 0; at < bytes.length && !atEnd; at += DIRECTORY_ENTRY_BYTES) {
        const entry = bytes.subarray(at, at + DIRECTORY_ENTRY_BYTES)
        atEnd = entry[0] === 0
        const isOther = entry[0] === EntryType.bitmap && (entry[1] & 1) !== this.#boot.active
        if (!isOther && !found.has(entry[0])) found.set(entry[0], entry)
      }
      if (atEnd) break
    }
    const [bitmap, upCase] = [found.get(EntryType.bitmap), found.get(EntryType.upCase)]
    if (bitmap === undefined || upCase === undefined) throw this.invalid('the root directory names no allocation bitmap, or no up-case table')
    return { bitmap, upCase, label: found.get(EntryType.label) }
  }

  async #bitmapExtents(entry: Buffer): Promise<PlacedExtent[]> {
    const sizeBytes = Number(entry.readBigUInt64LE(24))
    if (sizeBytes < Math.ceil(this.#boot.clusters / 8) || sizeBytes > this.sizeBytes) throw this.invalid(`an allocation bitmap of ${sizeBytes} bytes does not fit ${this.#boot.clusters} clusters`)
    return this.place(BITMAP_ID, { first: entry.readUInt32LE(20), sizeBytes, validBytes: sizeBytes, isContiguous: false }, 'the allocation bitmap')
  }

  async #readUpCase(entry: Buffer): Promise<UpCaseTable> {
    const sizeBytes = Number(entry.readBigUInt64LE(24))
    if (sizeBytes === 0 || sizeBytes % 2 !== 0 || sizeBytes > UP_CASE_BYTES_MAX) throw this.invalid(`an up-case table of ${sizeBytes} bytes cannot be`)
    const extents = await this.place(UP_CASE_ID, { first: entry.readUInt32LE(20), sizeBytes, validBytes: sizeBytes, isContiguous: false }, 'the up-case table')
    const parts: Buffer[] = []
    for await (const { bytes } of this.pieces(extents)) parts.push(bytes)
    return UpCaseTable.read(Buffer.concat(parts), entry.readUInt32LE(4))
  }
}

/**
 * Opens the exFAT that fills `volume`.
 * @throws VarveError FORMAT_INVALID (not exFAT, or damaged), FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export function openExfat(volume: ReadableDisk): Promise<ExfatFilesystem> {
  return ExfatFilesystem.open(volume)
}
