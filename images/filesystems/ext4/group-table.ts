/**
 * GroupTable: descriptors of the groups of a filesystem: where their bitmaps and inodes are.
 * Bytes: Documentation/filesystems/ext4/group_descr.rst of Linux.
 */
import type { BlockReader } from './block-reader.ts'
import { invalid } from './block-reader.ts'
import { checksumShort, checksumUint32 } from './checksum.ts'
import { RO_COMPAT } from './format.ts'
import { hasCopy } from './superblock-reader.ts'
import type { Ext4Superblock } from './superblock-reader.ts'

/** Offsets inside a descriptor, of which the second is there only in long ones. */
const FIELD = { blockBitmap: [0x00, 0x20], inodeBitmap: [0x04, 0x24], inodeTable: [0x08, 0x28] } as const
const FLAGS_OFFSET = 0x12
const BITMAP_CHECKSUM_OFFSETS = [0x18, 0x38]
const CHECKSUM_OFFSET = 0x1e
const LONG_BYTES = 64
/** Reflected polynomial of CRC-16, of filesystems that have no other checksums. */
const CRC16_POLYNOMIAL = 0xa001

export class GroupTable {
  /** Bytes from the start of the filesystem to the end of the first copy of descriptors. */
  readonly headBytes: number
  readonly #superblock: Ext4Superblock
  readonly #bytes: Buffer
  /** By group: 1 if its checksum was found right. */
  readonly #checked: Uint8Array

  private constructor(superblock: Ext4Superblock, bytes: Buffer) {
    this.#superblock = superblock
    this.#bytes = bytes
    this.#checked = new Uint8Array(superblock.groups)
    this.headBytes = (superblock.firstBlock + 1 + Math.min(superblock.firstMetaBlock, blocksOf(superblock))) * superblock.blockBytes
  }

  /** @throws VarveError FORMAT_INVALID if it does not fit the volume */
  static async read(reader: BlockReader, superblock: Ext4Superblock): Promise<GroupTable> {
    const { blockBytes, firstBlock, blocksPerGroup, firstMetaBlock, group, blocks } = superblock
    const count = blocksOf(superblock)
    const bytes = Buffer.alloc(count * blockBytes)
    const perBlock = blockBytes / superblock.descriptorBytes
    for (let at = 0; at < count;) {
      // With a copy of the superblock come its descriptors; those of meta_bg are in the first group that they describe, and have copies in the second.
      const isMeta = at >= firstMetaBlock
      const metaGroup = at * perBlock + (isMeta && at === 0 && group > 0 ? 1 : 0)
      const first = isMeta ? firstBlock + metaGroup * blocksPerGroup + (hasCopy(superblock, metaGroup) ? 1 : 0) : firstBlock + group * blocksPerGroup + 1 + at
      const length = isMeta ? 1 : Math.min(count, firstMetaBlock) - at
      if (first + length > blocks) throw invalid('its descriptors lie behind the end')
      bytes.set(await reader.bytes(first * blockBytes, length * blockBytes), at * blockBytes)
      at += length
    }
    return new GroupTable(superblock, bytes)
  }

  /** First of the blocks that hold what `field` says. @throws VarveError FORMAT_INVALID if the descriptor is damaged, or points outside */
  block(group: number, field: keyof typeof FIELD): number {
    const { descriptorBytes, blocks, inodesPerGroup, inodeBytes, blockBytes } = this.#superblock
    this.#check(group)
    const [low, high] = FIELD[field]
    const at = group * descriptorBytes
    const block = this.#bytes.readUInt32LE(at + low) + (descriptorBytes >= LONG_BYTES ? this.#bytes.readUInt32LE(at + high) * 2 ** 32 : 0)
    const length = field === 'inodeTable' ? Math.ceil((inodesPerGroup * inodeBytes) / blockBytes) : 1
    if (block === 0 || block + length > blocks) throw invalid(`group ${group} has its ${field} at block ${block}, which cannot be`)
    return block
  }

  /** GROUP_FLAG. */
  flags(group: number): number {
    this.#check(group)
    return this.#bytes.readUInt16LE(group * this.#superblock.descriptorBytes + FLAGS_OFFSET)
  }

  /** What the checksum of its block bitmap must be, in `bits` bits. */
  bitmapChecksum(group: number): { checksum: number; bits: 16 | 32 } {
    this.#check(group)
    const at = group * this.#superblock.descriptorBytes
    const low = this.#bytes.readUInt16LE(at + BITMAP_CHECKSUM_OFFSETS[0])
    if (this.#superblock.descriptorBytes < LONG_BYTES) return { checksum: low, bits: 16 }
    return { checksum: low + this.#bytes.readUInt16LE(at + BITMAP_CHECKSUM_OFFSETS[1]) * 0x10000, bits: 32 }
  }

  /** How many of the blocks at the start of a group its superblock and descriptors take, those that are kept for growing included. */
  headBlocks(group: number): number {
    const superblock = this.#superblock
    const perBlock = superblock.blockBytes / superblock.descriptorBytes
    const copy = hasCopy(superblock, group) ? 1 : 0
    const metaBlock = Math.floor(group / perBlock)
    if (metaBlock >= superblock.firstMetaBlock) {
      const inMeta = group % perBlock
      return copy + (inMeta === 0 || inMeta === 1 || inMeta === perBlock - 1 ? 1 : 0)
    }
    return copy === 0 ? 0 : 1 + Math.min(superblock.firstMetaBlock, blocksOf(superblock)) + superblock.reservedDescriptorBlocks
  }

  #check(group: number): void {
    if (this.#checked[group] === 1) return
    const { roCompat, checksumSeed, descriptorBytes, uuid } = this.#superblock
    const bytes = this.#bytes.subarray(group * descriptorBytes, (group + 1) * descriptorBytes)
    const expected = bytes.readUInt16LE(CHECKSUM_OFFSET)
    let actual = expected
    if ((roCompat & RO_COMPAT.metadataCsum) !== 0) {
      const blanked = Buffer.from(bytes)
      blanked.writeUInt16LE(0, CHECKSUM_OFFSET)
      actual = checksumShort(checksumUint32(checksumSeed, group), blanked, 0, descriptorBytes) & 0xffff
    } else if ((roCompat & RO_COMPAT.groupChecksum) !== 0) {
      const number = Buffer.alloc(4)
      number.writeUInt32LE(group)
      actual = [uuid, number, bytes.subarray(0, CHECKSUM_OFFSET), bytes.subarray(CHECKSUM_OFFSET + 2)].reduce(crc16, 0xffff)
    }
    if (actual !== expected) throw invalid(`the descriptor of group ${group} is damaged`)
    this.#checked[group] = 1
  }
}

/** Blocks of one copy of all descriptors. */
function blocksOf({ groups, descriptorBytes, blockBytes }: Ext4Superblock): number {
  return Math.ceil((groups * descriptorBytes) / blockBytes)
}

function crc16(seed: number, bytes: Uint8Array): number {
  let crc = seed
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? CRC16_POLYNOMIAL : 0)
  }
  return crc
}
