/** VMDK images made and changed by QEMU, read by us: QEMU must find the same disk in what we read. VARVE_IMAGE_ROUNDS random images. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { Random, testSeed } from '../../random.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, writeOut } from './image-judge.ts'
import { changeWithQemuIo, writeRandomDisk } from './random-disk.ts'

const ROUNDS = Number(process.env.VARVE_IMAGE_ROUNDS ?? 40)
const SUBFORMATS = ['monolithicSparse', 'monolithicFlat', 'twoGbMaxExtentSparse', 'twoGbMaxExtentFlat', 'streamOptimized']
const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-vmdk-'))
after(() => rmSync(root, { recursive: true }))

async function judge(random: Random, image: string, directory: string): Promise<void> {
  await using opened = await openImage(image)
  assert.equal(opened.format, 'vmdk')
  const raw = join(directory, 'ours.raw')
  await writeOut(opened.disk, raw)
  assertSameDisk(image, 'vmdk', raw)
  await using model = FileDevice.open({ path: raw, readOnly: true })
  await assertReadsAlike(random, opened.disk, model)
}

describe(`VMDK images read (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`random image ${round} is the disk that QEMU sees`, async () => {
      const random = new Random(seed + round)
      const directory = join(root, String(round))
      mkdirSync(directory)
      const raw = join(directory, 'base.raw')
      const subformat = random.pick(SUBFORMATS)
      // More than one extent of 2 GiB, now and then.
      const sizeBytes = writeRandomDisk(random, raw, { sizeBytesMax: random.chance(0.2) ? 5 * 2 ** 30 : 40 << 20 })
      const options = [`subformat=${subformat}`]
      const hasZeroes = !subformat.endsWith('Flat') && random.chance(0.5)
      if (hasZeroes) options.push('zeroed_grain=on')
      let image = join(directory, '0.vmdk')
      qemuImg('convert', '-f', 'raw', '-O', 'vmdk', '-o', options.join(','), raw, image)
      // What is compressed is written once.
      if (subformat !== 'streamOptimized') changeWithQemuIo(random, image, 'vmdk', sizeBytes, { count: random.below(20), zeroes: hasZeroes, discards: false })
      const isChain = subformat === 'monolithicSparse' || subformat.startsWith('twoGb')
      for (let depth = isChain ? random.pick([0, 0, 1, 2, 3]) : 0, index = 1; index <= depth; index++) {
        const upper = join(directory, `${index}.vmdk`)
        const zeroes = random.chance(0.5)
        qemuImg('create', '-f', 'vmdk', '-b', image, '-F', 'vmdk', '-o', `subformat=monolithicSparse${zeroes ? ',zeroed_grain=on' : ''}`, upper)
        changeWithQemuIo(random, upper, 'vmdk', sizeBytes, { count: random.below(20), zeroes, discards: false })
        image = upper
      }
      await judge(random, image, directory)
      rmSync(directory, { recursive: true })
    })
  }
})
