/**
 * What holds for every ChunkStore. A test file calls `chunkStoreConformance` with a way to open an empty one.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '@varve/images/chunk/limits.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { Random, testSeed } from '../../random.ts'

/** @param open an empty store; disposing it must leave nothing behind */
export function chunkStoreConformance(name: string, open: () => Promise<ChunkStore>): void {
  const seed = testSeed()
  const withStore = (work: (store: ChunkStore, random: Random) => Promise<void>) => async () => {
    await using store = await open()
    await work(store, new Random(seed))
  }

  describe(`ChunkStore: ${name} (seed ${seed})`, () => {
    it('a committed chunk reads back the same, from 1 byte to the largest', withStore(async (store, random) => {
      const contents = [1, 2, 47, 4096, 65_536, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX].flatMap((length) => [random.bytes(length), Buffer.alloc(length, length)])
      await using writer = store.writer()
      const digests = contents.map((content) => writer.put(content))
      await writer.commit()
      for (const [index, digest] of digests.entries()) {
        assert.equal(digestToHex(digest), digestToHex(digestOf(contents[index])))
        assert.equal(await store.has(digest), true)
        assert.ok(contents[index].equals(await store.get(digest)))
      }
    }))

    it('an empty chunk and one above the limit are refused', withStore(async (store) => {
      await using writer = store.writer()
      assert.throws(() => writer.put(Buffer.alloc(0)), RangeError)
      assert.throws(() => writer.put(Buffer.alloc(CHUNK_BYTES_MAX + 1)), RangeError)
    }))

    it('a chunk that was never put is missing', withStore(async (store, random) => {
      const digest = random.bytes(32)
      assert.equal(await store.has(digest), false)
      await assert.rejects(async () => store.get(digest), (error) => isVarveError(error, 'CHUNK_MISSING'))
    }))

    it('nothing is visible before the commit, all of it after', withStore(async (store, random) => {
      await using writer = store.writer()
      const digests = Array.from({ length: 20 }, () => writer.put(random.bytes(1000)))
      for (const digest of digests) assert.equal(await store.has(digest), false)
      await writer.commit()
      for (const digest of digests) assert.equal(await store.has(digest), true)
    }))

    it('disposing without a commit leaves nothing, and keeps what was committed before', withStore(async (store, random) => {
      let kept: Digest
      let dropped: Digest
      {
        await using writer = store.writer()
        kept = writer.put(random.bytes(5000))
        await writer.commit()
        dropped = writer.put(random.bytes(5000))
      }
      assert.equal(await store.has(kept), true)
      assert.equal((await store.get(kept)).length, 5000)
      assert.equal(await store.has(dropped), false)
    }))

    it('the caller may reuse the bytes that it has put', withStore(async (store, random) => {
      await using writer = store.writer()
      const bytes = random.bytes(3000)
      const copy = Buffer.from(bytes)
      const digest = writer.put(bytes)
      bytes.fill(0)
      await writer.commit()
      assert.ok(copy.equals(await store.get(digest)))
    }))

    it('the same content is stored once, and counted', withStore(async (store, random) => {
      const content = random.bytes(10_000)
      await using first = store.writer()
      first.put(content)
      first.put(content)
      assert.deepEqual({ ...first.written, bytesStored: 0 }, { chunks: 2, bytes: 20_000, chunksNew: 1, bytesNew: 10_000, bytesStored: 0 })
      assert.ok(first.written.bytesStored >= 10_000 && first.written.bytesStored < 10_200)
      await first.commit()
      await using second = store.writer()
      second.put(content)
      assert.deepEqual({ ...second.written }, { chunks: 1, bytes: 10_000, chunksNew: 0, bytesNew: 0, bytesStored: 0 })
      await second.commit()
    }))

    it('two writers bring the same content, and both may go on', withStore(async (store, random) => {
      const content = random.bytes(10_000)
      await using first = store.writer()
      await using second = store.writer()
      const digest = first.put(content)
      second.put(content)
      const other = second.put(random.bytes(100))
      await Promise.all([first.commit(), second.commit()])
      assert.ok(content.equals(await store.get(digest)))
      assert.equal((await store.get(other)).length, 100)
    }))

    it('a writer can be used on after a commit, and a commit of nothing does nothing', withStore(async (store, random) => {
      await using writer = store.writer()
      await writer.commit()
      for (let round = 0; round < 5; round++) {
        const digest = writer.put(random.bytes(2000))
        await writer.commit()
        assert.equal(await store.has(digest), true)
      }
    }))

    it('puts and commits may overlap', withStore(async (store, random) => {
      await using writer = store.writer()
      const contents = Array.from({ length: 200 }, () => random.bytes(random.between(1, 20_000)))
      const commits: Promise<void>[] = []
      for (const [index, content] of contents.entries()) {
        writer.put(content)
        if (index % 7 === 0) commits.push(writer.commit())
      }
      commits.push(writer.commit())
      await Promise.all(commits)
      for (const content of contents) assert.ok(content.equals(await store.get(digestOf(content))))
    }))

    it('a closed writer refuses', withStore(async (store, random) => {
      const writer = store.writer()
      await writer[Symbol.asyncDispose]()
      await writer[Symbol.asyncDispose]()
      assert.throws(() => writer.put(random.bytes(10)), TypeError)
      await assert.rejects(async () => writer.commit(), TypeError)
    }))

    it('an aborted writer refuses with the reason', withStore(async (store, random) => {
      const controller = new AbortController()
      await using writer = store.writer({ signal: controller.signal })
      const digest = writer.put(random.bytes(10))
      const reason = new Error('stopped')
      controller.abort(reason)
      assert.throws(() => writer.put(random.bytes(10)), reason)
      await assert.rejects(async () => writer.commit(), reason)
      assert.equal(await store.has(digest), false)
    }))
  })
}
