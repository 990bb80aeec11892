/**
 * NTFS, read: files, directories and links of a volume, and where they lie. Bytes and what is shown how: docs/filesystems.md#ntfs.
 * All of them come from outside. The log is not replayed: what it would change is seen as it stands.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { isVarveError } from '../../errors.ts'
import { Kind } from '../../tree/tree.ts'
import type { Xattr } from '../../tree/tree.ts'
import { RecentlyUsed } from '../recently-used.ts'
import type { DirectoryEntry, FileExtent, FileNode, VolumeFilesystem, VolumeRange } from '../filesystem.ts'
import { readBootSector } from './boot-sector.ts'
import type { Geometry } from './boot-sector.ts'
import { freeClusters } from './cluster-bitmap.ts'
import type { Content } from './content.ts'
import { ANY_SEQUENCE, ATTRIBUTE, FILE_ATTRIBUTE, FIRST_USER_RECORD, RECORD, VOLUME_DIRTY, exceeded, invalid, readReference } from './format.ts'
import type { RecordReference } from './format.ts'
import { IndexTree } from './index-tree.ts'
import type { IndexEntry } from './index-tree.ts'
import type { Directories, FoundName } from './link-target.ts'
import { isLogClean } from './log-file.ts'
import { Mft } from './mft.ts'
import { residentValue } from './mft-record.ts'
import { decodeName, encodeName, isPossibleName } from '../utf16-names.ts'
import { NtfsNode, readFileName } from './node.ts'
import type { FileName } from './node.ts'
import { SecurityDescriptors } from './security.ts'
import { UPPER_CASE_BYTES, UpperCase } from './upper-case.ts'
import { xattrsOf } from './xattrs.ts'

const NAME_INDEX = '$I30'
/** In the attributes that an index has of a file: it is a directory. */
const INDEXED_DIRECTORY = 0x10000000
/** Names of one directory: half a gigabyte of them in memory. */
const DIRECTORY_NAMES_MAX = 4_000_000
/** Longest name, units of UTF-16. */
const NAME_UNITS_MAX = 255
const LABEL_BYTES_MAX = 2 * 128
const VOLUME_INFORMATION_BYTES = 0x0c
const VOLUME_INFORMATION_BYTES_MAX = 256
const NODES_KEPT_MAX = 1024
/** Runs that are kept of all contents together, and of all indexes. */
const RUNS_KEPT_MAX = 1_000_000
/** A content is kept as if it had so many more: a compressed one keeps what it decompressed last. */
const RUNS_OF_A_CONTENT = 10_000
/** Likewise an index, which keeps its root. */
const RUNS_OF_AN_INDEX = 1000
/** Ids are the number of a record, and above it its generation: what refers to a file that is gone is told from the one that took its record. */
const GENERATION = 2 ** 32
const GENERATION_MAX = 0xffff
/** Name of the file that Windows hibernates into, and how it begins then. */
const HIBERNATION = { name: 'hiberfil.sys', magic: /^hibr/i }

/**
 * Opens the NTFS volume that starts at byte 0 of `volume`, which it borrows.
 * @throws VarveError FORMAT_INVALID (no NTFS there, or damaged), LIMIT_EXCEEDED
 */
export function openNtfs(volume: ReadableDisk): Promise<NtfsFilesystem> {
  return NtfsFilesystem.open(volume)
}

interface VolumeFacts {
  label: string
  isDirty: boolean
  /** 1 or 3. */
  majorVersion: number
}

async function readVolume(mft: Mft): Promise<VolumeFacts> {
  const file = await mft.systemFile(RECORD.volume)
  const name = await file.value(ATTRIBUTE.volumeName, LABEL_BYTES_MAX)
  const information = await file.value(ATTRIBUTE.volumeInformation, VOLUME_INFORMATION_BYTES_MAX)
  if (information.length < VOLUME_INFORMATION_BYTES) throw invalid('the volume does not say its version')
  return { label: name.toString('utf16le'), isDirty: (information.readUInt16LE(0x0a) & VOLUME_DIRTY) !== 0, majorVersion: information[8] }
}

async function hasCleanLog(mft: Mft): Promise<boolean> {
  const log = await (await mft.systemFile(RECORD.logFile)).content(ATTRIBUTE.data)
  return log === undefined || isLogClean(log)
}

function idOf({ number, sequence }: RecordReference): number {
  return sequence * GENERATION + number
}

export class NtfsFilesystem implements VolumeFilesystem {
  readonly type = 'ntfs'
  readonly blockBytes: number
  readonly sizeBytes: number
  readonly root: number
  readonly label: string
  readonly uuid: string
  readonly #mft: Mft
  readonly #geometry: Geometry
  readonly #upperCase: UpperCase
  readonly #directories: Directories
  /** By id. */
  readonly #nodes = new RecentlyUsed<NtfsNode>(NODES_KEPT_MAX)
  readonly #indexes = new RecentlyUsed<IndexTree>(RUNS_KEPT_MAX)
  readonly #contents = new RecentlyUsed<Content>(RUNS_KEPT_MAX)
  readonly #majorVersion: number
  #security: SecurityDescriptors | undefined
  #unclean: boolean

  private constructor(mft: Mft, rootId: number, upperCase: UpperCase, { label, isDirty, majorVersion }: VolumeFacts) {
    this.#mft = mft
    this.#geometry = mft.geometry
    this.#upperCase = upperCase
    this.blockBytes = mft.geometry.clusterBytes
    this.sizeBytes = mft.geometry.clusters * mft.geometry.clusterBytes
    this.uuid = mft.geometry.serialNumber
    this.root = rootId
    this.label = label
    this.#unclean = isDirty
    this.#majorVersion = majorVersion
    this.#directories = { root: rootId, find: (directory, name) => this.#found(directory, name), parent: (id) => this.#parent(id) }
  }

  /** @see openNtfs */
  static async open(volume: ReadableDisk): Promise<NtfsFilesystem> {
    const mft = await Mft.open(volume, await readBootSector(volume))
    if (mft.records > GENERATION) throw exceeded(`more than ${GENERATION} files`)
    const { sequence } = (await mft.systemFile(RECORD.root)).record
    if (sequence === ANY_SEQUENCE) throw invalid('the root is of no generation')
    const upperCase = new UpperCase(await (await mft.systemFile(RECORD.upCase)).value(ATTRIBUTE.data, UPPER_CASE_BYTES))
    const filesystem = new NtfsFilesystem(mft, idOf({ number: RECORD.root, sequence }), upperCase, await readVolume(mft))
    if ((await filesystem.node(filesystem.root)).kind !== Kind.directory) throw invalid('the root is no directory')
    filesystem.#unclean ||= !await hasCleanLog(mft) || await filesystem.#isHibernated()
    return filesystem
  }

  /** True if it is marked as dirty, its log says so, or Windows was hibernated. */
  get unclean(): boolean {
    return this.#unclean
  }

  async node(id: number): Promise<FileNode> {
    return (await this.#node(id)).describe()
  }

  async list(directory: number): Promise<readonly DirectoryEntry[]> {
    const index = await this.#indexOf(directory)
    const entries: DirectoryEntry[] = []
    for await (const part of index.entries()) {
      for (const entry of part) {
        const name = this.#visible(entry)
        if (name === undefined) continue
        if (entries.length === DIRECTORY_NAMES_MAX) throw exceeded(`a directory of more than ${DIRECTORY_NAMES_MAX} names`)
        entries.push({ name: encodeName(name.name), id: this.#idOf(entry) })
      }
    }
    return entries
  }

  async child(directory: number, name: string): Promise<number | undefined> {
    const index = await this.#indexOf(directory)
    const decoded = decodeName(name)
    const entry = decoded === undefined ? undefined : await this.#lookUp(index, decoded)
    return entry === undefined ? undefined : this.#idOf(entry)
  }

  async target(symlink: number): Promise<Uint8Array> {
    const { target } = await this.#node(symlink)
    if (target === undefined) throw new RangeError(`${symlink} is no symlink`)
    return target
  }

  async xattrs(id: number): Promise<readonly Xattr[]> {
    return xattrsOf(await this.#node(id), (securityId) => this.#descriptor(securityId))
  }

  async extents(file: number): Promise<readonly FileExtent[]> {
    return (await this.#content(file)).extents()
  }

  async read(file: number, into: Uint8Array, offset: number): Promise<void> {
    const content = await this.#content(file)
    if (offset < 0 || offset + into.length > content.sizeBytes) throw new RangeError(`${offset}+${into.length} is outside of a file of ${content.sizeBytes} bytes`)
    await content.read(into, offset)
  }

  async *unused(): AsyncGenerator<VolumeRange, void> {
    const bitmap = await (await this.#mft.systemFile(RECORD.bitmap)).content(ATTRIBUTE.data)
    if (bitmap === undefined) throw invalid('there is no map of clusters')
    for await (const { first, count } of freeClusters(bitmap, this.#geometry.clusters)) yield { offset: first * this.blockBytes, length: count * this.blockBytes }
  }

  async #node(id: number): Promise<NtfsNode> {
    const kept = this.#nodes.get(id)
    if (kept !== undefined) return kept
    const node = await NtfsNode.open(this.#directories, await this.#mft.file(this.#reference(id)), id)
    this.#nodes.set(id, node)
    return node
  }

  async #content(id: number): Promise<Content> {
    const kept = this.#contents.get(id)
    if (kept !== undefined) return kept
    const node = await this.#node(id)
    if (node.kind !== Kind.file) throw new RangeError(`${id} is no file`)
    const content = await node.content()
    this.#contents.set(id, content, RUNS_OF_A_CONTENT + content.runs)
    return content
  }

  /** @throws RangeError for an id that was never given */
  #reference(id: number): RecordReference {
    const number = id % GENERATION
    const sequence = Math.floor(id / GENERATION)
    if (!Number.isSafeInteger(id) || id < 0 || !this.#isShown({ number, sequence })) throw new RangeError(`there is no file ${id}`)
    return { number, sequence }
  }

  /** True if a reference may be given out: its id is one. */
  #isShown({ number, sequence }: RecordReference): boolean {
    return sequence > 0 && sequence <= GENERATION_MAX && number < this.#mft.records && (number >= FIRST_USER_RECORD || number === RECORD.root)
  }

  async #indexOf(directory: number): Promise<IndexTree> {
    if ((await this.#node(directory)).kind !== Kind.directory) throw new RangeError(`${directory} is no directory`)
    return this.#index(directory)
  }

  /** Not by its node: what that is may depend on the names in another directory, in a circle if the volume is damaged. @throws VarveError FORMAT_INVALID if it has no index */
  async #index(directory: number): Promise<IndexTree> {
    const kept = this.#indexes.get(directory)
    if (kept !== undefined) return kept
    const index = await IndexTree.open(await this.#mft.file(this.#reference(directory)), NAME_INDEX)
    this.#indexes.set(directory, index, RUNS_OF_AN_INDEX + index.runs)
    return index
  }

  /** What an entry names, or undefined if it is not shown. @throws VarveError FORMAT_INVALID */
  #visible(entry: IndexEntry): FileName | undefined {
    const name = readFileName(entry.key)
    if (name.isShort || readReference(entry.bytes, 0).number < FIRST_USER_RECORD) return undefined
    if (!isPossibleName(name.name)) throw invalid(`a directory has the name ${JSON.stringify(name.name)}, which cannot be`)
    return name
  }

  /** @throws VarveError FORMAT_INVALID for a reference that leads nowhere */
  #idOf(entry: IndexEntry): number {
    const reference = readReference(entry.bytes, 0)
    if (!this.#isShown(reference)) throw invalid(`a directory refers to record ${reference.number} of generation ${reference.sequence}`)
    return idOf(reference)
  }

  /** Entry of a name, whatever its case; if there are several (names of POSIX), the one that is the same, else the first. */
  async #lookUp(index: IndexTree, name: string): Promise<IndexEntry | undefined> {
    if (name.length > NAME_UNITS_MAX) return undefined
    const found = (await index.find((key) => this.#upperCase.compare(name, readFileName(key).name))).filter((entry) => this.#visible(entry) !== undefined)
    return found.find(({ key }) => readFileName(key).name === name) ?? found[0]
  }

  async #found(directory: number, name: string): Promise<FoundName | undefined> {
    const entry = await this.#lookUp(await this.#index(directory), name)
    if (entry === undefined) return undefined
    const { name: own, attributes } = readFileName(entry.key)
    const isReparsePoint = (attributes & FILE_ATTRIBUTE.reparsePoint) !== 0
    return { name: own, id: this.#idOf(entry), isPlainDirectory: (attributes & INDEXED_DIRECTORY) !== 0 && !isReparsePoint, isReparsePoint }
  }

  async #parent(id: number): Promise<number | undefined> {
    if (id === this.root) return undefined
    const file = await this.#mft.file(this.#reference(id))
    const names = (await file.all(ATTRIBUTE.fileName)).filter(({ isResident }) => isResident)
    const parent = names.length === 0 ? undefined : readFileName(residentValue(names[0])).parent
    if (parent === undefined || !this.#isShown(parent)) throw invalid(`record ${file.number} of the MFT is in no directory`)
    return idOf(parent)
  }

  /** True if Windows was hibernated: what it holds in memory is not on the volume. */
  async #isHibernated(): Promise<boolean> {
    try {
      const id = await this.child(this.root, HIBERNATION.name)
      if (id === undefined) return false
      const start = Buffer.alloc(4)
      await this.read(id, start, 0)
      return HIBERNATION.magic.test(start.toString('latin1'))
    } catch (error) {
      if (error instanceof RangeError || isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) return false
      throw error
    }
  }

  async #descriptor(securityId: number): Promise<Buffer | undefined> {
    // Before version 3, each file had its own.
    if (this.#majorVersion < 3) return undefined
    this.#security ??= await SecurityDescriptors.open(this.#mft)
    return this.#security.get(securityId)
  }
}
