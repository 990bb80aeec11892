/**
 * Extents of one file, and the tree that keeps them: in the inode up to four, else in blocks of 340.
 * Bytes: Documentation/filesystems/ext4/ifork.rst of Linux.
 */
import type { LayoutSink } from '../../blockmap/layout-sink.ts'
import type { BlockAllocator } from './block-allocator.ts'
import { checksumBlock } from './checksum.ts'
import { BLOCK_BYTES, viewOf } from './format.ts'

/** Blocks of an extent; more means "allocated, but not yet written". */
export const EXTENT_BLOCKS_MAX = 32768
export const EXTENT_MAGIC = 0xf30a
export const EXTENT_ENTRY_BYTES = 12
const INODE_ENTRIES = 4
const BLOCK_ENTRIES = Math.floor((BLOCK_BYTES - EXTENT_ENTRY_BYTES) / EXTENT_ENTRY_BYTES)
const TAIL_OFFSET = EXTENT_ENTRY_BYTES + BLOCK_ENTRIES * EXTENT_ENTRY_BYTES

/** Sorted by logical block; reused from file to file. */
export class Extents {
  count = 0
  /** First block in the file. */
  logicals = new Float64Array(64)
  /** Blocks. */
  lengths = new Float64Array(64)
  /** First block on the disk. */
  physicals = new Float64Array(64)

  clear(): void {
    this.count = 0
  }

  /** Appends; grows the last extent where both sides go on from it. */
  add(logical: number, length: number, physical: number): void {
    const last = this.count - 1
    let done = 0
    if (last >= 0 && this.logicals[last] + this.lengths[last] === logical && this.physicals[last] + this.lengths[last] === physical) {
      done = Math.min(length, EXTENT_BLOCKS_MAX - this.lengths[last])
      this.lengths[last] += done
    }
    for (; done < length; done += EXTENT_BLOCKS_MAX) {
      if (this.count === this.logicals.length) this.#grow()
      this.logicals[this.count] = logical + done
      this.lengths[this.count] = Math.min(length - done, EXTENT_BLOCKS_MAX)
      this.physicals[this.count] = physical + done
      this.count++
    }
  }

  /** Appends a node of the tree: where it is, and from which logical block on it speaks. */
  addNode(logical: number, physical: number): void {
    if (this.count === this.logicals.length) this.#grow()
    this.logicals[this.count] = logical
    this.physicals[this.count] = physical
    this.count++
  }

  /** Index of the extent that holds a logical block, which must be allocated; looks from `hint` on. */
  indexOf(logical: number, hint: number): number {
    let at = hint
    while (this.logicals[at] + this.lengths[at] <= logical) at++
    return at
  }

  #grow(): void {
    const grown = (column: Float64Array) => {
      const larger = new Float64Array(column.length * 2)
      larger.set(column)
      return larger
    }
    this.logicals = grown(this.logicals)
    this.lengths = grown(this.lengths)
    this.physicals = grown(this.physicals)
  }
}

/** Blocks that the tree of `count` extents takes outside of the inode. */
export function extentTreeBlocks(count: number): number {
  let blocks = 0
  for (let nodes = count; nodes > INODE_ENTRIES;) {
    nodes = Math.ceil(nodes / BLOCK_ENTRIES)
    blocks += nodes
  }
  return blocks
}

/** Writes trees of extents; one for all files of a filesystem. */
export class ExtentTreeWriter {
  readonly #allocator: BlockAllocator
  readonly #sink: LayoutSink
  readonly #nodes = new Extents()

  constructor(allocator: BlockAllocator, sink: LayoutSink) {
    this.#allocator = allocator
    this.#sink = sink
  }

  /**
   * @param inode view on the inode; @param offset of its block field
   * @param seed checksum of the inode's number
   * @returns blocks that the tree took
   */
  write(extents: Extents, inode: DataView, offset: number, seed: number): number {
    if (extents.count <= INODE_ENTRIES) {
      writeNode(inode, offset, { depth: 0, most: INODE_ENTRIES, from: extents, first: 0, count: extents.count })
      return 0
    }
    const total = extentTreeBlocks(extents.count)
    this.#nodes.clear()
    this.#allocator.allocate(total, 0, this.#nodes)
    const bytes = new Uint8Array(total * BLOCK_BYTES)
    const view = viewOf(bytes)
    let level = extents
    let depth = 0
    let block = 0
    let hint = 0
    while (level.count > INODE_ENTRIES) {
      const above = new Extents()
      for (let first = 0; first < level.count; first += BLOCK_ENTRIES, block++) {
        const start = block * BLOCK_BYTES
        writeNode(view, start, { depth, most: BLOCK_ENTRIES, from: level, first, count: Math.min(BLOCK_ENTRIES, level.count - first) })
        view.setUint32(start + TAIL_OFFSET, checksumBlock(seed, bytes.subarray(start, start + TAIL_OFFSET)), true)
        hint = this.#nodes.indexOf(block, hint)
        above.addNode(level.logicals[first], this.#nodes.physicals[hint] + block - this.#nodes.logicals[hint])
      }
      level = above
      depth++
    }
    writeNode(inode, offset, { depth, most: INODE_ENTRIES, from: level, first: 0, count: level.count })
    for (let index = 0; index < this.#nodes.count; index++) {
      const start = this.#nodes.logicals[index] * BLOCK_BYTES
      this.#sink.bytes(this.#nodes.physicals[index] * BLOCK_BYTES, bytes.subarray(start, start + this.#nodes.lengths[index] * BLOCK_BYTES))
    }
    return total
  }
}

interface Node {
  depth: number
  /** Entries that there is room for. */
  most: number
  from: Extents
  first: number
  count: number
}

/** The view's signed setters write the same bits as the unsigned ones, and are compiled earlier by V8. */
function writeNode(view: DataView, offset: number, node: Node): void {
  view.setInt16(offset, EXTENT_MAGIC, true)
  view.setInt16(offset + 2, node.count, true)
  view.setInt16(offset + 4, node.most, true)
  view.setInt16(offset + 6, node.depth, true)
  view.setInt32(offset + 8, 0, true)
  for (let index = 0; index < node.count; index++) {
    const at = offset + EXTENT_ENTRY_BYTES * (index + 1)
    const physical = node.from.physicals[node.first + index]
    const low = physical >>> 0
    const high = Math.floor(physical / 2 ** 32)
    view.setInt32(at, node.from.logicals[node.first + index], true)
    if (node.depth === 0) {
      view.setInt16(at + 4, node.from.lengths[node.first + index], true)
      view.setInt16(at + 6, high, true)
      view.setInt32(at + 8, low, true)
    } else {
      view.setInt32(at + 4, low, true)
      view.setInt16(at + 8, high, true)
    }
  }
}
