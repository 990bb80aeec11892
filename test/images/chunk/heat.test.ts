import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { HALF_LIFE_MS, Heat, HEAT_CHUNKS_MAX } from '@varve/images/chunk/heat.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()
const digest = (number: number): Uint8Array => digestOf(Buffer.from(String(number)))

describe(`heat (seed ${seed})`, () => {
  test('reports add up, and count half after each half-life', () => {
    const start = 1_700_000_000_000
    const heat = Heat.none.with([digest(1), digest(2)], start).with([digest(1)], start)
    assert.deepEqual([heat.of(digest(1)), heat.of(digest(2)), heat.of(digest(3))], [2, 1, 0])
    const later = heat.with([digest(2)], start + HALF_LIFE_MS)
    assert.deepEqual([later.of(digest(1)), later.of(digest(2))], [1, 1.5])
    // What has cooled down is forgotten; a clock that goes back changes nothing.
    assert.equal(later.with([], start + 20 * HALF_LIFE_MS).values.size, 0)
    assert.equal(later.with([], start).of(digest(1)), 1)
  })

  test('it is bounded: the hottest are kept', () => {
    const digests = Array.from({ length: HEAT_CHUNKS_MAX + 10 }, (_, number) => digest(number))
    const heat = Heat.none.with(digests.slice(0, 11), 0).with(digests.slice(10), HALF_LIFE_MS)
    assert.equal(heat.values.size, HEAT_CHUNKS_MAX)
    assert.deepEqual([heat.of(digest(10)), heat.of(digest(11)), digests.slice(0, 10).filter((cold) => heat.of(cold) > 0).length], [1.5, 1, 0])
  })

  test('what was encoded comes back; other bytes are refused with a code', () => {
    const random = new Random(seed)
    for (let round = 0; round < 1000; round++) {
      const heat = Heat.none.with(Array.from({ length: random.below(10) }, (_, number) => digest(number)), random.below(2 ** 40)).with([digest(random.below(10))], random.below(2 ** 40))
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
