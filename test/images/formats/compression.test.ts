import assert from 'node:assert/strict'
import test from 'node:test'
import { ByteStream } from '@varve/images/formats/byte-stream.ts'
import { decompressed } from '@varve/images/formats/compression.ts'

test('what a zstd stream needs for its window is told and given back, and who does not grant it ends the stream', async () => {
  const windowLog = 25
  const content = Buffer.alloc(100_000, 'content')
  // A frame (RFC 8878, 3.1.1) with a window and no size, of one raw block, the last.
  const compressed = Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3, 0, 0, 0]), content])
  compressed.writeUIntLE(content.length * 8 + 1, 6, 3)
  async function read(take: (bytes: number) => void): Promise<number> {
    const source = new ByteStream((async function* () { yield compressed })())
    const stream = await decompressed(source, { take })
    return await stream.skip(2 * content.length)
  }
  let taken = 0
  let most = 0
  assert.equal(await read((bytes) => { most = Math.max(most, (taken += bytes)) }), content.length)
  assert.ok(most >= 2 ** windowLog, `${most} bytes`)
  assert.equal(taken, 0)
  const refusal = new Error('too much')
  await assert.rejects(read((bytes) => { if (bytes > 2 ** windowLog) throw refusal }), (error) => error === refusal)
})
