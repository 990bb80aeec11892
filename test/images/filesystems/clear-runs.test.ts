/** Runs of free blocks in a bitmap, whatever pieces it is read in. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { clearRuns } from '@varve/images/filesystems/clear-runs.ts'
import type { ClearRun } from '@varve/images/filesystems/clear-runs.ts'
import { Random, testSeed } from '../../random.ts'

test('runs are those that are found bit by bit, across bytes and windows, up to the last bit that counts', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let round = 0; round < 400; round++) {
    const bytes = random.bytes(random.below(200)).map((byte) => (random.chance(0.7) ? random.pick([0, 0xff]) : byte))
    const bits = random.chance(0.3) ? 8 * bytes.length : random.below(8 * bytes.length + 1)
    const expected: ClearRun[] = []
    for (let bit = 0; bit < bits; bit++) {
      if (((bytes[bit >> 3] >> (bit & 7)) & 1) === 1) continue
      const last = expected.at(-1)
      if (last !== undefined && last.first + last.count === bit) last.count++
      else expected.push({ first: bit, count: 1 })
    }
    const windows = async function* (): AsyncGenerator<Uint8Array> {
      for (let at = 0; at < bytes.length;) {
        const end = at + random.between(1, 60)
        yield bytes.subarray(at, end)
        at = end
      }
    }
    const found: ClearRun[] = []
    for await (const run of clearRuns(windows(), bits)) found.push(run)
    assert.deepEqual(found, expected, `seed ${seed}, round ${round}`)
  }
})
