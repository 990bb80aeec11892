/** Volumes that the driver of ntfs-3g made and aged are read as it reads them. */
import { execFileSync, spawnSync } from 'node:child_process'
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openNtfs } from '@varve/images/filesystems/ntfs/filesystem.ts'
import { Random, testSeed } from '../../../random.ts'
import { DelayedDevice } from '../../device/delayed.ts'
import { checkFilesystem, filesystemConformance } from '../conformance.ts'
import { Aging, fragment } from './aging.ts'
import { NtfsImage } from './ntfs-image.ts'
import type { ImageOptions } from './ntfs-image.ts'

/** Volumes of each shape; 10 is a thorough run. */
const ROUNDS = Number(process.env.VARVE_FILESYSTEM_ROUNDS ?? 1)
/** Only in a thorough run, since the driver then leaves volumes that no reader can make sense of, not all of which ntfsresize finds. */
const CHANGES_COMPRESSED = ROUNDS > 1
const STEPS = 350

/** Attempts at a volume that the driver leaves sound: now and then it does not, when compressed files are written to in place. */
const ATTEMPTS_MAX = 10

async function aged(random: Random, options: ImageOptions): Promise<NtfsImage> {
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const image = await agedOnce(random, options).catch((error: NodeJS.ErrnoException) => {
      // It stumbles over what it has damaged itself.
      if (error.code !== 'EIO') throw error
    })
    if (image === undefined) continue
    if (isSound(image)) return image
    await image[Symbol.asyncDispose]()
  }
  throw new Error(`ntfs-3g damaged ${ATTEMPTS_MAX} volumes`)
}

/** False if clusters belong to two files, or are free though a file has them. */
function isSound(image: NtfsImage): boolean {
  const { stdout, stderr } = spawnSync('ntfsresize', ['-i', '-f', image.path], { encoding: 'utf8' })
  return !/referenced multiple times|Cluster accounting failed/.test(stdout + stderr)
}

async function agedOnce(random: Random, options: ImageOptions): Promise<NtfsImage> {
  const image = new NtfsImage(options)
  try {
    await image.mounted((root) => {
      const aging = new Aging(root, random, { changesCompressed: CHANGES_COMPRESSED })
      aging.run(STEPS / 2)
      fragment(root, random, { files: 100, sizeBytes: 9000 })
      aging.run(STEPS / 2)
    })
    return image
  } catch (error) {
    await image[Symbol.asyncDispose]()
    throw error
  }
}

filesystemConformance('an aged NTFS on a disk that answers late', async () => {
  const random = new Random(testSeed())
  const image = await aged(random, {})
  const subject = await image.subject()
  return {
    ...subject,
    filesystem: await openNtfs(new DelayedDevice(subject.volume, random)),
    async [Symbol.asyncDispose]() {
      await subject[Symbol.asyncDispose]()
      await image[Symbol.asyncDispose]()
    },
  }
})

test('volumes of all shapes are read as their driver reads them', async () => {
  const seed = testSeed()
  for (let round = 0; round < ROUNDS; round++) {
    for (const [sectorBytes, clusterBytes] of [[512, 512], [512, 1024], [512, 65_536], [1024, 2048], [4096, 4096], [4096, 2 << 20]]) {
      await using image = await aged(new Random(seed + round), { sectorBytes, clusterBytes, sizeBytes: clusterBytes > 65_536 ? 1 << 30 : 48 << 20 })
      await using subject = await image.subject()
      assert.equal(subject.filesystem.blockBytes, clusterBytes)
      await checkFilesystem(subject, seed + round)
      await checkVolume(image)
    }
  }
})

/** Facts of the volume, by the tools of ntfs-3g and of Linux. */
async function checkVolume(image: NtfsImage): Promise<void> {
  await using volume = FileDevice.open({ path: image.path, readOnly: true })
  const filesystem = await openNtfs(volume)
  assert.equal(filesystem.type, 'ntfs')
  assert.equal(filesystem.label, 'Prüfung')
  assert.equal(filesystem.unclean, false)
  assert.equal(filesystem.uuid, execFileSync('blkid', ['-p', '-o', 'value', '-s', 'UUID', image.path], { encoding: 'utf8' }).trim())
  const facts = execFileSync('ntfsinfo', ['-f', '-m', image.path], { encoding: 'utf8' })
  let unusedBytes = 0
  for await (const { length } of filesystem.unused()) unusedBytes += length
  assert.equal(unusedBytes / filesystem.blockBytes, Number(/Free Clusters: (\d+)/.exec(facts)![1]))
  assert.equal(filesystem.sizeBytes / filesystem.blockBytes, Number(/Volume Size in Clusters: (\d+)/.exec(facts)![1]))
}
