/**
 * How large a disk a tree needs.
 */
import type { Tree } from '../../tree/tree.ts'
import { isVarveError } from '../../errors.ts'
import { blocksNeeded, demandOf } from './demand.ts'
import type { Demand } from './demand.ts'
import { BLOCKS_PER_GROUP, BLOCK_BYTES, INODES_PER_GROUP_MAX } from './format.ts'
import { DISK_BYTES_MIN, Geometry } from './geometry.ts'

/** Sizes are whole multiples of this, bytes. */
const SIZE_STEP_BYTES = 1 << 20
/** Free space unless asked otherwise: a quarter of the content, at least 1 GiB. */
const FREE_SHARE = 0.25
const FREE_BYTES_MIN = 2 ** 30

export interface Ext4SizeOptions {
  /** Bytes that anyone (not only root) can write to; default a quarter of the content and at least 1 GiB. */
  freeBytes?: number
  /** What `demandOf` says of the tree, if the caller has asked already. */
  demand?: Demand
}

/** Smallest size in bytes, a multiple of 1 MiB, at which the tree fits and so much is left free. @throws VarveError LIMIT_EXCEEDED */
export function ext4SizeBytes(tree: Tree, options: Ext4SizeOptions = {}): number {
  const demand = options.demand ?? demandOf(tree)
  const freeBytes = options.freeBytes ?? Math.max(FREE_BYTES_MIN, Math.ceil(demand.fileBlocks * BLOCK_BYTES * FREE_SHARE))
  return sizeFor(demand, freeBytes)
}

/**
 * The same for a known demand, at least `fromBytes`. Where the journal or another fixed part steps up, a larger disk may hold less:
 * that a tree fits one size does not say that it fits all above.
 */
export function sizeFor(demand: Demand, freeBytes: number, fromBytes = DISK_BYTES_MIN): number {
  const freeBlocks = Math.ceil(freeBytes / BLOCK_BYTES)
  const leastForInodes = Math.floor(demand.inodes / INODES_PER_GROUP_MAX) * BLOCKS_PER_GROUP * BLOCK_BYTES
  let sizeBytes = roundUp(Math.max(fromBytes, leastForInodes, (demand.fileBlocks + freeBlocks) * BLOCK_BYTES))
  for (;;) {
    const missing = missingBlocks(demand, freeBlocks, sizeBytes)
    if (missing <= 0) return sizeBytes
    sizeBytes += roundUp(missing * BLOCK_BYTES)
  }
}

function missingBlocks(demand: Demand, freeBlocks: number, sizeBytes: number): number {
  try {
    const geometry = new Geometry({ sizeBytes, inodes: demand.inodes })
    return blocksNeeded(demand, geometry) + freeBlocks + geometry.rootBlocks - geometry.freeBlocks
  } catch (error) {
    if (isVarveError(error, 'DISK_TOO_SMALL')) return 1
    throw error
  }
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / SIZE_STEP_BYTES) * SIZE_STEP_BYTES
}
