/**
 * Random directories: imported, composed, and mounted again, they are what they were. The torture test in small, over and over.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import test from 'node:test'
import { compose } from '@varve/composer/compose.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { Home } from '@varve/images/store/home.ts'
import { LoopPartition, writeRawDisk } from '../composer/compose/raw-disk.ts'
import { randomTree } from '../images/filesystems/random-tree.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory } from '../varve-command.ts'
import { judge, remarksOfFsck } from './torture-judge.ts'
import { writeDirectory } from './torture-source.ts'

const ROUNDS = 6

/** Imports and composes the directory, mounts its disk and compares. */
async function goRound(home: Home, source: string, image: string): Promise<void> {
  const { layers } = await importLayer({ home, name: 'random', kind: 'base', source: `dir:${source}` })
  const recipe = await prepareRecipe({ layers: [`random@${layers[0].version}`], policy: { boot: 'none', freeBytes: 16 << 20 } }, home)
  const composition = await compose(recipe, home)
  await writeRawDisk(composition, home.store, image)
  using partition = new LoopPartition(image, composition.partitions[0])
  assert.deepEqual(remarksOfFsck(partition.device), [])
  const judgement = judge(source, partition.mount())
  assert.deepEqual(judgement.differences, [])
  // The root is among what was compared, and not among the names of the tree.
  assert.equal(judgement.entries, layers[0].entries)
}

test('random directories are imported, composed and mounted without a difference', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using scratch = new ScratchDirectory('torture-random')
  await using home = await Home.open(scratch.join('home'))
  const source = scratch.join('source')
  for (let round = 0; round < ROUNDS; round++) {
    try {
      writeDirectory(randomTree(random), source)
      await goRound(home, source, scratch.join('disk.img'))
    } catch (error) {
      throw new Error(`VARVE_TEST_SEED=${seed}, round ${round}: ${(error as Error).message}`, { cause: error })
    } finally {
      // Node cannot remove paths longer than PATH_MAX.
      execFileSync('rm', ['-rf', source])
    }
  }
})
