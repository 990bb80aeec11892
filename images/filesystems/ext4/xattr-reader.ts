/**
 * Extended attributes as they stand on the disk: behind the fields of an inode, in a block, and values in inodes of their own.
 * Bytes: Documentation/filesystems/ext4/attributes.rst of Linux.
 */
import { XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX } from '../../tree/limits.ts'
import type { Xattr } from '../../tree/tree.ts'
import { sortedXattrs } from '../../tree/xattr-set.ts'
import { invalid } from './block-reader.ts'
import type { BlockReader } from './block-reader.ts'
import { checksumBlock } from './checksum.ts'
import { RO_COMPAT } from './format.ts'
import { SHORT_INODE_BYTES, extraBytes } from './inode-reader.ts'
import type { Ext4Inode } from './inode-reader.ts'
import type { Ext4Superblock } from './superblock-reader.ts'
import { ACL_INDEX_ACCESS, ACL_INDEX_DEFAULT, ACL_NAMES, PREFIXES, XATTR_BLOCK_HEADER_BYTES, XATTR_ENTRY_BYTES, XATTR_MAGIC, fromDiskAcl } from './xattrs.ts'

/** Index of names that the filesystem itself uses; inline data is one. */
const INDEX_SYSTEM = 7
const INLINE_DATA_NAME = 'data'
const INDEX_OF_PREFIX = new Map(PREFIXES.map(([prefix, index]) => [index, prefix]))
const NAME_OF_ACL = new Map([...ACL_NAMES].map(([name, index]) => [index, name]))

export interface StoredXattr {
  index: number
  /** Without prefix, bytes in latin1. */
  name: string
  /** A view; empty if the value is in an inode of its own. */
  value: Buffer
  /** Bytes of the value. */
  length: number
  /** Inode that holds the value, or 0. */
  valueInode: number
}

/** Attributes in the inode itself. @throws VarveError FORMAT_INVALID */
export function xattrsOfInode({ number, bytes }: Ext4Inode): StoredXattr[] {
  const at = SHORT_INODE_BYTES + extraBytes(bytes)
  if (bytes.length === SHORT_INODE_BYTES || at + 8 > bytes.length || bytes.readUInt32LE(at) !== XATTR_MAGIC) return []
  return readEntries(bytes.subarray(at + 4), { from: 0, owner: number })
}

/** Attributes in the block that an inode names, perhaps beside others. @throws VarveError FORMAT_INVALID */
export async function xattrsOfBlock(reader: BlockReader, { blockBytes, roCompat, checksumSeed }: Ext4Superblock, { number, xattrBlock }: Ext4Inode): Promise<StoredXattr[]> {
  if (xattrBlock === 0) return []
  const block = await reader.bytes(xattrBlock * blockBytes, blockBytes)
  if (block.readUInt32LE(0) !== XATTR_MAGIC) throw invalid(`the block with attributes of inode ${number} is none`)
  if ((roCompat & RO_COMPAT.metadataCsum) !== 0) {
    const place = Buffer.alloc(8)
    place.writeBigUInt64LE(BigInt(xattrBlock))
    const blanked = Buffer.from(block)
    blanked.writeUInt32LE(0, 16)
    if (checksumBlock(checksumBlock(checksumSeed, place), blanked) !== block.readUInt32LE(16)) throw invalid(`the block with attributes of inode ${number} is damaged`)
  }
  return readEntries(block, { from: XATTR_BLOCK_HEADER_BYTES, owner: number })
}

/** Entries up to four bytes of zero; places of values count from the start of `area`. */
function readEntries(area: Buffer, { from, owner }: { from: number; owner: number }): StoredXattr[] {
  const damaged = () => invalid(`the attributes of inode ${owner} are damaged`)
  const found: StoredXattr[] = []
  for (let at = from; ;) {
    if (at + 4 > area.length) throw damaged()
    if (area.readUInt32LE(at) === 0) return found
    if (at + XATTR_ENTRY_BYTES > area.length) throw damaged()
    const nameEnd = at + XATTR_ENTRY_BYTES + area[at]
    const [valueInode, length] = [area.readUInt32LE(at + 4), area.readUInt32LE(at + 8)]
    const start = area.readUInt16LE(at + 2)
    if (nameEnd > area.length || length > XATTR_VALUE_BYTES_MAX || (valueInode === 0 && length > 0 && start + length > area.length)) throw damaged()
    const value = valueInode === 0 && length > 0 ? area.subarray(start, start + length) : area.subarray(0, 0)
    const name = area.toString('latin1', at + XATTR_ENTRY_BYTES, nameEnd)
    if (name.includes('\0')) throw damaged()
    found.push({ index: area[at + 1], name, value, length, valueInode })
    at = (nameEnd + 3) & ~3
  }
}

/** The part of inline data that does not fit beside the fields of the inode; undefined if there is none. */
export function inlineRest(stored: readonly StoredXattr[]): Buffer | undefined {
  return stored.find(({ index, name }) => index === INDEX_SYSTEM && name === INLINE_DATA_NAME)?.value
}

/**
 * As the system call names and writes them, sorted by name; names of namespaces that Linux does not show are left out, as it does.
 * @param valueOf the value that is in an inode of its own
 */
export async function shownXattrs(stored: readonly StoredXattr[], owner: number, valueOf: (xattr: StoredXattr) => Promise<Uint8Array>): Promise<Xattr[]> {
  const shown = new Map<string, Uint8Array>()
  for (const xattr of stored) {
    const isAcl = xattr.index === ACL_INDEX_ACCESS || xattr.index === ACL_INDEX_DEFAULT
    const prefix = INDEX_OF_PREFIX.get(xattr.index)
    const name = isAcl ? NAME_OF_ACL.get(xattr.index)! : prefix !== undefined && xattr.name !== '' ? prefix + xattr.name : undefined
    if (name === undefined || shown.has(name)) continue
    if (name.length > XATTR_NAME_BYTES_MAX) throw invalid(`an attribute of inode ${owner} has a name of ${name.length} bytes`)
    const value = xattr.valueInode === 0 ? Uint8Array.from(xattr.value) : await valueOf(xattr)
    shown.set(name, isAcl ? fromDiskAcl(value, () => `inode ${owner}`) : value)
  }
  return sortedXattrs([...shown].map(([name, value]) => ({ name, value })))
}
