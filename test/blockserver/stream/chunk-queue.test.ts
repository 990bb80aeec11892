/**
 * The queue of chunks against the plainest one that does the same, over random histories.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { ChunkQueue } from '@varve/blockserver/stream/chunk-queue.ts'
import { Priority } from '@varve/blockserver/stream/frames.ts'
import { Random, testSeed } from '../../random.ts'

const AHEAD = 4

test('whatever is asked, promoted, cancelled and taken, the order is that of the rules', () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 200; round++) {
    const queue = new ChunkQueue()
    let model: { key: string; priority: Priority }[] = []
    const expected = () => model.filter(({ priority }) => priority === Math.min(...model.map((one) => one.priority)))
    for (let step = 0; step < 300; step++) {
      const key = String(random.below(30))
      const at = `seed ${seed}, round ${round}, step ${step}`
      if (random.chance(0.5)) {
        const priority = random.below(3) as Priority
        queue.add(key, priority, 0)
        const found = model.find((one) => one.key === key)
        if (found === undefined || found.priority > priority) model = [...model.filter((one) => one !== found), { key, priority }]
      } else if (random.chance(0.1)) {
        queue.cancel(key)
        model = model.filter((one) => one.key !== key)
      } else if (random.chance(0.02)) {
        queue.cancelBackground()
        model = model.filter(({ priority }) => priority === Priority.MISS)
      } else {
        const urgent = queue.mostUrgent()
        assert.equal(urgent, expected().at(0)?.priority, at)
        if (urgent === undefined) continue
        while (queue.takeAhead(urgent, AHEAD) !== undefined);
        const first = queue.first(urgent)!
        assert.equal(first.key, expected()[0].key, at)
        assert.equal(queue.has(first), true, at)
        queue.remove(first)
        assert.equal(queue.has(first), false, at)
        model = model.filter((one) => one.key !== first.key)
      }
      assert.equal(queue.size, model.length, at)
    }
  }
})
