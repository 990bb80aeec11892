/** Images that we compute, served over NBD as files that QEMU opens there: none of them is written anywhere. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { computeImage } from '@varve/images/formats/compute-image.ts'
import { DISK_FORMATS } from '@varve/images/formats/disk-image.ts'
import { run, serve } from '../../blockserver/nbd/serving.ts'
import { Random, testSeed } from '../../random.ts'
import { writeRandomDisk } from './random-disk.ts'

const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-served-'))
after(() => rmSync(root, { recursive: true }))

describe(`computed images over NBD (seed ${seed})`, () => {
  for (const format of DISK_FORMATS) {
    const qemuFormat = format === 'vhd' ? 'vpc' : format
    test(`QEMU finds the disk in the ${format} file that is served`, async () => {
      const random = new Random(seed)
      const raw = join(root, `${format}.raw`)
      writeRandomDisk(random, raw, { sizeBytesMax: 30 << 20 })
      await using disk = FileDevice.open({ path: raw, readOnly: true })
      await using serving = await serve({ disk: await computeImage(format, disk), again: await computeImage(format, disk) })
      assert.match((await run('qemu-img', ['compare', '-f', qemuFormat, '-F', 'raw', serving.uri('disk'), raw])).stdout, /Images are identical/)
      // There is no check of raw disks, nor of VHD.
      if (format !== 'raw' && format !== 'vhd') await run('qemu-img', ['check', '-f', format, serving.uri('again')])
    })
  }
})
