import assert from 'node:assert/strict'
import { closeSync, openSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { PACK_HEADER_BYTES, RECORD_HEADER_BYTES, decodeRecordHeader, encodeRecordHeader } from '@varve/images/store/pack-format.ts'
import { scanPack } from '@varve/images/store/pack-scan.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random, testSeed } from '../../random.ts'
import { TemporaryDirectory } from './temporary-directory.ts'

const seed = testSeed()

/** A pack of a few chunks, and their contents by digest. */
async function samplePack(random: Random): Promise<{ name: string; pack: Buffer; contents: Map<string, Buffer> }> {
  using directory = new TemporaryDirectory()
  await using store = PackStore.open(directory.path)
  const contents = new Map<string, Buffer>()
  {
    await using writer = store.writer()
    for (let chunk = 0; chunk < 12; chunk++) {
      const content = random.bytes(random.between(1, 3000))
      if (random.chance(0.5)) content.fill(0x20, content.length >>> 2)
      contents.set(digestToHex(writer.put(content)), content)
    }
    await writer.commit()
  }
  const name = readdirSync(directory.path).find((file) => file.endsWith('.pack'))!
  return { name, pack: readFileSync(join(directory.path, name)), contents }
}

function mutated(random: Random, pack: Buffer): Buffer {
  let bytes = Buffer.from(pack)
  for (let edits = random.between(1, 5); edits > 0; edits--) {
    const at = random.below(bytes.length + 1)
    const action = random.below(6)
    if (action === 0 && bytes.length > 0) bytes[at % bytes.length] ^= 1 << random.below(8)
    else if (action === 1) bytes = bytes.subarray(0, at)
    else if (action === 2) bytes = Buffer.concat([bytes.subarray(0, at), random.bytes(random.below(300)), bytes.subarray(at)])
    else if (action === 3) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random.below(300))])
    else if (action === 4) bytes.fill(0, at, Math.min(bytes.length, at + random.below(500)))
    else bytes = Buffer.concat([bytes.subarray(0, at), Buffer.from('VCHK'), bytes.subarray(at)])
  }
  return bytes
}

describe(`pack reader on damaged packs (seed ${seed})`, () => {
  it('every record that it calls good holds the content that it names, and stretches cover the file', async () => {
    const random = new Random(seed)
    using directory = new TemporaryDirectory()
    const path = join(directory.path, 'pack')
    const { pack, contents } = await samplePack(random)
    for (let round = 0; round < 1500; round++) {
      const bytes = random.chance(0.03) ? random.bytes(random.below(5000)) : mutated(random, pack)
      writeFileSync(path, bytes)
      const fd = openSync(path, 'r')
      let end = PACK_HEADER_BYTES
      for (const readData of [true, false]) {
        end = PACK_HEADER_BYTES
        for (const { offset, length, header, problem } of scanPack(fd, { to: bytes.length + random.below(2) * 1000, readData })) {
          assert.equal(offset, end)
          assert.ok(length > 0)
          end = offset + length
          if (readData && problem === undefined) assert.ok(contents.has(digestToHex(header!.digest)))
        }
        assert.equal(end, Math.max(bytes.length, PACK_HEADER_BYTES))
      }
      closeSync(fd)
    }
  })

  it('a header says what was written, or is none', () => {
    const random = new Random(seed)
    for (let round = 0; round < 3000; round++) {
      const bytes = Buffer.alloc(RECORD_HEADER_BYTES + 10)
      const raw = random.between(1, 1 << 20)
      const header = { digest: random.bytes(32), codec: random.pick(['none', 'lz4', 'zstd'] as const), raw, stored: random.between(1, raw) }
      encodeRecordHeader(bytes, 10, header)
      assert.deepEqual(decodeRecordHeader(bytes, 10), header)
      bytes[10 + random.below(RECORD_HEADER_BYTES)] ^= 1 << random.below(8)
      assert.equal(decodeRecordHeader(bytes, 10), undefined)
    }
  })

  it('a store of damaged packs is rebuilt, verified clean, and gives only what hashes to its name', async () => {
    const random = new Random(seed)
    const { name, pack, contents } = await samplePack(random)
    for (let round = 0; round < 60; round++) {
      using directory = new TemporaryDirectory()
      writeFileSync(join(directory.path, name), mutated(random, pack))
      writeFileSync(join(directory.path, `${random.bytes(16).toString('hex')}.pack`), random.chance(0.5) ? random.bytes(random.below(500)) : mutated(random, pack))
      let newer = false
      try {
        await PackStore.rebuild(directory.path)
      } catch (error) {
        assert.ok(isVarveError(error, 'HOME_INVALID'), String(error))
        newer = true
      }
      if (newer) continue
      await using store = PackStore.open(directory.path)
      for (const [digest, content] of contents) {
        if (store.has(Buffer.from(digest, 'hex'))) assert.ok(content.equals(store.get(Buffer.from(digest, 'hex'))))
      }
      assert.deepEqual((await store.verify()).damage, [], `round ${round}`)
    }
  })

  it('a store whose packs are damaged while it is open gives an error or the right bytes, and repairs itself', async () => {
    const random = new Random(seed)
    for (let round = 0; round < 40; round++) {
      using directory = new TemporaryDirectory()
      await using store = PackStore.open(directory.path)
      const contents = Array.from({ length: 10 }, () => random.bytes(random.between(1, 2000)))
      {
        await using writer = store.writer()
        for (const content of contents) writer.put(content)
        await writer.commit()
      }
      const name = readdirSync(directory.path).find((file) => file.endsWith('.pack'))!
      const path = join(directory.path, name)
      if (random.chance(0.1)) rmSync(path)
      else writeFileSync(path, mutated(random, readFileSync(path)))
      for (const content of contents) {
        try {
          assert.ok(content.equals(store.get(digestOf(content))))
        } catch (error) {
          assert.ok(isVarveError(error, 'CHUNK_CORRUPT', 'CHUNK_MISSING'), String(error))
        }
      }
      await store.verify({ repair: true })
      assert.deepEqual((await store.verify()).damage, [], `round ${round}`)
      await using writer = store.writer()
      for (const content of contents) writer.put(content)
      await writer.commit()
      for (const content of contents) assert.ok(content.equals(store.get(digestOf(content))))
    }
  })
})
