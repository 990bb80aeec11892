/**
 * FileBlocks: where on the volume the content of an inode is, by its tree of extents or, in files of ext2 and ext3, its map of blocks.
 * Bytes: Documentation/filesystems/ext4/ifork.rst of Linux.
 */
import { VarveError } from '../../errors.ts'
import type { PlacedExtent } from '../file-extents.ts'
import type { Answer } from '../filesystem.ts'
import { invalid } from './block-reader.ts'
import type { BlockReader } from './block-reader.ts'
import { checksumBlock } from './checksum.ts'
import { EXTENT_BLOCKS_MAX, EXTENT_ENTRY_BYTES, EXTENT_MAGIC } from './extents.ts'
import { INODE, INODE_BLOCK_BYTES, INODE_FLAG, RO_COMPAT } from './format.ts'
import type { Ext4Inode } from './inode-reader.ts'
import type { Ext4Superblock } from './superblock-reader.ts'

export interface FileBlocks {
  /** In file order, up to the end of the last block that the file's size reaches; what lies between is holes. */
  runs: PlacedExtent[]
  /** Blocks of the tree or map outside of the inode, bytes from the start of the volume. */
  nodes: number[]
}

const EXTENT_DEPTH_MAX = 5
/** Of one file, with the blocks of its tree or map. */
const RUNS_MAX = 1 << 20
const DIRECT_BLOCKS = 12
const MAP_LEVELS = 3

/** A walk through the map of one inode. */
interface Walk {
  inode: Ext4Inode
  found: FileBlocks
  /** First block of the file that nothing was said of yet. */
  end: number
  /** Blocks of the file that its size reaches. */
  blocks: number
  /** Blocks of the volume that it claims are counted for all inodes together. */
  isFirst: boolean
  claimed: number
}

export class BlockMaps {
  readonly #reader: BlockReader
  readonly #superblock: Ext4Superblock
  /** Bitmaps by group of inodes whose blocks were counted, and how many blocks they claim: no block belongs to two, so that this bounds all work. */
  readonly #counted = new Map<number, Uint8Array>()
  #claimed = 0

  constructor(reader: BlockReader, superblock: Ext4Superblock) {
    this.#reader = reader
    this.#superblock = superblock
  }

  /** @param inode one whose content is in blocks @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  of(inode: Ext4Inode): Answer<FileBlocks> {
    const walk: Walk = {
      inode,
      found: { runs: [], nodes: [] },
      end: 0,
      blocks: Math.ceil(inode.sizeBytes / this.#superblock.blockBytes),
      isFirst: this.#isFirst(inode.number),
      claimed: 0,
    }
    const root = inode.bytes.subarray(INODE.block, INODE.block + INODE_BLOCK_BYTES)
    const done = (inode.flags & INODE_FLAG.extents) !== 0 ? this.#extentNode(walk, root, -1) : this.#map(walk, root)
    return done === undefined ? walk.found : done.then(() => walk.found)
  }

  #isFirst(number: number): boolean {
    const { inodesPerGroup } = this.#superblock
    const group = Math.floor((number - 1) / inodesPerGroup)
    const index = (number - 1) % inodesPerGroup
    let bitmap = this.#counted.get(group)
    if (bitmap === undefined) this.#counted.set(group, bitmap = new Uint8Array(Math.ceil(inodesPerGroup / 8)))
    const isFirst = (bitmap[index >>> 3] & (1 << (index & 7))) === 0
    bitmap[index >>> 3] |= 1 << (index & 7)
    return isFirst
  }

  #claim(walk: Walk, blocks: number): void {
    walk.claimed += blocks
    if (walk.isFirst) this.#claimed += blocks
    if (Math.max(walk.claimed, walk.isFirst ? this.#claimed : 0) > this.#superblock.blocks) throw invalid(`inode ${walk.inode.number} claims blocks of other files, or the same ones twice`)
  }

  /** @param above depth of the node that names this one; -1 for the root, which is in the inode */
  #extentNode(walk: Walk, node: Buffer, above: number): Promise<void> | undefined {
    const { number } = walk.inode
    const [count, most, depth] = [node.readUInt16LE(2), node.readUInt16LE(4), node.readUInt16LE(6)]
    const isPossible = node.readUInt16LE(0) === EXTENT_MAGIC && count <= most && EXTENT_ENTRY_BYTES * (most + 1) <= node.length && depth <= EXTENT_DEPTH_MAX
    if (!isPossible || (above >= 0 && depth !== above - 1)) throw invalid(`the extents of inode ${number} are damaged`)
    if (above >= 0 && (this.#superblock.roCompat & RO_COMPAT.metadataCsum) !== 0) {
      const tail = EXTENT_ENTRY_BYTES * (most + 1)
      if (tail + 4 > node.length || checksumBlock(walk.inode.checksumSeed, node.subarray(0, tail)) !== node.readUInt32LE(tail)) throw invalid(`a block with extents of inode ${number} is damaged`)
    }
    if (depth > 0) return this.#extentIndex(walk, node, depth)
    for (let at = EXTENT_ENTRY_BYTES; at <= count * EXTENT_ENTRY_BYTES; at += EXTENT_ENTRY_BYTES) {
      const length = node.readUInt16LE(at + 4)
      const isWritten = length <= EXTENT_BLOCKS_MAX
      const start = node.readUInt32LE(at + 8) + node.readUInt16LE(at + 6) * 2 ** 32
      this.#addRun(walk, { first: node.readUInt32LE(at), start, length: isWritten ? length : length - EXTENT_BLOCKS_MAX, isWritten })
    }
  }

  async #extentIndex(walk: Walk, node: Buffer, depth: number): Promise<void> {
    const count = node.readUInt16LE(2)
    for (let at = EXTENT_ENTRY_BYTES; at <= count * EXTENT_ENTRY_BYTES; at += EXTENT_ENTRY_BYTES) {
      await this.#extentNode(walk, await this.#node(walk, node.readUInt32LE(at + 4) + node.readUInt16LE(at + 8) * 2 ** 32), depth)
    }
  }

  /** Twelve blocks, then maps of one, two and three levels. */
  #map(walk: Walk, root: Buffer): Promise<void> | undefined {
    for (let index = 0; index < DIRECT_BLOCKS; index++) this.#addMapped(walk, index, root.readUInt32LE(index * 4))
    if (walk.blocks > DIRECT_BLOCKS) return this.#indirect(walk, root)
  }

  async #indirect(walk: Walk, root: Buffer): Promise<void> {
    const perBlock = this.#superblock.blockBytes / 4
    let first = DIRECT_BLOCKS
    for (let level = 1; level <= MAP_LEVELS && first < walk.blocks; level++) {
      const block = root.readUInt32LE((DIRECT_BLOCKS + level - 1) * 4)
      if (block !== 0) await this.#mapBlock(walk, block, level, first)
      first += perBlock ** level
    }
  }

  async #mapBlock(walk: Walk, block: number, level: number, first: number): Promise<void> {
    const node = await this.#node(walk, block)
    const span = (this.#superblock.blockBytes / 4) ** (level - 1)
    for (let at = 0, start = first; at < node.length && start < walk.blocks; at += 4, start += span) {
      const next = node.readUInt32LE(at)
      if (level === 1) this.#addMapped(walk, start, next)
      else if (next !== 0) await this.#mapBlock(walk, next, level - 1, start)
    }
  }

  #addMapped(walk: Walk, first: number, start: number): void {
    if (start !== 0) this.#addRun(walk, { first, start, length: 1, isWritten: true })
  }

  /** @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED */
  #addRun(walk: Walk, { first, start, length, isWritten }: { first: number; start: number; length: number; isWritten: boolean }): void {
    const { blockBytes } = this.#superblock
    const { runs, nodes } = walk.found
    if (first < walk.end || length === 0) throw invalid(`the blocks of inode ${walk.inode.number} overlap, or are in no order`)
    walk.end = first + length
    this.#checkPlace(walk, start, length)
    this.#claim(walk, length)
    const kept = Math.min(length, walk.blocks - first)
    if (!isWritten || kept <= 0) return
    const last = runs.at(-1)
    const [fileOffset, diskOffset] = [first * blockBytes, start * blockBytes]
    if (last !== undefined && last.fileOffset + last.length === fileOffset && last.diskOffset + last.length === diskOffset) last.length += kept * blockBytes
    else if (runs.push({ fileOffset, diskOffset, length: kept * blockBytes }) + nodes.length > RUNS_MAX) throw this.#tooMany(walk)
  }

  #node(walk: Walk, block: number): Answer<Buffer> {
    const { blockBytes } = this.#superblock
    const { runs, nodes } = walk.found
    this.#checkPlace(walk, block, 1)
    this.#claim(walk, 1)
    if (nodes.push(block * blockBytes) + runs.length > RUNS_MAX) throw this.#tooMany(walk)
    return this.#reader.bytes(block * blockBytes, blockBytes)
  }

  #checkPlace({ inode }: Walk, start: number, length: number): void {
    const { blocks, firstBlock } = this.#superblock
    if (start <= firstBlock || start + length > blocks) throw invalid(`inode ${inode.number} claims block ${start}, where no file can be`)
  }

  #tooMany({ inode }: Walk): VarveError {
    return new VarveError('LIMIT_EXCEEDED', `ext4: inode ${inode.number} is in more than ${RUNS_MAX} pieces`)
  }
}
