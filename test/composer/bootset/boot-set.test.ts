/** Boot sets over boots: what is usual comes first, what is rare last, what is old is forgotten. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BOOT_SET_BOOTS_MAX, BOOT_SET_ENTRIES_MAX, BootSet, Part, tierOf } from '@varve/composer/bootset/boot-set.ts'
import type { PlacedChunk } from '@varve/composer/bootset/boot-set.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()

function boot(...paths: string[]): (PlacedChunk & { rank: number })[] {
  return paths.map((path, rank) => ({ digest: digestOf(Buffer.from(path)), places: [{ part: Part.file, path, offset: 0, length: 100 }], rank }))
}

function paths(set: BootSet): string[] {
  return set.entries.map(({ path }) => path)
}

describe(`boot sets (seed ${seed})`, () => {
  test('what fewer than half of the boots used comes after, what one in ten used comes last', () => {
    let set = BootSet.empty
    for (let number = 0; number < 10; number++) set = set.with(boot('first', ...(number === 0 ? ['once'] : []), ...(number < 3 ? ['thrice'] : []), 'last'))
    assert.deepEqual(paths(set), ['first', 'last', 'thrice', 'once'])
    assert.deepEqual(set.entries.map((entry) => [entry.boots, tierOf(entry, set.boots)]), [[10, 0], [10, 0], [3, 1], [1, 2]])
  })

  test('the order is that of the mean first use, and the digest that of the last boot', () => {
    const changed = boot('b', 'a')
    changed[0].digest = digestOf(Buffer.from('b, changed'))
    const set = BootSet.empty.with(boot('a', 'b', 'c')).with(changed).with(changed)
    assert.deepEqual(paths(set), ['b', 'a', 'c'])
    assert.deepEqual(set.entries[0].digest, changed[0].digest)
  })

  test('a set of many boots forgets what is not used any more', () => {
    let set = BootSet.empty.with(boot('old', 'always'))
    for (let number = 0; number < 2 * BOOT_SET_BOOTS_MAX; number++) set = set.with(boot('always', 'new'))
    assert.deepEqual(paths(set), ['always', 'new'])
    assert.ok(set.boots <= BOOT_SET_BOOTS_MAX)
  })

  test('it is bounded, and what comes last is left out', () => {
    const set = BootSet.empty.with(boot(...Array.from({ length: BOOT_SET_ENTRIES_MAX + 5 }, (_, number) => `file ${number}`)))
    assert.equal(set.entries.length, BOOT_SET_ENTRIES_MAX)
    assert.equal(set.entries.at(-1)!.path, `file ${BOOT_SET_ENTRIES_MAX - 1}`)
  })

  test('chunks without a place are told apart by their digests', () => {
    const nameless = (content: string, rank: number) => ({ digest: digestOf(Buffer.from(content)), places: [{ part: Part.content, path: '', offset: 0, length: 7 }], rank })
    assert.equal(BootSet.empty.with([nameless('a', 0), nameless('b', 1), nameless('a', 2)]).entries.length, 2)
  })

  test('sets of the layers of a stack are one set, in one order, each by its own share', () => {
    const base = BootSet.empty.with([{ ...boot('kernel')[0], rank: 0 }, { ...boot('init')[0], rank: 2 }]).with([{ ...boot('kernel')[0], rank: 0 }, { ...boot('init')[0], rank: 2 }])
    const app = BootSet.empty.with([{ ...boot('app')[0], rank: 1 }])
    const combined = BootSet.combine([base, app, BootSet.empty])
    assert.deepEqual(paths(combined), ['kernel', 'app', 'init'])
    assert.ok(combined.entries.every((entry) => entry.boots === combined.boots))
    assert.deepEqual(BootSet.combine([app, base]).encode(), combined.encode())
  })

  test('what was encoded comes back; other bytes are refused with a code', () => {
    const random = new Random(seed)
    for (let round = 0; round < 1000; round++) {
      let set = BootSet.empty
      for (let number = random.below(4); number > 0; number--) {
        set = set.with(Array.from({ length: random.below(6) }, (_, rank) => ({
          digest: random.bytes(32),
          places: [{ part: random.below(5) as Part, path: 'x'.repeat(random.below(5)), offset: random.below(2 ** 45), length: random.between(1, 1 << 20) }],
          rank,
        })))
      }
      const bytes = Buffer.from(set.encode())
      const decoded = BootSet.decode(bytes)
      assert.deepEqual([decoded.boots, decoded.entries.length], [set.boots, set.entries.length])
      assert.ok(bytes.equals(decoded.encode()))
      for (let change = random.between(1, 4); change > 0; change--) bytes[random.below(bytes.length)] = random.below(256)
      const damaged = random.chance(0.3) ? bytes.subarray(0, random.below(bytes.length)) : bytes
      try {
        assert.ok(damaged.equals(BootSet.decode(damaged).encode()))
      } catch (error) {
        assert.ok(isVarveError(error), String(error))
      }
    }
  })
})
