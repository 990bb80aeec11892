import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ChunkTable } from '@varve/images/chunk/chunk-table.ts'
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
