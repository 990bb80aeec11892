/**
 * Blocks that nothing uses, from the bitmaps; where a bitmap was never written, from what it would be.
 * Bytes: Documentation/filesystems/ext4/bitmaps.rst of Linux.
 */
import { clearRuns } from '../clear-runs.ts'
import type { VolumeRange } from '../filesystem.ts'
import { invalid } from './block-reader.ts'
import type { BlockReader } from './block-reader.ts'
import { checksumBlock } from './checksum.ts'
import { GROUP_FLAG, RO_COMPAT } from './format.ts'
import type { GroupTable } from './group-table.ts'
import type { Ext4Superblock } from './superblock-reader.ts'

/** In order; neighbours of two groups are one. @throws VarveError FORMAT_INVALID */
export async function* unusedRanges(reader: BlockReader, superblock: Ext4Superblock, groups: GroupTable): AsyncGenerator<VolumeRange> {
  const { blockBytes, blocks, firstBlock } = superblock
  for await (const { first, count } of clearRuns(bitmaps(reader, superblock, groups), blocks - firstBlock)) yield { offset: (firstBlock + first) * blockBytes, length: count * blockBytes }
}

/** Of all groups: one after the other, they are one bitmap of all blocks. */
async function* bitmaps(reader: BlockReader, superblock: Ext4Superblock, groups: GroupTable): AsyncGenerator<Uint8Array> {
  const guests = metadataByGroup(superblock, groups)
  for (let group = 0; group < superblock.groups; group++) yield await bitmapOf(reader, superblock, groups, group, guests.get(group) ?? [])
}

async function bitmapOf(reader: BlockReader, superblock: Ext4Superblock, groups: GroupTable, group: number, guests: readonly [number, number][]): Promise<Uint8Array> {
  const { blockBytes, blocksPerGroup, roCompat, checksumSeed } = superblock
  const hasFlags = (roCompat & (RO_COMPAT.metadataCsum | RO_COMPAT.groupChecksum)) !== 0
  if (hasFlags && (groups.flags(group) & GROUP_FLAG.blockUninit) !== 0) {
    const bitmap = new Uint8Array(blocksPerGroup / 8)
    let done = 0
    for (const [from, to] of [[0, groups.headBlocks(group)], ...guests].sort((a, b) => a[0] - b[0])) {
      for (let block = Math.max(from, done); block < to; block++) bitmap[block >>> 3] |= 1 << (block & 7)
      done = Math.max(done, to)
    }
    return bitmap
  }
  const bitmap = (await reader.bytes(groups.block(group, 'blockBitmap') * blockBytes, blockBytes)).subarray(0, blocksPerGroup / 8)
  if ((roCompat & RO_COMPAT.metadataCsum) !== 0) {
    const { checksum, bits } = groups.bitmapChecksum(group)
    const actual = checksumBlock(checksumSeed, bitmap)
    if ((bits === 32 ? actual : actual & 0xffff) !== checksum) throw invalid(`the block bitmap of group ${group} is damaged`)
  }
  return bitmap
}

/** Bitmaps and inode tables by the groups in which they stand, of whichever groups they are: runs of blocks inside the group. */
function metadataByGroup(superblock: Ext4Superblock, groups: GroupTable): Map<number, [number, number][]> {
  const { firstBlock, blocksPerGroup, inodesPerGroup, inodeBytes, blockBytes } = superblock
  const tableBlocks = Math.ceil((inodesPerGroup * inodeBytes) / blockBytes)
  const found = new Map<number, [number, number][]>()
  const add = (block: number, length: number): void => {
    for (let at = block - firstBlock, left = length; left > 0;) {
      const group = Math.floor(at / blocksPerGroup)
      const from = at - group * blocksPerGroup
      const count = Math.min(left, blocksPerGroup - from)
      const runs = found.get(group)
      if (runs === undefined) found.set(group, [[from, from + count]])
      else runs.push([from, from + count])
      at += count
      left -= count
    }
  }
  for (let group = 0; group < superblock.groups; group++) {
    add(groups.block(group, 'blockBitmap'), 1)
    add(groups.block(group, 'inodeBitmap'), 1)
    add(groups.block(group, 'inodeTable'), tableBlocks)
  }
  return found
}
