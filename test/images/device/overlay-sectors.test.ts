/** States of sectors, beside an array that has one for each. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { OverlaySectors, SectorState } from '@varve/images/device/overlay-sectors.ts'
import { Random, testSeed } from '../../random.ts'

const LEAF_SECTORS = 1 << 17
const seed = testSeed()

test(`states are what was set last, in whole blocks, single sectors, and across leaves (seed ${seed})`, () => {
  const random = new Random(seed)
  for (const sectorCount of [1, 7, 1000, LEAF_SECTORS * 2 + 5]) {
    const sectors = new OverlaySectors(sectorCount)
    const expected = new Uint8Array(sectorCount)
    for (let step = 0; step < 400; step++) {
      const state = random.pick(Object.values(SectorState))
      // Single sectors come late: until then leaves are of whole blocks.
      const unit = step < 200 ? 8 : 1
      const near = random.chance(0.5) ? Math.max(0, LEAF_SECTORS * random.between(1, 2) - random.below(100)) : random.below(sectorCount)
      const first = Math.min(sectorCount - 1, near - (near % unit))
      const count = Math.min(sectorCount - first, unit * random.pick([1, 1, 3, random.below(2000), LEAF_SECTORS]) + (random.chance(0.01) ? sectorCount : 0))
      if (count === 0) continue
      const had = expected.subarray(first, first + count).some(value => value !== state)
      assert.equal(sectors.set(first, count, state), had)
      expected.fill(state, first, first + count)
      const at = random.below(sectorCount)
      const end = random.between(at + 1, sectorCount)
      assert.equal(sectors.get(at), expected[at])
      const other = expected.subarray(at, end).findIndex(value => value !== expected[at])
      assert.equal(sectors.runEnd(at, end), other < 0 ? end : at + other)
    }
    const shown = new Uint8Array(sectorCount)
    sectors.forRuns(0, sectorCount, (first, count, state) => shown.fill(state, first, first + count))
    assert.ok(Buffer.compare(shown, expected) === 0)
  }
})
