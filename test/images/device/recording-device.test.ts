/** What a boot used first, against a plain model of it. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { READS_EACH_TURN, READS_PER_SAMPLE } from '@varve/images/device/read-recorder.ts'
import { RecordingDevice } from '@varve/images/device/recording-device.ts'
import { Random, testSeed } from '../../random.ts'
import { deviceConformance } from './conformance.ts'
import { mapDisk } from './map-disk.ts'

const seed = testSeed()

async function recordingDisk(content: Uint8Array, random: Random): Promise<RecordingDevice> {
  const { map, store } = await mapDisk(content, random)
  return new RecordingDevice(new MapDevice(map, store, ChunkCache.create({ bytesMax: 1 << 20 })))
}

deviceConformance('RecordingDevice', async (content) => {
  const device = await recordingDisk(content, new Random(seed))
  device.recorder.beginBoot()
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

describe(`RecordingDevice (seed ${seed})`, () => {
  test('notes each chunk when it is first used, in order, from the beginning of the boot to its end', async () => {
    const random = new Random(seed)
    await using device = await recordingDisk(random.bytes(300_000), random)
    await device.read(Buffer.alloc(5000), 100_000)
    assert.equal(device.recorder.boot, undefined)
    device.recorder.beginBoot()
    const expected = new Set<number>()
    for (let round = 0; round < 50; round++) {
      const offset = random.below(device.sizeBytes)
      const length = random.below(Math.min(20_000, device.sizeBytes - offset))
      if (random.chance(0.5)) {
        await device.read(Buffer.alloc(length), offset)
      } else {
        const view = device.view(offset, length)
        if (view === undefined) continue
        view.release()
      }
      for (let index = device.map.indexAt(offset); length > 0 && index < device.map.extentCount && device.map.starts[index] < offset + length; index++) {
        if (device.map.refs[index] < SPECIAL_MIN) expected.add(device.map.refs[index])
      }
    }
    const record = device.recorder.endBoot()!
    assert.deepEqual([...record.chunks], [...expected])
    assert.equal(record.cut, false)
    for (let index = 1; index < record.timesMs.length; index++) assert.ok(record.timesMs[index] >= record.timesMs[index - 1])
    assert.equal(device.recorder.endBoot(), undefined)
  })

  test('what is used is taken once, however often it was read; where reads are many, a sample of them tells', async () => {
    const random = new Random(seed + 1)
    await using device = await recordingDisk(random.bytes(200_000), random)
    const read = async (count: number, offset = 150_000): Promise<number[]> => {
      for (let round = 0; round < count; round++) await device.read(Buffer.alloc(1), offset)
      const chunks = device.recorder.takeUsed()
      assert.equal(device.recorder.takeUsed().length, 0)
      return [...chunks]
    }
    const chunkAt = (offset: number): number => device.map.refs[device.map.indexAt(offset)]
    assert.deepEqual(await read(3), [chunkAt(150_000)])
    await device.read(Buffer.alloc(1), 0)
    assert.deepEqual(await read(READS_EACH_TURN - 4), [chunkAt(0), chunkAt(150_000)].sort((a, b) => a - b))
    assert.deepEqual(await read(READS_PER_SAMPLE - 1), [])
    assert.deepEqual(await read(1), [chunkAt(150_000)])
    device.recorder.turn()
    assert.deepEqual(await read(1), [chunkAt(150_000)])
  })
})
