/** qcow2 images made and changed by QEMU, read by us: QEMU must find the same disk in what we read. VARVE_IMAGE_ROUNDS random images. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { Random, testSeed } from '../../random.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, qemuSizeBytes, writeOut } from './image-judge.ts'
import { changeWithQemuIo, randomDiskBytes, writeRandomDisk } from './random-disk.ts'

const ROUNDS = Number(process.env.VARVE_IMAGE_ROUNDS ?? 40)
const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-qcow2-'))
after(() => rmSync(root, { recursive: true }))

/** Options of qemu-img create for one image of a chain. */
function randomOptions(random: Random, directory: string, name: string, isOverlay: boolean): { options: string[]; compresses: boolean } {
  const version2 = random.chance(0.25)
  const clusterBits = random.pick([9, 10, 12, 14, 16, 16, 16, 18, 21])
  const options = [`compat=${version2 ? '0.10' : '1.1'}`, `cluster_size=${2 ** clusterBits}`]
  if (version2) return { options, compresses: true }
  options.push(`refcount_bits=${random.pick([1, 8, 16, 64])}`)
  if (random.chance(0.5)) options.push('compression_type=zstd')
  if (random.chance(0.2)) options.push('lazy_refcounts=on')
  const hasSubclusters = clusterBits >= 14 && random.chance(0.4)
  if (hasSubclusters) options.push('extended_l2=on')
  const dataFile = random.chance(0.2)
  if (dataFile) options.push(`data_file=${join(directory, `${name}.data`)}`)
  if (dataFile && !isOverlay && random.chance(0.5)) options.push('data_file_raw=on')
  if (!isOverlay && random.chance(0.3)) options.push(`preallocation=${random.pick(['metadata', 'falloc', 'full'])}`)
  return { options, compresses: !dataFile }
}

/** A chain of one to four images, the lowest converted from a raw disk, all changed at random. @returns path of the uppermost */
function randomChain(random: Random, directory: string): string {
  const raw = join(directory, 'base.raw')
  writeRandomDisk(random, raw, { sizeBytesMax: 40 << 20 })
  const { options, compresses } = randomOptions(random, directory, '0', false)
  let below = join(directory, '0.qcow2')
  let belowFormat = 'qcow2'
  const isCompressed = compresses && random.chance(0.4) && !options.some((option) => option.startsWith('preallocation'))
  qemuImg('convert', '-f', 'raw', '-O', 'qcow2', ...(isCompressed ? ['-c'] : []), '-o', options.join(','), raw, below)
  change(random, below)
  if (random.chance(0.2)) [below, belowFormat] = [raw, 'raw']
  for (let depth = random.pick([0, 0, 1, 1, 2, 3]), index = 1; index <= depth; index++) {
    const image = join(directory, `${index}.qcow2`)
    const sizeBytes = random.chance(0.6) ? [] : [String(randomDiskBytes(random, { sizeBytesMax: 40 << 20 }))]
    qemuImg('create', '-f', 'qcow2', '-b', below, '-F', belowFormat, '-o', randomOptions(random, directory, String(index), true).options.join(','), image, ...sizeBytes)
    change(random, image)
    ;[below, belowFormat] = [image, 'qcow2']
  }
  return belowFormat === 'qcow2' ? below : join(directory, '0.qcow2')
}

function change(random: Random, image: string): void {
  changeWithQemuIo(random, image, 'qcow2', qemuSizeBytes(image, 'qcow2'), { count: random.below(25) })
}

describe(`qcow2 images read (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`random chain ${round} is the disk that QEMU sees`, async () => {
      const random = new Random(seed + round)
      const directory = join(root, String(round))
      mkdirSync(directory)
      const image = randomChain(random, directory)
      await using opened = await openImage(image)
      assert.equal(opened.format, 'qcow2')
      const raw = join(directory, 'ours.raw')
      await writeOut(opened.disk, raw)
      assertSameDisk(image, 'qcow2', raw)
      await using model = FileDevice.open({ path: raw, readOnly: true })
      await assertReadsAlike(random, opened.disk, model)
      rmSync(directory, { recursive: true })
    })
  }
})
