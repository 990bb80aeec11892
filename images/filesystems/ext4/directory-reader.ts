/**
 * Names of a directory, block by block; an index over them is not needed to read them all, and looks like empty entries.
 * Bytes: Documentation/filesystems/ext4/directory.rst of Linux.
 */
import type { DirectoryEntry } from '../filesystem.ts'
import { invalid } from './block-reader.ts'
import { checksumBlock } from './checksum.ts'

const ENTRY_HEADER_BYTES = 8
/** The last entry of a block with a checksum: of no inode, with this type in place of a kind. */
const TAIL_BYTES = 12
const TAIL_TYPE = 0xde
/** In an index: where the counts stand, in its root behind `.` and `..`. */
const ROOT_COUNT_OFFSET = 32
const NODE_COUNT_OFFSET = 8
const INDEX_ENTRY_BYTES = 8

export interface DirectoryBlocks {
  directory: number
  /** Inodes of the filesystem. */
  inodes: number
}

/** Adds the names of one block. @throws VarveError FORMAT_INVALID */
export function readNames(block: Buffer, { directory, inodes }: DirectoryBlocks, entries: DirectoryEntry[]): void {
  for (let at = 0; at < block.length; ) {
    const isWhole = at + ENTRY_HEADER_BYTES <= block.length
    const length = isWhole ? recordBytes(block, at) : 0
    const nameBytes = isWhole ? block[at + 6] : 0
    if (length < ENTRY_HEADER_BYTES + nameBytes || length % 4 !== 0 || at + length > block.length) throw invalid(`directory ${directory} is damaged`)
    const id = block.readUInt32LE(at)
    const name = id === 0 ? '.' : block.toString('latin1', at + ENTRY_HEADER_BYTES, at + ENTRY_HEADER_BYTES + nameBytes)
    if (name !== '.' && name !== '..') {
      if (name === '' || name.includes('/') || name.includes('\0')) throw invalid(`directory ${directory} has a name that cannot be`)
      if (id > inodes) throw invalid(`directory ${directory} has a name for inode ${id}, which cannot be`)
      entries.push({ name, id })
    }
    at += length
  }
}

/** Blocks of 64 KiB are longer than the field counts; its two lowest bits go on where it ends. */
function recordBytes(block: Buffer, at: number): number {
  const field = block.readUInt16LE(at + 4)
  if (block.length < 65536) return field
  return field === 0xffff || field === 0 ? 65536 : (field & 0xfffc) | ((field & 3) << 16)
}

/** @param isIndexed the directory has an index @param isFirst the block is its first one @throws VarveError FORMAT_INVALID */
export function checkDirectoryBlock(block: Buffer, { directory, seed, isIndexed, isFirst }: { directory: number; seed: number; isIndexed: boolean; isFirst: boolean }): void {
  const isSound = isIndexed && (isFirst || recordBytes(block, 0) === block.length) ? isSoundIndex(block, seed, isFirst ? ROOT_COUNT_OFFSET : NODE_COUNT_OFFSET) : isSoundLeaf(block, seed)
  if (!isSound) throw invalid(`a block of directory ${directory} is damaged`)
}

function isSoundLeaf(block: Buffer, seed: number): boolean {
  const at = block.length - TAIL_BYTES
  const hasTail = block.readUInt32LE(at) === 0 && block.readUInt16LE(at + 4) === TAIL_BYTES && block[at + 6] === 0 && block[at + 7] === TAIL_TYPE
  return hasTail && checksumBlock(seed, block.subarray(0, at)) === block.readUInt32LE(at + 8)
}

/** Its checksum stands behind the room for entries, of which those in use are summed. */
function isSoundIndex(block: Buffer, seed: number, countAt: number): boolean {
  const [most, count] = [block.readUInt16LE(countAt), block.readUInt16LE(countAt + 2)]
  const tail = countAt + most * INDEX_ENTRY_BYTES
  if (count > most || tail + 8 > block.length) return false
  const summed = checksumBlock(seed, block.subarray(0, countAt + count * INDEX_ENTRY_BYTES))
  const reserved = Buffer.alloc(8)
  block.copy(reserved, 0, tail, tail + 4)
  return checksumBlock(summed, reserved) === block.readUInt32LE(tail + 4)
}
