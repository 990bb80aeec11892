/**
 * Reader of FAT12, FAT16 and FAT32 with long names. Times, which FAT has in local time, are taken for UTC; short names are in code page 437.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03; what is made of it: docs/filesystems.md. All bytes come from outside.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import type { PlacedExtent } from '../file-extents.ts'
import { BOOT_SECTOR_BYTES, readFatBootSector } from './boot-sector.ts'
import type { FatBootSector } from './boot-sector.ts'
import { ClusterFilesystem, ROOT_ID } from './cluster-filesystem.ts'
import type { DirectoryPiece, FoundName, NodeRecord } from './cluster-filesystem.ts'
import { ClusterTable } from './cluster-table.ts'
import type { ClusterRun } from './cluster-table.ts'
import { Attribute, DIRECTORY_ENTRY_BYTES, EntryReader, labelOf, timeOfFat } from './directory.ts'
import { LONG_NAME_UNITS_MAX, foldCase } from './names.ts'

/** 65,536 entries: what Windows and Linux accept. */
const DIRECTORY_BYTES_MAX = 2 << 20
/** In entry 1 of the table: not in use, no errors met. FAT12 has no room for them. */
const CLEAN_BITS = { fat12: 0, fat16: 0xc000, fat32: 0x0c000000 }
const TABLE_BITS = { fat12: 12, fat16: 16, fat32: 28 } as const

export class FatFilesystem extends ClusterFilesystem {
  readonly type: FatBootSector['type']
  readonly uuid: string
  readonly unclean: boolean
  protected readonly directoryBytesMax = DIRECTORY_BYTES_MAX
  readonly #boot: FatBootSector
  #label: string

  private constructor(volume: ReadableDisk, boot: FatBootSector, { table, state }: { table: ClusterTable; state: number }) {
    super({ volume, sizeBytes: boot.sizeBytes, clusterBytes: boot.clusterBytes, heapOffset: boot.heapOffset, table })
    this.type = boot.type
    this.uuid = boot.uuid
    this.unclean = boot.isDirty || (state & CLEAN_BITS[boot.type]) !== CLEAN_BITS[boot.type]
    this.#boot = boot
    this.#label = boot.label
  }

  /** As openFat. */
  static async open(volume: ReadableDisk): Promise<FatFilesystem> {
    const sector = Buffer.alloc(BOOT_SECTOR_BYTES)
    if (volume.sizeBytes < sector.length) throw new VarveError('FORMAT_INVALID', `fat: a volume of ${volume.sizeBytes} bytes is too small`)
    await volume.read(sector, 0)
    const boot = readFatBootSector(sector, volume.sizeBytes)
    const table = new ClusterTable(volume, { type: boot.type, offset: boot.fatOffset, bits: TABLE_BITS[boot.type], clusters: boot.clusters })
    const filesystem = new FatFilesystem(volume, boot, { table, state: await table.entry(1) })
    filesystem.#label = (await filesystem.#labelInRoot()) ?? boot.label
    return filesystem
  }

  get label(): string {
    return this.#label
  }

  protected free(): AsyncIterable<ClusterRun> {
    return this.table.free()
  }

  protected async rootExtents(): Promise<readonly PlacedExtent[]> {
    const { rootBytes, rootOffset, rootCluster } = this.#boot
    if (rootBytes > 0) return [{ fileOffset: 0, length: rootBytes, diskOffset: rootOffset }]
    return this.place(ROOT_ID, { first: rootCluster, sizeBytes: undefined, validBytes: Infinity, isContiguous: false }, 'the root directory', DIRECTORY_BYTES_MAX / this.blockBytes)
  }

  protected async names(pieces: AsyncIterable<DirectoryPiece>, name: string): Promise<FoundName[]> {
    const found: FoundName[] = []
    const reader = new EntryReader()
    for await (const { bytes, offset } of pieces) {
      for (const entry of reader.read(bytes)) {
        if ((entry.bytes[11] & Attribute.volumeLabel) !== 0) continue
        const { long, short } = entry
        if (long !== undefined && long.length > LONG_NAME_UNITS_MAX) throw this.invalid(`${name} has a name of ${long.length} characters`)
        found.push({ id: (offset + entry.at) / DIRECTORY_ENTRY_BYTES, name: long ?? short, alias: long === undefined ? undefined : short })
      }
      if (reader.isAtEnd) break
    }
    return found
  }

  protected async record(id: number): Promise<NodeRecord> {
    const entry = await this.entryAt(id)
    const attributes = entry[11]
    const isDirectory = (attributes & Attribute.directory) !== 0
    // FAT12 and FAT16 have other things there.
    const high = this.type === 'fat32' ? entry.readUInt16LE(20) : 0
    const sizeBytes = entry.readUInt32LE(28)
    return {
      attributes,
      content: { first: high * 0x10000 + entry.readUInt16LE(26), sizeBytes: isDirectory ? undefined : sizeBytes, validBytes: isDirectory ? Infinity : sizeBytes, isContiguous: false },
      modified: timeOfFat(entry.readUInt16LE(24), entry.readUInt16LE(22)),
      accessed: timeOfFat(entry.readUInt16LE(18), 0),
      created: timeOfFat(entry.readUInt16LE(16), entry.readUInt16LE(14), entry[13]),
    }
  }

  protected fold(name: string): string {
    return foldCase(name)
  }

  /** The label that users change is an entry of the root directory; the one in the boot sector is from when the volume was formatted. */
  async #labelInRoot(): Promise<string | undefined> {
    const reader = new EntryReader()
    for await (const { bytes } of this.pieces(await this.rootExtents())) {
      for (const entry of reader.read(bytes)) if ((entry.bytes[11] & Attribute.volumeLabel) !== 0) return labelOf(entry.bytes)
      if (reader.isAtEnd) break
    }
    return undefined
  }
}

/**
 * Opens the FAT that fills `volume`.
 * @throws VarveError FORMAT_INVALID (not FAT, or damaged), FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export function openFat(volume: ReadableDisk): Promise<FatFilesystem> {
  return FatFilesystem.open(volume)
}
