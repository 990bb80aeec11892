/** Damaged volumes of FAT and exFAT are answered by a clear error, or read: never by anything else, and never without end. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { brotliDecompressSync } from 'node:zlib'
import { openExfat } from '@varve/images/filesystems/exfat/reader.ts'
import { openFat } from '@varve/images/filesystems/fat/reader.ts'
import { openFilesystem } from '@varve/images/filesystems/open-filesystem.ts'
import { Random, testSeed } from '../../../random.ts'
import { CountedDisk, walkHostile } from '../walk-hostile.ts'
import { CorruptVolume } from './corrupt-volume.ts'

/** Damaged volumes of each type; 20,000 are a thorough run. */
const ROUNDS = Number(process.env.VARVE_FUZZ_ROUNDS ?? 400)
/** Of a sound volume, a walk takes some hundred. */
const READS_MAX = 20_000
const CORPUS = new URL('../../../corpus/fat/', import.meta.url)

/** Seeds of damage that once was answered wrongly, by volume. */
const ONCE_BROKEN: Record<string, number[]> = JSON.parse(readFileSync(new URL('seeds.json', CORPUS), 'utf8'))

for (const [name, open] of Object.entries({ fat12: openFat, fat16: openFat, fat32: openFat, exfat: openExfat })) {
  const soundVolume = async (): Promise<CorruptVolume> => {
    const bytes = brotliDecompressSync(readFileSync(new URL(`${name}.img.br`, CORPUS)))
    const filesystem = (await openFilesystem(new CountedDisk(bytes)))!
    assert.equal(filesystem.type, name)
    const { answered, refused } = await walkHostile(async () => filesystem)
    assert.ok(answered > 300 && refused === 0, `${answered} answered, ${refused} refused`)
    return CorruptVolume.of(bytes, filesystem)
  }
  const check = async (volume: CorruptVolume, seed: number): Promise<boolean> => {
    volume.reset()
    const sizeBytes = volume.corrupt(new Random(seed))
    const disk = new CountedDisk(volume.bytes.subarray(0, sizeBytes))
    try {
      const { answered } = await walkHostile(() => open(disk))
      assert.ok(disk.reads < READS_MAX, `${disk.reads} reads`)
      return answered > 0
    } catch (error) {
      throw new Error(`${name}, damage of seed ${seed}`, { cause: error })
    }
  }

  test(`damaged volumes of ${name} are refused, or read as far as they are sound`, async () => {
    const volume = await soundVolume()
    for (const seed of ONCE_BROKEN[name]) await check(volume, seed)
    const first = testSeed()
    let opened = 0
    for (let round = 0; round < ROUNDS; round++) if (await check(volume, (first + round) >>> 0)) opened++
    assert.ok(opened > ROUNDS / 4, `seed ${first}: the damage goes deep, ${opened} of ${ROUNDS} were opened`)
  })
}
