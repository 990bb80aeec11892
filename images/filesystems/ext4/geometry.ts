/**
 * Geometry: where the fixed parts of a filesystem of a given size stand: superblocks, descriptors, bitmaps, inode tables,
 * and so where there is room for all else. Policy: docs/formats/ext4.md.
 */
import { VarveError } from '../../errors.ts'
import { ADDRESSES_PER_BLOCK, BLOCK_BYTES, BLOCKS_PER_GROUP, DESCRIPTORS_PER_BLOCK, GROUPS_PER_FLEX, INODES_PER_BLOCK, INODES_PER_GROUP_MAX } from './format.ts'

/** Smallest disk that we lay out, bytes. */
export const DISK_BYTES_MIN = 16 << 20
/** Largest, bytes: 64 TiB. */
export const DISK_BYTES_MAX = 64 * 2 ** 40
/** A last group with less room than this, after what it must hold itself, is left off (as mke2fs does). Blocks. */
const LAST_GROUP_BLOCKS_MIN = 50
/** Descriptor blocks kept free for growing online: 2 TiB in all. */
const RESERVED_DESCRIPTOR_BLOCKS_MAX = 256
/** Resizing with these works on 32-bit block numbers only. */
const RESIZE_BLOCKS_MAX = 2 ** 32 - 1
/** Blocks kept for root: one in a hundred, at most 256 MiB. */
const ROOT_SHARE = 0.01
const ROOT_BLOCKS_MAX = 65536

export class Geometry {
  readonly blocks: number
  readonly groups: number
  readonly inodesPerGroup: number
  /** Blocks of inode table in each group. */
  readonly tableBlocks: number
  readonly descriptorBlocks: number
  /** Blocks after the descriptors, of each copy, that growing may use. */
  readonly reservedDescriptorBlocks: number
  readonly journalBlocks: number
  /** Blocks that only root may use. */
  readonly rootBlocks: number

  // Block numbers, by group.
  readonly blockBitmaps: Float64Array
  readonly inodeBitmaps: Float64Array
  readonly inodeTables: Float64Array

  // What is free for data: disjoint runs in order of block number.
  readonly freeStarts: number[] = []
  readonly freeEnds: number[] = []
  /** Blocks in all free runs. */
  readonly freeBlocks: number

  /**
   * @param options.inodes that must fit, reserved ones included
   * @throws VarveError DISK_TOO_SMALL where not even the fixed parts or the inodes fit; LIMIT_EXCEEDED above DISK_BYTES_MAX
   */
  constructor(options: { sizeBytes: number; inodes: number }) {
    const { sizeBytes, inodes } = options
    if (sizeBytes < DISK_BYTES_MIN) throw new VarveError('DISK_TOO_SMALL', `an ext4 filesystem of ${sizeBytes} bytes: at least ${DISK_BYTES_MIN} are needed`)
    if (sizeBytes > DISK_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `an ext4 filesystem of ${sizeBytes} bytes: at most ${DISK_BYTES_MAX} are supported`)
    let blocks = Math.floor(sizeBytes / BLOCK_BYTES)
    let shape = shapeOf(blocks, inodes)
    const rest = blocks % BLOCKS_PER_GROUP
    if (shape.groups > 1 && rest > 0 && rest < shape.headBlocks + 2 + shape.tableBlocks + LAST_GROUP_BLOCKS_MIN) {
      blocks -= rest
      shape = shapeOf(blocks, inodes)
    }
    this.blocks = blocks
    this.groups = shape.groups
    this.inodesPerGroup = shape.tableBlocks * INODES_PER_BLOCK
    this.tableBlocks = shape.tableBlocks
    this.descriptorBlocks = shape.descriptorBlocks
    this.reservedDescriptorBlocks = shape.reservedDescriptorBlocks
    if (this.inodesPerGroup * this.groups < inodes) throw new VarveError('DISK_TOO_SMALL', `${inodes} inodes do not fit an ext4 filesystem of ${sizeBytes} bytes`)
    this.journalBlocks = journalBlocks(blocks)
    this.rootBlocks = Math.min(Math.floor(blocks * ROOT_SHARE), ROOT_BLOCKS_MAX)
    this.blockBitmaps = new Float64Array(this.groups)
    this.inodeBitmaps = new Float64Array(this.groups)
    this.inodeTables = new Float64Array(this.groups)
    this.freeBlocks = this.#place()
  }

  get inodes(): number {
    return this.inodesPerGroup * this.groups
  }

  /** Blocks at the start of a group for superblock and descriptors: 0 without a copy. */
  headBlocks(group: number): number {
    return hasSuperblock(group) ? 1 + this.descriptorBlocks + this.reservedDescriptorBlocks : 0
  }

  /** Blocks of a group: fewer in the last. */
  groupBlocks(group: number): number {
    return Math.min(BLOCKS_PER_GROUP, this.blocks - group * BLOCKS_PER_GROUP)
  }

  /** Blocks that the fixed parts and the journal take. */
  get overheadBlocks(): number {
    return this.blocks - this.freeBlocks + this.journalBlocks
  }

  /** Places bitmaps and tables of each 16 groups at the start of the first; what is left over is free. */
  #place(): number {
    let free = 0
    let from = 0
    const taken = (start: number, end: number) => {
      if (start > from) {
        this.freeStarts.push(from)
        this.freeEnds.push(start)
        free += start - from
      }
      from = end
    }
    for (let first = 0; first < this.groups; first += GROUPS_PER_FLEX) {
      const count = Math.min(GROUPS_PER_FLEX, this.groups - first)
      let at = first * BLOCKS_PER_GROUP
      let group = first
      // Copies of the superblock that lie below `end`: taken, and jumped over.
      const heads = (end: number) => {
        for (; group < first + count && group * BLOCKS_PER_GROUP < end; group++) {
          const head = this.headBlocks(group)
          if (head > 0) taken(group * BLOCKS_PER_GROUP, group * BLOCKS_PER_GROUP + head)
          if (head > 0) at = Math.max(at, group * BLOCKS_PER_GROUP + head)
        }
      }
      const run = (length: number): number => {
        for (let before = -1; before !== at;) {
          before = at
          heads(at + length)
        }
        const start = at
        taken(start, start + length)
        at += length
        return start
      }
      const blockBitmaps = run(count)
      const inodeBitmaps = run(count)
      for (let index = 0; index < count; index++) {
        this.blockBitmaps[first + index] = blockBitmaps + index
        this.inodeBitmaps[first + index] = inodeBitmaps + index
        this.inodeTables[first + index] = run(this.tableBlocks)
      }
      heads(Infinity)
      if (at > this.blocks) throw new VarveError('DISK_TOO_SMALL', `the inode tables do not fit ${this.blocks} blocks`)
    }
    taken(this.blocks, this.blocks)
    return free
  }
}

/** True for the groups with a copy of the superblock: 0, 1 and the powers of 3, 5 and 7 (sparse_super). */
export function hasSuperblock(group: number): boolean {
  if (group <= 1) return true
  for (const base of [3, 5, 7]) {
    let power = base
    while (power < group) power *= base
    if (power === group) return true
  }
  return false
}

function shapeOf(blocks: number, inodes: number) {
  const groups = Math.ceil(blocks / BLOCKS_PER_GROUP)
  const descriptorBlocks = Math.ceil(groups / DESCRIPTORS_PER_BLOCK)
  const wanted = Math.max(Math.floor((blocks * BLOCK_BYTES) / bytesPerInode(blocks)), Math.ceil(inodes * 1.25))
  const tableBlocks = Math.min(Math.ceil(wanted / groups / INODES_PER_BLOCK), INODES_PER_GROUP_MAX / INODES_PER_BLOCK)
  const reservedDescriptorBlocks = reservedBlocks(blocks, descriptorBlocks)
  return { groups, descriptorBlocks, tableBlocks, reservedDescriptorBlocks, headBlocks: 1 + descriptorBlocks + reservedDescriptorBlocks }
}

/** As mke2fs: an inode for each 16 KiB, fewer on disks of 4 TiB and 16 TiB. */
function bytesPerInode(blocks: number): number {
  const bytes = blocks * BLOCK_BYTES
  if (bytes < 4 * 2 ** 40) return 16384
  return bytes < 16 * 2 ** 40 ? 32768 : 65536
}

/** Enough to grow a thousandfold, up to 2 TiB; none where the disk is larger or its block numbers exceed 32 bits. */
function reservedBlocks(blocks: number, descriptorBlocks: number): number {
  if (blocks > RESIZE_BLOCKS_MAX) return 0
  const target = Math.min(blocks * 1024, RESIZE_BLOCKS_MAX)
  const targetDescriptorBlocks = Math.ceil(Math.ceil(target / BLOCKS_PER_GROUP) / DESCRIPTORS_PER_BLOCK)
  const most = Math.min(RESERVED_DESCRIPTOR_BLOCKS_MAX, ADDRESSES_PER_BLOCK)
  return Math.max(0, Math.min(targetDescriptorBlocks, most) - descriptorBlocks)
}

/** As mke2fs, up to 256 MiB. */
function journalBlocks(blocks: number): number {
  if (blocks < 32768) return 1024
  if (blocks < 262144) return 4096
  if (blocks < 524288) return 8192
  if (blocks < 4194304) return 16384
  return blocks < 8388608 ? 32768 : 65536
}
