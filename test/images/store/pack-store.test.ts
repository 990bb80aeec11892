import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, copyFileSync, existsSync, openSync, readFileSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { Worker } from 'node:worker_threads'
import { decompress } from '@varve/images/chunk/codec.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { PACK_BYTES_TARGET, PACK_HEADER_BYTES, RECORD_HEADER_BYTES } from '@varve/images/store/pack-format.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random, testSeed } from '../../random.ts'
import { chunkStoreConformance } from './conformance.ts'
import { TemporaryDirectory } from './temporary-directory.ts'

chunkStoreConformance('packs', async () => {
  const directory = new TemporaryDirectory()
  const store = PackStore.open(directory.path)
  const close = store[Symbol.asyncDispose].bind(store)
  return Object.assign(store, {
    [Symbol.asyncDispose]: async () => {
      await close()
      directory[Symbol.dispose]()
    },
  })
})

const seed = testSeed()

function packFiles(directory: string): string[] {
  return readdirSync(directory).filter((name) => name.endsWith('.pack')).sort()
}

async function put(store: PackStore, contents: Uint8Array[], codec: 'none' | 'lz4' | 'zstd' = 'zstd'): Promise<Digest[]> {
  await using writer = store.writer({ codec })
  const digests = contents.map((content) => writer.put(content))
  await writer.commit()
  return digests
}

/** Bytes that compress by about half. */
function halfRandom(random: Random, length: number): Buffer {
  const bytes = random.bytes(length)
  for (let at = 0; at < length; at += 2) bytes[at] = 0x20
  return bytes
}

describe(`PackStore (seed ${seed})`, () => {
  it('what was committed is there after the store is opened again, whatever the codec', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const contents = Array.from({ length: 30 }, () => halfRandom(random, random.between(1, 100_000)))
    const digests: Digest[] = []
    for (const codec of ['none', 'lz4', 'zstd'] as const) {
      await using store = PackStore.open(directory.path)
      digests.push(...await put(store, contents.splice(0, 10), codec))
    }
    await using store = PackStore.open(directory.path)
    for (const digest of digests) assert.equal(digestToHex(digestOf(store.get(digest))), digestToHex(digest))
    const report = await store.verify()
    assert.deepEqual(report.damage, [])
    assert.equal(report.chunks, 30)
  })

  it('packs roll over at their target size, and a commit covers them all', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const block = random.bytes(1 << 20)
    const digests: Digest[] = []
    await using writer = store.writer({ codec: 'none' })
    for (let index = 0; index < 140; index++) {
      block.writeUInt32LE(index)
      digests.push(writer.put(block))
    }
    await writer.commit()
    assert.equal(packFiles(directory.path).length, 3)
    for (const name of packFiles(directory.path)) assert.ok(statSync(join(directory.path, name)).size <= PACK_BYTES_TARGET + (1 << 20) + RECORD_HEADER_BYTES)
    for (const [index, digest] of digests.entries()) assert.equal(Buffer.from(store.get(digest)).readUInt32LE(), index)
  })

  it('what is put while a commit is under way, beyond the end of a pack, is there after the next commit', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    const random = new Random(seed)
    await using writer = store.writer({ codec: 'none' })
    const digests = [writer.put(random.bytes(1000))]
    const first = writer.commit()
    // The commit has looked at what there is, and waits for the disk.
    await Promise.resolve()
    const megabyte = random.bytes(1 << 20)
    for (let at = 0; at <= PACK_BYTES_TARGET; at += megabyte.length) {
      megabyte.writeUInt32LE(at)
      digests.push(writer.put(megabyte))
    }
    await first
    await writer.commit()
    for (const digest of digests) store.get(digest)
    assert.equal((await store.verify()).damageCount, 0)
  })

  it('a writer that ends without a commit leaves no file', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    {
      await using writer = store.writer()
      for (let index = 0; index < 5; index++) writer.put(random.bytes(1 << 20))
      assert.equal(packFiles(directory.path).length, 1)
    }
    assert.deepEqual(packFiles(directory.path), [])
    assert.deepEqual(readdirSync(join(directory.path, 'locks')), ['store'])
    assert.deepEqual((await store.verify()).damage, [])
  })

  it('what does not shrink is stored as it is', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    await using writer = store.writer()
    writer.put(new Random(seed).bytes(50_000))
    assert.equal(writer.written.bytesStored, 50_000 + RECORD_HEADER_BYTES)
  })

  it('a damaged chunk is an error that names pack and place, never wrong bytes', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    for (const codec of ['none', 'lz4', 'zstd'] as const) {
      await using store = PackStore.open(join(directory.path, codec))
      const [digest] = await put(store, [halfRandom(random, 20_000)], codec)
      const [name] = packFiles(store.directory)
      const path = join(store.directory, name)
      const pack = readFileSync(path)
      for (let round = 0; round < 50; round++) {
        const damaged = Buffer.from(pack)
        damaged[random.between(PACK_HEADER_BYTES + RECORD_HEADER_BYTES, pack.length - 1)] ^= 1 << random.below(8)
        writeFileSync(path, damaged)
        let content
        try {
          content = store.get(digest)
        } catch (error) {
          assert.ok(isVarveError(error, 'CHUNK_CORRUPT'), String(error))
          assert.ok(error.message.includes(name) && error.message.includes(`offset ${PACK_HEADER_BYTES}`))
          continue
        }
        // Some bits of a compressed form do not matter.
        assert.equal(digestToHex(digestOf(content)), digestToHex(digest))
      }
      truncateSync(path, pack.length - 1)
      assert.throws(() => store.get(digest), (error) => isVarveError(error, 'CHUNK_CORRUPT'))
    }
  })

  it('a chunk whose pack is missing is missing', async () => {
    using directory = new TemporaryDirectory()
    let digest: Digest
    {
      await using store = PackStore.open(directory.path)
      ;[digest] = await put(store, [new Random(seed).bytes(1000)])
    }
    rmSync(join(directory.path, packFiles(directory.path)[0]))
    await using store = PackStore.open(directory.path)
    assert.throws(() => store.get(digest), (error) => isVarveError(error, 'CHUNK_MISSING'))
  })

  it('more packs than are kept open can be read', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const digests: Digest[] = []
    for (let index = 0; index < 80; index++) digests.push(...await put(store, [random.bytes(100)]))
    for (let round = 0; round < 400; round++) store.get(random.pick(digests))
    const open = readdirSync('/proc/self/fd').length
    for (let round = 0; round < 400; round++) store.get(random.pick(digests))
    assert.ok(readdirSync('/proc/self/fd').length <= open + 1)
  })

  it('threads and processes make, open and fill one store at once', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const script = join(import.meta.dirname, 'store-worker.ts')
    const path = join(directory.path, 'new', 'store')
    const workers = [1, 2, 3].map(() => new Worker(script, { workerData: [path, String(random.uint32()), '400'] }))
    const children = [1, 2].map(() => spawn(process.execPath, [script, path, String(random.uint32()), '400'], { stdio: 'inherit' }))
    const codes = await Promise.all([...workers, ...children].map(async (one) => (await once(one, 'exit'))[0]))
    assert.deepEqual(codes, [0, 0, 0, 0, 0])
    await using store = PackStore.open(path)
    for (let number = 0; number < 400; number++) {
      const content = new Random(number).bytes(500 + number)
      assert.ok(content.equals(store.get(digestOf(content))))
    }
    const report = await store.verify()
    assert.deepEqual([report.damage, report.chunks], [[], 400])
    assert.deepEqual(readdirSync(join(path, 'locks')).sort(), ['collect', 'store'])
  })

  it('a missing index is refused with what to do, and built again from the packs alone', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const contents = Array.from({ length: 100 }, () => halfRandom(random, random.between(1, 50_000)))
    {
      await using store = PackStore.open(directory.path)
      await put(store, contents.slice(0, 50))
      await put(store, contents.slice(50))
    }
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(directory.path, `index.db${suffix}`), { force: true })
    assert.throws(() => PackStore.open(directory.path), (error) => isVarveError(error, 'INDEX_INVALID') && error.message.includes('varve verify --repair'))
    assert.equal(existsSync(join(directory.path, 'index.db')), false)
    const report = await PackStore.rebuild(directory.path)
    assert.deepEqual([report.damageCount, report.chunksRecovered], [0, 100])
    await using store = PackStore.open(directory.path)
    for (const content of contents) assert.ok(content.equals(store.get(digestOf(content))))
    assert.deepEqual((await store.verify()).damage, [])
  })

  it('an index of garbage is refused, and built again', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const content = random.bytes(1000)
    {
      await using store = PackStore.open(directory.path)
      await put(store, [content])
    }
    for (const garbage of [random.bytes(50_000), Buffer.alloc(0), Buffer.from('SQLite format 3\0'), Buffer.alloc(8192)]) {
      writeFileSync(join(directory.path, 'index.db'), garbage)
      assert.throws(() => PackStore.open(directory.path), (error) => isVarveError(error, 'INDEX_INVALID'), `${garbage.length} bytes`)
      await PackStore.rebuild(directory.path)
      await using store = PackStore.open(directory.path)
      assert.ok(content.equals(store.get(digestOf(content))))
    }
  })

  it('an index that is older than the packs is noticed by verify, and repaired in place', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const older = random.bytes(1000)
    const newer = random.bytes(1000)
    {
      await using store = PackStore.open(directory.path)
      await put(store, [older])
    }
    copyFileSync(join(directory.path, 'index.db'), join(directory.path, 'index.old'))
    {
      await using store = PackStore.open(directory.path)
      await put(store, [newer])
    }
    copyFileSync(join(directory.path, 'index.old'), join(directory.path, 'index.db'))
    await using store = PackStore.open(directory.path)
    assert.equal(store.has(digestOf(newer)), false)
    assert.equal((await store.verify()).damageCount, 1)
    const report = await store.verify({ repair: true })
    assert.equal(report.chunksRecovered, 1)
    assert.ok(newer.equals(store.get(digestOf(newer))))
    assert.deepEqual((await store.verify()).damage, [])
  })

  it('the index is not built again while somebody has the store open', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    await assert.rejects(PackStore.rebuild(store.directory), (error) => isVarveError(error, 'STORE_LOCKED'))
  })

  it('verify reports each damaged chunk; repair gives it up, keeps the others, and the next import stores it again', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const contents = Array.from({ length: 20 }, () => random.bytes(random.between(100, 5000)))
    const digests = await put(store, contents, 'none')
    const [name] = packFiles(directory.path)
    const path = join(directory.path, name)
    const pack = readFileSync(path)
    // The payload of chunk 3, the header of chunk 7 (whose payload is good), both of chunk 11.
    for (const index of [3, 11]) pack[pack.indexOf(contents[index].subarray(0, 50)) + 20] ^= 0x10
    for (const index of [7, 11]) pack[pack.indexOf(contents[index].subarray(0, 15)) - 20] ^= 0x10
    writeFileSync(path, pack)
    const found = await store.verify()
    for (const index of [3, 7, 11]) assert.ok(found.damage.some(({ digest, file }) => digest === digestToHex(digests[index]) && file === name), `chunk ${index}`)
    const quick = await store.verify({ readData: false })
    assert.ok(quick.damageCount > 0)
    const report = await store.verify({ repair: true })
    assert.equal(report.chunksDropped, 2)
    assert.deepEqual(report.packsSetAside, [`${name}.damaged`])
    for (const [index, digest] of digests.entries()) assert.equal(store.has(digest), ![3, 11].includes(index), `chunk ${index}`)
    assert.deepEqual((await store.verify()).damage, [])
    await put(store, contents)
    for (const content of contents) assert.ok(content.equals(store.get(digestOf(content))))
    assert.deepEqual((await store.verify()).damage, [])
  })

  it('repair leaves a damaged pack to the writer that appends to it, and sets it aside once that has ended', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    const random = new Random(seed)
    const writer = store.writer({ codec: 'none' })
    const [damaged, good] = [writer.put(random.bytes(1000)), writer.put(random.bytes(1000))]
    await writer.commit()
    const [file] = packFiles(directory.path)
    const fd = openSync(join(directory.path, file), 'r+')
    writeSync(fd, Buffer.from([1, 2, 3]), 0, 3, PACK_HEADER_BYTES + RECORD_HEADER_BYTES + 500)
    closeSync(fd)
    assert.equal((await store.verify({ repair: true })).damageCount, 1)
    const later = writer.put(random.bytes(1000))
    await writer.commit()
    store.get(later)
    await writer[Symbol.asyncDispose]()
    assert.deepEqual((await store.verify({ repair: true })).packsSetAside, [`${file}.damaged`])
    for (const digest of [good, later]) store.get(digest)
    assert.equal(store.has(damaged), false)
    assert.equal((await store.verify()).damageCount, 0)
  })

  it('repair finds a second copy of a damaged chunk', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const content = random.bytes(3000)
    await using store = PackStore.open(directory.path)
    {
      await using first = store.writer({ codec: 'none' })
      await using second = store.writer({ codec: 'none' })
      first.put(content)
      second.put(content)
      second.put(random.bytes(100))
      await first.commit()
      await second.commit()
    }
    assert.equal(packFiles(directory.path).length, 2)
    for (const name of packFiles(directory.path)) {
      const pack = readFileSync(join(directory.path, name))
      if (pack.length > PACK_HEADER_BYTES + RECORD_HEADER_BYTES + content.length) continue
      pack[pack.length - 1] ^= 1
      writeFileSync(join(directory.path, name), pack)
    }
    assert.throws(() => store.get(digestOf(content)), (error) => isVarveError(error, 'CHUNK_CORRUPT'))
    const report = await store.verify({ repair: true })
    assert.deepEqual([report.damageCount, report.chunksDropped], [1, 0])
    assert.ok(content.equals(store.get(digestOf(content))))
  })

  it('a chunk is given as it is stored, while packs are closed, moved and removed under the reads', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    await using store = PackStore.open(directory.path)
    const contents = Array.from({ length: 210 }, () => Buffer.concat([random.bytes(random.between(100, 10_000)), Buffer.alloc(10_000)]))
    // Each commit of another writer is a pack of its own: more than are kept open, so that reading one closes another.
    const digests: Digest[] = []
    for (let at = 0; at < contents.length; at += 3) digests.push(...await put(store, contents.slice(at, at + 3), (['none', 'lz4', 'zstd'] as const)[at % 9 / 3]))
    const isWhole = async (index: number) => {
      const { codec, raw, payload } = await store.stored(digests[index])
      assert.ok(contents[index].equals(decompress(codec, payload, raw)))
      return codec
    }
    const codecs = await Promise.all(digests.map((_, index) => isWhole(index)))
    assert.deepEqual(new Set(codecs), new Set(['none', 'lz4', 'zstd']))
    const kept = digests.flatMap((_, index) => index % 3 === 0 ? [index] : [])
    const reads = kept.map(isWhole)
    assert.equal((await store.collect(() => kept.map((index) => digests[index]))).removed.chunks, 140)
    await Promise.all([...reads, ...kept.map(isWhole)])
    await assert.rejects(store.stored(digests[1]), (error) => isVarveError(error, 'CHUNK_MISSING'))
    // The store may be closed while reads are under way.
    const last = kept.map(isWhole)
    store.close()
    await Promise.all(last)
  })

  it('a record that is not what the index says is not given as a stored chunk', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    const [digest, second] = await put(store, [Buffer.from('one'), Buffer.from('two')], 'none')
    const fd = openSync(join(directory.path, packFiles(directory.path)[0]), 'r+')
    writeSync(fd, 'X', PACK_HEADER_BYTES + 13)
    await assert.rejects(store.stored(digest), (error) => isVarveError(error, 'CHUNK_CORRUPT'))
    assert.equal((await store.stored(second)).payload.toString(), 'two')
    truncateSync(join(directory.path, packFiles(directory.path)[0]), PACK_HEADER_BYTES + 2 * RECORD_HEADER_BYTES)
    await assert.rejects(store.stored(second), (error) => isVarveError(error, 'CHUNK_CORRUPT'))
    closeSync(fd)
  })

  it('a collection that died between the file of an empty pack and its row leaves no damage', async () => {
    using directory = new TemporaryDirectory()
    await using store = PackStore.open(directory.path)
    await put(store, [Buffer.from('collected')])
    const { default: Database } = await import('better-sqlite3')
    const index = new Database(join(directory.path, 'index.db'))
    index.exec('DELETE FROM chunks')
    rmSync(join(directory.path, packFiles(directory.path)[0]))
    assert.deepEqual((await store.verify()).damage, [])
    assert.equal((await store.collect(() => [])).packsRemoved, 1)
    assert.deepEqual(index.prepare('SELECT * FROM packs').all(), [])
    index.close()
  })

  it('rows of the index that are wrong are found, and put right', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const contents = Array.from({ length: 10 }, () => random.bytes(2000))
    await using store = PackStore.open(directory.path)
    const digests = await put(store, contents)
    const { default: Database } = await import('better-sqlite3')
    const index = new Database(join(directory.path, 'index.db'))
    index.prepare('UPDATE chunks SET offset = offset + 1 WHERE digest = ?').run(digests[2])
    index.prepare('UPDATE chunks SET raw = raw + 1, codec = 2 WHERE digest = ?').run(digests[4])
    index.prepare('UPDATE chunks SET pack = 77 WHERE digest = ?').run(digests[6])
    index.prepare('INSERT INTO chunks SELECT ?, pack, offset, stored, raw, codec, NULL FROM chunks WHERE digest = ?').run(random.bytes(32), digests[8])
    index.close()
    assert.equal((await store.verify({ readData: false })).damageCount, 4)
    const report = await store.verify({ repair: true })
    assert.deepEqual([report.damageCount, report.chunksDropped, report.packsSetAside.length], [4, 1, 0])
    for (const content of contents) assert.ok(content.equals(store.get(digestOf(content))))
    assert.deepEqual((await store.verify()).damage, [])
  })
})
