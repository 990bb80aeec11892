import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ChunkTable, digestWords, repeatedDigest } from '@varve/images/chunk/chunk-table.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()

describe('chunk table', () => {
  test('numbers digests by their first coming, and knows them again', () => {
    const random = new Random(seed)
    const table = new ChunkTable()
    const digests: Buffer[] = []
    for (let round = 0; round < 5000; round++) {
      const known = digests.length > 0 && random.chance(0.3) ? random.below(digests.length) : -1
      const digest = known < 0 ? random.bytes(32) : digests[known]
      assert.equal(table.add(digest, 1 + (digest[0] % 9)), known < 0 ? digests.push(digest) - 1 : known, `VARVE_TEST_SEED=${seed}`)
    }
    assert.equal(table.count, digests.length)
    assert.deepEqual(Buffer.from(table.columns().chunkDigests), Buffer.concat(digests))
  })

  test('refuses one digest with two lengths', () => {
    const table = new ChunkTable()
    table.add(Buffer.alloc(32, 1), 10)
    assert.throws(() => table.add(Buffer.alloc(32, 1), 11), { code: 'FORMAT_INVALID' })
  })

  test('finds what is in it, and only that, and is as it was', () => {
    const random = new Random(seed)
    const table = new ChunkTable()
    const known = Array.from({ length: 300 }, () => random.bytes(32))
    const unknown = Array.from({ length: 300 }, () => random.bytes(32))
    for (const digest of known) table.add(digest, 5)
    const words = digestWords(new Uint8Array(Buffer.concat([...known, ...unknown])))
    for (let chunk = 0; chunk < 600; chunk++) assert.equal(table.find(words, chunk, 5), chunk < 300 ? chunk : -1, `VARVE_TEST_SEED=${seed}`)
    assert.throws(() => table.find(words, 0, 6), { code: 'FORMAT_INVALID' })
    assert.equal(table.count, 300)
    assert.equal(table.add(unknown[299], 7), 300)
    for (const digest of known) assert.ok(table.add(digest, 5) < 300)
  })

  test('a digest that stands twice in a column is found, wherever it stands and however alike the others are', () => {
    const random = new Random(seed)
    for (let round = 0; round < 300; round++) {
      const count = random.between(1, 400)
      const alike = random.pick([0, 0, 1, 4, 28])
      const common = random.bytes(alike)
      // A number makes them differ in their last bytes.
      const digests = Array.from({ length: count }, (_, index) => Buffer.concat([common, random.bytes(28 - alike), Buffer.from(Uint32Array.of(index).buffer)]))
      const column = (): Uint32Array => digestWords(new Uint8Array(Buffer.concat(digests)))
      assert.equal(repeatedDigest(column()), -1, `VARVE_TEST_SEED=${seed}`)
      if (count < 2) continue
      const second = random.between(1, count - 1)
      digests[second] = digests[random.below(second)]
      assert.equal(repeatedDigest(column()), second, `VARVE_TEST_SEED=${seed}`)
    }
    assert.equal(repeatedDigest(new Uint32Array()), -1)
  })

  /** With a table that such digests could crowd, each of these would take minutes. */
  const made: [what: string, digest: (words: Uint32Array, index: number) => void][] = [
    ['count up in one word', (words, index) => (words[7] = index)],
    ['differ in the upper bits of their words', (words, index) => words.forEach((_, word) => (words[word] = (((index >>> (word * 3)) & 7) << 29) >>> 0))],
    ['differ in the lowest bit of their half words', (words, index) => words.forEach((_, word) => (words[word] = ((index >>> (word * 2)) & 1) | (((index >>> (word * 2 + 1)) & 1) << 16)))],
    ['are multiples of 2^16', (words, index) => (words[0] = index << 16, words[1] = (index >>> 16) << 16)],
  ]
  for (const [what, make] of made) {
    test(`takes digests that ${what}`, () => {
      const table = new ChunkTable()
      const words = new Uint32Array(8)
      const digest = new Uint8Array(words.buffer)
      for (let index = 0; index < 65_536; index++) {
        make(words, index)
        assert.equal(table.add(digest, 1), index)
      }
    })
  }
})
