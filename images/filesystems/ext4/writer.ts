/**
 * Writer of ext4: lays a tree out as a filesystem. It generates the metadata, and points at the chunks that hold the files' content;
 * content is never read. The same tree and options give the same bytes. What we write and why: docs/formats/ext4.md.
 */
import type { LayoutSink } from '../../blockmap/layout-sink.ts'
import { VarveError } from '../../errors.ts'
import { HOLE, Kind } from '../../tree/tree.ts'
import type { Tree } from '../../tree/tree.ts'
import { BlockAllocator } from './block-allocator.ts'
import { checksumBlock } from './checksum.ts'
import { blocksNeeded, demandOf, forEachRun, subjectOf } from './demand.ts'
import type { Demand } from './demand.ts'
import { DirectoryWriter, Names } from './directories.ts'
import { hashSeedWords } from './directory-hash.ts'
import { ExtentTreeWriter, Extents } from './extents.ts'
import {
  BLOCK_BYTES, ENTRY_TYPE, FAST_SYMLINK_BYTES_MAX, INODE, INODE_BYTES, INODE_FLAG, JOURNAL_INODE, LINKS_MAX, LOST_FOUND_BLOCKS, LOST_FOUND_INODE, LOST_FOUND_NAME, MODE_TYPE,
  RESIZE_INODE, ROOT_INODE, blocksOf,
} from './format.ts'
import { Geometry } from './geometry.ts'
import { orderInodes } from './inode-order.ts'
import type { InodeOrder } from './inode-order.ts'
import { InodeTable, filesystemSeed } from './inode-table.ts'
import { journalSuperblock } from './journal.ts'
import { DOUBLE_INDIRECT_INDEX, RESIZE_INODE_BYTES, resizeMap } from './resize-inode.ts'
import { sizeFor } from './size.ts'
import { GroupWriter, putSuperblocks, writeSuperblock } from './superblock.ts'
import { XATTR_BLOCK_SHARES_MAX, sealXattrBlock, writeXattrBlock } from './xattrs.ts'

export { ext4SizeBytes } from './size.ts'
export type { Ext4SizeOptions } from './size.ts'

const SECTORS_PER_BLOCK = BLOCK_BYTES / 512
const MODE_FILE = MODE_TYPE[Kind.file]
const MODE_DIRECTORY = MODE_TYPE[Kind.directory]

export interface Ext4Options {
  /** Bytes of the volume; what `ext4SizeBytes` says, or more. */
  sizeBytes: number
  /** 16 bytes. */
  uuid: Uint8Array
  /** 16 bytes; where names stand in large directories. */
  hashSeed: Uint8Array
  /** At most 16 bytes of UTF-8. */
  label?: string
  /** Time of making, whole seconds since 1970. */
  timeSeconds: number
  /** Inodes of the tree whose data is laid out first, one after the other. Those that are no files are passed over. */
  order?: ArrayLike<number>
  /** What `demandOf` says of the tree, if the caller has asked already. */
  demand?: Demand
}

export interface Ext4Figures {
  /** Bytes of the filesystem; may be less than asked for by part of a group (128 MiB) that is too small to use. */
  sizeBytes: number
  freeBytes: number
  inodes: number
  inodesUsed: number
  directories: number
  files: number
  /** Bytes of the blocks that hold content of files. */
  dataBytes: number
  /** Bytes that were generated. */
  metadataBytes: number
  /** Times outside 1901 .. 2446, set to the nearest possible. */
  timesClamped: number
  /** Extended attributes of namespaces that ext4 does not have, left out; each inode counts. */
  xattrsDropped: number
  /** Extended attributes that need the feature ea_inode, because they do not fit a block. GRUB of Debian 12 (2.06) reads no filesystem with it. */
  eaInodes: number
}

/**
 * @param tree without whiteouts and links; otherwise TypeError
 * @throws VarveError DISK_TOO_SMALL, saying how much is needed, before anything is put; LIMIT_EXCEEDED, SOURCE_INVALID for what ext4 cannot hold
 */
export function writeExt4(tree: Tree, sink: LayoutSink, options: Ext4Options): Ext4Figures {
  return new Ext4Writer(tree, sink, options).write()
}

class Ext4Writer {
  readonly #tree: Tree
  readonly #options: Ext4Options
  readonly #sink: LayoutSink
  readonly #order: InodeOrder
  readonly #demand: Demand
  readonly #geometry: Geometry
  readonly #allocator: BlockAllocator
  readonly #table: InodeTable
  readonly #extentTrees: ExtentTreeWriter
  readonly #label: Uint8Array
  /** Of the file at hand. */
  readonly #extents = new Extents()
  readonly #directoryCounts: Uint32Array
  /** Values of attributes that have inodes of their own: their checksums by inode number. */
  readonly #outsideHashes = new Map<number, number>()
  #largeDir = false
  #metadataBytes = 0
  #dataBlocks = 0
  #files = 0
  #xattrsDropped = 0

  constructor(tree: Tree, sink: LayoutSink, options: Ext4Options) {
    if (options.uuid.length !== 16 || options.hashSeed.length !== 16) throw new RangeError('uuid and hash seed have 16 bytes')
    this.#label = new TextEncoder().encode(options.label ?? '')
    if (this.#label.length > 16) throw new RangeError('a label has at most 16 bytes')
    this.#tree = tree
    this.#options = options
    this.#sink = {
      bytes: (offset, bytes) => {
        this.#metadataBytes += bytes.length
        sink.bytes(offset, bytes)
      },
      chunk: (offset, length, chunk, chunkOffset) => sink.chunk(offset, length, chunk, chunkOffset),
    }
    this.#order = orderInodes(tree)
    this.#demand = options.demand ?? demandOf(tree)
    this.#geometry = fittingGeometry(this.#demand, options.sizeBytes)
    this.#allocator = new BlockAllocator(this.#geometry)
    this.#table = new InodeTable({ inodes: this.#demand.inodes, uuid: options.uuid })
    this.#extentTrees = new ExtentTreeWriter(this.#allocator, this.#sink)
    this.#directoryCounts = new Uint32Array(this.#geometry.groups)
  }

  write(): Ext4Figures {
    this.#setInodes()
    this.#putMetadata()
    this.#putFiles()
    this.#putJournal()
    this.#putResizeInode()
    this.#table.seal()
    this.#putInodeTable()
    const options = this.#options
    const geometry = this.#geometry
    const inodesUsed = this.#demand.inodes
    const groups = new GroupWriter(
      geometry,
      { position: this.#allocator.position, inodesUsed, directories: this.#directoryCounts, filesystemSeed: filesystemSeed(options.uuid) },
      this.#sink,
    )
    const superblock = writeSuperblock(geometry, {
      uuid: options.uuid,
      hashSeed: options.hashSeed,
      timeSeconds: options.timeSeconds,
      label: this.#label,
      freeBlocks: groups.freeBlocks,
      freeInodes: geometry.inodes - inodesUsed,
      eaInode: this.#outsideHashes.size > 0,
      largeDir: this.#largeDir,
      journal: new DataView(this.#table.bytes.buffer, this.#table.offset(JOURNAL_INODE), INODE_BYTES),
    })
    putSuperblocks(geometry, superblock, groups.descriptors, this.#sink)
    return {
      sizeBytes: geometry.blocks * BLOCK_BYTES,
      freeBytes: groups.freeBlocks * BLOCK_BYTES,
      inodes: geometry.inodes,
      inodesUsed,
      directories: this.#order.directories.length + (this.#order.lostFoundEntry < 0 ? 1 : 0),
      files: this.#files,
      dataBytes: this.#dataBlocks * BLOCK_BYTES,
      metadataBytes: this.#metadataBytes,
      timesClamped: this.#table.timesClamped,
      xattrsDropped: this.#xattrsDropped,
      eaInodes: this.#outsideHashes.size,
    }
  }

  /** All that does not depend on where blocks lie. */
  #setInodes(): void {
    const tree = this.#tree
    const { inodes, numbers } = this.#order
    const links = tree.linkCounts()
    const fields = { mode: 0, uid: 0, gid: 0, seconds: 0, nanoseconds: 0 }
    for (const inode of inodes) {
      const number = numbers[inode]
      const kind = tree.kind[inode]
      fields.mode = MODE_TYPE[kind] | tree.mode[inode]
      fields.uid = tree.uid[inode]
      fields.gid = tree.gid[inode]
      fields.seconds = tree.mtimeSeconds[inode]
      fields.nanoseconds = tree.mtimeNanoseconds[inode]
      this.#table.set(number, fields)
      const plan = this.#demand.xattrPlans[tree.xattrSet[inode]]
      this.#xattrsDropped += plan.dropped
      if (plan.body !== undefined) this.#table.bytes.set(plan.body, this.#table.offset(number) + INODE.xattrs)
      if (kind === Kind.directory) continue
      if (links[inode] > LINKS_MAX) throw new VarveError('LIMIT_EXCEEDED', `${subjectOf(tree, inode)}: the file has ${links[inode]} names; at most ${LINKS_MAX} are possible`)
      this.#table.setLinks(number, links[inode])
      if (kind === Kind.symlink) this.#setSymlink(inode, number)
      else if (kind === Kind.character || kind === Kind.block) this.#setDevice(inode, number)
    }
    const own = { mode: MODE_FILE | 0o600, uid: 0, gid: 0, seconds: this.#options.timeSeconds, nanoseconds: 0 }
    this.#table.set(JOURNAL_INODE, own)
    if (this.#geometry.reservedDescriptorBlocks > 0) this.#table.set(RESIZE_INODE, own)
    if (this.#order.lostFoundEntry < 0) this.#table.set(LOST_FOUND_INODE, { ...own, mode: MODE_DIRECTORY | 0o700 })
  }

  #setSymlink(inode: number, number: number): void {
    const target = this.#tree.targets.get(inode)
    if (target === undefined) throw new TypeError('a symlink of the tree has no target')
    this.#table.setSize(number, target.length)
    if (target.length <= FAST_SYMLINK_BYTES_MAX) this.#table.bytes.set(target, this.#table.offset(number) + INODE.block)
  }

  /** The old encoding where it can say it, as the kernel does. */
  #setDevice(inode: number, number: number): void {
    const major = this.#tree.deviceMajor[inode]
    const minor = this.#tree.deviceMinor[inode]
    if (major > 0xfff || minor > 0xfffff) throw new VarveError('LIMIT_EXCEEDED', `${subjectOf(this.#tree, inode)}: device ${major}:${minor}; at most 4095:1048575 are possible`)
    const at = this.#table.offset(number) + INODE.block
    if (major < 256 && minor < 256) this.#table.view.setUint32(at, (major << 8) | minor, true)
    else this.#table.view.setUint32(at + 4, ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0, true)
  }

  /** Directories, blocks of attributes, long symlinks, large attributes: one run of blocks, in this order. */
  #putMetadata(): void {
    const { demand, order } = { demand: this.#demand, order: this.#order }
    const bytes = new Uint8Array((demand.directoryBlocks + demand.xattrBlocks + demand.symlinkBlocks + demand.outsideBlocks) * BLOCK_BYTES)
    const directories = this.#writeDirectories(bytes)
    const xattrsAt = directories.end
    const symlinksAt = xattrsAt + demand.xattrBlocks
    const outsideAt = symlinksAt + demand.symlinkBlocks
    const end = outsideAt + demand.outsideBlocks
    const region = new Extents()
    this.#allocator.allocate(end, 0, region)
    for (let index = 0; index < order.directories.length; index++) {
      const number = order.numbers[this.#tree.inode[order.directories[index]]]
      this.#setDirectory(number, { first: directories.starts[index], end: directories.starts[index + 1], indexed: directories.indexed[index] === 1 }, region)
    }
    if (order.lostFoundEntry < 0) this.#setDirectory(LOST_FOUND_INODE, { first: directories.starts[order.directories.length], end: directories.end, indexed: false }, region)
    this.#writeOutside(bytes, outsideAt, region)
    this.#writeXattrBlocks(bytes, xattrsAt, region)
    this.#writeSymlinks(bytes, symlinksAt, region)
    for (let index = 0; index < region.count; index++) {
      const start = region.logicals[index] * BLOCK_BYTES
      this.#sink.bytes(region.physicals[index] * BLOCK_BYTES, bytes.subarray(start, start + region.lengths[index] * BLOCK_BYTES))
    }
  }

  /** @returns first block of each directory of `order.directories`, then of a lost+found that the tree does not have; blocks in all */
  #writeDirectories(bytes: Uint8Array): { starts: Float64Array; indexed: Uint8Array; end: number } {
    const tree = this.#tree
    const { directories, numbers, lostFoundEntry } = this.#order
    const writer = new DirectoryWriter(bytes, hashSeedWords(this.#options.hashSeed))
    const starts = new Float64Array(directories.length + 1)
    const indexed = new Uint8Array(directories.length)
    const names = new Names()
    let block = 0
    for (let index = 0; index < directories.length; index++) {
      const directory = directories[index]
      names.clear()
      let subdirectories = 0
      const first = tree.firstChild[directory]
      for (let entry = first; entry < first + tree.childCount[directory]; entry++) {
        const inode = tree.inode[entry]
        const kind = tree.kind[inode]
        if (kind === Kind.directory) subdirectories++
        names.add(tree.names[entry], numbers[inode], ENTRY_TYPE[kind])
      }
      if (directory === 0 && lostFoundEntry < 0) {
        names.add(LOST_FOUND_NAME, LOST_FOUND_INODE, ENTRY_TYPE[Kind.directory])
        subdirectories++
      }
      const self = numbers[tree.inode[directory]]
      const parent = numbers[tree.inode[tree.parent[directory]]]
      const blocksMin = directory === lostFoundEntry ? LOST_FOUND_BLOCKS : 1
      const result = writer.write(names, { block, self, parent, checksumSeed: this.#table.seed(self), blocksMin })
      this.#table.setLinks(self, subdirectories + 2 > LINKS_MAX ? 1 : subdirectories + 2)
      this.#largeDir ||= result.large
      indexed[index] = result.indexed ? 1 : 0
      starts[index] = block
      block += result.blocks
    }
    starts[directories.length] = block
    if (lostFoundEntry < 0) {
      names.clear()
      writer.write(names, { block, self: LOST_FOUND_INODE, parent: ROOT_INODE, checksumSeed: this.#table.seed(LOST_FOUND_INODE), blocksMin: LOST_FOUND_BLOCKS })
      this.#table.setLinks(LOST_FOUND_INODE, 2)
      block += LOST_FOUND_BLOCKS
    }
    return { starts, indexed, end: block }
  }

  #setDirectory(number: number, part: { first: number; end: number; indexed: boolean }, region: Extents): void {
    this.#directoryCounts[Math.floor((number - 1) / this.#geometry.inodesPerGroup)]++
    this.#setBlocks(number, part, region, part.indexed ? INODE_FLAG.extents | INODE_FLAG.index : INODE_FLAG.extents)
    this.#table.setSize(number, (part.end - part.first) * BLOCK_BYTES)
  }

  /** Gives an inode the blocks [first, end) of the region. */
  #setBlocks(number: number, part: { first: number; end: number }, region: Extents, flags: number): void {
    const extents = this.#extents
    extents.clear()
    let at = part.first
    for (let index = region.indexOf(at, 0); at < part.end; index++) {
      const skip = at - region.logicals[index]
      const length = Math.min(part.end - at, region.lengths[index] - skip)
      extents.add(at - part.first, length, region.physicals[index] + skip)
      at += length
    }
    this.#setExtents(number, part.end - part.first, flags)
  }

  /** Writes the extents at hand into an inode. */
  #setExtents(number: number, blocks: number, flags: number): void {
    const treeBlocks = this.#extentTrees.write(this.#extents, this.#table.view, this.#table.offset(number) + INODE.block, this.#table.seed(number))
    this.#table.setFlags(number, flags)
    this.#table.addSectors(number, (blocks + treeBlocks) * SECTORS_PER_BLOCK)
  }

  /** Values that do not fit a block, each in a file of its own that no directory names; their numbers follow those of the tree. */
  #writeOutside(bytes: Uint8Array, firstBlock: number, region: Extents): void {
    const { xattrPlans, xattrUses } = this.#demand
    let number = this.#order.nextNumber
    let block = firstBlock
    const seed = filesystemSeed(this.#options.uuid)
    for (let set = 0; set < xattrPlans.length; set++) {
      for (const attribute of xattrPlans[set].outside) {
        const hash = checksumBlock(seed, attribute.value)
        this.#outsideHashes.set(number, hash)
        attribute.valueInode = number
        bytes.set(attribute.value, block * BLOCK_BYTES)
        const blocks = blocksOf(attribute.value.length)
        this.#table.set(number, { mode: MODE_FILE | 0o600, uid: 0, gid: 0, seconds: this.#options.timeSeconds, nanoseconds: 0 })
        this.#table.setSize(number, attribute.value.length)
        this.#setBlocks(number, { first: block, end: block + blocks }, region, INODE_FLAG.extents | INODE_FLAG.eaInode)
        this.#table.setAttributeValue(number, { hash, references: Math.ceil(xattrUses[set] / XATTR_BLOCK_SHARES_MAX) })
        number++
        block += blocks
      }
    }
  }

  /** One block for all inodes that have the same attributes, as many as may share it. */
  #writeXattrBlocks(bytes: Uint8Array, firstBlock: number, region: Extents): void {
    const tree = this.#tree
    const { xattrPlans, xattrUses } = this.#demand
    const current = new Float64Array(xattrPlans.length)
    const shares = new Uint32Array(xattrPlans.length)
    const left = xattrUses.slice()
    const seed = filesystemSeed(this.#options.uuid)
    let next = firstBlock
    let hint = 0
    for (const inode of this.#order.inodes) {
      const set = tree.xattrSet[inode]
      const plan = xattrPlans[set]
      if (plan.block.length === 0) continue
      const number = this.#order.numbers[inode]
      if (shares[set] === 0) {
        shares[set] = Math.min(left[set], XATTR_BLOCK_SHARES_MAX)
        left[set] -= shares[set]
        const start = next * BLOCK_BYTES
        const block = bytes.subarray(start, start + BLOCK_BYTES)
        hint = region.indexOf(next, hint)
        current[set] = region.physicals[hint] + next - region.logicals[hint]
        writeXattrBlock(block, plan.block, (valueInode) => this.#outsideHashes.get(valueInode) ?? 0)
        sealXattrBlock(block, current[set], shares[set], seed)
        next++
      }
      shares[set]--
      this.#table.setXattrBlock(number, current[set])
      this.#table.addSectors(number, SECTORS_PER_BLOCK + plan.outsideSectors)
    }
  }

  #writeSymlinks(bytes: Uint8Array, firstBlock: number, region: Extents): void {
    const tree = this.#tree
    let block = firstBlock
    for (const inode of this.#order.inodes) {
      if (tree.kind[inode] !== Kind.symlink) continue
      const target = tree.targets.get(inode)!
      if (target.length <= FAST_SYMLINK_BYTES_MAX) continue
      bytes.set(target, block * BLOCK_BYTES)
      this.#setBlocks(this.#order.numbers[inode], { first: block, end: block + 1 }, region, INODE_FLAG.extents)
      block++
    }
  }

  #putFiles(): void {
    const { kind } = this.#tree
    const first = this.#options.order ?? []
    const done = new Uint8Array(this.#tree.inodeCount)
    const put = (inode: number) => {
      if (kind[inode] !== Kind.file || done[inode] === 1) return
      done[inode] = 1
      this.#putFile(inode)
    }
    for (let index = 0; index < first.length; index++) put(first[index])
    for (const inode of this.#order.inodes) put(inode)
  }

  #putFile(inode: number): void {
    const extents = this.#extents
    const number = this.#order.numbers[inode]
    this.#files++
    extents.clear()
    let blocks = 0
    forEachRun(this.#tree, inode, (first, end) => {
      this.#allocator.allocate(end - first, first, extents)
      blocks += end - first
    })
    this.#dataBlocks += blocks
    this.#setExtents(number, blocks, INODE_FLAG.extents)
    this.#table.setSize(number, this.#tree.sizeBytes[inode])
    this.#putContent(inode)
  }

  /** Points the blocks at hand at the chunks of the file; a chunk that lies in several extents is pointed at in parts. */
  #putContent(inode: number): void {
    const { pieceChunk, pieceBytes, firstPiece, pieceCount } = this.#tree
    const { logicals, lengths, physicals } = this.#extents
    const end = firstPiece[inode] + pieceCount[inode]
    let offset = 0
    let extent = 0
    for (let piece = firstPiece[inode]; piece < end; piece++) {
      const bytes = pieceBytes[piece]
      const chunk = pieceChunk[piece]
      if (chunk === HOLE) {
        offset += bytes
        continue
      }
      for (let done = 0; done < bytes;) {
        while ((logicals[extent] + lengths[extent]) * BLOCK_BYTES <= offset) extent++
        const part = Math.min(bytes - done, (logicals[extent] + lengths[extent]) * BLOCK_BYTES - offset)
        this.#sink.chunk(offset + (physicals[extent] - logicals[extent]) * BLOCK_BYTES, part, chunk, done)
        done += part
        offset += part
      }
    }
  }

  #putJournal(): void {
    const blocks = this.#geometry.journalBlocks
    const extents = this.#extents
    extents.clear()
    this.#allocator.allocate(blocks, 0, extents)
    this.#setExtents(JOURNAL_INODE, blocks, INODE_FLAG.extents)
    this.#table.setSize(JOURNAL_INODE, blocks * BLOCK_BYTES)
    this.#sink.bytes(extents.physicals[0] * BLOCK_BYTES, journalSuperblock({ blocks, uuid: this.#options.uuid }))
  }

  #putResizeInode(): void {
    if (this.#geometry.reservedDescriptorBlocks === 0) return
    const map = resizeMap(this.#geometry)
    const extents = this.#extents
    extents.clear()
    this.#allocator.allocate(1, 0, extents)
    const block = extents.physicals[0]
    this.#table.view.setUint32(this.#table.offset(RESIZE_INODE) + INODE.block + DOUBLE_INDIRECT_INDEX * 4, block, true)
    this.#table.setSize(RESIZE_INODE, RESIZE_INODE_BYTES)
    this.#table.addSectors(RESIZE_INODE, map.blocks * SECTORS_PER_BLOCK)
    this.#sink.bytes(block * BLOCK_BYTES, map.doubleIndirect)
    if (this.#geometry.groups > 1) this.#sink.bytes(map.reservedStart * BLOCK_BYTES, map.reserved)
  }

  /** Tables of neighbouring groups that stand side by side are put at once. */
  #putInodeTable(): void {
    const { inodeTables, inodesPerGroup, tableBlocks } = this.#geometry
    const { bytes } = this.#table
    const groupBytes = inodesPerGroup * INODE_BYTES
    const groups = Math.ceil(bytes.length / groupBytes)
    for (let group = 0; group < groups;) {
      let end = group + 1
      while (end < groups && inodeTables[end] === inodeTables[end - 1] + tableBlocks) end++
      this.#sink.bytes(inodeTables[group] * BLOCK_BYTES, bytes.subarray(group * groupBytes, end * groupBytes))
      group = end
    }
  }
}

/** @throws VarveError DISK_TOO_SMALL */
function fittingGeometry(demand: Demand, sizeBytes: number): Geometry {
  const least = sizeFor(demand, 0)
  if (sizeBytes >= least) {
    const geometry = new Geometry({ sizeBytes, inodes: demand.inodes })
    if (blocksNeeded(demand, geometry) <= geometry.freeBlocks) return geometry
  }
  const needed = sizeBytes < least ? least : sizeFor(demand, 0, sizeBytes)
  throw new VarveError('DISK_TOO_SMALL', `the files need a filesystem of ${Math.ceil(needed / 2 ** 20)} MiB (${needed} bytes), and ${sizeBytes} bytes are given`)
}
