/** A volume of several parts as one disk. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { VolumeView } from '@varve/images/volumes/volume-view.ts'

test('nothing is written to a buffer after its read has failed', async () => {
  const view = new VolumeView({
    sizeBytes: 8192,
    read: async (into, offset) => {
      if (offset === 0) throw new Error('the first part cannot be read')
      await setTimeout(20)
      into.fill(1)
    },
  }, [{ offset: 0, diskOffset: 0, length: 4096 }, { offset: 4096, diskOffset: 4096, length: 4096 }])
  const buffer = Buffer.alloc(8192)
  await assert.rejects(async () => view.read(buffer, 0), /the first part/)
  const then = Buffer.from(buffer)
  await setTimeout(50)
  assert.ok(buffer.equals(then))
})
