/**
 * Blocks of directories: one linear block while all names fit, else an index over blocks sorted by the hash of the names (htree).
 * Bytes: Documentation/filesystems/ext4/directory.rst of Linux.
 */
import { VarveError } from '../../errors.ts'
import { checksumBlock } from './checksum.ts'
import { directoryHash } from './directory-hash.ts'
import { BLOCK_BYTES, viewOf } from './format.ts'

const ENTRY_BYTES = 8
const DOT_BYTES = 12
const TAIL_BYTES = 12
const TAIL_TYPE = 0xde
/** Bytes of a block for entries, in front of the checksum. */
const ROOM_BYTES = BLOCK_BYTES - TAIL_BYTES
/** Blocks under an index are filled up to here, so that the first names that a guest adds split no block (e2fsck -D leaves as much). */
const LEAF_BYTES = Math.floor(ROOM_BYTES * 0.8)

const HASH_VERSION_HALF_MD4 = 1
const INDEX_ENTRY_BYTES = 8
const ROOT_ENTRIES_OFFSET = 32
const NODE_ENTRIES_OFFSET = 8
/** Entries in the root of an index, and in its other nodes: all of the block but the checksum, which takes the room of one. */
const ROOT_ENTRIES = (BLOCK_BYTES - ROOT_ENTRIES_OFFSET) / INDEX_ENTRY_BYTES - 1
const NODE_ENTRIES = (BLOCK_BYTES - NODE_ENTRIES_OFFSET) / INDEX_ENTRY_BYTES - 1
/** Levels below the root that the format has; the third needs the feature large_dir. */
const LEVELS_MAX = 2
/** In an index: the block begins with a hash that the block before ends with. */
const CONTINUED = 1

/** Names of one directory; reused from directory to directory. */
export class Names {
  count = 0
  readonly names: string[] = []
  inodes = new Uint32Array(1024)
  types = new Uint8Array(1024)
  /** Bytes of a linear directory with these names. */
  bytes = 2 * DOT_BYTES

  clear(): void {
    this.count = 0
    this.bytes = 2 * DOT_BYTES
  }

  add(name: string, inode: number, type: number): void {
    if (this.count === this.inodes.length) {
      const inodes = new Uint32Array(this.count * 2)
      inodes.set(this.inodes)
      this.inodes = inodes
      const types = new Uint8Array(this.count * 2)
      types.set(this.types)
      this.types = types
    }
    this.names[this.count] = name
    this.inodes[this.count] = inode
    this.types[this.count] = type
    this.count++
    this.bytes += recordBytes(name)
  }
}

function recordBytes(name: string): number {
  return (ENTRY_BYTES + name.length + 3) & ~3
}

/** Most blocks that a directory with `bytes` bytes of names can take. @param longest bytes of its longest name */
export function directoryBlocksMax(bytes: number, longest: number): number {
  if (bytes <= ROOM_BYTES) return 1
  const leaves = Math.ceil(bytes / (LEAF_BYTES - ((ENTRY_BYTES + longest + 3) & ~3) + 4))
  let blocks = leaves + 1
  for (let nodes = leaves; nodes > ROOT_ENTRIES;) {
    nodes = Math.ceil(nodes / NODE_ENTRIES)
    blocks += nodes
  }
  return blocks
}

/** Bytes that a name takes in `directoryBlocksMax`; those of '.' and '..' are 24. */
export function nameBytes(name: string): number {
  return recordBytes(name)
}

export interface DirectoryResult {
  blocks: number
  indexed: boolean
  /** Needs the feature large_dir. */
  large: boolean
}

/** Writes directories one after the other into one buffer. */
export class DirectoryWriter {
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #seed: Int32Array

  /** @param hashSeed from hashSeedWords */
  constructor(bytes: Uint8Array, hashSeed: Int32Array) {
    this.#bytes = bytes
    this.#view = viewOf(bytes)
    this.#seed = hashSeed
  }

  /**
   * @param options.block where in the buffer, blocks
   * @param options.blocksMin as many blocks at least, the rest empty; linear directories only
   * @param options.checksumSeed checksum of the directory's inode number
   * @throws VarveError LIMIT_EXCEEDED
   */
  write(names: Names, options: { block: number; self: number; parent: number; checksumSeed: number; blocksMin: number }): DirectoryResult {
    const { block, self, parent, checksumSeed, blocksMin } = options
    if (names.bytes > ROOM_BYTES) return this.#writeIndexed(names, options)
    const start = block * BLOCK_BYTES
    this.#entry(start, '.', self, 2)
    let last = start + DOT_BYTES
    this.#entry(last, '..', parent, 2)
    for (let index = 0, next = last + DOT_BYTES; index < names.count; index++) {
      last = next
      next += this.#entry(last, names.names[index], names.inodes[index], names.types[index])
    }
    this.#close(start, last, checksumSeed)
    for (let more = 1; more < blocksMin; more++) {
      const empty = start + more * BLOCK_BYTES
      this.#close(empty, empty, checksumSeed)
    }
    return { blocks: Math.max(1, blocksMin), indexed: false, large: false }
  }

  /** Root, then the nodes of the index, then the names in order of their hashes. */
  #writeIndexed(names: Names, options: { block: number; self: number; parent: number; checksumSeed: number }): DirectoryResult {
    const { block, self, parent, checksumSeed } = options
    const { order, hashes } = sortByHash(names, this.#seed)
    const leaves = cutLeaves(names, order, hashes)
    const levels: number[] = []
    for (let nodes = leaves.count; nodes > ROOT_ENTRIES;) {
      nodes = Math.ceil(nodes / NODE_ENTRIES)
      levels.unshift(nodes)
    }
    if (levels.length > LEVELS_MAX) throw new VarveError('LIMIT_EXCEEDED', `a directory of ${names.count} names: ext4 cannot index as many`)
    const nodesTotal = levels.reduce((sum, nodes) => sum + nodes, 0)
    const start = block * BLOCK_BYTES

    this.#entry(start, '.', self, 2)
    this.#entry(start + DOT_BYTES, '..', parent, 2)
    this.#view.setUint16(start + DOT_BYTES + 4, BLOCK_BYTES - DOT_BYTES, true)
    this.#bytes[start + 28] = HASH_VERSION_HALF_MD4
    this.#bytes[start + 29] = 8
    this.#bytes[start + 30] = levels.length

    // From the leaves up: each level's nodes speak of the level below, which begins at block `below` of the directory.
    let below = 1 + nodesTotal
    let hashesBelow = leaves.hashes
    for (let level = levels.length - 1; level >= 0; level--) {
      const nodes = levels[level]
      const at = below - nodes
      hashesBelow = this.#indexLevel(hashesBelow, { start, first: at, nodes, below, checksumSeed })
      below = at
    }
    this.#indexEntries(start, ROOT_ENTRIES_OFFSET, ROOT_ENTRIES, hashesBelow, { from: 0, count: hashesBelow.length, below, checksumSeed })

    for (let leaf = 0; leaf < leaves.count; leaf++) {
      const leafStart = start + (1 + nodesTotal + leaf) * BLOCK_BYTES
      let last = leafStart
      let at = leafStart
      for (let index = leaves.starts[leaf]; index < leaves.starts[leaf + 1]; index++) {
        const name = order[index]
        last = at
        at += this.#entry(at, names.names[name], names.inodes[name], names.types[name])
      }
      this.#close(leafStart, last, checksumSeed)
    }
    return { blocks: 1 + nodesTotal + leaves.count, indexed: true, large: levels.length > 1 }
  }

  /** Writes one level of nodes with its entries spread evenly. @returns the first hash of each node */
  #indexLevel(hashesBelow: Uint32Array, at: { start: number; first: number; nodes: number; below: number; checksumSeed: number }): Uint32Array {
    const hashes = new Uint32Array(at.nodes)
    for (let node = 0; node < at.nodes; node++) {
      const from = Math.floor((hashesBelow.length * node) / at.nodes)
      const to = Math.floor((hashesBelow.length * (node + 1)) / at.nodes)
      const nodeStart = at.start + (at.first + node) * BLOCK_BYTES
      this.#view.setUint16(nodeStart + 4, BLOCK_BYTES, true)
      this.#indexEntries(nodeStart, NODE_ENTRIES_OFFSET, NODE_ENTRIES, hashesBelow, { from, count: to - from, below: at.below, checksumSeed: at.checksumSeed })
      hashes[node] = hashesBelow[from]
    }
    return hashes
  }

  /** Entries of a root or node, and its checksum. The first entry has no hash: limit and count stand in its place. */
  #indexEntries(start: number, offset: number, limit: number, hashes: Uint32Array, part: { from: number; count: number; below: number; checksumSeed: number }): void {
    const view = this.#view
    const entries = start + offset
    for (let index = 0; index < part.count; index++) {
      view.setUint32(entries + index * INDEX_ENTRY_BYTES, hashes[part.from + index], true)
      view.setUint32(entries + index * INDEX_ENTRY_BYTES + 4, part.below + part.from + index, true)
    }
    view.setUint16(entries, limit, true)
    view.setUint16(entries + 2, part.count, true)
    const end = entries + part.count * INDEX_ENTRY_BYTES
    const tail = entries + limit * INDEX_ENTRY_BYTES
    const covered = checksumBlock(part.checksumSeed, this.#bytes.subarray(start, end))
    view.setUint32(tail + 4, checksumBlock(covered, this.#bytes.subarray(tail, tail + 8)), true)
  }

  /** @returns its length; the view's signed setters write the same bits as the unsigned ones, and are compiled earlier by V8 */
  #entry(at: number, name: string, inode: number, type: number): number {
    const length = recordBytes(name)
    this.#view.setInt32(at, inode, true)
    this.#view.setInt16(at + 4, length, true)
    const bytes = this.#bytes
    bytes[at + 6] = name.length
    bytes[at + 7] = type
    for (let index = 0; index < name.length; index++) bytes[at + ENTRY_BYTES + index] = name.charCodeAt(index)
    return length
  }

  /** The last entry reaches to the end of the block's room; then the checksum. */
  #close(start: number, last: number, checksumSeed: number): void {
    const view = this.#view
    const tail = start + ROOM_BYTES
    view.setUint16(last + 4, tail - last, true)
    view.setUint16(tail + 4, TAIL_BYTES, true)
    view.setUint8(tail + 7, TAIL_TYPE)
    view.setUint32(tail + 8, checksumBlock(checksumSeed, this.#bytes.subarray(start, tail)), true)
  }
}

/** Names (as indices) in order of their hashes; names with one hash stay in their order. `hashes` by name. */
function sortByHash(names: Names, seed: Int32Array): { order: Uint32Array; hashes: Uint32Array } {
  const { count } = names
  const hashes = new Uint32Array(count)
  for (let index = 0; index < count; index++) hashes[index] = directoryHash(names.names[index], seed)
  // A hash of 31 bits and an index of 22 fit a number, and numbers sort fastest.
  const INDEX_LIMIT = 2 ** 22
  if (count <= INDEX_LIMIT) {
    const keys = new Float64Array(count)
    for (let index = 0; index < count; index++) keys[index] = (hashes[index] >>> 1) * INDEX_LIMIT + index
    keys.sort()
    const order = new Uint32Array(count)
    for (let index = 0; index < count; index++) order[index] = keys[index] % INDEX_LIMIT
    return { order, hashes }
  }
  const order = Uint32Array.from({ length: count }, (_, index) => index)
  order.sort((a, b) => hashes[a] - hashes[b] || a - b)
  return { order, hashes }
}

/** Cuts the sorted names into blocks. @returns first name of each block and, last, their number; hash that the index says of each */
function cutLeaves(names: Names, order: Uint32Array, hashes: Uint32Array): { count: number; starts: number[]; hashes: Uint32Array } {
  const starts: number[] = [0]
  const leafHashes: number[] = [0]
  let used = 0
  for (let index = 0; index < order.length; index++) {
    const bytes = recordBytes(names.names[order[index]])
    if (used + bytes > LEAF_BYTES) {
      const hash = hashes[order[index]]
      starts.push(index)
      leafHashes.push(hashes[order[index - 1]] === hash ? hash | CONTINUED : hash)
      used = 0
    }
    used += bytes
  }
  const count = starts.length
  starts.push(order.length)
  return { count, starts, hashes: Uint32Array.from(leafHashes, (hash) => hash >>> 0) }
}
