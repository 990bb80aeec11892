/** The reader finds what mtools wrote, as mtools reads it, in volumes of every type, cluster and sector size that mkfs.fat makes. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import { openFat } from '@varve/images/filesystems/fat/reader.ts'
import { Random, testSeed } from '../../../random.ts'
import { checkFilesystem } from '../conformance.ts'
import { FatImage } from './fat-image.ts'
import type { FatImageOptions } from './fat-image.ts'

const KIB = 1024
const MIB = 1024 * KIB
/** More is a thorough run. */
const ROUNDS = Number(process.env.VARVE_FAT_ROUNDS ?? 5)

const SHAPES: (FatImageOptions & { bytesMax: number })[] = [
  { bits: 12, sizeBytes: 1440 * KIB, bytesMax: 40_000 },
  { bits: 12, sizeBytes: 16 * MIB, sectorBytes: 4096, sectorsPerCluster: 2, bytesMax: 300_000 },
  { bits: 16, sizeBytes: 8 * MIB, sectorsPerCluster: 1, fats: 1, bytesMax: 100_000 },
  { bits: 16, sizeBytes: 160 * MIB, sectorsPerCluster: 64, bytesMax: 2 * MIB },
  { bits: 16, sizeBytes: 64 * MIB, sectorBytes: 2048, sectorsPerCluster: 4, bytesMax: MIB },
  { bits: 32, sizeBytes: 40 * MIB, sectorsPerCluster: 1, bytesMax: 300_000 },
  { bits: 32, sizeBytes: 600 * MIB, sectorsPerCluster: 16, fats: 1, bytesMax: MIB },
  { bits: 32, sizeBytes: 300 * MIB, sectorBytes: 4096, sectorsPerCluster: 1, bytesMax: MIB },
]

for (const shape of SHAPES) {
  const { bits, sectorBytes = 512, sectorsPerCluster, sizeBytes } = shape
  test(`FAT${bits} of ${sizeBytes / KIB} KiB in sectors of ${sectorBytes} and clusters of ${sectorsPerCluster ?? 'any'} sectors is read as mtools reads it`, async () => {
    const seed = testSeed()
    const random = new Random(seed)
    using image = new FatImage(shape)
    for (let round = 0; round < ROUNDS; round++) {
      image.age(random, shape.bytesMax)
      if (round === 1 && sizeBytes <= 16 * MIB) {
        image.fill()
        image.thin(2)
      }
    }
    const free = image.check()
    await using volume = FileDevice.open({ path: image.path, readOnly: true })
    const filesystem = await openFat(volume)
    const { type, label, uuid, unclean } = filesystem
    assert.deepEqual({ type, label, uuid, unclean }, { type: `fat${bits}`, label: 'AGED', uuid: '1234-ABCD', unclean: false })
    await checkFilesystem({ filesystem, model: image.model(), volume, ignoresCase: true }, seed)
    assert.equal(await unusedBytes(filesystem), free * filesystem.blockBytes, `seed ${seed}`)
  })
}

async function unusedBytes(filesystem: VolumeFilesystem): Promise<number> {
  let bytes = 0
  for await (const { length } of filesystem.unused()) bytes += length
  return bytes
}
