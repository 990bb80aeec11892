/**
 * What FAT and exFAT have in common: files and directories in chains of clusters, and names that are compared without regard to case.
 * A node's id is where its directory entry stands on the volume, in units of an entry. A cluster belongs to one file or directory: the second
 * that claims it is refused when it is asked for, which also ends every loop of directories, and bounds the size of all files by that of the volume.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { Kind } from '../../tree/tree.ts'
import type { Xattr } from '../../tree/tree.ts'
import { readPlaced } from '../file-extents.ts'
import type { PlacedExtent } from '../file-extents.ts'
import type { DirectoryEntry, FileNode, Timestamp, VolumeFilesystem, VolumeRange } from '../filesystem.ts'
import { CachedDisk } from '../cached-disk.ts'
import { decodeName, encodeName, isPossibleName } from '../utf16-names.ts'
import type { ClusterRun, ClusterTable } from './cluster-table.ts'
import { Attribute, DIRECTORY_ENTRY_BYTES } from './directory.ts'
import { FIRST_CLUSTER } from './geometry.ts'
import { PagedBits } from './paged-bits.ts'
import { RecentlyUsed } from '../recently-used.ts'

export interface ClusterShape {
  volume: ReadableDisk
  /** Bytes of the whole filesystem. */
  sizeBytes: number
  clusterBytes: number
  /** Of the first cluster on the volume, bytes. */
  heapOffset: number
  table: ClusterTable
}

/** Where content is. */
export interface Content {
  /** 0 if there is none. */
  first: number
  /** Bytes; undefined if its chain says it: directories of FAT. */
  sizeBytes: number | undefined
  /** Bytes that were written; what follows up to the size reads as zeroes. */
  validBytes: number
  /** Its clusters are neighbours, and no chain links them. */
  isContiguous: boolean
}

/** What a directory entry says of a file or directory. */
export interface NodeRecord {
  /** As in FAT. */
  attributes: number
  content: Content
  modified: Timestamp
  accessed: Timestamp
  created: Timestamp
}

/** A name in a directory. */
export interface FoundName {
  id: number
  /** As it is listed, UTF-16. */
  name: string
  /** By which it is found, too. */
  alias?: string
}

/** A piece of a directory. */
export interface DirectoryPiece {
  /** Whole entries. */
  bytes: Buffer
  /** On the volume, bytes. */
  offset: number
}

interface Directory {
  entries: readonly DirectoryEntry[]
  byName: Map<string, number>
  /** By folded name and alias. */
  byFold: Map<string, number>
}

/** No directory entry stands in the boot sector. */
export const ROOT_ID = 1
/** Extents that are kept, of all files; one that has none counts as one. */
const EXTENTS_KEPT_MAX = 1 << 17
/** Names that are kept, of all directories, likewise. */
const NAMES_KEPT_MAX = 1 << 17
/** Directories are read in pieces of so many bytes. */
const PIECE_BYTES = 64 << 10
const ATTRIBUTES_XATTR = 'user.fat.attributes'

export abstract class ClusterFilesystem implements VolumeFilesystem {
  abstract readonly type: string
  abstract readonly label: string
  abstract readonly uuid: string
  abstract readonly unclean: boolean
  readonly blockBytes: number
  readonly sizeBytes: number
  readonly root = ROOT_ID
  protected readonly table: ClusterTable
  readonly #volume: ReadableDisk
  /** For entries, which are read again one by one. */
  readonly #cached: CachedDisk
  readonly #heapOffset: number
  readonly #given = new PagedBits()
  readonly #claimed = new PagedBits()
  readonly #claimants = new PagedBits()
  readonly #extents = new RecentlyUsed<readonly PlacedExtent[]>(EXTENTS_KEPT_MAX)
  readonly #directories = new RecentlyUsed<Directory>(NAMES_KEPT_MAX)

  protected constructor({ volume, sizeBytes, clusterBytes, heapOffset, table }: ClusterShape) {
    this.#volume = volume
    this.#cached = new CachedDisk(volume)
    this.sizeBytes = sizeBytes
    this.blockBytes = clusterBytes
    this.#heapOffset = heapOffset
    this.table = table
    this.#given.add(ROOT_ID)
  }

  /** What the entry of `id` says; the root has no entry. @throws VarveError FORMAT_INVALID */
  protected abstract record(id: number): Promise<NodeRecord>
  /** Where the root directory is. @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  protected abstract rootExtents(): Promise<readonly PlacedExtent[]>
  /** Names in a directory, in the order in which they stand there. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
  protected abstract names(pieces: AsyncIterable<DirectoryPiece>, name: string): Promise<FoundName[]>
  /** By which names are compared. @param name UTF-16 */
  protected abstract fold(name: string): string
  /** Longest directory, bytes. */
  protected abstract readonly directoryBytesMax: number
  /** Clusters that are marked as free, in order. @throws VarveError FORMAT_INVALID */
  protected abstract free(): AsyncIterable<ClusterRun>

  async node(id: number): Promise<FileNode> {
    const { attributes, content, modified, accessed, created } = await this.#record(id)
    const isDirectory = (attributes & Attribute.directory) !== 0
    const mode = (isDirectory ? 0o755 : 0o644) & ((attributes & Attribute.readOnly) === 0 ? 0o777 : 0o555)
    return {
      id,
      kind: isDirectory ? Kind.directory : Kind.file,
      mode,
      uid: 0,
      gid: 0,
      sizeBytes: isDirectory ? 0 : content.sizeBytes!,
      links: 1,
      modified,
      accessed,
      // Neither has a time of change: a copy keeps the time of its content, and was made later.
      changed: isLater(created, modified) ? created : modified,
      deviceMajor: 0,
      deviceMinor: 0,
    }
  }

  async list(directory: number): Promise<readonly DirectoryEntry[]> {
    return (await this.#directory(directory)).entries
  }

  async child(directory: number, name: string): Promise<number | undefined> {
    const { byName, byFold } = await this.#directory(directory)
    const exact = byName.get(name)
    if (exact !== undefined) return exact
    const text = decodeName(name)
    return text === undefined ? undefined : byFold.get(this.fold(text))
  }

  target(symlink: number): never {
    throw new RangeError(`${symlink} is no symlink; ${this.type} has none`)
  }

  async xattrs(id: number): Promise<readonly Xattr[]> {
    const { attributes } = await this.#record(id)
    // No entry says any of the root.
    return id === ROOT_ID ? [] : [{ name: ATTRIBUTES_XATTR, value: Buffer.from(`0x${attributes.toString(16).padStart(8, '0')}`) }]
  }

  async extents(file: number): Promise<readonly PlacedExtent[]> {
    let extents = this.#extents.get(file)
    if (extents === undefined) {
      const { content } = await this.#file(file)
      extents = await this.place(file, content, `the file at ${file * DIRECTORY_ENTRY_BYTES}`)
      this.#extents.set(file, extents, extents.length + 1)
    }
    return extents
  }

  /** What is marked as free, without what a file or directory claims that was asked for before: of a volume that was not unmounted, the marks may be older. */
  async *unused(): AsyncGenerator<VolumeRange> {
    for await (const { cluster, count } of this.free()) {
      for (const gap of this.#claimed.gaps(cluster, count)) yield { offset: this.clusterOffset(gap.first), length: gap.count * this.blockBytes }
    }
  }

  async read(file: number, into: Uint8Array, offset: number): Promise<void> {
    const { content } = await this.#file(file)
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + into.length > content.sizeBytes!) throw new RangeError(`range ${offset}+${into.length} is outside a file of ${content.sizeBytes} bytes`)
    await readPlaced(this.#volume, await this.extents(file), into, offset)
  }

  /** Where content lies on the volume. Its clusters are `id`'s from now on. @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  protected async place(id: number, content: Content, name: string, clustersMax = Infinity): Promise<PlacedExtent[]> {
    const { first, sizeBytes, validBytes, isContiguous } = content
    if (sizeBytes === 0) return []
    const wanted = sizeBytes === undefined ? undefined : Math.ceil(sizeBytes / this.blockBytes)
    if (wanted !== undefined && !this.table.holds(first, isContiguous ? wanted : 1)) throw this.invalid(`${name}: ${wanted} clusters from ${first} on are not inside the volume`)
    const runs = isContiguous ? [{ cluster: first, count: wanted! }] : await this.table.chain(first, { wanted, most: clustersMax, name })
    this.#claim(id, runs, name)
    const extents: PlacedExtent[] = []
    let fileOffset = 0
    for (const { cluster, count } of runs) {
      const length = Math.min(count * this.blockBytes, validBytes - fileOffset)
      if (length <= 0) break
      extents.push({ fileOffset, length, diskOffset: this.clusterOffset(cluster) })
      fileOffset += length
    }
    return extents
  }

  protected clusterOffset(cluster: number): number {
    return this.#heapOffset + (cluster - FIRST_CLUSTER) * this.blockBytes
  }

  /** Content in pieces. */
  protected async *pieces(extents: readonly PlacedExtent[]): AsyncGenerator<DirectoryPiece> {
    for (const { length, diskOffset } of extents) {
      for (let at = 0; at < length; at += PIECE_BYTES) {
        const bytes = Buffer.alloc(Math.min(PIECE_BYTES, length - at))
        await this.#volume.read(bytes, diskOffset + at)
        yield { bytes, offset: diskOffset + at }
      }
    }
  }

  /** The entry at a place, again. @param id place in units of an entry */
  protected async entryAt(id: number): Promise<Buffer> {
    const entry = Buffer.alloc(DIRECTORY_ENTRY_BYTES)
    await this.#cached.read(entry, id * DIRECTORY_ENTRY_BYTES)
    return entry
  }

  protected invalid(what: string): VarveError {
    return new VarveError('FORMAT_INVALID', `${this.type}: ${what}`)
  }

  #claim(id: number, runs: readonly ClusterRun[], name: string): void {
    if (this.#claimants.has(id)) return
    for (const { cluster, count } of runs) {
      if (this.#claimed.hasAny(cluster, count)) throw this.invalid(`${name} claims clusters of another file or directory, among ${count} from ${cluster} on`)
    }
    for (const { cluster, count } of runs) this.#claimed.addRange(cluster, count)
    this.#claimants.add(id)
  }

  async #directory(id: number): Promise<Directory> {
    const known = this.#directories.get(id)
    if (known !== undefined) return known
    const name = id === ROOT_ID ? 'the root directory' : `the directory at ${id * DIRECTORY_ENTRY_BYTES}`
    const found = await this.names(this.pieces(await this.#directoryExtents(id, name)), name)
    const entries: DirectoryEntry[] = []
    const byName = new Map<string, number>()
    const byFold = new Map<string, number>()
    for (const { id: entry, name: text } of found) {
      const bytes = encodeName(text)
      if (!isPossibleName(text)) throw this.invalid(`${name} has a name that cannot be: ${JSON.stringify(text)}`)
      if (byName.has(bytes)) throw this.invalid(`${name} has two entries with the name ${JSON.stringify(text)}`)
      byName.set(bytes, entry)
      const fold = this.fold(text)
      if (!byFold.has(fold)) byFold.set(fold, entry)
      entries.push({ name: bytes, id: entry })
      this.#given.add(entry)
    }
    for (const { id: entry, alias } of found) {
      if (alias === undefined) continue
      const fold = this.fold(alias)
      if (!byFold.has(fold)) byFold.set(fold, entry)
    }
    const directory = { entries, byName, byFold }
    this.#directories.set(id, directory, entries.length + 1)
    return directory
  }

  async #directoryExtents(id: number, name: string): Promise<readonly PlacedExtent[]> {
    if (id === ROOT_ID) return this.rootExtents()
    const { attributes, content } = await this.#record(id)
    if ((attributes & Attribute.directory) === 0) throw new RangeError(`${id} is no directory`)
    if (content.sizeBytes !== undefined && content.sizeBytes > this.directoryBytesMax) throw new VarveError('LIMIT_EXCEEDED', `${this.type}: ${name} has ${content.sizeBytes} bytes; at most ${this.directoryBytesMax} are read`)
    return this.place(id, content, name, this.directoryBytesMax / this.blockBytes)
  }

  async #file(id: number): Promise<NodeRecord> {
    const record = await this.#record(id)
    if ((record.attributes & Attribute.directory) !== 0) throw new RangeError(`${id} is no file`)
    return record
  }

  async #record(id: number): Promise<NodeRecord> {
    if (!Number.isSafeInteger(id) || id < 1 || !this.#given.has(id)) throw new RangeError(`there is no node ${id}`)
    if (id !== ROOT_ID) return this.record(id)
    return ROOT
  }
}

const EPOCH: Timestamp = { seconds: 0, nanoseconds: 0 }
/** No entry stands for the root: it has no times. */
const ROOT: NodeRecord = { attributes: Attribute.directory, content: { first: 0, sizeBytes: 0, validBytes: 0, isContiguous: false }, modified: EPOCH, accessed: EPOCH, created: EPOCH }

function isLater(a: Timestamp, b: Timestamp): boolean {
  return a.seconds > b.seconds || (a.seconds === b.seconds && a.nanoseconds > b.nanoseconds)
}
