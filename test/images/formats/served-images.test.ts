/** Images that we compute, served over NBD as files that QEMU opens there: none of them is written anywhere. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { computeQcow2 } from '@varve/images/formats/qcow2/writer.ts'
import { computeRaw } from '@varve/images/formats/raw.ts'
import { computeVhd } from '@varve/images/formats/vhd/compute-vhd.ts'
import { computeVhdx } from '@varve/images/formats/vhdx/compute-vhdx.ts'
import { computeVmdk } from '@varve/images/formats/vmdk/writer.ts'
import { run, serve } from '../../blockserver/nbd/serving.ts'
import { Random, testSeed } from '../../random.ts'
import { writeRandomDisk } from './random-disk.ts'

const COMPUTE: Record<string, (disk: BlockDevice) => Promise<BlockDevice>> = { raw: computeRaw, vpc: computeVhd, vhdx: computeVhdx, vmdk: computeVmdk, qcow2: computeQcow2 }
const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-served-'))
after(() => rmSync(root, { recursive: true }))

describe(`computed images over NBD (seed ${seed})`, () => {
  for (const [format, compute] of Object.entries(COMPUTE)) {
    test(`QEMU finds the disk in the ${format} file that is served`, async () => {
      const random = new Random(seed)
      const raw = join(root, `${format}.raw`)
      writeRandomDisk(random, raw, { sizeBytesMax: 30 << 20 })
      await using disk = FileDevice.open({ path: raw, readOnly: true })
      await using serving = await serve({ disk: await compute(disk), again: await compute(disk) })
      assert.match((await run('qemu-img', ['compare', '-f', format, '-F', 'raw', serving.uri('disk'), raw])).stdout, /Images are identical/)
      // There is no check of raw disks, nor of VHD.
      if (format !== 'raw' && format !== 'vpc') await run('qemu-img', ['check', '-f', format, serving.uri('again')])
    })
  }
})
