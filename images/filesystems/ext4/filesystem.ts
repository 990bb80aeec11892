/**
 * Ext4Filesystem: the files of an ext2, ext3 or ext4 filesystem, as the kernel shows them. One that was not unmounted is read as it is after its journal was replayed,
 * which happens in memory. Nothing is written. All bytes come from outside: guests write here.
 * What is read, refused and checked: docs/filesystems.md#ext4. Bytes: Documentation/filesystems/ext4 of Linux.
 */
import { checkRange } from '../../device/block-device.ts'
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { TARGET_BYTES_MAX } from '../../tree/limits.ts'
import { Kind } from '../../tree/tree.ts'
import type { Xattr } from '../../tree/tree.ts'
import { extentAfter, readPlaced } from '../file-extents.ts'
import type { PlacedExtent } from '../file-extents.ts'
import type { Answer, DirectoryEntry, FileExtent, FileNode, VolumeFilesystem, VolumeRange } from '../filesystem.ts'
import { RecentlyUsed } from '../recently-used.ts'
import { BlockReader, invalid, unsupported } from './block-reader.ts'
import { foldedName } from './casefold.ts'
import { checkDirectoryBlock, readNames } from './directory-reader.ts'
import { BlockMaps } from './file-blocks.ts'
import type { FileBlocks } from './file-blocks.ts'
import { COMPAT, FAST_SYMLINK_BYTES_MAX, INCOMPAT, INODE, INODE_BLOCK_BYTES, INODE_FLAG, RO_COMPAT, ROOT_INODE } from './format.ts'
import { unusedRanges } from './free-blocks.ts'
import { GroupTable } from './group-table.ts'
import { InodeReader, fileNodeOf, isFastSymlink } from './inode-reader.ts'
import type { Ext4Inode } from './inode-reader.ts'
import { readJournal } from './journal-reader.ts'
import { ReplayedVolume } from './replayed-volume.ts'
import type { JournaledBlock } from './replayed-volume.ts'
import { readSuperblock } from './superblock-reader.ts'
import type { Ext4Superblock } from './superblock-reader.ts'
import { inlineRest, shownXattrs, xattrsOfBlock, xattrsOfInode } from './xattr-reader.ts'
import type { StoredXattr } from './xattr-reader.ts'

/** Names of one directory. */
const NAMES_MAX = 1 << 21
/** Names that are kept, of all directories; pieces of files of which it is kept where they are. Each directory, and each file, counts as if it had so many more. */
const NAMES_KEPT_MAX = 1 << 19
const PIECES_KEPT_MAX = 1 << 16
const KEPT_OF_ONE = 256
/** In inline directories, the number of the parent stands before the entries. */
const INLINE_PARENT_BYTES = 4

interface Names {
  readonly entries: readonly DirectoryEntry[]
  /** Both made when they are asked for. */
  byName?: Map<string, number>
  byFoldedName?: Map<string, number>
}

/** Where all of a file stands, bytes from the start of the volume. */
export interface Ext4Places extends FileBlocks {
  inode: number
  /** Its block of extended attributes; undefined if it has none. */
  xattrs: number | undefined
}

/**
 * Opens a filesystem that starts at the first byte of a volume. If it was not unmounted, its journal is replayed in memory.
 * @param volume borrowed; it must not change
 * @throws VarveError FORMAT_INVALID (no ext4 there, or damaged), FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export async function openExt4(volume: ReadableDisk): Promise<Ext4Filesystem> {
  const parts = await readParts(volume)
  const journaled = await journaledBlocks(parts)
  if (journaled.size === 0) return new Ext4Filesystem(parts, volume)
  const replayed = new ReplayedVolume(volume, parts.superblock.blockBytes, journaled)
  return new Ext4Filesystem(await readParts(replayed), replayed, journaled.size)
}

interface Parts {
  reader: BlockReader
  superblock: Ext4Superblock
  groups: GroupTable
  inodes: InodeReader
  maps: BlockMaps
}

async function readParts(volume: ReadableDisk): Promise<Parts> {
  const reader = new BlockReader(volume)
  const superblock = await readSuperblock(reader, volume.sizeBytes)
  const groups = await GroupTable.read(reader, superblock)
  return { reader, superblock, groups, inodes: new InodeReader(reader, superblock, groups), maps: new BlockMaps(reader, superblock) }
}

/** What a mount would replay. A copy of the superblock does not say whether there is something. */
async function journaledBlocks({ reader, superblock, inodes, maps }: Parts): Promise<Map<number, JournaledBlock>> {
  const { compat, incompat, journalInode, group, blockBytes, blocks } = superblock
  if ((compat & COMPAT.hasJournal) === 0 || ((incompat & INCOMPAT.recover) === 0 && group === 0)) return new Map()
  if (journalInode === 0) throw unsupported('it was not unmounted, and its journal is on another device; mount it once with that, or run e2fsck')
  if (journalInode > superblock.inodes) throw invalid(`its journal is inode ${journalInode}, which cannot be`)
  const inode = await inodes.read(journalInode)
  if (inode.kind !== Kind.file || (inode.flags & INODE_FLAG.inlineData) !== 0) throw invalid('its journal is no file')
  const { runs } = await maps.of(inode)
  const placeOf = (block: number): number => {
    const offset = block * blockBytes
    const run = runs[extentAfter(runs, offset)]
    if (run === undefined || run.fileOffset > offset) throw invalid(`its journal has no block ${block}`)
    return run.diskOffset + offset - run.fileOffset
  }
  return readJournal({ blockBytes, volumeBlocks: blocks, blocks: Math.floor(inode.sizeBytes / blockBytes), placeOf, read: (offset, length) => reader.bytes(offset, length) })
}

export class Ext4Filesystem implements VolumeFilesystem {
  readonly type = 'ext4'
  readonly blockBytes: number
  readonly sizeBytes: number
  readonly root = ROOT_INODE
  readonly label: string
  readonly uuid: string
  readonly unclean: boolean
  /** Damage that was got round, a journal that was replayed: in words. */
  readonly notices: readonly string[]
  /** What it lies on, as that is after its journal was replayed. */
  readonly volume: ReadableDisk
  readonly #superblock: Ext4Superblock
  readonly #groups: GroupTable
  readonly #reader: BlockReader
  readonly #inodes: InodeReader
  readonly #maps: BlockMaps
  readonly #directories = new RecentlyUsed<Names>(NAMES_KEPT_MAX)
  readonly #files = new RecentlyUsed<readonly PlacedExtent[]>(PIECES_KEPT_MAX)

  /** For openExt4. */
  constructor({ reader, superblock, groups, inodes, maps }: Parts, volume: ReadableDisk, replayedBlocks = 0) {
    this.volume = volume
    this.#reader = reader
    this.#superblock = superblock
    this.#groups = groups
    this.#inodes = inodes
    this.#maps = maps
    this.blockBytes = superblock.blockBytes
    this.sizeBytes = superblock.blocks * superblock.blockBytes
    this.label = superblock.label
    this.uuid = superblock.uuid.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
    this.unclean = !superblock.isClean || replayedBlocks > 0
    this.notices = [
      ...(superblock.group > 0 ? [`the superblock is damaged; its copy in group ${superblock.group} is used`] : []),
      ...(superblock.hasErrors ? ['the kernel found errors in it; e2fsck was not run since'] : []),
      ...(replayedBlocks > 0 ? [`it was not unmounted; ${replayedBlocks} blocks of its journal are replayed in memory`] : []),
    ]
  }

  node(id: number): Answer<FileNode> {
    const inode = this.#inode(id)
    return inode instanceof Promise ? inode.then(fileNodeOf) : fileNodeOf(inode)
  }

  async list(directory: number): Promise<readonly DirectoryEntry[]> {
    return (await this.#names(directory)).entries
  }

  /** Names are compared byte by byte; in directories with the flag casefold, if none is the same, without regard to case. */
  async child(directory: number, name: string): Promise<number | undefined> {
    const names = await this.#names(directory)
    names.byName ??= new Map(names.entries.map((entry) => [entry.name, entry.id]))
    const id = names.byName.get(name)
    if (id !== undefined || ((await this.#inode(directory)).flags & INODE_FLAG.casefold) === 0) return id
    names.byFoldedName ??= new Map(names.entries.map((entry) => [foldedName(entry.name), entry.id]))
    return names.byFoldedName.get(foldedName(name))
  }

  async target(symlink: number): Promise<Uint8Array> {
    const inode = await this.#inode(symlink)
    const { kind, sizeBytes, bytes } = inode
    if (kind !== Kind.symlink) throw new RangeError(`inode ${symlink} is no symlink`)
    refuseEncrypted(inode)
    if (sizeBytes === 0 || sizeBytes > TARGET_BYTES_MAX) throw invalid(`symlink ${symlink} has a target of ${sizeBytes} bytes`)
    if (!isFastSymlink(inode, this.#superblock)) return this.#content(inode)
    if (sizeBytes > FAST_SYMLINK_BYTES_MAX) throw invalid(`symlink ${symlink} has a target of ${sizeBytes} bytes, but no block`)
    return Uint8Array.from(bytes.subarray(INODE.block, INODE.block + sizeBytes))
  }

  async xattrs(id: number): Promise<readonly Xattr[]> {
    const inode = await this.#inode(id)
    const stored = [...xattrsOfInode(inode), ...(await xattrsOfBlock(this.#reader, this.#superblock, inode))]
    return shownXattrs(stored, id, (xattr) => this.#outsideValue(xattr, id))
  }

  async extents(file: number): Promise<readonly FileExtent[]> {
    const inode = await this.#file(file)
    if ((inode.flags & INODE_FLAG.inlineData) !== 0) {
      const length = inlineContent(inode).length
      return length > 0 ? [{ fileOffset: 0, length }] : []
    }
    const extents: FileExtent[] = []
    for (const { fileOffset, diskOffset, length } of await this.#runs(inode)) this.#addExtents(extents, { fileOffset, diskOffset, length: Math.min(length, inode.sizeBytes - fileOffset) })
    return extents
  }

  async read(file: number, into: Uint8Array, offset: number): Promise<void> {
    const inode = await this.#file(file)
    checkRange(inode, offset, into.length)
    if ((inode.flags & INODE_FLAG.inlineData) !== 0) {
      const content = inlineContent(inode).subarray(offset, offset + into.length)
      into.set(content)
      into.fill(0, content.length)
      return
    }
    await readPlaced(this.volume, await this.#runs(inode), into, offset)
  }

  unused(): AsyncIterable<VolumeRange> {
    // A copy of the superblock has copies of descriptors, which are never changed: they do not say which bitmaps there are.
    if (this.#superblock.group > 0) return (async function* () {})()
    return unusedRanges(this.#reader, this.#superblock, this.#groups)
  }

  /** Where a file, a directory or anything else stands: for those who look at blocks. @throws as `node` */
  async places(id: number): Promise<Ext4Places> {
    const inode = await this.#inode(id)
    const { kind, flags, xattrBlock } = inode
    const hasBlocks = (flags & INODE_FLAG.inlineData) === 0 && (kind === Kind.file || kind === Kind.directory || (kind === Kind.symlink && !isFastSymlink(inode, this.#superblock)))
    const blocks = hasBlocks ? await this.#maps.of(inode) : { runs: [], nodes: [] }
    return { ...blocks, inode: this.#inodes.position(id), xattrs: xattrBlock === 0 ? undefined : xattrBlock * this.blockBytes }
  }

  /** Superblock and the first descriptors. */
  get head(): VolumeRange {
    return { offset: 0, length: this.#groups.headBytes }
  }

  /** Where the bitmaps of all groups are, bytes from the start of the volume. @throws as `node` */
  bitmaps(): { blocks: number[]; inodes: number[] } {
    const groups = Array.from({ length: this.#superblock.groups }, (_, group) => group)
    return {
      blocks: groups.map((group) => this.#groups.block(group, 'blockBitmap') * this.blockBytes),
      inodes: groups.map((group) => this.#groups.block(group, 'inodeBitmap') * this.blockBytes),
    }
  }

  /** Where the journal is; nothing if there is none on this volume. @throws as `node` */
  async journal(): Promise<readonly PlacedExtent[]> {
    const { journalInode, inodes } = this.#superblock
    return journalInode === 0 || journalInode > inodes ? [] : (await this.#maps.of(await this.#inodes.read(journalInode))).runs
  }

  /** @param id that of a name: the filesystem's own inodes have none */
  #inode(id: number): Answer<Ext4Inode> {
    const { inodes, firstInode } = this.#superblock
    if (!Number.isInteger(id) || id < 1 || id > inodes) throw new RangeError(`there is no inode ${id}`)
    if (id < firstInode && id !== ROOT_INODE) throw invalid(`a name stands for inode ${id}, which belongs to the filesystem itself`)
    return this.#inodes.read(id)
  }

  async #file(id: number): Promise<Ext4Inode> {
    const inode = await this.#inode(id)
    if (inode.kind !== Kind.file) throw new RangeError(`inode ${id} is no file`)
    refuseEncrypted(inode)
    return inode
  }

  async #names(directory: number): Promise<Names> {
    const kept = this.#directories.get(directory)
    if (kept !== undefined) return kept
    const inode = await this.#inode(directory)
    if (inode.kind !== Kind.directory) throw new RangeError(`inode ${directory} is no directory`)
    refuseEncrypted(inode)
    const entries: DirectoryEntry[] = []
    await this.#readDirectory(inode, entries)
    const names = { entries }
    this.#directories.set(directory, names, KEPT_OF_ONE + entries.length)
    return names
  }

  async #readDirectory(inode: Ext4Inode, entries: DirectoryEntry[]): Promise<void> {
    const where = { directory: inode.number, inodes: this.#superblock.inodes }
    if ((inode.flags & INODE_FLAG.inlineData) !== 0) {
      const content = inlineContent(inode)
      readNames(content.subarray(INLINE_PARENT_BYTES, INODE_BLOCK_BYTES), where, entries)
      readNames(content.subarray(INODE_BLOCK_BYTES), where, entries)
      return
    }
    const { roCompat, compat } = this.#superblock
    const isIndexed = (compat & COMPAT.dirIndex) !== 0 && (inode.flags & INODE_FLAG.index) !== 0
    for (const { fileOffset, diskOffset, length } of (await this.#maps.of(inode)).runs) {
      for (let at = 0; at < length; at += this.blockBytes) {
        const block = await this.#reader.bytes(diskOffset + at, this.blockBytes)
        if ((roCompat & RO_COMPAT.metadataCsum) !== 0) checkDirectoryBlock(block, { directory: inode.number, seed: inode.checksumSeed, isIndexed, isFirst: fileOffset + at === 0 })
        readNames(block, where, entries)
        if (entries.length > NAMES_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: directory ${inode.number} has more than ${NAMES_MAX} names`)
      }
    }
  }

  async #runs(inode: Ext4Inode): Promise<readonly PlacedExtent[]> {
    const kept = this.#files.get(inode.number)
    if (kept !== undefined) return kept
    const { runs } = await this.#maps.of(inode)
    this.#files.set(inode.number, runs, KEPT_OF_ONE + runs.length)
    return runs
  }

  /** Adds a run, cut where parts of it are in the journal. */
  #addExtents(extents: FileExtent[], { fileOffset, diskOffset, length }: PlacedExtent): void {
    const journaled = this.volume instanceof ReplayedVolume ? this.volume.journaled(diskOffset, length) : []
    let done = 0
    for (const number of journaled) {
      const at = number * this.blockBytes - diskOffset
      if (at > done) extents.push({ fileOffset: fileOffset + done, length: at - done, diskOffset: diskOffset + done })
      done = Math.min(length, at + this.blockBytes)
      extents.push({ fileOffset: fileOffset + at, length: done - at })
    }
    if (done < length) extents.push({ fileOffset: fileOffset + done, length: length - done, diskOffset: diskOffset + done })
  }

  /** All of what is not large. */
  async #content(inode: Ext4Inode): Promise<Uint8Array> {
    const content = new Uint8Array(inode.sizeBytes)
    if ((inode.flags & INODE_FLAG.inlineData) !== 0) content.set(inlineContent(inode))
    else await readPlaced(this.volume, (await this.#maps.of(inode)).runs, content, 0)
    return content
  }

  async #outsideValue({ valueInode, length }: StoredXattr, owner: number): Promise<Uint8Array> {
    if (valueInode > this.#superblock.inodes) throw invalid(`inode ${owner} has an attribute in inode ${valueInode}, which cannot be`)
    const inode = await this.#inodes.read(valueInode)
    if ((inode.flags & INODE_FLAG.eaInode) === 0 || inode.sizeBytes !== length) throw invalid(`inode ${owner} has an attribute in inode ${valueInode}, which holds none`)
    return this.#content(inode)
  }
}

/** @throws VarveError FORMAT_UNSUPPORTED */
function refuseEncrypted({ number, flags, kind }: Ext4Inode): void {
  if ((flags & INODE_FLAG.encrypt) === 0) return
  throw unsupported(`${kind === Kind.directory ? 'the names of directory' : 'the content of inode'} ${number} ${kind === Kind.directory ? 'are' : 'is'} encrypted`)
}

/** What stands in the inode itself, up to the size of the file; what is missing is zeroes. */
function inlineContent(inode: Ext4Inode): Buffer {
  const rest = inlineRest(xattrsOfInode(inode))
  const block = inode.bytes.subarray(INODE.block, INODE.block + INODE_BLOCK_BYTES)
  return Buffer.concat(rest === undefined ? [block] : [block, rest]).subarray(0, inode.sizeBytes)
}
