import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random, testSeed } from '../../random.ts'
import { reachableFrom } from './roots.ts'
import { TemporaryDirectory } from './temporary-directory.ts'

const seed = testSeed()

function packBytes(directory: string): number {
  return readdirSync(directory).filter((name) => name.endsWith('.pack')).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0)
}

async function put(store: PackStore, contents: Uint8Array[]): Promise<Digest[]> {
  await using writer = store.writer()
  const digests = contents.map((content) => writer.put(content))
  await writer.commit()
  return digests
}

function contents(random: Random, count: number, length = 10_000): Buffer[] {
  return Array.from({ length: count }, () => random.bytes(length))
}

describe(`collection (seed ${seed})`, () => {
  it('removes what no root reaches, keeps the rest, and frees the space', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const digests = await put(store, contents(random, 100))
    const kept = digests.filter((_, index) => index % 3 === 0)
    const before = packBytes(directory.path)
    const report = await store.collect(() => kept)
    assert.deepEqual([report.chunksReachable, report.removed.chunks, report.waiting.chunks, report.packsRepacked], [34, 66, 0, 1])
    assert.equal(before - packBytes(directory.path), report.bytesFreed)
    assert.ok(packBytes(directory.path) < 0.36 * before)
    for (const [index, digest] of digests.entries()) assert.equal(store.has(digest), index % 3 === 0)
    for (const digest of kept) store.get(digest)
    assert.deepEqual((await store.verify()).damage, [])
    const again = await store.collect(() => kept)
    assert.deepEqual([again.removed.chunks, again.packsRepacked, again.bytesFreed], [0, 0, 0])
    const everything = await store.collect(() => [])
    assert.deepEqual([everything.packsRemoved, packBytes(directory.path)], [1, 0])
  })

  it('a pack with few dead bytes is left alone', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    const digests = await put(store, contents(new Random(seed), 100))
    const report = await store.collect(() => digests.slice(20))
    assert.deepEqual([report.removed.chunks, report.packsRepacked, report.bytesFreed], [20, 0, 0])
  })

  it('many small packs become one', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const digests: Digest[] = []
    for (let index = 0; index < 40; index++) digests.push(...await put(store, contents(random, 1)))
    const report = await store.collect(() => digests)
    assert.deepEqual([report.removed.chunks, report.packsRepacked], [0, 40])
    assert.equal(readdirSync(directory.path).filter((name) => name.endsWith('.pack')).length, 1)
    for (const digest of digests) store.get(digest)
  })

  it('a dry run counts and changes nothing', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    const digests = await put(store, contents(new Random(seed), 10))
    const report = await store.collect(() => digests.slice(4), { dryRun: true })
    assert.deepEqual([report.unreachable.chunks, report.removed.chunks, report.chunksReachable], [4, 0, 6])
    await using writer = store.writer()
    for (const digest of digests) assert.ok(writer.has(digest))
  })

  it('what a writer has committed waits until its lease ends, and stays if a root reaches it by then', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const lease = store.lease()
    const [rooted, forgotten] = await put(store, contents(random, 2))
    const during = await store.collect(() => [])
    assert.deepEqual([during.removed.chunks, during.waiting.chunks, during.holders], [0, 2, [`process ${process.pid}`]])
    store.get(rooted)
    lease.release()
    const after = await store.collect(() => [rooted])
    assert.equal(after.removed.chunks, 1)
    store.get(rooted)
    assert.equal(store.has(forgotten), false)
  })

  it('a chunk that a writer found to exist stays while it is open, though no root reaches it', async () => {
    using directory = new TemporaryDirectory()
    const content = new Random(seed).bytes(1000)
    await using store = PackStore.open(directory.path)
    const [digest] = await put(store, [content])
    {
      await using writer = store.writer()
      writer.put(content)
      assert.equal(writer.written.chunksNew, 0)
      await writer.commit()
      await store.collect(() => [])
      await store.collect(() => [])
      assert.ok(content.equals(store.get(digest)))
    }
    await store.collect(() => [])
    assert.equal(store.has(digest), false)
  })

  it('a writer does not count on a condemned chunk, but stores it anew', async () => {
    using directory = new TemporaryDirectory()
    const content = new Random(seed).bytes(1000)
    await using store = PackStore.open(directory.path)
    const lease = store.lease()
    const [digest] = await put(store, [content])
    await store.collect(() => [])
    await using writer = store.writer()
    assert.equal(writer.has(digest), false)
    assert.equal(store.has(digest), true)
    writer.put(content)
    assert.equal(writer.written.chunksNew, 1)
    await writer.commit()
    lease.release()
    const report = await store.collect(() => [])
    assert.equal(report.removed.chunks, 0)
    assert.ok(content.equals(store.get(digest)))
  })

  it('a lease that begins between the two readings of the roots protects what it finds', async () => {
    using directory = new TemporaryDirectory()
    const content = new Random(seed).bytes(1000)
    await using store = PackStore.open(directory.path)
    const [digest] = await put(store, [content])
    let readings = 0
    const lease = store.lease()
    const report = await store.collect(function* () {
      readings++
      // An import that was under way ends just before the second reading, with its root written.
      if (readings === 2) {
        lease.release()
        yield digest
      }
    })
    assert.deepEqual([readings, report.removed.chunks], [2, 0])
    assert.ok(content.equals(store.get(digest)))
    await using writer = store.writer()
    assert.ok(writer.has(digest), 'it is not condemned any more')
  })

  it('a process that died protects nothing, and what it left is removed', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    const child = spawn(process.execPath, [join(import.meta.dirname, 'crash-writer.ts'), directory.path, String(seed)], { stdio: ['ignore', 'pipe', 'inherit'] })
    const [first] = await once(child.stdout, 'data')
    assert.ok(String(first).startsWith('started'))
    while (packBytes(directory.path) === 0) await delay(2)
    child.kill('SIGKILL')
    await once(child, 'close')
    await store.collect(() => [])
    assert.equal(packBytes(directory.path), 0)
    assert.deepEqual(readdirSync(join(directory.path, 'locks')).sort(), ['collect', 'store'])
  })

  it('only one runs at a time', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    await using other = PackStore.open(directory.path)
    const first = store.collect(() => [])
    await assert.rejects(other.collect(() => []), (error) => isVarveError(error, 'STORE_LOCKED'))
    await first
    await other.collect(() => [])
  })

  it('leaves unfinished packs alone when reachable chunks are missing: the index may be the wrong one', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const digests = await put(store, contents(random, 3))
    const report = await store.collect(() => [...digests, random.bytes(32)])
    assert.equal(report.chunksMissing, 1)
  })

  it('a reader of another process sees every chunk while packs are repacked under it', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    await using reader = PackStore.open(directory.path)
    let digests = await put(store, contents(random, 200, 5000))
    for (let round = 0; round < 6; round++) {
      for (const digest of digests) reader.get(digest)
      digests = digests.filter((_, index) => index % 3 !== 0)
      const report = await store.collect(() => digests)
      assert.equal(report.packsRepacked, 1)
      for (const digest of digests) assert.ok(Buffer.from(digestOf(reader.get(digest))).equals(digest))
    }
  })

  it('three processes import and two collect, one of which is killed again and again; no root ever misses a chunk', async (t) => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    mkdirSync(join(directory.path, 'roots'))
    PackStore.open(join(directory.path, 'store')).close()
    const start = (script: string, ...args: string[]) => spawn(process.execPath, [join(import.meta.dirname, script), directory.path, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
    const importers = [1, 2, 3].map(() => start('collect-worker.ts', String(random.uint32()), '25'))
    let removed = 0
    let collections = 0
    let importing = true
    const collectors = [false, true].map(async (killed) => {
      while (importing) {
        const collector = start('collector.ts')
        collector.stdout.setEncoding('latin1').on('data', (text: string) => {
          for (const line of text.split('\n').filter((part) => part.endsWith('}'))) {
            collections++
            removed += JSON.parse(line).removed.chunks
          }
        })
        const closed = once(collector, 'close')
        for (const deadline = performance.now() + random.between(200, 900); importing && (!killed || performance.now() < deadline); ) await delay(10)
        collector.kill('SIGKILL')
        await closed
        assert.equal(collector.signalCode, 'SIGKILL', 'the collector ended by itself')
      }
    })
    const codes = await Promise.all(importers.map(async (importer) => (importer.exitCode === null ? (await once(importer, 'close'))[0] : importer.exitCode)))
    importing = false
    await Promise.all(collectors)
    assert.deepEqual(codes, [0, 0, 0])
    await using store = PackStore.open(join(directory.path, 'store'))
    for (const digest of reachableFrom(directory.path)) store.get(digest)
    assert.deepEqual((await store.verify()).damage, [])
    await store.collect(() => reachableFrom(directory.path))
    const last = await store.collect(() => reachableFrom(directory.path))
    assert.deepEqual([last.chunksMissing, last.unreachable.chunks, last.waiting.chunks], [0, 0, 0])
    for (const digest of reachableFrom(directory.path)) store.get(digest)
    t.diagnostic(`${collections} collections removed ${removed} chunks while imports ran`)
    assert.ok(collections > 0)
  })
})
