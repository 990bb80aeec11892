import assert from 'node:assert/strict'
import test from 'node:test'
import { RangesBuilder, aligned, bytesOf, difference, intersection, touches, union, wholeDisk } from '@varve/images/blockmap/ranges.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()
const SIZE = 300

function randomRanges(random: Random): { ranges: Ranges; bytes: boolean[] } {
  const builder = new RangesBuilder()
  const bytes = new Array<boolean>(SIZE).fill(false)
  for (let count = random.below(12); count > 0; count--) {
    const offset = random.below(SIZE)
    const length = random.below(Math.min(40, SIZE - offset + 1))
    builder.add(offset, length)
    bytes.fill(true, offset, offset + length)
  }
  return { ranges: builder.build(), bytes }
}

function bytesIn(ranges: Ranges): boolean[] {
  const bytes = new Array<boolean>(SIZE).fill(false)
  for (let at = 0; at < ranges.length; at += 2) {
    assert.ok(ranges[at] < ranges[at + 1] && (at === 0 || ranges[at] > ranges[at - 1]), 'ranges are ordered, not empty, and do not touch')
    bytes.fill(true, ranges[at], ranges[at + 1])
  }
  return bytes
}

test(`ranges are sets of bytes (seed ${seed})`, () => {
  const random = new Random(seed)
  for (let round = 0; round < 500; round++) {
    const [one, other] = [randomRanges(random), randomRanges(random)]
    assert.deepEqual(bytesIn(one.ranges), one.bytes)
    assert.equal(bytesOf(one.ranges), one.bytes.filter(Boolean).length)
    assert.deepEqual(bytesIn(intersection(one.ranges, other.ranges)), one.bytes.map((is, at) => is && other.bytes[at]))
    assert.deepEqual(bytesIn(difference(one.ranges, other.ranges)), one.bytes.map((is, at) => is && !other.bytes[at]))
    assert.deepEqual(bytesIn(union(one.ranges, other.ranges)), one.bytes.map((is, at) => is || other.bytes[at]))
    assert.deepEqual(bytesIn(difference(wholeDisk(SIZE), one.ranges)), one.bytes.map((is) => !is))
    assert.deepEqual(bytesIn(aligned(one.ranges, 16, SIZE)), one.bytes.map((_, at) => one.bytes.slice(at - (at % 16), at - (at % 16) + 16).some(Boolean)))
    const [offset, length] = [random.below(SIZE), random.between(1, 20)]
    assert.equal(touches(one.ranges, offset, length), one.bytes.slice(offset, offset + length).some(Boolean))
  }
})
