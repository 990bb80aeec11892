import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Worker } from 'node:worker_threads'
import { once } from 'node:events'
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { compress, decompress, worthwhileBytes } from '@varve/images/chunk/codec.ts'
import type { Codec } from '@varve/images/chunk/codec.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '@varve/images/chunk/limits.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { zstdCompressInto, zstdDecompressInto } from '@varve/images/native/zstd.ts'
import { Random, testSeed } from '../../random.ts'

const seed = testSeed()
const codecs: Codec[] = ['none', 'lz4', 'zstd']

/** From random to all the same. */
function content(random: Random, length: number): Buffer {
  const bytes = random.bytes(length)
  const variety = random.pick([1, 2, 16, 64, 255])
  for (let at = 0; at < length; at++) bytes[at] %= variety
  return bytes
}

describe(`codecs (seed ${seed})`, () => {
  it('digests are BLAKE3-256', () => {
    assert.equal(digestToHex(digestOf(new Uint8Array(0))), 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262')
    assert.equal(digestToHex(digestOf(Buffer.from('abc'))), '6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85')
  })

  it('every content comes back, at every length and level', () => {
    const random = new Random(seed)
    const lengths = [1, 2, 3, 10, 100, 4095, 4096, 65_536, 131_072, 131_073, CHUNK_BYTES_MAX]
    for (let round = 0; round < 300; round++) {
      const bytes = content(random, random.chance(0.2) ? random.pick(lengths) : random.between(1, 20_000))
      for (const asked of codecs) {
        const { codec, bytes: stored } = compress(bytes, { codec: asked, level: random.pick([-5, 1, 2, 3, 9]) })
        assert.ok(codec === asked || codec === 'none')
        assert.ok(codec === 'none' ? stored.length === bytes.length : stored.length <= worthwhileBytes(bytes.length))
        assert.ok(bytes.equals(decompress(codec, stored, bytes.length)))
      }
    }
  })

  it('what does not shrink by 3% is kept as it is', () => {
    const bytes = new Random(seed).bytes(10_000)
    for (const codec of codecs) assert.equal(compress(bytes, { codec }).bytes, bytes)
    for (const codec of codecs) assert.equal(compress(Buffer.from('a'), { codec }).codec, 'none')
  })

  it('zstd frames are those of everybody', () => {
    const random = new Random(seed)
    for (let round = 0; round < 50; round++) {
      const bytes = content(random, random.between(100, 300_000))
      const { codec, bytes: stored } = compress(bytes, { codec: 'zstd' })
      if (codec === 'zstd') assert.ok(bytes.equals(zstdDecompressSync(stored)))
      const theirs = zstdCompressSync(bytes, { params: { [constants.ZSTD_c_checksumFlag]: 1 } })
      const target = Buffer.alloc(bytes.length)
      assert.ok(zstdDecompressInto(target, theirs) && target.equals(bytes))
    }
  })

  it('only exactly one frame of exactly the stated size is accepted', () => {
    const bytes = Buffer.alloc(5000, 'varve')
    for (const codec of ['lz4', 'zstd'] as const) {
      const stored = Buffer.from(compress(bytes, { codec }).bytes)
      const refused = (form: Uint8Array, rawBytes: number) => assert.throws(() => decompress(codec, form, rawBytes), (error) => isVarveError(error, 'FORMAT_INVALID'))
      for (const rawBytes of [1, 4999, 5001, CHUNK_BYTES_MAX]) refused(stored, rawBytes)
      for (let length = 0; length < stored.length; length++) refused(stored.subarray(0, length), 5000)
      if (codec === 'zstd') {
        refused(Buffer.concat([stored, Buffer.alloc(1)]), 5000)
        refused(Buffer.concat([stored, stored]), 10_000)
        // A skippable frame, and the magic of version 0.7.
        refused(Buffer.from('502a4d18020000000000', 'hex'), 2)
        refused(Buffer.concat([Buffer.from('27b52ffd', 'hex'), stored.subarray(4)]), 5000)
      }
    }
    assert.throws(() => decompress('none', bytes, 4999), (error) => isVarveError(error, 'FORMAT_INVALID'))
  })

  it('sizes outside the limits are refused before anything is allocated', () => {
    for (const codec of codecs) for (const rawBytes of [0, -1, NaN, 1.5e9, CHUNK_BYTES_MAX + 1]) {
      assert.throws(() => decompress(codec, new Uint8Array(10), rawBytes), (error) => isVarveError(error, 'LIMIT_EXCEEDED'))
    }
    // Prefix of lz4: a size of 2 GiB.
    assert.throws(() => decompress('lz4', Buffer.from('ffffff7f00', 'hex'), 1000), (error) => isVarveError(error, 'FORMAT_INVALID'))
  })

  it('bytes that are no such form end in an error or in as many bytes as asked for (fuzz)', () => {
    const random = new Random(seed)
    for (let round = 0; round < 6000; round++) {
      const bytes = content(random, random.between(1, 3000))
      const codec = random.pick(['lz4', 'zstd'] as const)
      const form = Buffer.from(compress(bytes, { codec }).bytes)
      for (let flips = random.between(1, 6); flips > 0; flips--) form[random.below(form.length)] = random.below(256)
      const cut = random.chance(0.3) ? form.subarray(0, random.below(form.length + 1)) : random.chance(0.1) ? random.bytes(random.below(200)) : form
      const rawBytes = random.chance(0.7) ? bytes.length : random.between(1, 100_000)
      try {
        assert.equal(decompress(codec, cut, rawBytes).length, rawBytes)
      } catch (error) {
        assert.ok(isVarveError(error, 'FORMAT_INVALID'), String(error))
      }
    }
  })

  it('a frame that does not fit its target is not written beyond it', () => {
    const bytes = new Random(seed).bytes(10_000)
    const memory = Buffer.alloc(6000, 0x55)
    assert.equal(zstdCompressInto(memory.subarray(0, 5000), bytes, 3), -1)
    assert.ok(memory.subarray(5000).every((byte) => byte === 0x55))
  })

  it('worker threads have contexts of their own, and may come and go', async () => {
    const code = `
      import { workerData } from 'node:worker_threads'
      const { compress, decompress } = await import(workerData)
      for (let round = 0; round < 200; round++) {
        const bytes = Buffer.alloc(1000 + round * 50, 'some text ' + round)
        const { codec, bytes: stored } = compress(bytes, { codec: 'zstd', level: 1 + round % 5 })
        if (!bytes.equals(decompress(codec, stored, bytes.length))) throw new Error('differs')
      }`
    const url = import.meta.resolve('@varve/images/chunk/codec.ts')
    for (let round = 0; round < 3; round++) {
      const workers = [1, 2, 3].map(() => new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), { workerData: url }))
      assert.deepEqual(await Promise.all(workers.map(async (worker) => (await once(worker, 'exit'))[0])), [0, 0, 0])
    }
  })
})
