import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ext4SizeBytes } from '@varve/images/filesystems/ext4/writer.ts'
import { Random, testSeed } from '../../../random.ts'
import { compareTree } from '../compare-tree.ts'
import { randomTree } from '../random-tree.ts'
import { Ext4Image, ext4Time } from './ext4-image.ts'

const TREES = 30

test('random trees are clean to e2fsck and read back from the kernel as they were', () => {
  const seed = testSeed()
  for (let index = 0; index < TREES; index++) {
    const built = randomTree(new Random(seed + index))
    try {
      // Every other one without a block to spare.
      using image = new Ext4Image(built, { sizeBytes: ext4SizeBytes(built.tree, { freeBytes: index % 2 === 0 ? 0 : 64 << 20 }) })
      image.check()
      const directory = image.mount('ro')
      assert.deepEqual(compareTree(directory, built, { extraNames: ['lost+found'], time: ext4Time, allTimes: true }), [])
    } catch (error) {
      throw new Error(`VARVE_TEST_SEED=${seed}, tree ${index}: ${(error as Error).message}`, { cause: error })
    }
  }
})
