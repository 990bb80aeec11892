import assert from 'node:assert/strict'
import test from 'node:test'
import { isVarveError } from '@varve/images/errors.ts'
import { decodeBoot, decodeHeat } from '@varve/blockserver/stream/reports.ts'
import { Random, testSeed } from '../../random.ts'

test('reports of any bytes are understood or refused', () => {
  const seed = testSeed()
  const random = new Random(seed)
  let understood = 0
  for (let round = 0; round < 5000; round++) {
    const bytes = random.bytes(random.below(20)).map((byte) => random.chance(0.7) ? byte & 0x7f : byte)
    const chunkCount = random.pick([0, 1, 100, 20_000, 2 ** 24])
    for (const decode of [decodeBoot, decodeHeat]) {
      try {
        for (const number of decode(bytes, chunkCount)) assert.ok(number < chunkCount)
        understood++
      } catch (error) {
        assert.ok(isVarveError(error, 'PROTOCOL_INVALID'), `seed ${seed}, round ${round}: ${String(error)}`)
      }
    }
  }
  assert.ok(understood > 500, `seed ${seed}: ${understood} understood`)
})
