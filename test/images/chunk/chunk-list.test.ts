import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { CHUNK_LIST_MAX, decodeChunkList, encodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()

describe(`chunk lists (seed ${seed})`, () => {
  test('what was encoded comes back, in order', () => {
    const random = new Random(seed)
    for (const count of [0, 1, 2, 1000]) {
      const digests = random.bytes(count * 32)
      const encoded = encodeChunkList(digests)
      assert.equal(encoded.length, 16 + count * 32)
      assert.ok(digests.equals(decodeChunkList(encoded)))
      // Wherever the bytes lie in their buffer.
      assert.ok(digests.equals(decodeChunkList(Buffer.concat([Buffer.alloc(3), encoded]).subarray(3))))
    }
  })

  test('what is no list is refused', () => {
    const random = new Random(seed + 1)
    const good = Buffer.from(encodeChunkList(random.bytes(320)))
    const changed = (change: (bytes: Buffer) => void): Buffer => {
      const bytes = Buffer.from(good)
      change(bytes)
      return bytes
    }
    const refused = (bytes: Uint8Array, code: 'FORMAT_INVALID' | 'FORMAT_UNSUPPORTED' | 'LIMIT_EXCEEDED') => assert.throws(() => decodeChunkList(bytes), (error) => isVarveError(error, code))
    refused(good.subarray(0, 15), 'FORMAT_INVALID')
    refused(good.subarray(0, -1), 'FORMAT_INVALID')
    refused(changed((bytes) => bytes.write('x')), 'FORMAT_INVALID')
    refused(changed((bytes) => bytes.writeUInt32LE(2, 8)), 'FORMAT_UNSUPPORTED')
    refused(changed((bytes) => bytes.writeUInt32LE(9, 12)), 'FORMAT_INVALID')
    refused(changed((bytes) => bytes.writeUInt32LE(CHUNK_LIST_MAX + 1, 12)), 'LIMIT_EXCEEDED')
    refused(changed((bytes) => bytes.copy(bytes, 16, 48, 80)), 'FORMAT_INVALID')
  })

  test('bytes from outside give a list or an error with a code', () => {
    const random = new Random(seed + 2)
    for (let round = 0; round < 2000; round++) {
      const bytes = Buffer.from(encodeChunkList(random.bytes(32 * random.below(20))))
      for (let change = random.below(4); change > 0; change--) bytes[random.below(bytes.length)] = random.below(256)
      const cut = bytes.subarray(0, random.chance(0.3) ? random.below(bytes.length + 1) : bytes.length)
      try {
        assert.ok(Buffer.from(encodeChunkList(decodeChunkList(cut))).equals(cut))
      } catch (error) {
        assert.ok(isVarveError(error), String(error))
      }
    }
  })
})
