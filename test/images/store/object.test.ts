import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { getObject, objectChunks, putObject } from '@varve/images/store/object.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()

/** A store that answers with promises, as remote ones do. */
function remote(store: MemoryStore): ChunkStore {
  return {
    get: async (digest) => store.get(digest),
    has: async (digest) => store.has(digest),
    writer: () => store.writer(),
    [Symbol.asyncDispose]: async () => {},
  }
}

async function stored(bytes: Uint8Array): Promise<{ store: MemoryStore; digest: Uint8Array }> {
  const store = new MemoryStore()
  await using writer = store.writer()
  const digest = putObject(writer, bytes)
  await writer.commit()
  return { store, digest }
}

describe(`objects (seed ${seed})`, () => {
  it('an object of any size comes back, also from a store that answers with promises', async () => {
    const random = new Random(seed)
    for (const length of [0, 1, 100, 16_383, 16_384, 16_385, 65_536, 262_144, 262_145, 3_000_000, SEGMENT_BYTES + 1]) {
      const bytes = random.bytes(length)
      const { store, digest } = await stored(bytes)
      assert.ok(bytes.equals(getObject(store, digest) as Uint8Array), `${length} bytes`)
      assert.ok(bytes.equals(await getObject(remote(store), digest)), `${length} bytes`)
    }
  })

  it('its chunks are all there are, the root first', async () => {
    for (const length of [0, 10, 20_000, 3_000_000]) {
      const { store, digest } = await stored(new Random(seed).bytes(length))
      const chunks = objectChunks(store, digest) as Uint8Array[]
      assert.equal(chunks[0], digest)
      assert.equal(new Set(chunks.map(digestToHex)).size, store.chunkCount)
      assert.deepEqual((await objectChunks(remote(store), digest)).map(digestToHex), chunks.map(digestToHex))
    }
  })

  it('the same bytes have the same digest, and versions share their chunks', async () => {
    const random = new Random(seed)
    const bytes = random.bytes(3_000_000)
    const store = new MemoryStore()
    await using writer = store.writer()
    const first = putObject(writer, bytes)
    const chunks = writer.written.chunksNew
    assert.equal(digestToHex(putObject(writer, Buffer.from(bytes))), digestToHex(first))
    assert.equal(writer.written.chunksNew, chunks)
    putObject(writer, Buffer.concat([bytes.subarray(0, 1_500_000), Buffer.from('new'), bytes.subarray(1_500_000)]))
    assert.ok(writer.written.chunksNew - chunks <= 6, `${writer.written.chunksNew - chunks} new chunks`)
  })

  it('a chunk that is no root is refused', async () => {
    const store = new MemoryStore()
    await using writer = store.writer()
    const digests = [Buffer.from('x'), Buffer.alloc(16), Buffer.alloc(1000, 1)].map((bytes) => writer.put(bytes))
    await writer.commit()
    for (const digest of digests) {
      assert.throws(() => getObject(store, digest), (error) => isVarveError(error, 'FORMAT_INVALID'))
      assert.throws(() => objectChunks(store, digest), (error) => isVarveError(error, 'FORMAT_INVALID'))
      await assert.rejects(async () => getObject(remote(store), digest), (error) => isVarveError(error, 'FORMAT_INVALID'))
    }
    assert.throws(() => getObject(store, digestOf(Buffer.from('nowhere'))), (error) => isVarveError(error, 'CHUNK_MISSING'))
  })

  it('damaged roots end in an error with a code, or in another object (fuzz)', async () => {
    const random = new Random(seed)
    const store = new MemoryStore()
    await using writer = store.writer()
    const roots = [0, 100, 20_000, 1_000_000].map((length) => putObject(writer, random.bytes(length)))
    await writer.commit()
    for (let round = 0; round < 4000; round++) {
      let root = Buffer.from(store.get(random.pick(roots)))
      for (let edits = random.between(1, 4); edits > 0; edits--) {
        if (root.length === 0) break
        const action = random.below(4)
        if (action === 0) root[random.below(root.length)] = random.below(256)
        else if (action === 1 && root.length >= 16) root.writeUInt32LE(random.pick([0, 1, 16_384, 0x7fffffff, 0xffffffff, random.uint32()]), random.pick([8, 12]))
        else if (action === 2) root = root.subarray(0, random.below(root.length + 1))
        else root = Buffer.concat([root, random.bytes(random.below(80))])
      }
      if (root.length === 0) continue
      const digest = writer.put(root)
      await writer.commit()
      try {
        const bytes = getObject(store, digest) as Uint8Array
        assert.equal(bytes.length, root.readUInt32LE(8))
        await objectChunks(store, digest)
      } catch (error) {
        assert.ok(isVarveError(error, 'FORMAT_INVALID', 'LIMIT_EXCEEDED', 'CHUNK_MISSING'), String(error))
      }
    }
  })
})
