/**
 * Superblock, group descriptors and bitmaps, their copies included.
 * Bytes: Documentation/filesystems/ext4/{super,group_descr,bitmaps}.rst of Linux.
 */
import type { LayoutSink } from '../../blockmap/layout-sink.ts'
import { CHECKSUM_START, checksumBlock, checksumShort, checksumUint32 } from './checksum.ts'
import {
  BLOCK_BYTES, BLOCKS_PER_GROUP, COMPAT, DESCRIPTOR_BYTES, EXTRA_ISIZE_BYTES, FIRST_INODE, GROUP_FLAG, GROUPS_PER_FLEX_LOG, INCOMPAT, INODE, INODE_BYTES, JOURNAL_INODE,
  RO_COMPAT, viewOf,
} from './format.ts'
import { hasSuperblock } from './geometry.ts'
import type { Geometry } from './geometry.ts'

/** Of a copy of the superblock inside block 0; the other copies begin with their block. */
const PRIMARY_OFFSET = 1024
const SUPERBLOCK_BYTES = 1024
const MAGIC = 0xef53
const STATE_CLEAN = 1
const ERRORS_REMOUNT_READ_ONLY = 2
const MOUNT_XATTR_ACL = 0x4 | 0x8
const UNSIGNED_HASH = 0x2
const HASH_HALF_MD4 = 1
const CHECKSUM_CRC32C = 1
const JOURNAL_BACKUP = 1

export interface SuperblockFields {
  uuid: Uint8Array
  hashSeed: Uint8Array
  /** Bytes, at most 16. */
  label: Uint8Array
  timeSeconds: number
  freeBlocks: number
  freeInodes: number
  eaInode: boolean
  largeDir: boolean
  /** View on the journal's inode, whose block map is copied. */
  journal: DataView
}

/** @returns 1,024 bytes without group number and checksum */
export function writeSuperblock(geometry: Geometry, fields: SuperblockFields): Uint8Array {
  const bytes = new Uint8Array(SUPERBLOCK_BYTES)
  const view = viewOf(bytes)
  const compat = COMPAT.hasJournal | COMPAT.extAttr | COMPAT.dirIndex | (geometry.reservedDescriptorBlocks > 0 ? COMPAT.resizeInode : 0)
  const incompat =
    INCOMPAT.filetype | INCOMPAT.extents | INCOMPAT.bit64 | INCOMPAT.flexBg | (fields.eaInode ? INCOMPAT.eaInode : 0) | (fields.largeDir ? INCOMPAT.largeDir : 0)
  const roCompat = RO_COMPAT.sparseSuper | RO_COMPAT.largeFile | RO_COMPAT.hugeFile | RO_COMPAT.dirNlink | RO_COMPAT.extraIsize | RO_COMPAT.metadataCsum
  const set64 = (low: number, high: number, value: number) => {
    view.setUint32(low, value >>> 0, true)
    view.setUint32(high, Math.floor(value / 2 ** 32), true)
  }
  view.setUint32(0x00, geometry.inodes, true)
  set64(0x04, 0x150, geometry.blocks)
  set64(0x08, 0x154, geometry.rootBlocks)
  set64(0x0c, 0x158, fields.freeBlocks)
  view.setUint32(0x10, fields.freeInodes, true)
  view.setUint32(0x18, 2, true) // block size, 1024 << 2
  view.setUint32(0x1c, 2, true) // cluster size
  view.setUint32(0x20, BLOCKS_PER_GROUP, true)
  view.setUint32(0x24, BLOCKS_PER_GROUP, true) // clusters per group
  view.setUint32(0x28, geometry.inodesPerGroup, true)
  view.setUint16(0x36, 0xffff, true) // mounts between checks: no limit
  view.setUint16(0x38, MAGIC, true)
  view.setUint16(0x3a, STATE_CLEAN, true)
  view.setUint16(0x3c, ERRORS_REMOUNT_READ_ONLY, true)
  view.setUint32(0x4c, 1, true) // revision with dynamic inode size
  view.setUint32(0x54, FIRST_INODE, true)
  view.setUint16(0x58, INODE_BYTES, true)
  view.setUint32(0x5c, compat, true)
  view.setUint32(0x60, incompat, true)
  view.setUint32(0x64, roCompat, true)
  bytes.set(fields.uuid, 0x68)
  bytes.set(fields.label, 0x78)
  view.setUint16(0xce, geometry.reservedDescriptorBlocks, true)
  view.setUint32(0xe0, JOURNAL_INODE, true)
  bytes.set(fields.hashSeed, 0xec)
  view.setUint8(0xfc, HASH_HALF_MD4)
  view.setUint8(0xfd, JOURNAL_BACKUP)
  view.setUint16(0xfe, DESCRIPTOR_BYTES, true)
  view.setUint32(0x100, MOUNT_XATTR_ACL, true)
  for (let word = 0; word < 15; word++) view.setUint32(0x10c + word * 4, fields.journal.getUint32(INODE.block + word * 4, true), true)
  view.setUint32(0x148, fields.journal.getUint32(INODE.sizeHigh, true), true)
  view.setUint32(0x14c, fields.journal.getUint32(INODE.sizeLow, true), true)
  view.setUint16(0x15c, EXTRA_ISIZE_BYTES, true)
  view.setUint16(0x15e, EXTRA_ISIZE_BYTES, true)
  view.setUint32(0x160, UNSIGNED_HASH, true)
  view.setUint8(0x174, GROUPS_PER_FLEX_LOG)
  view.setUint8(0x175, CHECKSUM_CRC32C)
  view.setUint32(0x248, geometry.overheadBlocks, true)
  // Written, checked, made: low 32 bits, and 8 more.
  for (const [low, high] of [[0x30, 0x274], [0x40, 0x277], [0x108, 0x276]]) {
    view.setUint32(low, fields.timeSeconds >>> 0, true)
    view.setUint8(high, Math.floor(fields.timeSeconds / 2 ** 32))
  }
  return bytes
}

/** Puts the superblock and the descriptors where they belong, with all copies. */
export function putSuperblocks(geometry: Geometry, superblock: Uint8Array, descriptors: Uint8Array, sink: LayoutSink): void {
  for (let group = 0; group < geometry.groups; group++) {
    if (!hasSuperblock(group)) continue
    const block = new Uint8Array(BLOCK_BYTES)
    const copy = block.subarray(group === 0 ? PRIMARY_OFFSET : 0).subarray(0, SUPERBLOCK_BYTES)
    copy.set(superblock)
    const view = viewOf(copy)
    view.setUint16(0x5a, group, true)
    view.setUint32(SUPERBLOCK_BYTES - 4, checksumBlock(CHECKSUM_START, copy.subarray(0, SUPERBLOCK_BYTES - 4)), true)
    const offset = group * BLOCKS_PER_GROUP * BLOCK_BYTES
    sink.bytes(offset, block)
    sink.bytes(offset + BLOCK_BYTES, descriptors)
  }
}

export interface GroupUse {
  /** First block that no data, directory or journal lies in: all below are in use. */
  position: number
  /** Inodes in use, from number 1 on. */
  inodesUsed: number
  /** Directories by group. */
  directories: Uint32Array
  filesystemSeed: number
}

/** Writes descriptors and bitmaps. Bitmaps that a reader can know without reading are left out (flags *_UNINIT). */
export class GroupWriter {
  readonly descriptors: Uint8Array
  readonly #geometry: Geometry
  readonly #use: GroupUse
  readonly #view: DataView
  freeBlocks = 0

  constructor(geometry: Geometry, use: GroupUse, sink: LayoutSink) {
    this.#geometry = geometry
    this.#use = use
    this.descriptors = new Uint8Array(geometry.descriptorBlocks * BLOCK_BYTES)
    this.#view = viewOf(this.descriptors)
    const bitmaps = new BitmapRuns(sink)
    let run = 0
    for (let group = 0; group < geometry.groups; group++) run = this.#blockBitmap(group, run, bitmaps)
    bitmaps.flush()
    for (let group = 0; group < geometry.groups; group++) this.#inodeBitmap(group, bitmaps)
    bitmaps.flush()
    for (let group = 0; group < geometry.groups; group++) this.#describe(group)
  }

  /** @param run index of the first free run that ends after the start of the group; @returns the same for the next group */
  #blockBitmap(group: number, run: number, bitmaps: BitmapRuns): number {
    const geometry = this.#geometry
    const start = group * BLOCKS_PER_GROUP
    const length = geometry.groupBlocks(group)
    const end = start + length
    let at = run
    let free = 0
    let bitmap: Uint8Array | undefined
    while (at < geometry.freeStarts.length && geometry.freeEnds[at] <= start) at++
    const next = at
    for (; at < geometry.freeStarts.length && geometry.freeStarts[at] < end; at++) {
      const from = Math.max(geometry.freeStarts[at], start, this.#use.position)
      const to = Math.min(geometry.freeEnds[at], end)
      if (from >= to) continue
      free += to - from
      bitmap ??= new Uint8Array(BLOCK_BYTES).fill(0xff)
      clearBits(bitmap, from - start, to - start)
    }
    this.freeBlocks += free
    const descriptor = group * DESCRIPTOR_BYTES
    this.#set16(descriptor + 0x0c, descriptor + 0x2c, free)
    // The last group is never left out: its length is odd, and e2fsprogs writes it out, too.
    if (free === length - geometry.headBlocks(group) && group !== geometry.groups - 1) {
      this.#addFlag(descriptor, GROUP_FLAG.blockUninit)
    } else {
      const bytes = bitmap ?? FULL_BLOCK
      bitmaps.add(geometry.blockBitmaps[group], bytes)
      this.#set16(descriptor + 0x18, descriptor + 0x38, checksumBlock(this.#use.filesystemSeed, bytes))
    }
    return next
  }

  #inodeBitmap(group: number, bitmaps: BitmapRuns): void {
    const geometry = this.#geometry
    const { inodesPerGroup } = geometry
    const used = Math.min(Math.max(this.#use.inodesUsed - group * inodesPerGroup, 0), inodesPerGroup)
    const descriptor = group * DESCRIPTOR_BYTES
    this.#set16(descriptor + 0x0e, descriptor + 0x2e, inodesPerGroup - used)
    this.#set16(descriptor + 0x1c, descriptor + 0x32, inodesPerGroup - used)
    this.#set16(descriptor + 0x10, descriptor + 0x30, this.#use.directories[group])
    this.#addFlag(descriptor, GROUP_FLAG.itableZeroed)
    if (used === 0) {
      this.#addFlag(descriptor, GROUP_FLAG.inodeUninit)
      return
    }
    const bytes = new Uint8Array(BLOCK_BYTES).fill(0xff)
    clearBits(bytes, used, inodesPerGroup)
    bitmaps.add(geometry.inodeBitmaps[group], bytes)
    this.#set16(descriptor + 0x1a, descriptor + 0x3a, checksumShort(this.#use.filesystemSeed, bytes, 0, inodesPerGroup / 8))
  }

  #describe(group: number): void {
    const { blockBitmaps, inodeBitmaps, inodeTables } = this.#geometry
    const at = group * DESCRIPTOR_BYTES
    const view = this.#view
    for (const [offset, block] of [[0x00, blockBitmaps[group]], [0x04, inodeBitmaps[group]], [0x08, inodeTables[group]]]) {
      view.setUint32(at + offset, block >>> 0, true)
      view.setUint32(at + offset + 0x20, Math.floor(block / 2 ** 32), true)
    }
    const seed = checksumUint32(this.#use.filesystemSeed, group)
    view.setUint16(at + 0x1e, checksumShort(seed, this.descriptors, at, at + DESCRIPTOR_BYTES) & 0xffff, true)
  }

  #addFlag(descriptor: number, flag: number): void {
    this.#view.setUint16(descriptor + 0x12, this.#view.getUint16(descriptor + 0x12, true) | flag, true)
  }

  #set16(low: number, high: number, value: number): void {
    this.#view.setUint16(low, value & 0xffff, true)
    this.#view.setUint16(high, value >>> 16, true)
  }
}

const FULL_BLOCK: Uint8Array = new Uint8Array(BLOCK_BYTES).fill(0xff)

/** Gathers neighbouring bitmaps into one call of the sink. */
class BitmapRuns {
  readonly #sink: LayoutSink
  #first = 0
  #blocks: Uint8Array[] = []

  constructor(sink: LayoutSink) {
    this.#sink = sink
  }

  add(block: number, bytes: Uint8Array): void {
    if (this.#blocks.length > 0 && this.#first + this.#blocks.length !== block) this.flush()
    if (this.#blocks.length === 0) this.#first = block
    this.#blocks.push(bytes)
  }

  flush(): void {
    if (this.#blocks.length === 0) return
    const bytes = new Uint8Array(this.#blocks.length * BLOCK_BYTES)
    for (let index = 0; index < this.#blocks.length; index++) bytes.set(this.#blocks[index], index * BLOCK_BYTES)
    this.#sink.bytes(this.#first * BLOCK_BYTES, bytes)
    this.#blocks = []
  }
}

function clearBits(bytes: Uint8Array, from: number, to: number): void {
  let at = from
  for (; at < to && (at & 7) !== 0; at++) bytes[at >>> 3] &= ~(1 << (at & 7))
  const whole = to & ~7
  if (whole > at) {
    bytes.fill(0, at >>> 3, whole >>> 3)
    at = whole
  }
  for (; at < to; at++) bytes[at >>> 3] &= ~(1 << (at & 7))
}
