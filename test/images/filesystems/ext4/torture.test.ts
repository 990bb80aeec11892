import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ext4SizeBytes } from '@varve/images/filesystems/ext4/writer.ts'
import { testSeed } from '../../../random.ts'
import { compareTree } from '../compare-tree.ts'
import { TORTURE, tortureTree } from '../torture-tree.ts'
import { Ext4Image, ext4Time } from './ext4-image.ts'

test('the torture tree is clean to e2fsck and reads back from the kernel as it was', () => {
  const seed = testSeed()
  const built = tortureTree(seed)
  assert.equal(built.tree.entryCount - 1, TORTURE.entries)
  try {
    using image = new Ext4Image(built, { sizeBytes: ext4SizeBytes(built.tree) })
    image.check()
    const directory = image.mount('ro')
    assert.deepEqual(compareTree(directory, built, { extraNames: ['lost+found'], time: ext4Time, allTimes: true }), [])
    image.unmount()

    // Subdirectories beyond the limit of link counts, and an index that two levels hold.
    assert.match(image.debugfs('stat "/crowd of directories"'), /Links: 1 /)
    assert.match(image.debugfs('htree_dump /crowd'), /Indirect levels: 1/)
    assert.match(image.debugfs('ex /files/holes'), /^ 2\//m)
  } catch (error) {
    throw new Error(`VARVE_TEST_SEED=${seed}: ${(error as Error).message}`, { cause: error })
  }
})
