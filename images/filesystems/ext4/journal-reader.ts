/**
 * What the journal of a filesystem that was not unmounted holds: transactions that were committed, of which the last version of each block counts.
 * Bytes: Documentation/filesystems/ext4/journal.rst of Linux; big-endian. What a mount would do with it: docs/filesystems.md#ext4.
 */
import { VarveError } from '../../errors.ts'
import type { Answer } from '../filesystem.ts'
import { invalid, unsupported } from './block-reader.ts'
import { CHECKSUM_START, checksumBlock } from './checksum.ts'
import { JOURNAL_MAGIC } from './replayed-volume.ts'
import type { JournaledBlock } from './replayed-volume.ts'

const BLOCK_DESCRIPTOR = 1
const BLOCK_COMMIT = 2
const BLOCK_SUPERBLOCK_V1 = 3
const BLOCK_SUPERBLOCK_V2 = 4
const BLOCK_REVOKE = 5
const COMPAT_CHECKSUM = 0x1
const INCOMPAT = { revoke: 0x1, bit64: 0x2, asyncCommit: 0x4, checksumV2: 0x8, checksumV3: 0x10, fastCommit: 0x20 } as const
const INCOMPAT_READ = 0x3f
const TAG_ESCAPED = 1
const TAG_SAME_UUID = 2
const TAG_LAST = 8
const HEADER_BYTES = 12
const SUPERBLOCK_BYTES = 1024
const SUPERBLOCK_CHECKSUM_OFFSET = 0xfc
const UUID_BYTES = 16
const TAIL_BYTES = 4
const COMMIT_HEADER_BYTES = 60
const COMMIT_CHECKSUM_OFFSET = 16
const COMMIT_TIME_OFFSET = 48
const CHECKSUM_CRC32 = 1
/** mke2fs makes at most 10,240,000; the larger default is 262,144. */
const BLOCKS_MAX = 1 << 24
/** A commit takes a block at least, and mostly hundreds; one of 4 KiB lists a thousand revoked blocks. */
const TRANSACTIONS_MAX = 1 << 20
const REVOKES_MAX = 1 << 22
const FAST_BLOCKS_DEFAULT = 256
const FAST_TAG_TAIL = 0x08
const FAST_TAG_HEAD = 0x09
const FAST_TAG_BYTES = 4

/** Where the journal is. */
export interface JournalPlace {
  /** Of the filesystem; the journal has the same. */
  blockBytes: number
  /** Blocks of the volume: those that can be journaled. */
  volumeBlocks: number
  /** Blocks of the journal. */
  blocks: number
  /** Where one of them is, bytes from the start of the volume. @throws VarveError FORMAT_INVALID */
  placeOf(this: void, block: number): number
  read(this: void, offset: number, length: number): Answer<Buffer>
}

interface Journal extends JournalPlace {
  /** First block of the log, and the one behind its last. */
  first: number
  end: number
  /** Where the log begins, and its first transaction; start is 0 if it is empty. */
  start: number
  sequence: number
  hasV1Checksums: boolean
  hasAsyncCommit: boolean
  /** 0 without checksums of version 2 or 3. */
  checksumVersion: 0 | 2 | 3
  checksumSeed: number
  is64: boolean
  fastBlocks: number
}

/** What a transaction writes: columns of one row a block. */
class Transaction {
  readonly blocks: number[] = []
  /** Blocks of the journal with their content. */
  readonly copies: number[] = []
  readonly flags: number[] = []
  readonly checksums: number[] = []
  readonly revoked: number[] = []
  readonly sequence: number

  constructor(sequence: number) {
    this.sequence = sequence
  }
}

/**
 * @returns blocks by their numbers; none if the journal is empty
 * @throws VarveError FORMAT_INVALID where a mount would refuse, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export async function readJournal(place: JournalPlace): Promise<Map<number, JournaledBlock>> {
  const journal = await readSuperblock(place)
  if (journal.start === 0) return new Map()
  const transactions = await scan(journal)
  await refuseFastCommits(journal, (journal.sequence + transactions.length) >>> 0)
  return replay(journal, transactions)
}

async function readSuperblock(place: JournalPlace): Promise<Journal> {
  if (place.blocks < 2) throw invalid('its journal is too short')
  if (place.blocks > BLOCKS_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: a journal of ${place.blocks} blocks; at most ${BLOCKS_MAX} are read`)
  const bytes = (await place.read(place.placeOf(0), place.blockBytes)).subarray(0, SUPERBLOCK_BYTES)
  const type = bytes.readUInt32BE(4)
  if (bytes.readUInt32BE(0) !== JOURNAL_MAGIC || (type !== BLOCK_SUPERBLOCK_V1 && type !== BLOCK_SUPERBLOCK_V2)) throw invalid('its journal has no superblock')
  const [compat, incompat] = type === BLOCK_SUPERBLOCK_V1 ? [0, 0] : [bytes.readUInt32BE(0x24), bytes.readUInt32BE(0x28)]
  if ((incompat & ~INCOMPAT_READ) !== 0) throw unsupported(`the features 0x${(incompat & ~INCOMPAT_READ).toString(16)} of its journal are not known; mount it once with a kernel that knows them`)
  const checksumVersion = (incompat & INCOMPAT.checksumV3) !== 0 ? 3 : (incompat & INCOMPAT.checksumV2) !== 0 ? 2 : 0
  if (checksumVersion > 0 && sumWithout(CHECKSUM_START, bytes, SUPERBLOCK_CHECKSUM_OFFSET) !== bytes.readUInt32BE(SUPERBLOCK_CHECKSUM_OFFSET)) throw invalid('the superblock of its journal is damaged')
  const blocks = bytes.readUInt32BE(0x10)
  const fastBlocks = (incompat & INCOMPAT.fastCommit) !== 0 ? bytes.readUInt32BE(0x54) || FAST_BLOCKS_DEFAULT : 0
  const [first, start, end] = [bytes.readUInt32BE(0x14), bytes.readUInt32BE(0x1c), blocks - fastBlocks]
  const isPossible = bytes.readUInt32BE(0x0c) === place.blockBytes && blocks <= place.blocks && first >= 1 && first < end && (start === 0 || (start >= first && start < end))
  if (!isPossible) throw invalid('the superblock of its journal says what cannot be')
  return {
    ...place,
    blocks,
    first,
    end,
    start,
    sequence: bytes.readUInt32BE(0x18),
    hasV1Checksums: (compat & COMPAT_CHECKSUM) !== 0 && checksumVersion === 0,
    hasAsyncCommit: (incompat & INCOMPAT.asyncCommit) !== 0,
    checksumVersion,
    checksumSeed: checksumBlock(CHECKSUM_START, bytes.subarray(0x30, 0x30 + UUID_BYTES)),
    is64: (incompat & INCOMPAT.bit64) !== 0,
    fastBlocks,
  }
}

/** Reads the log up to where it ends: at a block that is not of the expected transaction. @returns those that were committed */
async function scan(journal: Journal): Promise<Transaction[]> {
  const transactions: Transaction[] = []
  let current = new Transaction(journal.sequence)
  let [isSuspect, lastTime, sum] = [false, 0n, CHECKSUM_START]
  /** Of a transaction whose commit does not fit, where the kernel may go on to look for others. */
  let failed: number | undefined
  let revokes = 0
  for (let at = journal.start, seen = 0; ; at = behind(journal, at, 1)) {
    // A log that goes round has no end.
    if (++seen > journal.end - journal.first) throw damaged('goes round in a circle')
    if (transactions.length > TRANSACTIONS_MAX || revokes > REVOKES_MAX) throw new VarveError('LIMIT_EXCEEDED', `ext4: a journal of more than ${TRANSACTIONS_MAX} transactions, or ${REVOKES_MAX} revoked blocks`)
    const block = await blockOf(journal, at)
    if (block.readUInt32BE(0) !== JOURNAL_MAGIC || block.readUInt32BE(8) !== current.sequence) return transactions
    switch (block.readUInt32BE(4)) {
      case BLOCK_DESCRIPTOR: {
        if (!isSoundTail(journal, block)) isSuspect = true
        const before = current.blocks.length
        readTags(journal, block, at, current)
        const count = current.blocks.length - before
        seen += count
        if (journal.hasV1Checksums && !isSuspect && failed === undefined) sum = await sumV1(journal, sum, block, current.copies.slice(before))
        at = behind(journal, at, count)
        break
      }
      case BLOCK_REVOKE:
        if (isSoundTail(journal, block)) revokes += readRevokes(journal, block, current)
        else isSuspect = true
        break
      case BLOCK_COMMIT: {
        const time = block.readBigUInt64BE(COMMIT_TIME_OFFSET)
        const isSound = !isSuspect && isSoundCommit(journal, block, sum)
        if (!isSound || failed !== undefined) {
          // What is older than what stands before it is left from an earlier round of the log.
          if (failed === undefined && time < lastTime) return transactions
          if (isSuspect || failed !== undefined || !journal.hasAsyncCommit) throw damaged(`is damaged in transaction ${failed ?? current.sequence}`)
          failed = current.sequence
        } else {
          transactions.push(current)
        }
        lastTime = time
        sum = CHECKSUM_START
        current = new Transaction((current.sequence + 1) >>> 0)
        break
      }
      default:
        return transactions
    }
  }
}

function damaged(what: string): VarveError {
  return invalid(`its journal ${what}; run e2fsck on a copy, or mount one`)
}

/** The log is a ring. */
function behind({ first, end }: Journal, block: number, count: number): number {
  const next = block + count
  return next >= end ? next - (end - first) : next
}

async function blockOf({ read, placeOf, blockBytes }: Journal, block: number): Promise<Buffer> {
  return read(placeOf(block), blockBytes)
}

/** Checksum over a block whose own place in it counts as zero. */
function sumWithout(seed: number, bytes: Buffer, at: number): number {
  const blanked = Buffer.from(bytes)
  blanked.writeUInt32BE(0, at)
  return checksumBlock(seed, blanked)
}

function isSoundTail({ checksumVersion, checksumSeed, blockBytes }: Journal, block: Buffer): boolean {
  return checksumVersion === 0 || sumWithout(checksumSeed, block, blockBytes - TAIL_BYTES) === block.readUInt32BE(blockBytes - TAIL_BYTES)
}

/** What a descriptor says of the blocks that follow it. */
function readTags(journal: Journal, block: Buffer, at: number, { blocks, copies, flags, checksums }: Transaction): void {
  const { checksumVersion, is64, blockBytes } = journal
  // Version 3 has its fields in another order, and room for all of the checksum.
  const tagBytes = checksumVersion === 3 ? 16 : (is64 ? 12 : 8) + (checksumVersion === 2 ? 2 : 0)
  const end = blockBytes - (checksumVersion > 0 ? TAIL_BYTES : 0)
  for (let tag = HEADER_BYTES, copy = at; tag + tagBytes <= end;) {
    const tagFlags = checksumVersion === 3 ? block.readUInt32BE(tag + 4) : block.readUInt16BE(tag + 6)
    copy = behind(journal, copy, 1)
    blocks.push(block.readUInt32BE(tag) + (is64 ? block.readUInt32BE(tag + 8) * 2 ** 32 : 0))
    copies.push(copy)
    flags.push(tagFlags)
    checksums.push(checksumVersion === 3 ? block.readUInt32BE(tag + 12) : block.readUInt16BE(tag + 4))
    tag += tagBytes + ((tagFlags & TAG_SAME_UUID) !== 0 ? 0 : UUID_BYTES)
    if ((tagFlags & TAG_LAST) !== 0) break
  }
}

/** Blocks whose versions in this and earlier transactions do not count: they became something that is not journaled. @returns how many there are */
function readRevokes({ checksumVersion, is64, blockBytes }: Journal, block: Buffer, { revoked }: Transaction): number {
  const end = block.readUInt32BE(HEADER_BYTES)
  const width = is64 ? 8 : 4
  if (end > blockBytes - (checksumVersion > 0 ? TAIL_BYTES : 0)) throw damaged('has a list of revoked blocks that cannot be')
  for (let at = HEADER_BYTES + 4; at + width <= end; at += width) revoked.push(is64 ? Number(block.readBigUInt64BE(at)) : block.readUInt32BE(at))
  return Math.max(0, Math.floor((end - HEADER_BYTES - 4) / width))
}

function isSoundCommit({ hasV1Checksums, checksumVersion, checksumSeed }: Journal, block: Buffer, sum: number): boolean {
  const stored = block.readUInt32BE(COMMIT_CHECKSUM_OFFSET)
  if (hasV1Checksums) {
    const [type, length] = [block[HEADER_BYTES], block[HEADER_BYTES + 1]]
    return (type === CHECKSUM_CRC32 && length === 4 && stored === sum) || (type === 0 && length === 0 && stored === 0)
  }
  if (checksumVersion === 0 || sumWithout(checksumSeed, block, COMMIT_CHECKSUM_OFFSET) === stored) return true
  // Only its header counts: what follows may be torn.
  const header = Buffer.alloc(block.length)
  block.copy(header, 0, 0, COMMIT_HEADER_BYTES)
  return sumWithout(checksumSeed, header, COMMIT_CHECKSUM_OFFSET) === stored
}

/** @returns blocks by number: of the last transaction that wrote each, unless it or a later one revoked it */
async function replay(journal: Journal, transactions: readonly Transaction[]): Promise<Map<number, JournaledBlock>> {
  const revokedBy = new Map<number, number>()
  for (const [index, { revoked }] of transactions.entries()) for (const block of revoked) revokedBy.set(block, index)
  const found = new Map<number, JournaledBlock>()
  for (const [index, { blocks, copies, flags, checksums, sequence }] of transactions.entries()) {
    const number = Buffer.alloc(4)
    number.writeUInt32BE(sequence)
    const seed = checksumBlock(journal.checksumSeed, number)
    for (const [row, block] of blocks.entries()) {
      if ((revokedBy.get(block) ?? -1) >= index) continue
      if (block >= journal.volumeBlocks) throw damaged(`holds block ${block}, which lies behind the end`)
      if (journal.checksumVersion > 0) {
        const sum = checksumBlock(seed, await blockOf(journal, copies[row]))
        if ((journal.checksumVersion === 3 ? sum : sum & 0xffff) !== checksums[row]) throw damaged(`is damaged where it holds block ${block}`)
      }
      found.set(block, { copyAt: journal.placeOf(copies[row]), isEscaped: (flags[row] & TAG_ESCAPED) !== 0 })
    }
  }
  return found
}

/**
 * Fast commits stand behind the log, as changes of files and not as blocks; kernels write them only where they were told to.
 * @throws VarveError FORMAT_UNSUPPORTED if there are some that a mount would replay
 */
async function refuseFastCommits(journal: Journal, sequence: number): Promise<void> {
  let isBegun = false
  for (let index = journal.end + 1; index < journal.blocks; index++) {
    const block = await blockOf(journal, index)
    for (let at = 0; at + FAST_TAG_BYTES <= block.length;) {
      const [tag, length] = [block.readUInt16LE(at), block.readUInt16LE(at + 2)]
      const value = at + FAST_TAG_BYTES
      if (value + length > block.length || tag === 0 || tag > FAST_TAG_HEAD) return
      if (!isBegun && (tag !== FAST_TAG_HEAD || length < 8 || block.readUInt32LE(value + 4) !== sequence)) return
      isBegun = true
      if (tag === FAST_TAG_TAIL && length >= 8 && block.readUInt32LE(value) === sequence) {
        throw unsupported('its journal holds fast commits, which are not replayed; mount a copy once, or run e2fsck on it')
      }
      at = value + length
    }
  }
}

/** Checksum of version 1: CRC-32 with its highest bit first, over descriptors and the blocks that follow them. */
async function sumV1(journal: Journal, seed: number, descriptor: Buffer, copies: readonly number[]): Promise<number> {
  let sum = crc32MsbFirst(seed, descriptor)
  for (const copy of copies) sum = crc32MsbFirst(sum, await blockOf(journal, copy))
  return sum
}

const CRC32_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 24
  for (let bit = 0; bit < 8; bit++) crc = (crc << 1) ^ (crc < 0 ? 0x04c11db7 : 0)
  return crc
})

function crc32MsbFirst(seed: number, bytes: Uint8Array): number {
  let crc = seed | 0
  for (const byte of bytes) crc = (crc << 8) ^ CRC32_TABLE[(crc >>> 24) ^ byte]
  return crc >>> 0
}
