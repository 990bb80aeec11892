import assert from 'node:assert/strict'
import test from 'node:test'
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { differenceOfMaps } from '@varve/images/blockmap/map-difference.ts'
import { Random, testSeed } from '../../random.ts'
import { randomMap, shownBytes } from './random-map.ts'

const seed = testSeed()

test(`the difference of two maps is where they show something else (seed ${seed})`, () => {
  const random = new Random(seed)
  for (let round = 0; round < 60; round++) {
    const base = randomMap(random, random.between(1, 3000))
    const map = random.chance(0.3) ? randomMap(random, random.between(1, 3000)) : BlockMap.overlay(base, randomMap(random, base.sizeBytes, { partial: true }))
    const shown = [map, base].map((one) => shownBytes(one).map((text) => (text === 'zero' ? 'hole' : text)))
    const expected = shown[0].map((text, at) => text !== shown[1][at])
    const found = new Array<boolean>(map.sizeBytes).fill(false)
    const ranges = differenceOfMaps(map, base)
    for (let at = 0; at < ranges.length; at += 2) found.fill(true, ranges[at], ranges[at + 1])
    assert.deepEqual(found, expected, `round ${round}`)
  }
})

test(`a map that is resized shows the same, and a hole at its end (seed ${seed})`, () => {
  const random = new Random(seed)
  for (let round = 0; round < 40; round++) {
    const map = randomMap(random, random.between(1, 2000))
    const sizeBytes = random.between(1, 3000)
    const resized = BlockMap.resized(map, sizeBytes)
    const before = shownBytes(map)
    assert.deepEqual(shownBytes(resized), Array.from({ length: sizeBytes }, (_, at) => before[at] ?? 'hole'))
    assert.deepEqual(BlockMap.decode(resized.encode()).encode(), resized.encode())
  }
})
