/** Journals that are made to cost: their blocks are made as they are read, so that the test needs no room for them. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readJournal } from '@varve/images/filesystems/ext4/journal-reader.ts'
import { JOURNAL_MAGIC } from '@varve/images/filesystems/ext4/replayed-volume.ts'

const BLOCK_BYTES = 1024
const BLOCKS = 1 << 21
const [DESCRIPTOR, COMMIT, SUPERBLOCK, REVOKE] = [1, 2, 4, 5]
/** Of a tag: no UUID follows it, and no other tag. */
const ONLY_TAG = 2 | 8

/** @param kindOf what the block is @returns blocks to be replayed */
async function replayed(kindOf: (index: number) => { kind: number; sequence: number }): Promise<number> {
  const block = Buffer.alloc(BLOCK_BYTES)
  const read = (offset: number): Buffer => {
    const index = offset / BLOCK_BYTES
    const { kind, sequence } = index === 0 ? { kind: SUPERBLOCK, sequence: 0 } : kindOf(index)
    block.fill(0)
    for (const [place, value] of [[0, JOURNAL_MAGIC], [4, kind], [8, sequence]]) block.writeUInt32BE(value, place)
    if (kind === SUPERBLOCK) for (const [place, value] of [[0x0c, BLOCK_BYTES], [0x10, BLOCKS], [0x14, 1], [0x18, 1], [0x1c, 1], [0x28, 1]]) block.writeUInt32BE(value, place)
    if (kind === DESCRIPTOR) for (const [place, value] of [[12, index], [16, ONLY_TAG]]) block.writeUInt32BE(value, place)
    if (kind !== REVOKE) return block
    block.writeUInt32BE(BLOCK_BYTES, 12)
    for (let at = 16; at < BLOCK_BYTES; at += 4) block.writeUInt32BE(index * 252 + (at - 16) / 4, at)
    return block
  }
  return (await readJournal({ blockBytes: BLOCK_BYTES, volumeBlocks: 2 ** 31, blocks: BLOCKS, placeOf: (index) => index * BLOCK_BYTES, read })).size
}

test('a journal that revokes more than memory should hold is refused', async () => {
  await assert.rejects(replayed((index) => ({ kind: index < 70_000 ? REVOKE : COMMIT, sequence: index <= 70_000 ? 1 : 0 })), { code: 'LIMIT_EXCEEDED' })
})

test('a journal of more transactions than memory should hold is refused', async () => {
  await assert.rejects(replayed((index) => ({ kind: COMMIT, sequence: index < 1_200_000 ? index : 0 })), { code: 'LIMIT_EXCEEDED' })
})

test('a journal of many transactions is replayed', async () => {
  assert.equal(await replayed((index) => ({ kind: [COMMIT, DESCRIPTOR, 0][index % 3], sequence: index <= 3000 ? Math.ceil(index / 3) : 0 })), 1000)
})
