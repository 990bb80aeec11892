/**
 * Constants of the ext4 disk format. What we choose among them when we write: docs/formats/ext4.md; what we read: docs/filesystems.md.
 * Bytes: Linux, Documentation/filesystems/ext4; lib/ext2fs/ext2_fs.h of e2fsprogs.
 */
import { Kind } from '../../tree/tree.ts'

export const BLOCK_BYTES = 4096
export const INODE_BYTES = 256
/** Bytes of an inode beyond the first 128 that hold fields; what follows is for extended attributes. */
export const EXTRA_ISIZE_BYTES = 32
export const DESCRIPTOR_BYTES = 64
/** As many as one block of bitmap describes. */
export const BLOCKS_PER_GROUP = 8 * BLOCK_BYTES
export const INODES_PER_GROUP_MAX = 8 * BLOCK_BYTES
export const INODES_PER_BLOCK = BLOCK_BYTES / INODE_BYTES
export const DESCRIPTORS_PER_BLOCK = BLOCK_BYTES / DESCRIPTOR_BYTES
/** Block numbers in a block of an indirect map. */
export const ADDRESSES_PER_BLOCK = BLOCK_BYTES / 4
/** Groups whose bitmaps and inode tables stand together (flex_bg). */
export const GROUPS_PER_FLEX_LOG = 4
export const GROUPS_PER_FLEX = 1 << GROUPS_PER_FLEX_LOG

export const ROOT_INODE = 2
export const RESIZE_INODE = 7
export const JOURNAL_INODE = 8
export const FIRST_INODE = 11
export const LOST_FOUND_INODE = FIRST_INODE
export const LOST_FOUND_NAME = 'lost+found'
/** What mke2fs gives lost+found, so that e2fsck need not allocate there. */
export const LOST_FOUND_BLOCKS = 4

/** Most names of a file; a directory with more subdirectories counts 1 (dir_nlink). */
export const LINKS_MAX = 65000
/** Longest target of a symlink that stands in the inode, bytes; longer ones, up to TARGET_BYTES_MAX of a tree, take one block. */
export const FAST_SYMLINK_BYTES_MAX = 59
/** Largest file: 2^32 - 1 blocks, bytes. */
export const FILE_BYTES_MAX = (2 ** 32 - 1) * BLOCK_BYTES

export const COMPAT = { hasJournal: 0x4, extAttr: 0x8, resizeInode: 0x10, dirIndex: 0x20, sparseSuper2: 0x200 } as const
export const INCOMPAT = {
  compression: 0x1,
  filetype: 0x2,
  recover: 0x4,
  journalDevice: 0x8,
  metaBg: 0x10,
  extents: 0x40,
  bit64: 0x80,
  mmp: 0x100,
  flexBg: 0x200,
  eaInode: 0x400,
  dirData: 0x1000,
  checksumSeed: 0x2000,
  largeDir: 0x4000,
  inlineData: 0x8000,
  encrypt: 0x10000,
  casefold: 0x20000,
} as const
export const RO_COMPAT = {
  sparseSuper: 0x1,
  largeFile: 0x2,
  hugeFile: 0x8,
  groupChecksum: 0x10,
  dirNlink: 0x20,
  extraIsize: 0x40,
  bigalloc: 0x200,
  metadataCsum: 0x400,
  sharedBlocks: 0x4000,
} as const

export const INODE_FLAG = { encrypt: 0x800, index: 0x1000, hugeFile: 0x40000, extents: 0x80000, eaInode: 0x200000, inlineData: 0x10000000, casefold: 0x40000000 } as const
export const GROUP_FLAG = { inodeUninit: 1, blockUninit: 2, itableZeroed: 4 } as const

/** Offsets inside an inode. */
export const INODE = {
  mode: 0x00,
  uidLow: 0x02,
  sizeLow: 0x04,
  atime: 0x08,
  ctime: 0x0c,
  mtime: 0x10,
  gidLow: 0x18,
  links: 0x1a,
  blocksLow: 0x1c,
  flags: 0x20,
  version: 0x24,
  block: 0x28,
  generation: 0x64,
  fileAclLow: 0x68,
  sizeHigh: 0x6c,
  blocksHigh: 0x74,
  fileAclHigh: 0x76,
  uidHigh: 0x78,
  gidHigh: 0x7a,
  checksumLow: 0x7c,
  extraIsize: 0x80,
  checksumHigh: 0x82,
  ctimeExtra: 0x84,
  mtimeExtra: 0x88,
  atimeExtra: 0x8c,
  crtime: 0x90,
  crtimeExtra: 0x94,
  xattrs: 128 + EXTRA_ISIZE_BYTES,
} as const

/** Room for block numbers, extents, a short target or inline data, bytes. */
export const INODE_BLOCK_BYTES = 60
/** Room for extended attributes in an inode, bytes. */
export const INODE_XATTR_BYTES = INODE_BYTES - INODE.xattrs

/** By Kind: the type bits of an inode's mode; 0 for what ext4 does not hold. */
export const MODE_TYPE: Readonly<Uint16Array> = new Uint16Array(10)
/** By Kind: the type of a directory entry. */
export const ENTRY_TYPE: Readonly<Uint8Array> = new Uint8Array(10)
for (const [kind, mode, entry] of [
  [Kind.file, 0o100000, 1],
  [Kind.directory, 0o040000, 2],
  [Kind.character, 0o020000, 3],
  [Kind.block, 0o060000, 4],
  [Kind.fifo, 0o010000, 5],
  [Kind.socket, 0o140000, 6],
  [Kind.symlink, 0o120000, 7],
]) {
  ;(MODE_TYPE as Uint16Array)[kind] = mode
  ;(ENTRY_TYPE as Uint8Array)[kind] = entry
}

/** Blocks that hold `bytes` bytes. */
export function blocksOf(bytes: number): number {
  return Math.ceil(bytes / BLOCK_BYTES)
}

/** A view on the same bytes, for little-endian fields. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
