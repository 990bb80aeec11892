/**
 * Demand: what a tree needs of a filesystem, known before anything is placed: blocks, inodes, and where attributes go.
 */
import { HOLE, Kind } from '../../tree/tree.ts'
import type { Tree } from '../../tree/tree.ts'
import { VarveError } from '../../errors.ts'
import { directoryBlocksMax, nameBytes } from './directories.ts'
import { extentTreeBlocks } from './extents.ts'
import { BLOCKS_PER_GROUP, BLOCK_BYTES, FAST_SYMLINK_BYTES_MAX, FILE_BYTES_MAX, FIRST_INODE, LOST_FOUND_BLOCKS, LOST_FOUND_NAME, blocksOf } from './format.ts'
import type { Geometry } from './geometry.ts'
import { XATTR_BLOCK_SHARES_MAX, planXattrs } from './xattrs.ts'
import type { XattrPlan } from './xattrs.ts'

/** Blocks that a file may cost where its data has to jump over a copy of the superblock or over inode tables: nodes of its extent tree. */
const JUMP_BLOCKS = 3

export interface Demand {
  /** At most this many blocks of directories. */
  directoryBlocks: number
  xattrBlocks: number
  symlinkBlocks: number
  /** Blocks of attribute values that have inodes of their own. */
  outsideBlocks: number
  /** Blocks of files, with their extent trees on a disk without obstacles. */
  fileBlocks: number
  /** Inodes, with the reserved ones. */
  inodes: number
  /** By attribute set of the tree. */
  xattrPlans: XattrPlan[]
  /** By attribute set: inodes that have it. */
  xattrUses: Uint32Array
}

/** @throws VarveError LIMIT_EXCEEDED, SOURCE_INVALID for what ext4 cannot hold */
export function demandOf(tree: Tree): Demand {
  const xattrUses = new Uint32Array(tree.xattrSets.length)
  for (let inode = 0; inode < tree.inodeCount; inode++) xattrUses[tree.xattrSet[inode]]++
  const xattrPlans = tree.xattrSets.map((set, index) => planXattrs(set, () => subjectOf(tree, tree.xattrSet.indexOf(index))))
  let xattrBlocks = 0
  let outsideBlocks = 0
  let outsideInodes = 0
  for (let set = 0; set < xattrPlans.length; set++) {
    const plan = xattrPlans[set]
    if (plan.block.length > 0) xattrBlocks += Math.ceil(xattrUses[set] / XATTR_BLOCK_SHARES_MAX)
    for (const { value } of plan.outside) outsideBlocks += blocksOf(value.length)
    outsideInodes += plan.outside.length
  }
  const lostFound = tree.child(0, LOST_FOUND_NAME)
  return {
    directoryBlocks: directoryBlocks(tree),
    xattrBlocks,
    symlinkBlocks: symlinkBlocks(tree),
    outsideBlocks,
    fileBlocks: fileBlocks(tree),
    // The root's number is one of the reserved ones.
    inodes: FIRST_INODE - 1 + tree.inodeCount - 1 + (lostFound < 0 ? 1 : 0) + outsideInodes,
    xattrPlans,
    xattrUses,
  }
}

/** Blocks that must be free in a geometry for the tree, its journal and the map of the resize inode. */
export function blocksNeeded(demand: Demand, geometry: Geometry): number {
  const data = demand.directoryBlocks + demand.xattrBlocks + demand.symlinkBlocks + demand.outsideBlocks + demand.fileBlocks
  return data + geometry.journalBlocks + 1 + geometry.freeStarts.length * JUMP_BLOCKS
}

/** Path of an inode's first entry, for messages. */
export function subjectOf(tree: Tree, inode: number): string {
  return JSON.stringify(Buffer.from(`/${tree.path(tree.inode.indexOf(inode))}`, 'latin1').toString())
}

function directoryBlocks(tree: Tree): number {
  let blocks = LOST_FOUND_BLOCKS
  for (let entry = 0; entry < tree.entryCount; entry++) {
    if (tree.kind[tree.inode[entry]] !== Kind.directory) continue
    const first = tree.firstChild[entry]
    const end = first + tree.childCount[entry]
    let bytes = 24 + (entry === 0 ? nameBytes(LOST_FOUND_NAME) : 0)
    let longest = 0
    for (let child = first; child < end; child++) {
      const name = tree.names[child]
      bytes += nameBytes(name)
      if (name.length > longest) longest = name.length
    }
    blocks += directoryBlocksMax(bytes, longest)
  }
  return blocks
}

function symlinkBlocks(tree: Tree): number {
  let blocks = 0
  for (const [inode, target] of tree.targets) {
    if (tree.kind[inode] !== Kind.symlink) continue
    if (target.length > FAST_SYMLINK_BYTES_MAX) blocks++
  }
  return blocks
}

function fileBlocks(tree: Tree): number {
  let blocks = 0
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    const size = tree.sizeBytes[inode]
    if (size === 0) continue
    if (size > FILE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${subjectOf(tree, inode)}: the file has ${size} bytes; at most ${FILE_BYTES_MAX} are possible`)
    let extents = 0
    forEachRun(tree, inode, (first, end) => {
      blocks += end - first
      extents += Math.ceil((end - first) / BLOCKS_PER_GROUP) + 1
    })
    blocks += extentTreeBlocks(extents)
  }
  return blocks
}

/** Calls back for each run of a file's blocks that hold data, in order; what lies between is holes that cover whole blocks. */
export function forEachRun(tree: Tree, inode: number, run: (first: number, end: number) => void): void {
  const { pieceChunk, pieceBytes } = tree
  const from = tree.firstPiece[inode]
  const to = from + tree.pieceCount[inode]
  let offset = 0
  let first = 0
  let end = 0
  for (let piece = from; piece < to; piece++) {
    const after = offset + pieceBytes[piece]
    if (pieceChunk[piece] !== HOLE) {
      const firstBlock = Math.floor(offset / BLOCK_BYTES)
      if (firstBlock > end) {
        if (end > first) run(first, end)
        first = firstBlock
      }
      end = Math.ceil(after / BLOCK_BYTES)
    }
    offset = after
  }
  if (end > first) run(first, end)
}
