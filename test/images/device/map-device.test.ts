/** Devices over block maps, and the cache that they share. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BELOW, BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { Random, testSeed } from '../../random.ts'
import { deviceConformance } from './conformance.ts'
import { DelayedStore } from './delayed.ts'
import { mapDisk } from './map-disk.ts'

const random = new Random(testSeed())

deviceConformance('MapDevice', async content => {
  const { map, store } = await mapDisk(content, random)
  const device = new MapDevice(map, store, ChunkCache.create({ bytesMax: 100_000 }))
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

deviceConformance('MapDevice over a store that answers late', async content => {
  const { map, store } = await mapDisk(content, random)
  const device = new MapDevice(map, new DelayedStore(store, random), ChunkCache.create({ bytesMax: 100_000 }))
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

/** A disk of one chunk of `bytes` bytes, in a map that says `said`. */
async function oneChunkDisk(bytes: number, said = bytes): Promise<{ device: MapDevice; cache: ChunkCache; store: DelayedStore }> {
  const memory = new MemoryStore()
  const writer = memory.writer()
  const digest = writer.put(Buffer.alloc(bytes, 1))
  await writer.commit()
  const builder = new BlockMapBuilder(said)
  builder.data(0, said, builder.addChunk(digest, said), 0)
  const cache = ChunkCache.create({ bytesMax: 1 << 20 })
  const store = new DelayedStore(memory, random)
  return { device: new MapDevice(builder.build(), store, cache), cache, store }
}

describe('MapDevice', () => {
  test('a chunk that is not as long as the map says is an error, not wrong data', async () => {
    const { device } = await oneChunkDisk(100, 200)
    await assert.rejects(async () => device.read(Buffer.alloc(200), 0), { code: 'CHUNK_CORRUPT' })
  })

  test('a chunk that is missing is an error for each read that needs it, and for no other', async () => {
    const builder = new BlockMapBuilder(300)
    builder.data(100, 100, builder.addChunk(digestOf(Buffer.from('missing')), 100), 0)
    for (const store of [new MemoryStore(), new DelayedStore(new MemoryStore(), random)]) {
      const device = new MapDevice(builder.build(), store, ChunkCache.create({ bytesMax: 1 << 20 }))
      for (let round = 0; round < 2; round++) await assert.rejects(async () => device.read(Buffer.alloc(300), 0), { code: 'CHUNK_MISSING' })
      await device.read(Buffer.alloc(100), 0)
    }
  })

  test('a read from a store at hand completes at once', async () => {
    const { map, store } = await mapDisk(Buffer.alloc(100_000, 1), random)
    assert.equal(new MapDevice(map, store, ChunkCache.create({ bytesMax: 1 << 20 })).read(Buffer.alloc(100_000), 0), undefined)
  })

  test('reads that need one chunk at the same time ask for it once, and later ones not at all', async () => {
    const { device, store, cache } = await oneChunkDisk(10_000)
    await Promise.all(Array.from({ length: 20 }, async (_, index) => { await device.read(Buffer.alloc(100), index * 100) }))
    assert.equal(store.asked, 1)
    assert.equal(device.read(Buffer.alloc(10_000), 0), undefined)
    assert.deepEqual({ hits: cache.figures.hits, misses: cache.figures.misses }, { hits: 20, misses: 1 })
  })

  test('a partial map is not a disk', () => {
    const map = new BlockMapBuilder(100, { unmentioned: BELOW }).build()
    assert.throws(() => new MapDevice(map, new MemoryStore(), ChunkCache.create({ bytesMax: 1 })), RangeError)
  })
})
