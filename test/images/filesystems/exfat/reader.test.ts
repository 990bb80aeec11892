/** The reader finds what exfat-fuse wrote, as that reads it, in volumes of several cluster and sector sizes. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openExfat } from '@varve/images/filesystems/exfat/reader.ts'
import { Random, testSeed } from '../../../random.ts'
import { ageDirectory } from '../age-directory.ts'
import { checkFilesystem } from '../conformance.ts'
import { ExfatImage } from './exfat-image.ts'
import type { ExfatImageOptions } from './exfat-image.ts'

const KIB = 1024
const MIB = 1024 * KIB
/** More is a thorough run. */
const ROUNDS = Number(process.env.VARVE_FAT_ROUNDS ?? 5)

const SHAPES: (ExfatImageOptions & { bytesMax: number; fills: boolean })[] = [
  { sizeBytes: 6 * MIB, clusterBytes: 512, bytesMax: 100_000, fills: true },
  { sizeBytes: 16 * MIB, clusterBytes: 4 * KIB, bytesMax: 300_000, fills: true },
  { sizeBytes: 64 * MIB, clusterBytes: 32 * KIB, packBitmap: true, bytesMax: 2 * MIB, fills: false },
  { sizeBytes: 64 * MIB, clusterBytes: 16 * KIB, sectorBytes: 4096, bytesMax: MIB, fills: false },
]

for (const { bytesMax, fills, ...shape } of SHAPES) {
  const { sizeBytes, clusterBytes, sectorBytes = 512 } = shape
  test(`exFAT of ${sizeBytes / MIB} MiB in sectors of ${sectorBytes} and clusters of ${clusterBytes} bytes is read as its driver reads it`, async () => {
    const seed = testSeed()
    using image = new ExfatImage(shape)
    image.mounted((directory) => ageDirectory(directory, new Random(seed), { rounds: ROUNDS, bytesMax, fillBytes: fills ? sizeBytes : 0 }))
    const free = image.check()
    await using volume = FileDevice.open({ path: image.path, readOnly: true })
    const filesystem = await openExfat(volume)
    const { type, label, uuid, unclean, blockBytes } = filesystem
    assert.match(uuid, /^[0-9A-F]{4}-[0-9A-F]{4}$/)
    assert.deepEqual({ type, label, unclean, blockBytes }, { type: 'exfat', label: 'Größe', unclean: false, blockBytes: clusterBytes })
    await checkFilesystem({ filesystem, model: image.model(), volume, ignoresCase: true }, seed)
    let unusedBytes = 0
    for await (const { length } of filesystem.unused()) unusedBytes += length
    assert.equal(unusedBytes, free * blockBytes, `seed ${seed}`)
  })
}
