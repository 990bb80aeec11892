import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { cutContent, cutFixed } from '@varve/images/chunk/cut.ts'
import { CUT_BYTES_AVERAGE, CUT_BYTES_MAX, CUT_BYTES_MIN, FIXED_BYTES } from '@varve/images/chunk/limits.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()

/** Ends of the chunks of `new Random(1).bytes(1_000_000)`. */
const GOLDEN = [83_857, 168_120, 248_944, 315_162, 383_804, 456_430, 523_449, 639_772, 749_216, 845_157, 916_605, 987_271, 1_000_000]

/** docs/formats/chunk.md#cutting, word by word and without haste. */
function cutByTheBook(bytes: Uint8Array): number[] {
  const gear: number[] = []
  let state = 0n
  for (let index = 0; index < 256; index++) {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n)
    let mixed = BigInt.asUintN(64, (state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n)
    mixed = BigInt.asUintN(64, (mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn)
    gear.push(Number((mixed ^ (mixed >> 31n)) >> 32n))
  }
  const hash = (end: number) => {
    let sum = 0
    for (let back = 0; back < 32; back++) sum = (sum + (gear[bytes[end - 1 - back]] << back)) >>> 0
    return sum
  }
  const ends: number[] = []
  let start = 0
  while (start < bytes.length) {
    const left = bytes.length - start
    let size = left
    if (left > 16_384 && bytes.length > 262_144) {
      for (size = 16_384; size < Math.min(left, 262_144); size++) {
        const value = hash(start + size)
        if (value < (size < 65_536 ? 2 ** 14 : 2 ** 18)) break
      }
    }
    start += size
    ends.push(start)
  }
  return ends
}

/** Bytes with little variety, as text has. */
function textLike(random: Random, length: number): Buffer {
  const words = Array.from({ length: 200 }, () => random.bytes(random.between(2, 12)).map((byte) => 97 + (byte % 26)))
  const bytes = Buffer.alloc(length, 0x20)
  for (let at = 0; at < length; ) {
    const word = random.pick(words)
    bytes.set(word.subarray(0, length - at), at)
    at += word.length + 1
  }
  return bytes
}

describe(`cutting (seed ${seed})`, () => {
  it('gives the boundaries that the format says', () => {
    const random = new Random(seed)
    for (const length of [262_144, 262_145, 300_001, 700_000]) {
      for (const bytes of [random.bytes(length), textLike(random, length), Buffer.alloc(length, 7)]) assert.deepEqual(cutContent(bytes), cutByTheBook(bytes))
    }
  })

  it('has not changed: contents that are stored are cut where they were', () => {
    assert.deepEqual(cutContent(new Random(1).bytes(1_000_000)), GOLDEN)
  })

  it('what fits one chunk is one chunk; nothing has none', () => {
    assert.deepEqual(cutContent(new Uint8Array(0)), [])
    for (const length of [1, CUT_BYTES_MIN, CUT_BYTES_AVERAGE, CUT_BYTES_MAX]) assert.deepEqual(cutContent(new Uint8Array(length)), [length])
  })

  it('chunks cover the content and keep the limits', () => {
    const random = new Random(seed)
    for (let round = 0; round < 30; round++) {
      const bytes = round % 3 === 0 ? Buffer.alloc(random.below(3_000_000), round) : random.bytes(random.below(3_000_000))
      const ends = cutContent(bytes)
      assert.equal(ends.at(-1) ?? 0, bytes.length)
      ends.forEach((end, index) => {
        const size = end - (ends[index - 1] ?? 0)
        assert.ok(size <= CUT_BYTES_MAX && (size >= CUT_BYTES_MIN || end === bytes.length))
      })
    }
  })

  it('sizes average near 64 KiB', () => {
    const bytes = new Random(seed).bytes(32 << 20)
    const average = bytes.length / cutContent(bytes).length
    assert.ok(average > 0.9 * CUT_BYTES_AVERAGE && average < 1.4 * CUT_BYTES_AVERAGE, `${average}`)
  })

  it('does not depend on where in memory the content lies', () => {
    const random = new Random(seed)
    const bytes = random.bytes(900_000)
    for (let shift = 0; shift < 9; shift++) {
      const copy = Buffer.concat([random.bytes(shift), bytes])
      assert.deepEqual(cutContent(copy.subarray(shift)), cutContent(bytes))
      assert.deepEqual(cutContent(new Uint8Array(copy.subarray(shift))), cutContent(bytes))
    }
  })

  it('an insertion changes few chunks: the rest is cut as before', () => {
    const random = new Random(seed)
    const bytes = random.bytes(8 << 20)
    const before = pieces(bytes)
    for (const at of [0, 1_000_000, 5_000_000]) {
      const after = pieces(Buffer.concat([bytes.subarray(0, at), random.bytes(100), bytes.subarray(at)]))
      const shared = [...after].filter((piece) => before.has(piece)).length
      assert.ok(shared >= before.size - 12, `${shared} of ${before.size} shared`)
    }
  })

  it('fixed cutting is aligned, the last chunk takes the rest', () => {
    assert.deepEqual(cutFixed(new Uint8Array(0)), [])
    assert.deepEqual(cutFixed(new Uint8Array(1)), [1])
    assert.deepEqual(cutFixed(new Uint8Array(FIXED_BYTES)), [FIXED_BYTES])
    assert.deepEqual(cutFixed(new Uint8Array(2 * FIXED_BYTES + 5)), [FIXED_BYTES, 2 * FIXED_BYTES, 2 * FIXED_BYTES + 5])
  })
})

function pieces(bytes: Buffer): Set<string> {
  let start = 0
  return new Set(cutContent(bytes).map((end) => {
    const piece = bytes.toString('latin1', start, end)
    start = end
    return piece
  }))
}
