/**
 * Reader of ext4: finds files, and says where on the volume each part of them lies. Read-only; it does not replay the journal, so what a guest
 * wrote last may be seen as it was before: good for what only hints at chunks, not for what must be exact.
 * Bytes: Documentation/filesystems/ext4 of Linux. All of them come from outside: guests write here.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { Kind } from '../../tree/tree.ts'
import { FAST_SYMLINK_BYTES_MAX, INCOMPAT, INODE, INODE_FLAG, MODE_TYPE, ROOT_INODE } from './format.ts'

export interface Ext4Inode {
  number: number
  kind: Kind
  sizeBytes: number
  flags: number
  /** The 60 bytes of block numbers, extents or a short symlink's target. */
  block: Buffer
  /** Block of extended attributes, or 0. */
  xattrBlock: number
}

export interface DirectoryEntry {
  /** Bytes in latin1. */
  name: string
  inode: number
}

/** A part of a file, bytes. */
export interface Ext4Run {
  fileOffset: number
  /** From the start of the disk. */
  diskOffset: number
  length: number
}

export interface Ext4Blocks {
  /** In file order; what lies between is holes. */
  runs: Ext4Run[]
  /** Blocks of the extent tree outside of the inode: their places on the disk, bytes. */
  nodes: number[]
}

export interface Ext4Group {
  /** Bytes from the start of the disk. */
  blockBitmap: number
  inodeBitmap: number
  inodeTable: number
}

/** What the walk finds: a name with its inode. */
export interface Ext4Found {
  /** Without a leading slash, bytes in latin1; '' for the root. */
  path: string
  inode: Ext4Inode
}

const MAGIC = 0xef53
const SUPERBLOCK_OFFSET = 1024
const SUPERBLOCK_BYTES = 1024
/** `recover` says that the journal holds something; `csum_seed` changes checksums only, which are not looked at: chunks are verified. */
const INCOMPAT_READ = INCOMPAT.filetype | INCOMPAT.extents | INCOMPAT.bit64 | INCOMPAT.flexBg | INCOMPAT.eaInode | INCOMPAT.largeDir | 0x4 | 0x2000
const EXTENT_MAGIC = 0xf30a
const EXTENT_ENTRY_BYTES = 12
/** Of an extent: longer means "allocated, reads as zeroes". Blocks. */
const WRITTEN_BLOCKS_MAX = 32768
const EXTENT_DEPTH_MAX = 5
/** Extents of one file, at most. */
const EXTENTS_MAX = 1 << 20
/** Extents that are read in all: many files may claim the same ones. */
const EXTENTS_READ_MAX = 1 << 24
const DIRECTORY_BYTES_MAX = 16 << 20
/** Of directories that are read in all: many may claim the same blocks. Bytes. */
const DIRECTORIES_READ_BYTES_MAX = 2 ** 32
const GROUPS_MAX = 1 << 20
/** Names that one walk finds, at most. */
const WALK_NAMES_MAX = 1 << 22
const DEPTH_MAX = 256
/** The disk is read in pieces of this size, which are kept for what is read next to them. */
const WINDOW_BYTES = 64 << 10
const WINDOWS_MAX = 512
/** Directories whose names are kept, and names of all of them; of one directory all are. */
const DIRECTORIES_MAX = 2048
const NAMES_KEPT_MAX = 1 << 19

const KIND_OF_TYPE = new Map<number, Kind>()
for (const kind of [Kind.file, Kind.directory, Kind.symlink, Kind.character, Kind.block, Kind.fifo, Kind.socket]) KIND_OF_TYPE.set(MODE_TYPE[kind], kind)

export class Ext4Reader {
  readonly blockBytes: number
  /** Bytes of the filesystem. */
  readonly sizeBytes: number
  /** Where it starts on the disk, bytes. */
  readonly start: number
  /** Superblock and descriptors: bytes from the start of the filesystem. */
  readonly headBytes: number
  readonly groups: readonly Ext4Group[]
  /** 0 if there is none. */
  readonly journalInode: number
  readonly #disk: ReadableDisk
  readonly #inodeBytes: number
  readonly #inodesPerGroup: number
  readonly #windows = new Map<number, Buffer>()
  readonly #directories = new Map<number, Map<string, number>>()
  #namesKept = 0
  #extentsRead = 0
  #directoryBytesRead = 0

  private constructor(disk: ReadableDisk, shape: Shape, descriptors: Buffer) {
    this.#disk = disk
    this.start = shape.start
    this.blockBytes = shape.blockBytes
    this.sizeBytes = shape.blocks * shape.blockBytes
    this.headBytes = shape.descriptorsAt + descriptors.length - shape.start
    this.journalInode = shape.journalInode
    this.#inodeBytes = shape.inodeBytes
    this.#inodesPerGroup = shape.inodesPerGroup
    const table = shape.inodesPerGroup * shape.inodeBytes
    this.groups = Array.from({ length: shape.groups }, (_, group) => {
      const at = group * shape.descriptorBytes
      const place = (low: number, high: number, length: number): number => {
        const block = descriptors.readUInt32LE(at + low) + (shape.descriptorBytes >= 64 ? descriptors.readUInt32LE(at + high) * 2 ** 32 : 0)
        return this.#place(block, length)
      }
      return { blockBitmap: place(0, 0x20, this.blockBytes), inodeBitmap: place(4, 0x24, this.blockBytes), inodeTable: place(8, 0x28, table) }
    })
  }

  /**
   * Opens the filesystem that starts at `start` of the disk.
   * @throws VarveError FORMAT_INVALID (no ext4 there, or damaged), FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
   */
  static async open(disk: ReadableDisk, start: number): Promise<Ext4Reader> {
    if (start + SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES > disk.sizeBytes) throw invalid('the disk ends before its superblock')
    const superblock = Buffer.alloc(SUPERBLOCK_BYTES)
    await disk.read(superblock, start + SUPERBLOCK_OFFSET)
    const shape = shapeOf(superblock, start, disk.sizeBytes)
    const descriptors = Buffer.alloc(shape.groups * shape.descriptorBytes)
    if (shape.descriptorsAt + descriptors.length > disk.sizeBytes) throw invalid('the disk ends before its descriptors')
    await disk.read(descriptors, shape.descriptorsAt)
    return new Ext4Reader(disk, shape, descriptors)
  }

  /** Where an inode stands on the disk, bytes. @throws VarveError FORMAT_INVALID for a number that there is not */
  inodePosition(number: number): number {
    const group = Math.floor((number - 1) / this.#inodesPerGroup)
    if (!(number >= 1) || group >= this.groups.length) throw invalid(`there is no inode ${number}`)
    return this.groups[group].inodeTable + ((number - 1) % this.#inodesPerGroup) * this.#inodeBytes
  }

  /** @throws VarveError FORMAT_INVALID */
  async inode(number: number): Promise<Ext4Inode> {
    const bytes = await this.#bytes(this.inodePosition(number), Math.min(this.#inodeBytes, 256))
    const kind = KIND_OF_TYPE.get(bytes.readUInt16LE(INODE.mode) & 0o170000)
    if (kind === undefined) throw invalid(`inode ${number} is of no kind`)
    const sizeBytes = bytes.readUInt32LE(INODE.sizeLow) + bytes.readUInt32LE(INODE.sizeHigh) * 2 ** 32
    const xattrBlock = bytes.readUInt32LE(INODE.fileAclLow) + bytes.readUInt16LE(INODE.fileAclHigh) * 2 ** 32
    return { number, kind, sizeBytes, flags: bytes.readUInt32LE(INODE.flags), block: bytes.subarray(INODE.block, INODE.block + 60), xattrBlock }
  }

  /** Where the content of an inode lies; nothing for one that has no blocks. @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
  async blocks(inode: Ext4Inode): Promise<Ext4Blocks> {
    const found: Ext4Blocks = { runs: [], nodes: [] }
    const hasBlocks = inode.kind === Kind.file || inode.kind === Kind.directory || (inode.kind === Kind.symlink && inode.sizeBytes > FAST_SYMLINK_BYTES_MAX)
    if (!hasBlocks || inode.sizeBytes === 0) return found
    if ((inode.flags & INODE_FLAG.extents) === 0) throw new VarveError('FORMAT_UNSUPPORTED', `ext4: inode ${inode.number} has no extents; such files are not read`)
    await this.#extents(inode.block, { depth: -1, inode, found })
    return found
  }

  /** Names in a directory without `.` and `..`, in the order in which they stand there. @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  async list(directory: Ext4Inode): Promise<DirectoryEntry[]> {
    if (directory.kind !== Kind.directory) throw invalid(`inode ${directory.number} is no directory`)
    if (directory.sizeBytes > DIRECTORY_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: a directory of ${directory.sizeBytes} bytes; at most ${DIRECTORY_BYTES_MAX} are read`)
    this.#directoryBytesRead += directory.sizeBytes
    if (this.#directoryBytesRead > DIRECTORIES_READ_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: directories of more than ${DIRECTORIES_READ_BYTES_MAX} bytes`)
    const entries: DirectoryEntry[] = []
    for (const { fileOffset, diskOffset, length } of (await this.blocks(directory)).runs) {
      // Blocks behind its end are no part of it.
      const end = Math.min(length, directory.sizeBytes - fileOffset)
      for (let at = 0; at < end; at += this.blockBytes) readNames(await this.#bytes(diskOffset + at, this.blockBytes), directory.number, entries)
    }
    return entries
  }

  /** Number of the inode of a name in a directory; undefined if there is none. @param name bytes in latin1 */
  async child(directory: Ext4Inode, name: string): Promise<number | undefined> {
    let names = this.#directories.get(directory.number)
    if (names === undefined) {
      names = new Map((await this.list(directory)).map((entry) => [entry.name, entry.inode]))
      if (!this.#directories.has(directory.number)) this.#keepNames(directory.number, names)
    }
    return names.get(name)
  }

  #keepNames(directory: number, names: Map<string, number>): void {
    this.#directories.set(directory, names)
    this.#namesKept += names.size
    for (const [oldest, { size }] of this.#directories) {
      if (oldest === directory || (this.#directories.size <= DIRECTORIES_MAX && this.#namesKept <= NAMES_KEPT_MAX)) break
      this.#directories.delete(oldest)
      this.#namesKept -= size
    }
  }

  /** Bytes of a file from `offset` on, holes as zeroes; fewer than `length` at its end. */
  async content(file: Ext4Inode, offset: number, length: number): Promise<Buffer> {
    const end = Math.min(file.sizeBytes, offset + length)
    const bytes = Buffer.alloc(Math.max(0, end - offset))
    for (const run of (await this.blocks(file)).runs) {
      const from = Math.max(offset, run.fileOffset)
      const to = Math.min(end, run.fileOffset + run.length)
      if (from < to) await this.#disk.read(bytes.subarray(from - offset, to - offset), run.diskOffset + from - run.fileOffset)
    }
    return bytes
  }

  /** Target of a symlink, bytes in latin1. */
  async target(symlink: Ext4Inode): Promise<string> {
    if (symlink.sizeBytes <= FAST_SYMLINK_BYTES_MAX) return symlink.block.toString('latin1', 0, symlink.sizeBytes)
    return (await this.content(symlink, 0, this.blockBytes)).toString('latin1')
  }

  /**
   * Every name below the root, and the root itself: directories before what they hold, depth first. An inode with several names comes several times.
   * @throws VarveError FORMAT_INVALID, also for a directory that has two names; LIMIT_EXCEEDED
   */
  async *walk(): AsyncGenerator<Ext4Found> {
    const pending: { path: string; number: number; depth: number }[] = [{ path: '', number: ROOT_INODE, depth: 0 }]
    const visited = new Set<number>()
    for (let names = 0; pending.length > 0; ) {
      const { path, number, depth } = pending.pop()!
      const inode = await this.inode(number)
      yield { path, inode }
      if (inode.kind !== Kind.directory) continue
      if (visited.has(number)) throw invalid(`directory ${number} has two names`)
      if (depth === DEPTH_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: directories are nested more than ${DEPTH_MAX} deep`)
      visited.add(number)
      const entries = await this.list(inode)
      names += entries.length
      if (names > WALK_NAMES_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: more than ${WALK_NAMES_MAX} names`)
      for (let index = entries.length - 1; index >= 0; index--) {
        pending.push({ path: path === '' ? entries[index].name : `${path}/${entries[index].name}`, number: entries[index].inode, depth: depth + 1 })
      }
    }
  }

  async #extents(node: Buffer, at: { depth: number; inode: Ext4Inode; found: Ext4Blocks }): Promise<void> {
    const { inode, found } = at
    const count = node.readUInt16LE(2)
    const depth = node.readUInt16LE(6)
    const fits = EXTENT_ENTRY_BYTES * (count + 1) <= node.length
    if (node.readUInt16LE(0) !== EXTENT_MAGIC || !fits || depth > EXTENT_DEPTH_MAX || (at.depth >= 0 && depth !== at.depth - 1)) {
      throw invalid(`the extents of inode ${inode.number} are damaged`)
    }
    this.#extentsRead += count
    if (this.#extentsRead > EXTENTS_READ_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: more than ${EXTENTS_READ_MAX} extents`)
    for (let entry = EXTENT_ENTRY_BYTES; entry <= count * EXTENT_ENTRY_BYTES; entry += EXTENT_ENTRY_BYTES) {
      if (found.runs.length + found.nodes.length >= EXTENTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: inode ${inode.number} has more than ${EXTENTS_MAX} extents`)
      if (depth === 0) {
        this.#addRun(node, entry, inode, found)
      } else {
        const position = this.#place(node.readUInt32LE(entry + 4) + node.readUInt16LE(entry + 8) * 2 ** 32, this.blockBytes)
        found.nodes.push(position)
        await this.#extents(await this.#bytes(position, this.blockBytes), { depth, inode, found })
      }
    }
  }

  #addRun(node: Buffer, entry: number, { number, sizeBytes }: Ext4Inode, { runs }: Ext4Blocks): void {
    const fileOffset = node.readUInt32LE(entry) * this.blockBytes
    const blocks = node.readUInt16LE(entry + 4)
    const last = runs.at(-1)
    if (last !== undefined && fileOffset < last.fileOffset + last.length) throw invalid(`the extents of inode ${number} overlap`)
    if (blocks > WRITTEN_BLOCKS_MAX || fileOffset >= sizeBytes) return
    const diskOffset = this.#place(node.readUInt32LE(entry + 8) + node.readUInt16LE(entry + 6) * 2 ** 32, blocks * this.blockBytes)
    runs.push({ fileOffset, diskOffset, length: blocks * this.blockBytes })
  }

  /** Where a block lies on the disk. @throws VarveError FORMAT_INVALID if what begins there is not inside the filesystem */
  #place(block: number, length: number): number {
    const offset = block * this.blockBytes
    if (!(offset + length <= this.sizeBytes)) throw invalid(`block ${block} lies behind the end`)
    return this.start + offset
  }

  /** Perhaps a view of what is kept: not to be written to. */
  async #bytes(offset: number, length: number): Promise<Buffer> {
    const from = offset - (offset % WINDOW_BYTES)
    if (offset + length > from + WINDOW_BYTES) {
      const bytes = Buffer.alloc(length)
      await this.#disk.read(bytes, offset)
      return bytes
    }
    let window = this.#windows.get(from)
    if (window === undefined) {
      window = Buffer.alloc(Math.min(WINDOW_BYTES, this.#disk.sizeBytes - from))
      await this.#disk.read(window, from)
      if (this.#windows.size === WINDOWS_MAX) this.#windows.delete(this.#windows.keys().next().value!)
      this.#windows.set(from, window)
    }
    return window.subarray(offset - from, offset - from + length)
  }
}

interface Shape {
  start: number
  blockBytes: number
  blocks: number
  groups: number
  inodesPerGroup: number
  inodeBytes: number
  descriptorBytes: number
  /** On the disk, bytes. */
  descriptorsAt: number
  journalInode: number
}

function shapeOf(superblock: Buffer, start: number, diskBytes: number): Shape {
  if (superblock.readUInt16LE(0x38) !== MAGIC) throw invalid('there is no superblock')
  const incompat = superblock.readUInt32LE(0x60)
  if ((incompat & INCOMPAT.extents) === 0 || (incompat & ~INCOMPAT_READ) !== 0) throw new VarveError('FORMAT_UNSUPPORTED', `ext4: the features ${incompat.toString(16)} are not all known`)
  const logBlock = superblock.readUInt32LE(0x18)
  if (logBlock > 2) throw new VarveError('FORMAT_UNSUPPORTED', 'ext4: blocks of more than 4 KiB are not read')
  const blockBytes = 1024 << logBlock
  const is64 = (incompat & INCOMPAT.bit64) !== 0
  const blocks = superblock.readUInt32LE(0x04) + (is64 ? superblock.readUInt32LE(0x150) * 2 ** 32 : 0)
  const firstBlock = superblock.readUInt32LE(0x14)
  const blocksPerGroup = superblock.readUInt32LE(0x20)
  const inodesPerGroup = superblock.readUInt32LE(0x28)
  const inodeBytes = superblock.readUInt16LE(0x58)
  const descriptorBytes = is64 ? superblock.readUInt16LE(0xfe) : 32
  const groups = Math.ceil((blocks - firstBlock) / blocksPerGroup)
  const isPossible = start + blocks * blockBytes <= diskBytes && firstBlock <= 1 && blocksPerGroup >= 256 && blocksPerGroup <= 8 * blockBytes
    && inodesPerGroup >= 1 && inodesPerGroup <= 8 * blockBytes && inodeBytes >= 128 && inodeBytes <= blockBytes && (inodeBytes & (inodeBytes - 1)) === 0
    && descriptorBytes >= 32 && descriptorBytes <= 1024 && groups >= 1
  if (!isPossible) throw invalid('the superblock says what cannot be')
  if (groups > GROUPS_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: ${groups} groups are more than ${GROUPS_MAX}`)
  const descriptorsAt = start + (firstBlock + 1) * blockBytes
  return { start, blockBytes, blocks, groups, inodesPerGroup, inodeBytes, descriptorBytes, descriptorsAt, journalInode: superblock.readUInt32LE(0xe0) }
}

/** Names of one block of a directory. Blocks of an index look like one empty entry. */
function readNames(block: Buffer, directory: number, entries: DirectoryEntry[]): void {
  for (let at = 0; at < block.length; ) {
    const inode = at + 8 <= block.length ? block.readUInt32LE(at) : 0
    const length = at + 8 <= block.length ? block.readUInt16LE(at + 4) : 0
    const nameBytes = at + 8 <= block.length ? block[at + 6] : 0
    if (length < 8 + nameBytes || length % 4 !== 0 || at + length > block.length) throw invalid(`directory ${directory} is damaged`)
    const name = inode === 0 ? '.' : block.toString('latin1', at + 8, at + 8 + nameBytes)
    if (name !== '.' && name !== '..') {
      if (name === '' || name.includes('/') || name.includes('\0')) throw invalid(`directory ${directory} has a name that cannot be`)
      entries.push({ name, inode })
    }
    at += length
  }
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `ext4: ${what}`)
}
