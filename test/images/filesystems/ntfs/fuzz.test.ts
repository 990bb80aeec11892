/** Damaged volumes and streams are answered by a clear error, or read: never by anything else, and never without end. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { brotliDecompressSync } from 'node:zlib'
import { VarveError } from '@varve/images/errors.ts'
import { openNtfs } from '@varve/images/filesystems/ntfs/filesystem.ts'
import { decompressLznt1 } from '@varve/images/filesystems/ntfs/lznt1.ts'
import { decompressLzx } from '@varve/images/filesystems/ntfs/lzx.ts'
import { decompressXpress } from '@varve/images/filesystems/ntfs/xpress.ts'
import { Random, testSeed } from '../../../random.ts'
import { CountedDisk, walkHostile } from '../walk-hostile.ts'
import { CorruptVolume } from './corrupt-volume.ts'

/** Damaged volumes; 20,000 are a thorough run. */
const ROUNDS = Number(process.env.VARVE_FUZZ_ROUNDS ?? 400)
/** Of a sound volume, a walk takes some hundred. */
const READS_MAX = 50_000
const CORPUS = new URL('../../../corpus/ntfs/', import.meta.url)

/** Seeds of damage that once was answered wrongly. */
const ONCE_BROKEN: number[] = JSON.parse(readFileSync(new URL('seeds.json', CORPUS), 'utf8'))

async function soundVolume(): Promise<CorruptVolume> {
  const bytes = brotliDecompressSync(readFileSync(new URL('volume.img.br', CORPUS)))
  const filesystem = await openNtfs(new CountedDisk(bytes))
  const { answered, refused } = await walkHostile(async () => filesystem)
  assert.ok(answered > 100 && refused === 0, `${answered} answered, ${refused} refused`)
  // Clusters of compressed files have no names outside; what is in use and no record is content.
  const contents: { at: number; bytes: number }[] = []
  let end = 0
  for await (const { offset, length } of filesystem.unused()) {
    if (offset > end) contents.push({ at: end, bytes: offset - end })
    end = offset + length
  }
  return new CorruptVolume(bytes, contents)
}

async function check(volume: CorruptVolume, seed: number): Promise<void> {
  volume.reset()
  volume.corrupt(new Random(seed))
  const disk = new CountedDisk(volume.bytes)
  try {
    await walkHostile(() => openNtfs(disk))
    assert.ok(disk.reads < READS_MAX, `${disk.reads} reads`)
  } catch (error) {
    throw new Error(`damage of seed ${seed}`, { cause: error })
  }
}

test('damage that once was answered wrongly', async () => {
  const volume = await soundVolume()
  for (const seed of ONCE_BROKEN) await check(volume, seed)
})

test('damaged volumes are refused, or read as far as they are sound', async () => {
  const volume = await soundVolume()
  const first = testSeed()
  for (let round = 0; round < ROUNDS; round++) await check(volume, (first + round) >>> 0)
})

test('blocks of LZX that are stored as they are', () => {
  const random = new Random(testSeed())
  const content = Buffer.from(random.bytes(151).map((byte) => byte & 0x7f))
  // Kind 3, no usual size, the size in 16 bits, and the rest of the second unit; the last three distances; an odd block is filled up.
  const block = (bytes: Buffer) => {
    const head = Buffer.alloc(4)
    head.writeUInt16LE(0x6000 | (bytes.length >> 4))
    head.writeUInt16LE((bytes.length << 12) & 0xffff, 2)
    return Buffer.concat([head, Buffer.alloc(12, 1), bytes, Buffer.alloc(bytes.length % 2)])
  }
  const into = Buffer.alloc(content.length)
  decompressLzx(Buffer.concat([block(content.subarray(0, 101)), block(content.subarray(101))]), into)
  assert.ok(into.equals(content))
})

test('damaged compressed streams are refused, or fill what they should', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const kinds = { decompressLznt1, decompressXpress, decompressLzx }
  for (let round = 0; round < ROUNDS * 20; round++) {
    for (const [name, decompress] of Object.entries(kinds)) {
      const from = random.bytes(random.below(random.chance(0.5) ? 600 : 9000))
      // Few code words, so that the code of XPRESS can be one.
      if (name === 'decompressXpress') for (let at = 0; at < Math.min(256, from.length); at++) from[at] = random.chance(0.9) ? 0x99 : 0xaa
      if (name === 'decompressLzx' && from.length > 30) from.fill(random.pick([0x11, 0x22, 0x55]), 1, 31)
      const into = Buffer.alloc(random.between(1, 32_768), 0xa5)
      try {
        decompress(from, into)
      } catch (error) {
        assert.ok(error instanceof VarveError, `${name}, seed ${seed}, round ${round}: ${String(error)}`)
      }
    }
  }
})
