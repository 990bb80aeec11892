/** Filesystems that our own writer has made are read as the kernel reads them. Those of the kernel: reader-kernel.test.ts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import { walk } from '@varve/images/filesystems/walk.ts'
import { Random, testSeed } from '../../../random.ts'
import { checkFilesystem } from '../conformance.ts'
import { modelOf } from '../model.ts'
import { randomTree } from '../random-tree.ts'
import { Ext4Image, OPTIONS } from './ext4-image.ts'

test('what our writer lays out is read as the kernel reads it', async () => {
  const seed = testSeed()
  for (let round = 0; round < 8; round++) {
    using image = new Ext4Image(randomTree(new Random(seed + round)))
    const model = modelOf(image.mount('ro'), { allTimes: true, data: true })
    image.unmount()
    await using volume = FileDevice.open({ path: image.path, readOnly: true })
    const filesystem = await openExt4(volume)
    assert.deepEqual([filesystem.label, filesystem.uuid.replaceAll('-', ''), filesystem.unclean, filesystem.notices], [OPTIONS.label, Buffer.from(OPTIONS.uuid).toString('hex'), false, []])
    await checkFilesystem({ filesystem, model, volume }, seed + round)
    let names = 0
    for await (const found of walk(filesystem)) if (found.path !== '') names++
    assert.equal(names, model.length - 1)
  }
})
