/**
 * The superblock of a filesystem: the first one, or a copy if that is damaged.
 * Bytes: Documentation/filesystems/ext4/super.rst of Linux.
 */
import { VarveError } from '../../errors.ts'
import type { BlockReader } from './block-reader.ts'
import { invalid, unsupported } from './block-reader.ts'
import { CHECKSUM_START, checksumBlock } from './checksum.ts'
import { COMPAT, FIRST_INODE, INCOMPAT, RO_COMPAT } from './format.ts'

export interface Ext4Superblock {
  blockBytes: number
  /** Blocks of the filesystem, group 0 and what lies before it included. */
  blocks: number
  /** First block of group 0: 1 where blocks are of 1 KiB. */
  firstBlock: number
  blocksPerGroup: number
  groups: number
  inodes: number
  inodesPerGroup: number
  inodeBytes: number
  /** First number that a file of a user may have. */
  firstInode: number
  descriptorBytes: number
  compat: number
  incompat: number
  roCompat: number
  /** 16 bytes. */
  uuid: Buffer
  label: string
  isClean: boolean
  hasErrors: boolean
  /** Of all checksums of metadata. */
  checksumSeed: number
  /** 0 if there is none, or if it is on another device. */
  journalInode: number
  reservedDescriptorBlocks: number
  /** Descriptor blocks from this one on lie with their groups (meta_bg). */
  firstMetaBlock: number
  /** Groups with copies, of sparse_super2. */
  backupGroups: readonly number[]
  /** Group of the copy that this is. */
  group: number
}

const SUPERBLOCK_OFFSET = 1024
export const SUPERBLOCK_BYTES = 1024
const MAGIC = 0xef53
const STATE_CLEAN = 1
const STATE_ERRORS = 2
const CHECKSUM_CRC32C = 1
const BLOCK_BYTES_MAX = 64 << 10
const GROUPS_MAX = 1 << 20
/** Of all groups: they are kept. */
const DESCRIPTORS_BYTES_MAX = 64 << 20
/** Groups whose copies are looked for, and what is zero at least if the start of a volume was wiped, bytes: what other formats leave there is not. */
const COPY_GROUPS = [1, 3, 5, 7, 9, 25, 27, 49]
const WIPED_BYTES = 68 << 10

const INCOMPAT_READ =
  INCOMPAT.filetype | INCOMPAT.recover | INCOMPAT.metaBg | INCOMPAT.extents | INCOMPAT.bit64 | INCOMPAT.mmp | INCOMPAT.flexBg | INCOMPAT.eaInode | INCOMPAT.checksumSeed |
  INCOMPAT.largeDir | INCOMPAT.inlineData | INCOMPAT.encrypt | INCOMPAT.casefold

/** @throws VarveError FORMAT_INVALID (no ext4 there, or damaged with all its copies), FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
export async function readSuperblock(reader: BlockReader, volumeBytes: number): Promise<Ext4Superblock> {
  if (SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES > volumeBytes) throw invalid('the volume ends before its superblock')
  const bytes = await reader.bytes(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES)
  try {
    return parseSuperblock(bytes, volumeBytes, 0)
  } catch (error) {
    if (!(error instanceof VarveError) || error.code !== 'FORMAT_INVALID') throw error
    // Without a magic number it is another filesystem, whose predecessor may have left copies.
    if (bytes.readUInt16LE(0x38) !== MAGIC && !(await isWiped(reader, volumeBytes))) throw error
    const copy = await findCopy(reader, volumeBytes)
    if (copy === undefined) throw error
    return copy
  }
}

async function isWiped(reader: BlockReader, volumeBytes: number): Promise<boolean> {
  const head = await reader.bytes(0, Math.min(WIPED_BYTES, volumeBytes))
  return head.every((byte) => byte === 0)
}

/** Where a copy is follows from the size of a block, which is not known; a copy says which one it is. */
async function findCopy(reader: BlockReader, volumeBytes: number): Promise<Ext4Superblock | undefined> {
  for (let blockBytes = 1024; blockBytes <= BLOCK_BYTES_MAX; blockBytes *= 2) {
    const firstBlock = blockBytes === 1024 ? 1 : 0
    for (const group of COPY_GROUPS) {
      const offset = (firstBlock + group * 8 * blockBytes) * blockBytes
      if (offset + SUPERBLOCK_BYTES > volumeBytes) break
      try {
        const found = parseSuperblock(await reader.bytes(offset, SUPERBLOCK_BYTES), volumeBytes, group)
        if (found.group === group && (found.firstBlock + group * found.blocksPerGroup) * found.blockBytes === offset) return found
      } catch (error) {
        if (!(error instanceof VarveError)) throw error
      }
    }
  }
  return undefined
}

function parseSuperblock(bytes: Buffer, volumeBytes: number, group: number): Ext4Superblock {
  if (bytes.readUInt16LE(0x38) !== MAGIC) throw invalid('there is no superblock')
  // Revision 0 has neither features nor a choice of inodes.
  const isDynamic = bytes.readUInt32LE(0x4c) >= 1
  const [compat, incompat, roCompat] = isDynamic ? [bytes.readUInt32LE(0x5c), bytes.readUInt32LE(0x60), bytes.readUInt32LE(0x64)] : [0, 0, 0]
  const hasChecksums = (roCompat & RO_COMPAT.metadataCsum) !== 0
  if (hasChecksums && checksumBlock(CHECKSUM_START, bytes.subarray(0, SUPERBLOCK_BYTES - 4)) !== bytes.readUInt32LE(SUPERBLOCK_BYTES - 4)) throw invalid('the superblock is damaged')
  checkFeatures(incompat, roCompat, bytes)
  const uuid = Buffer.from(bytes.subarray(0x68, 0x78))
  const is64 = (incompat & INCOMPAT.bit64) !== 0
  const logBlock = bytes.readUInt32LE(0x18)
  const superblock: Ext4Superblock = {
    blockBytes: logBlock <= 6 ? 1024 << logBlock : 0,
    blocks: bytes.readUInt32LE(0x04) + (is64 ? bytes.readUInt32LE(0x150) * 2 ** 32 : 0),
    firstBlock: bytes.readUInt32LE(0x14),
    blocksPerGroup: bytes.readUInt32LE(0x20),
    groups: 0,
    inodes: bytes.readUInt32LE(0x00),
    inodesPerGroup: bytes.readUInt32LE(0x28),
    inodeBytes: isDynamic ? bytes.readUInt16LE(0x58) : 128,
    firstInode: isDynamic ? bytes.readUInt32LE(0x54) : FIRST_INODE,
    descriptorBytes: is64 ? bytes.readUInt16LE(0xfe) : 32,
    compat,
    incompat,
    roCompat,
    uuid,
    label: bytes.toString('utf8', 0x78, 0x88).replace(/\0[^]*/, ''),
    isClean: (bytes.readUInt16LE(0x3a) & STATE_CLEAN) !== 0 && (incompat & INCOMPAT.recover) === 0,
    hasErrors: (bytes.readUInt16LE(0x3a) & STATE_ERRORS) !== 0,
    checksumSeed: (incompat & INCOMPAT.checksumSeed) !== 0 ? bytes.readUInt32LE(0x270) : checksumBlock(CHECKSUM_START, uuid),
    journalInode: (compat & COMPAT.hasJournal) !== 0 ? bytes.readUInt32LE(0xe0) : 0,
    reservedDescriptorBlocks: bytes.readUInt16LE(0xce),
    firstMetaBlock: (incompat & INCOMPAT.metaBg) !== 0 ? bytes.readUInt32LE(0x104) : Infinity,
    backupGroups: [bytes.readUInt32LE(0x24c), bytes.readUInt32LE(0x250)],
    group: group === 0 ? 0 : bytes.readUInt16LE(0x5a),
  }
  superblock.groups = Math.ceil((superblock.blocks - superblock.firstBlock) / superblock.blocksPerGroup)
  checkShape(superblock, volumeBytes)
  return superblock
}

/** @throws VarveError FORMAT_UNSUPPORTED */
function checkFeatures(incompat: number, roCompat: number, bytes: Buffer): void {
  if ((incompat & INCOMPAT.journalDevice) !== 0) throw unsupported('this is the journal of another filesystem, and holds no files')
  if ((roCompat & RO_COMPAT.bigalloc) !== 0) throw unsupported('filesystems with clusters (bigalloc) are not read; copy its files to one without')
  if ((roCompat & RO_COMPAT.sharedBlocks) !== 0) throw unsupported('filesystems whose files share blocks (shared_blocks) are not read')
  if ((incompat & ~INCOMPAT_READ) !== 0) throw unsupported(`the features 0x${(incompat & ~INCOMPAT_READ).toString(16)} are not known; such filesystems are not read`)
  if ((roCompat & RO_COMPAT.metadataCsum) !== 0 && bytes[0x175] !== CHECKSUM_CRC32C) throw unsupported(`checksums of the kind ${bytes[0x175]} are not known`)
}

function checkShape({ blockBytes, blocks, firstBlock, blocksPerGroup, groups, inodes, inodesPerGroup, inodeBytes, descriptorBytes }: Ext4Superblock, volumeBytes: number): void {
  const isPowerOfTwo = (value: number): boolean => value > 0 && (value & (value - 1)) === 0
  const isPossible = blockBytes > 0 && firstBlock <= 1 && blocksPerGroup >= 256 && blocksPerGroup <= 8 * blockBytes && blocksPerGroup % 8 === 0
    && isPowerOfTwo(inodeBytes) && inodeBytes >= 128 && inodeBytes <= blockBytes && inodesPerGroup >= 1 && inodesPerGroup <= 8 * blockBytes
    && isPowerOfTwo(descriptorBytes) && descriptorBytes >= 32 && descriptorBytes <= 1024 && groups >= 1 && inodes >= 1 && inodes <= groups * inodesPerGroup
  if (!isPossible) throw invalid('the superblock says what cannot be')
  if (blocks * blockBytes > volumeBytes) throw invalid(`the volume of ${volumeBytes} bytes is smaller than the filesystem of ${blocks * blockBytes}: it was cut off`)
  if (groups > GROUPS_MAX || groups * descriptorBytes > DESCRIPTORS_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: ${groups} groups with descriptors of ${descriptorBytes} bytes; at most ${GROUPS_MAX} of 64 bytes are read`)
  // Each group has a table of its own.
  if (groups * Math.ceil((inodesPerGroup * inodeBytes) / blockBytes) > blocks) throw invalid('there is no room for its inodes')
}

/** True if a group begins with a copy of the superblock. */
export function hasCopy({ roCompat, compat, backupGroups }: Ext4Superblock, group: number): boolean {
  if (group === 0) return true
  if ((compat & COMPAT.sparseSuper2) !== 0) return backupGroups.includes(group)
  if (group === 1 || (roCompat & RO_COMPAT.sparseSuper) === 0) return true
  return [3, 5, 7].some((base) => {
    let power = base
    while (power < group) power *= base
    return power === group
  })
}
