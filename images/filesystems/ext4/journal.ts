/**
 * The empty journal: its superblock; all other blocks read as zeroes.
 * Bytes: Documentation/filesystems/ext4/journal.rst of Linux. Big-endian.
 */
import { BLOCK_BYTES, viewOf } from './format.ts'

const MAGIC = 0xc03b3998
const SUPERBLOCK_V2 = 4

/** @returns first block of a journal with nothing to replay. Features are left to the kernel, which adds what it wants when it mounts. */
export function journalSuperblock(options: { blocks: number; uuid: Uint8Array }): Uint8Array {
  const bytes = new Uint8Array(BLOCK_BYTES)
  const view = viewOf(bytes)
  view.setUint32(0x00, MAGIC)
  view.setUint32(0x04, SUPERBLOCK_V2)
  view.setUint32(0x0c, BLOCK_BYTES)
  view.setUint32(0x10, options.blocks)
  view.setUint32(0x14, 1) // first block of the log
  view.setUint32(0x18, 1) // first transaction
  view.setUint32(0x1c, 0) // start of the log: empty
  bytes.set(options.uuid, 0x30)
  view.setUint32(0x40, 1) // filesystems that use it
  return bytes
}
