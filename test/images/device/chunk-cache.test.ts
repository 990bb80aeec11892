/** The cache of chunks that threads share. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { ChunkCache, ChunkTickets } from '@varve/images/device/chunk-cache.ts'
import { Random, testSeed } from '../../random.ts'
import type { CacheThreadData } from './chunk-cache-thread.ts'

const seed = testSeed()
const MIB = 1 << 20

function randomDigests(chunks: number, random: Random): Uint32Array {
  return new Uint32Array(Uint8Array.from(random.bytes(chunks * 32)).buffer)
}

/** Puts a chunk whose bytes are all `chunk`. @returns false if there was no room */
function put(cache: ChunkCache, digests: Uint32Array, tickets: ChunkTickets, chunk: number, length: number): boolean {
  const position = cache.room(length)
  if (position < 0) return false
  cache.bytes.fill(chunk & 0xff, position, position + length)
  cache.unpin(cache.publish(digests, chunk, length, tickets))
  return true
}

describe(`ChunkCache (seed ${seed})`, () => {
  test('what was put is found, by other tickets too, until it is pushed out', () => {
    const cache = ChunkCache.create({ bytesMax: 1 })
    const random = new Random(seed)
    const digests = randomDigests(100, random)
    const tickets = new ChunkTickets(100)
    for (let chunk = 0; chunk < 100; chunk++) {
      assert.ok(put(cache, digests, tickets, chunk, 1000 + chunk))
      for (const known of [tickets, new ChunkTickets(100)]) {
        const entry = cache.pin(digests, chunk, known)
        assert.equal(cache.lengthOf(entry), 1000 + chunk)
        const position = cache.positionOf(entry)
        assert.ok(cache.bytes.subarray(position, position + 1000 + chunk).every((byte) => byte === chunk))
        cache.unpin(entry)
      }
    }
    assert.deepEqual({ hits: cache.figures.hits, misses: cache.figures.misses }, { hits: 200, misses: 100 })
  })

  test('is bounded: what comes pushes out what was not used, and what is used stays', () => {
    const cache = ChunkCache.create({ bytesMax: 1 })
    const { bytesMax } = cache.figures
    assert.ok(bytesMax <= 4 * MIB)
    const chunks = 10_000
    const digests = randomDigests(chunks, new Random(seed))
    const tickets = new ChunkTickets(chunks)
    let missed = 0
    for (let chunk = 0; chunk < chunks; chunk++) {
      assert.ok(put(cache, digests, tickets, chunk, 10_000))
      // The first ten are wanted all the time.
      const entry = cache.pin(digests, chunk % 10, tickets)
      if (entry < 0) missed++
      else cache.unpin(entry)
    }
    assert.equal(missed, 0)
    const found = Array.from({ length: chunks }, (_, chunk) => cache.pin(digests, chunk, new ChunkTickets(chunks)) >= 0).filter(Boolean).length
    assert.ok(found > 10 && found * 10_000 <= bytesMax, `${found} chunks are found`)
  })

  test('what is pinned stays where it is, and where all is pinned there is no room', () => {
    const cache = ChunkCache.create({ bytesMax: 1 })
    const digests = randomDigests(1000, new Random(seed))
    const tickets = new ChunkTickets(1000)
    const pinned: { entry: number; chunk: number }[] = []
    for (let chunk = 0; chunk < 1000; chunk++) {
      if (!put(cache, digests, tickets, chunk, MIB)) break
      pinned.push({ entry: cache.pin(digests, chunk, tickets), chunk })
    }
    assert.equal(pinned.length * MIB, cache.figures.bytesMax)
    for (const { entry, chunk } of pinned) assert.ok(cache.bytes.subarray(cache.positionOf(entry), cache.positionOf(entry) + MIB).every((byte) => byte === chunk))
    cache.unpin(pinned[1].entry)
    assert.ok(put(cache, digests, tickets, 999, MIB))
    assert.equal(cache.pin(digests, pinned[1].chunk, tickets), -1)
    for (const { entry, chunk } of pinned) if (chunk !== 1) assert.equal(cache.bytes[cache.positionOf(entry)], chunk)
  })

  test('digests that fall into one place of its table are found or read again, never mixed up', () => {
    const cache = ChunkCache.create({ bytesMax: 1 })
    const digests = randomDigests(500, new Random(seed))
    for (let chunk = 0; chunk < 500; chunk++) digests[chunk * 8] = 7
    const tickets = new ChunkTickets(500)
    for (let chunk = 0; chunk < 500; chunk++) assert.ok(put(cache, digests, tickets, chunk, 64))
    for (let chunk = 0; chunk < 500; chunk++) {
      const entry = cache.pin(digests, chunk, new ChunkTickets(500))
      if (entry < 0) continue
      assert.equal(cache.bytes[cache.positionOf(entry)], chunk & 0xff)
      cache.unpin(entry)
    }
  })

  test('threads that fill and read it together, and are killed at any moment, never see wrong bytes and never stop each other', async () => {
    const threads = 4
    const chunks = 2000
    const random = new Random(seed)
    const cache = ChunkCache.create({ bytesMax: 12 * MIB, threads: threads + 1 })
    const shared = new SharedArrayBuffer(4 * (1 + 2 * (threads + 1)))
    const state = new Int32Array(shared)
    const lengths = Uint32Array.from({ length: chunks }, () => 4 * random.between(1, random.below(10) === 0 ? 250_000 : 5000))
    const digests = randomDigests(chunks, random)
    const failures: Error[] = []
    const start = (thread: number): Worker => {
      const workerData: CacheThreadData = { memory: cache.memory, thread, seed: random.below(2 ** 31), chunks, state, lengths, digests }
      const worker = new Worker(new URL(import.meta.resolve('./chunk-cache-thread.ts')), { workerData })
      worker.on('error', (error) => failures.push(error as Error))
      return worker
    }
    const workers = Array.from({ length: threads }, (_, index) => start(index))
    for (let kill = 0; kill < 25; kill++) {
      const index = random.below(threads)
      // Not before it has begun, so that it is killed in the middle of something.
      for (const before = state[1 + index]; state[1 + index] === before && failures.length === 0;) await sleep(1)
      await sleep(random.below(10))
      await workers[index].terminate()
      cache.threadEnded(index)
      workers[index] = start(index)
    }
    for (const [index] of workers.entries()) for (const before = state[1 + index]; state[1 + index] < before + 100 && failures.length === 0;) await sleep(5)
    Atomics.store(state, 0, 1)
    await Promise.all(workers.filter((worker) => worker.threadId >= 0).map((worker) => once(worker, 'exit')))
    assert.deepEqual(failures, [], `VARVE_TEST_SEED=${seed}`)
    assert.ok(state.subarray(1 + threads + 1, 1 + threads + 1 + threads).every((hits) => hits > 0))
  })
})
