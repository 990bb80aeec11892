/** A disk put together of pieces of others. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { PiecewiseDevice } from '@varve/images/device/piecewise-device.ts'
import type { Piece } from '@varve/images/device/piecewise-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'
import { deviceConformance } from './conformance.ts'
import { DelayedDevice } from './delayed.ts'

const seed = testSeed()

/** Pieces of random lengths: of a disk that tells its extents, of one that does not, of one that answers late, and of none where all is zero. */
function pieces(content: Buffer, random: Random): PiecewiseDevice {
  const disk = MemoryDevice.of(content)
  const sources: ReadableDisk[] = [disk, { sizeBytes: content.length, read: (into, offset) => disk.read(into, offset) }, new DelayedDevice(disk, random)]
  const locate = (offset: number, length: number): Piece => {
    const unit = 1000
    const most = Math.min(length, unit - (offset % unit))
    const part = content.subarray(offset, offset + most)
    if (part.every((byte) => byte === 0)) return { length: most, at: 0, type: Math.floor(offset / unit) % 2 === 0 ? 'zero' : 'hole' }
    const source = sources[Math.floor(offset / unit) % sources.length]
    return { length: most, source, at: offset, type: offset % 3 === 0 ? 'data' : undefined }
  }
  return new PiecewiseDevice({ sizeBytes: content.length, locate, close: () => disk[Symbol.asyncDispose]() })
}

deviceConformance('PiecewiseDevice', async (content) => {
  const device = pieces(content, new Random(seed))
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

describe(`PiecewiseDevice (seed ${seed})`, () => {
  test('a read that fails in one piece is answered when the others have ended', async () => {
    const late = new DelayedDevice(new MemoryDevice(4096), new Random(seed))
    const failing = { sizeBytes: 4096, read: () => { throw new VarveError('CHUNK_MISSING', 'gone') } }
    let ended = 0
    const counting: ReadableDisk = { sizeBytes: 4096, read: (into, offset) => late.read(into, offset).then(() => { ended++ }) }
    const device = new PiecewiseDevice({ sizeBytes: 4096, locate: (offset, length) => ({ length: Math.min(length, 512), at: offset, source: offset < 2048 ? counting : failing }) })
    await assert.rejects(async () => device.read(Buffer.alloc(4096), 0), { code: 'CHUNK_MISSING' })
    assert.equal(ended, 4)
    assert.throws(() => device.read(Buffer.alloc(512), 2048), { code: 'CHUNK_MISSING' })
  })

  test('a read of very many pieces waits for few of them at a time', async () => {
    let waiting = 0
    let most = 0
    const source: ReadableDisk = {
      sizeBytes: 100_000,
      read: async (into) => {
        most = Math.max(most, ++waiting)
        await new Promise((resolve) => setImmediate(resolve))
        into.fill(7)
        waiting--
      },
    }
    const device = new PiecewiseDevice({ sizeBytes: 100_000, locate: (offset) => ({ length: 1, source, at: offset }) })
    const into = Buffer.alloc(100_000)
    await device.read(into, 0)
    assert.ok(into.every((byte) => byte === 7))
    assert.ok(most <= 64)
  })
})
