/** Reading ahead: who is a sequential reader, and what the thread that fills the cache makes of it. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, truncateSync } from 'node:fs'
import { readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { digestWords } from '@varve/images/chunk/chunk-table.ts'
import { CacheFiller } from '@varve/images/device/cache-filler.ts'
import { ChunkCache, ChunkTickets } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { READ_AHEAD_BYTES, SequentialReaders } from '@varve/images/device/sequential-readers.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random, testSeed } from '../../random.ts'

const KIB = 1024
const MIB = 1024 * KIB
const seed = testSeed()

describe('SequentialReaders', () => {
  test('reads that follow each other are read ahead of, in stretches that do not overlap', () => {
    const readers = new SequentialReaders()
    const asked: number[] = []
    for (let at = 0; at < 64 * MIB; at += 128 * KIB) {
      const from = readers.note(at, 128 * KIB)
      if (from >= 0) asked.push(from)
      assert.ok(from < 0 || from >= at + 128 * KIB)
    }
    assert.equal(asked[0], 256 * KIB)
    for (let index = 1; index < asked.length; index++) {
      assert.ok(asked[index] > asked[index - 1])
      assert.ok(asked[index] - asked[index - 1] <= READ_AHEAD_BYTES)
    }
    assert.ok(asked.length <= 64 * MIB / (READ_AHEAD_BYTES / 2) + 2)
  })

  test('readers of several places are told apart, and reads at random are none', () => {
    const readers = new SequentialReaders()
    const random = new Random(seed)
    let asked = 0
    for (let step = 0; step < 64; step++) {
      for (const start of [0, 1e9, 2e9, 3e9]) if (readers.note(start + step * 64 * KIB, 64 * KIB) >= 0) asked++
      assert.equal(readers.note(4e9 + random.below(1e6) * 4096, 4096), -1)
    }
    assert.ok(asked >= 4)
  })
})

test(`the cache is filled ahead of a reader by another thread, and damage is left to the reader (seed ${seed})`, async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-read-ahead-'))
  const random = new Random(seed)
  const store = PackStore.open(directory)
  try {
    const writer = store.writer()
    const builder = new BlockMapBuilder(16 * MIB)
    const content = random.bytes(16 * MIB)
    for (let at = 0; at < content.length; at += 64 * KIB) builder.data(at, 64 * KIB, builder.addChunk(writer.put(content.subarray(at, at + 64 * KIB)), 64 * KIB), 0)
    await writer.commit()
    await writer[Symbol.asyncDispose]()
    const map = builder.build()
    const cache = ChunkCache.create({ bytesMax: 64 * MIB, threads: 2, hasFiller: true })
    const failures: unknown[] = []
    await using _filler = new CacheFiller({ packsDirectory: directory, memory: cache.memory, thread: 0 }, (error) => failures.push(error))
    await using device = new MapDevice(map, store, cache)
    const into = Buffer.alloc(128 * KIB)
    const isCached = (at: number) => {
      const entry = cache.pin(digestWords(map.chunkDigests), at / (64 * KIB), new ChunkTickets(map.chunkCount))
      if (entry >= 0) cache.unpin(entry)
      return entry >= 0
    }
    // The thread may not listen yet: then another reader comes.
    for (let tries = 0; !isCached(4 * MIB) && tries < 200; tries++) {
      await using other = new MapDevice(map, store, cache)
      for (let at = 0; at < MIB; at += 128 * KIB) await other.read(into, at)
      await sleep(50)
    }
    assert.ok(isCached(4 * MIB))
    // What was read ahead needs no pack any more; what was not fails, and the thread lives on.
    for (const name of readdirSync(directory)) if (name.endsWith('.pack')) truncateSync(path.join(directory, name), 4096)
    assert.equal(device.read(into, 4 * MIB), undefined)
    assert.ok(into.equals(content.subarray(4 * MIB, 4 * MIB + 128 * KIB)))
    assert.equal(isCached(15 * MIB), false)
    for (let at = 6 * MIB; at < 16 * MIB; at += 128 * KIB) {
      try {
        await device.read(into, at)
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'CHUNK_CORRUPT')
        continue
      }
      assert.ok(into.equals(content.subarray(at, at + 128 * KIB)))
    }
    await sleep(50)
    assert.deepEqual(failures, [])
    cache[Symbol.dispose]()
  } finally {
    store.close()
    rmSync(directory, { recursive: true, force: true })
  }
})
