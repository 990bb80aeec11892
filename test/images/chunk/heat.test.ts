import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { HALF_LIFE_MS, Heat, HEAT_CHUNKS_MAX } from '@varve/images/chunk/heat.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()
const digest = (number: number): Uint8Array => digestOf(Buffer.from(String(number)))

describe(`heat (seed ${seed})`, () => {
  test('uses add up, and count half after each half-life', () => {
    const start = 1_700_000_000_000
    const heat = Heat.none.with([{ digest: digest(1), uses: 8 }, { digest: digest(2), uses: 1 }], start).with([{ digest: digest(1), uses: 8 }], start)
    assert.deepEqual([heat.of(digest(1)), heat.of(digest(2)), heat.of(digest(3))], [16, 1, 0])
    const later = heat.with([{ digest: digest(2), uses: 10 }], start + HALF_LIFE_MS)
    assert.deepEqual([later.of(digest(1)), later.of(digest(2))], [8, 10.5])
    // What has cooled down is forgotten; a clock that goes back changes nothing.
    assert.equal(later.with([], start + 20 * HALF_LIFE_MS).values.size, 0)
    assert.equal(later.with([], start).of(digest(1)), 8)
  })

  test('it is bounded: the hottest are kept', () => {
    const uses = Array.from({ length: HEAT_CHUNKS_MAX + 10 }, (_, number) => ({ digest: digest(number), uses: number + 1 }))
    const heat = Heat.none.with(uses, 0)
    assert.equal(heat.values.size, HEAT_CHUNKS_MAX)
    assert.deepEqual([heat.of(digest(9)), heat.of(digest(10))], [0, 11])
  })

  test('what was encoded comes back; other bytes are refused with a code', () => {
    const random = new Random(seed)
    for (let round = 0; round < 1000; round++) {
      const heat = Heat.none.with(Array.from({ length: random.below(10) }, (_, number) => ({ digest: digest(number), uses: random.between(1, 1000) })), random.below(2 ** 45))
      const bytes = Buffer.from(heat.encode())
      assert.deepEqual(Heat.decode(bytes), heat)
      for (let change = random.between(1, 4); change > 0; change--) bytes[random.below(bytes.length)] = random.below(256)
      try {
        Heat.decode(random.chance(0.3) ? bytes.subarray(0, random.below(bytes.length)) : bytes)
      } catch (error) {
        assert.ok(isVarveError(error), String(error))
      }
    }
  })
})
