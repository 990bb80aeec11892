/** Block maps: building, numbering, overlaying, and their bytes. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BELOW, BlockMap, BlockMapBuilder, HOLE, SPECIAL_MIN, ZERO } from '@varve/images/blockmap/block-map.ts'
import { sortedOrder } from '@varve/images/blockmap/sorted-order.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { Random, testSeed } from '../../random.ts'
import { randomMap, shownBytes } from './random-map.ts'

const seed = testSeed()

function digest(name: string): Uint8Array {
  return digestOf(Buffer.from(name))
}

function rows(map: BlockMap): unknown[][] {
  const names = new Map([[HOLE, 'hole'], [ZERO, 'zero'], [BELOW, 'below']])
  return [...map.refs].map((ref, index) => [map.starts[index], names.get(ref) ?? ref, map.chunkOffsets[index]])
}

describe('building a block map', () => {
  test('covers the disk, with holes where nothing was mentioned', () => {
    const builder = new BlockMapBuilder(10_000)
    const chunk = builder.addChunk(digest('a'), 500)
    builder.data(1000, 500, chunk, 0)
    builder.zero(4000, 96)
    assert.deepEqual(rows(builder.build()), [[0, 'hole', 0], [1000, 0, 0], [1500, 'hole', 0], [4000, 'zero', 0], [4096, 'hole', 0]])
  })

  test('takes extents in any order and numbers chunks by their first use on the disk', () => {
    const builder = new BlockMapBuilder(300)
    const [unused, late, early] = ['unused', 'late', 'early'].map(name => builder.addChunk(digest(name), 100))
    builder.data(200, 100, late, 0)
    builder.data(0, 100, early, 0)
    const map = builder.build()
    assert.deepEqual(rows(map), [[0, 0, 0], [100, 'hole', 0], [200, 1, 0]])
    assert.deepEqual([map.chunkDigest(0), map.chunkDigest(1)].map(digestToHex), [digest('early'), digest('late')].map(digestToHex))
    assert.equal(map.chunkCount, 2)
    assert.equal(unused, 0)
  })

  test('joins neighbours that continue each other, and only those', () => {
    const builder = new BlockMapBuilder(700)
    const chunk = builder.addChunk(digest('a'), 300)
    builder.data(0, 100, chunk, 0)
    builder.data(100, 200, chunk, 100)
    builder.data(300, 100, chunk, 0)
    builder.zero(400, 10)
    builder.zero(410, 90)
    builder.hole(500, 100)
    assert.deepEqual(rows(builder.build()), [[0, 0, 0], [300, 0, 0], [400, 'zero', 0], [500, 'hole', 0]])
  })

  test('a digest that is added twice is one chunk', () => {
    const builder = new BlockMapBuilder(100)
    assert.equal(builder.addChunk(digest('a'), 10), builder.addChunk(digest('a'), 10))
    assert.throws(() => builder.addChunk(digest('a'), 11), { code: 'FORMAT_INVALID' })
  })

  test('mistakes of the caller are range errors', () => {
    const builder = new BlockMapBuilder(1000)
    const chunk = builder.addChunk(digest('a'), 100)
    assert.throws(() => builder.data(0, 101, chunk, 0), RangeError)
    assert.throws(() => builder.data(0, 10, chunk, 91), RangeError)
    assert.throws(() => builder.data(0, 10, chunk + 1, 0), RangeError)
    assert.throws(() => builder.data(0, 10, HOLE, 0), RangeError)
    assert.throws(() => builder.zero(991, 10), RangeError)
    assert.throws(() => builder.zero(-1, 10), RangeError)
    assert.throws(() => builder.zero(NaN, 10), RangeError)
    assert.throws(() => builder.addChunk(digest('b'), 0), RangeError)
    assert.throws(() => builder.addChunk(digest('b'), (1 << 20) + 1), RangeError)
    assert.throws(() => new BlockMapBuilder(2 ** 53), RangeError)
    builder.zero(10, 10)
    builder.zero(19, 1)
    assert.throws(() => builder.build(), RangeError)
  })

  test('a disk of no bytes has no extents', () => {
    const map = new BlockMapBuilder(0).build()
    assert.equal(map.extentCount, 0)
    assert.equal(BlockMap.decode(map.encode()).sizeBytes, 0)
  })

  test('the largest disk is 2^53 - 1 bytes', () => {
    const builder = new BlockMapBuilder(Number.MAX_SAFE_INTEGER)
    builder.zero(Number.MAX_SAFE_INTEGER - 1, 1)
    const map = BlockMap.decode(builder.build().encode())
    assert.deepEqual(rows(map), [[0, 'hole', 0], [Number.MAX_SAFE_INTEGER - 1, 'zero', 0]])
  })

  test(`a byte is found in its extent (seed ${seed})`, () => {
    const random = new Random(seed)
    for (let round = 0; round < 50; round++) {
      const map = randomMap(random, random.between(1, 5000))
      for (let probe = 0; probe < 50; probe++) {
        const offset = random.below(map.sizeBytes)
        const index = map.indexAt(offset)
        assert.ok(map.starts[index] <= offset && offset < map.endOf(index), `byte ${offset} in extent ${index}`)
      }
    }
  })
})

describe('the bytes of a block map', () => {
  test(`decode gives back what was encoded, and encodes to the same bytes (seed ${seed})`, () => {
    const random = new Random(seed)
    for (let round = 0; round < 200; round++) {
      const map = randomMap(random, random.between(0, 20_000), { partial: random.chance(0.3) })
      const bytes = map.encode()
      const decoded = BlockMap.decode(bytes)
      assert.deepEqual(decoded, map)
      assert.deepEqual(decoded.encode(), bytes)
    }
  })

  test('are the same whatever order the extents came in', () => {
    const random = new Random(seed)
    const extents = Array.from({ length: 500 }, (_, index) => ({ offset: index * 100, length: random.between(1, 100), name: `chunk ${random.below(50)}` }))
    const encodings = [extents, extents.toReversed(), extents.toSorted((one, other) => one.length - other.length)].map(order => {
      const builder = new BlockMapBuilder(50_000)
      for (const { offset, length, name } of order) builder.data(offset, length, builder.addChunk(digest(name), 100), 100 - length)
      return Buffer.from(builder.build().encode()).toString('hex')
    })
    assert.equal(new Set(encodings).size, 1)
  })

  test('stay readable: version 1 of a small map', () => {
    const builder = new BlockMapBuilder(300)
    const chunk = builder.addChunk(digest('a'), 200)
    builder.data(100, 100, chunk, 50)
    builder.zero(200, 50)
    builder.data(250, 50, chunk, 0)
    const expected = '56415256454d415001000000000000002c0100000000000004000000010000000400000004000000020000000200000064643232' + '00030104' + '3200' + 'c801'
      + Buffer.from(digest('a')).toString('hex')
    assert.equal(Buffer.from(builder.build().encode()).toString('hex'), expected)
    assert.deepEqual(rows(BlockMap.decode(Buffer.from(expected, 'hex'))), [[0, 'hole', 0], [100, 0, 50], [200, 'zero', 0], [250, 0, 0]])
  })

  test('that break a rule are refused', () => {
    const builder = new BlockMapBuilder(300)
    const chunk = builder.addChunk(digest('a'), 200)
    builder.data(100, 100, chunk, 50)
    builder.zero(200, 50)
    builder.data(250, 50, chunk, 0)
    const good = builder.build().encode()
    const broken = (change: (bytes: Buffer) => void): Buffer => {
      const bytes = Buffer.from(good)
      change(bytes)
      return bytes
    }
    const invalid: Record<string, Buffer> = {
      'wrong magic': broken(bytes => bytes.writeUInt8(0, 0)),
      'reserved bytes': broken(bytes => bytes.writeUInt8(1, 12)),
      'a shorter disk': broken(bytes => bytes.writeUInt8(0x2b, 16)),
      'a longer disk': broken(bytes => bytes.writeUInt8(0x2d, 16)),
      'an empty extent': broken(bytes => bytes.writeUInt8(0, 48)),
      'a reference to an earlier chunk than the first': broken(bytes => bytes.writeUInt8(5, 55)),
      'a chunk that is not used': broken(bytes => bytes.writeUInt8(0, 53)),
      'an offset that leads beyond the chunk': broken(bytes => bytes.writeUInt8(101, 56)),
      'a number longer than needed': broken(bytes => bytes.writeUInt8(0, 59)),
      'one byte too many': Buffer.concat([good, Buffer.alloc(1)]),
      'one byte too few': Buffer.from(good.subarray(0, -1)),
      'nothing': Buffer.alloc(0),
    }
    for (const [what, bytes] of Object.entries(invalid)) assert.throws(() => BlockMap.decode(bytes), { code: 'FORMAT_INVALID' }, what)
    assert.throws(() => BlockMap.decode(broken(bytes => bytes.writeUInt8(2, 8))), { code: 'FORMAT_UNSUPPORTED' })
    assert.throws(() => BlockMap.decode(broken(bytes => bytes.writeUInt32LE(0x200000, 20))), { code: 'LIMIT_EXCEEDED' })
    assert.throws(() => BlockMap.decode(broken(bytes => bytes.writeUInt32LE(0xffffffff, 24))), { code: 'LIMIT_EXCEEDED' })
  })

  test('with neighbours that are one extent are refused', () => {
    const builder = new BlockMapBuilder(200)
    builder.zero(0, 100)
    const zeroThenHole = builder.build().encode()
    zeroThenHole[50] = 0
    assert.throws(() => BlockMap.decode(zeroThenHole), { code: 'FORMAT_INVALID' })
  })

  test('with a chunk that stands in it twice are refused', () => {
    const builder = new BlockMapBuilder(200)
    builder.data(0, 100, builder.addChunk(digest('a'), 100), 0)
    builder.data(100, 100, builder.addChunk(digest('b'), 100), 0)
    const bytes = builder.build().encode()
    bytes.copyWithin(bytes.length - 32, bytes.length - 64, bytes.length - 32)
    assert.throws(() => BlockMap.decode(bytes), { code: 'FORMAT_INVALID' })
  })

  test(`mutated, cut short or made up, give a map or an error with a code, and never an allocation beyond their size (seed ${seed})`, () => {
    const random = new Random(seed)
    let accepted = 0
    for (let round = 0; round < 6000; round++) {
      let bytes: Buffer = Buffer.from(randomMap(random, random.between(0, 2000), { partial: random.chance(0.3) }).encode())
      if (random.chance(0.1)) bytes = random.bytes(random.below(300))
      if (random.chance(0.2)) bytes = bytes.subarray(0, random.below(bytes.length + 1))
      const within = random.chance(0.5) ? Math.min(bytes.length, 48) : bytes.length
      for (let change = random.below(4); change > 0 && within > 0; change--) bytes[random.below(within)] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)])
      try {
        const map = BlockMap.decode(bytes)
        assert.deepEqual(Buffer.from(map.encode()), bytes, 'what is accepted is canonical')
        accepted++
      } catch (error) {
        assert.match((error as { code?: string }).code ?? String(error), /^(FORMAT_INVALID|FORMAT_UNSUPPORTED|LIMIT_EXCEEDED)$/)
      }
    }
    assert.ok(accepted > 0)
  })
})

describe('overlaying block maps', () => {
  test('the upper map wins where it says anything, zeroes and holes included', () => {
    const lower = new BlockMapBuilder(500)
    lower.data(0, 500, lower.addChunk(digest('lower'), 500), 0)
    const upper = new BlockMapBuilder(500, { unmentioned: BELOW })
    upper.data(100, 50, upper.addChunk(digest('upper'), 50), 0)
    upper.zero(200, 50)
    upper.hole(300, 50)
    const map = BlockMap.overlay(lower.build(), upper.build())
    assert.deepEqual(rows(map), [[0, 0, 0], [100, 1, 0], [150, 0, 150], [200, 'zero', 0], [250, 0, 250], [300, 'hole', 0], [350, 0, 350]])
    assert.equal(map.partial, false)
  })

  test('chunks that nothing shows any more are gone, and shared ones stand there once', () => {
    const lower = new BlockMapBuilder(300)
    lower.data(0, 100, lower.addChunk(digest('hidden'), 100), 0)
    lower.data(200, 100, lower.addChunk(digest('shared'), 100), 0)
    const upper = new BlockMapBuilder(300, { unmentioned: BELOW })
    upper.data(0, 100, upper.addChunk(digest('shared'), 100), 0)
    const map = BlockMap.overlay(lower.build(), upper.build())
    assert.deepEqual(rows(map), [[0, 0, 0], [100, 'hole', 0], [200, 0, 0]])
  })

  test(`shows byte for byte what the two show, and is canonical (seed ${seed})`, () => {
    const random = new Random(seed)
    for (let round = 0; round < 300; round++) {
      const sizeBytes = random.between(1, 3000)
      const lower = randomMap(random, sizeBytes, { partial: random.chance(0.2) })
      const upper = randomMap(random, sizeBytes, { partial: true })
      const map = BlockMap.overlay(lower, upper)
      const [below, above] = [shownBytes(lower), shownBytes(upper)]
      assert.deepEqual(shownBytes(map), above.map((shown, at) => shown === 'below' ? below[at] : shown))
      assert.deepEqual(BlockMap.decode(map.encode()), map)
    }
  })

  test('maps of different sizes are a bug', () => {
    assert.throws(() => BlockMap.overlay(new BlockMapBuilder(1).build(), new BlockMapBuilder(2).build()), RangeError)
  })
})

test(`offsets are put in order, equal ones keep theirs (seed ${seed})`, () => {
  const random = new Random(seed)
  for (const bits of [1, 8, 11, 22, 32, 33, 34, 43, 53]) {
    const keys = Float64Array.from({ length: 2000 }, () => random.below(2 ** bits))
    const expected = [...keys.keys()].sort((one, other) => keys[one] - keys[other] || one - other)
    assert.deepEqual([...sortedOrder(keys)], expected)
  }
  assert.ok(SPECIAL_MIN <= BELOW)
})
