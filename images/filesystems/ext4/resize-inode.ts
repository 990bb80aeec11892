/**
 * Map of the resize inode: owns the blocks that are reserved after the descriptors of each copy, so that the kernel can grow
 * the filesystem while it is mounted. An old-style indirect map: the reserved blocks after the first descriptors list those of the copies.
 * Bytes: ext2fs_create_resize_inode in lib/ext2fs/res_gdt.c of e2fsprogs.
 */
import { ADDRESSES_PER_BLOCK, BLOCK_BYTES, BLOCKS_PER_GROUP, viewOf } from './format.ts'
import { hasSuperblock } from './geometry.ts'
import type { Geometry } from './geometry.ts'

/** Size that the inode claims: all that a doubly indirect map can reach, bytes. */
export const RESIZE_INODE_BYTES = (12 + ADDRESSES_PER_BLOCK + ADDRESSES_PER_BLOCK ** 2) * BLOCK_BYTES
/** Of the doubly indirect block in the inode's block field. */
export const DOUBLE_INDIRECT_INDEX = 13

export interface ResizeMap {
  /** Content of the doubly indirect block. */
  doubleIndirect: Uint8Array
  /** Content of the reserved blocks of group 0, which start at `reservedStart`. */
  reserved: Uint8Array
  reservedStart: number
  /** Blocks that belong to the inode. */
  blocks: number
}

/** Only for a geometry with reserved descriptor blocks. */
export function resizeMap(geometry: Geometry): ResizeMap {
  const { descriptorBlocks, reservedDescriptorBlocks } = geometry
  const reservedStart = 1 + descriptorBlocks
  const doubleIndirect = new Uint8Array(BLOCK_BYTES)
  const reserved = new Uint8Array(reservedDescriptorBlocks * BLOCK_BYTES)
  const pointers = viewOf(doubleIndirect)
  const lists = viewOf(reserved)
  let copies = 0
  for (let group = 1; group < geometry.groups; group++) {
    if (!hasSuperblock(group)) continue
    for (let index = 0; index < reservedDescriptorBlocks; index++) {
      lists.setUint32(index * BLOCK_BYTES + copies * 4, group * BLOCKS_PER_GROUP + reservedStart + index, true)
    }
    copies++
  }
  for (let index = 0; index < reservedDescriptorBlocks; index++) {
    pointers.setUint32(((descriptorBlocks + index) % ADDRESSES_PER_BLOCK) * 4, reservedStart + index, true)
  }
  return { doubleIndirect, reserved, reservedStart, blocks: 1 + reservedDescriptorBlocks * (1 + copies) }
}
