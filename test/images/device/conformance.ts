/**
 * What every BlockDevice does, whatever it is made of. Each implementation's test file calls `deviceConformance`.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { BlockDevice, DeviceExtent } from '@varve/images/device/block-device.ts'
import { Random, testSeed } from '../../random.ts'

export interface Subject extends AsyncDisposable {
  device: BlockDevice
  /** Closes `device` and sets it to one that was opened anew; only where content outlives the device. */
  reopen?(): Promise<void>
  /** Something that must not be noticed, done now and then while calls are under way. */
  disturb?(random: Random): Promise<void>
}

/** @param open a device that holds `content` */
export function deviceConformance(name: string, open: (content: Buffer) => Promise<Subject>): void {
  const seed = testSeed()
  describe(`${name} as a block device (seed ${seed})`, () => {
    test('reads what it holds, at any offset and length', async () => {
      const random = new Random(seed)
      for (const sizeBytes of [1, 511, 4096, 70_000, 300_001]) {
        const content = randomContent(random, sizeBytes)
        await using subject = await open(content)
        assert.equal(subject.device.sizeBytes, sizeBytes)
        assert.ok(Number.isInteger(Math.log2(subject.device.blockBytes)))
        for (let round = 0; round < 100; round++) await checkRead(subject.device, content, randomRange(random, sizeBytes))
        await checkRead(subject.device, content, { offset: 0, length: sizeBytes })
        await checkRead(subject.device, content, { offset: sizeBytes, length: 0 })
      }
    })

    test('extents cover the range, are merged, and only data is not zero', async () => {
      const random = new Random(seed + 1)
      for (const sizeBytes of [1, 4096, 200_000, 300_001]) {
        const content = randomContent(random, sizeBytes)
        await using subject = await open(content)
        for (let round = 0; round < 50; round++) checkExtents(subject.device, content, randomRange(random, sizeBytes))
        assert.deepEqual(subject.device.extents(0, 0), [])
      }
    })

    test('an empty disk is a disk', async () => {
      await using subject = await open(Buffer.alloc(0))
      await subject.device.read(new Uint8Array(0), 0)
      await subject.device.flush()
      assert.deepEqual(subject.device.extents(0, 0), [])
    })

    test('a range outside of the device is a RangeError', async () => {
      await using subject = await open(Buffer.alloc(10_000, 1))
      const { device } = subject
      for (const [offset, length] of [[10_000, 1], [9999, 2], [-1, 1], [0.5, 1], [NaN, 1], [2 ** 53, 1]]) {
        await assert.rejects(async () => device.read(Buffer.alloc(length), offset), RangeError)
        await assert.rejects(async () => device.extents(offset, length), RangeError)
        if (device.readOnly) continue
        await assert.rejects(async () => device.write(Buffer.alloc(length), offset), RangeError)
        await assert.rejects(async () => device.trim(offset, length), RangeError)
        await assert.rejects(async () => device.writeZeroes(offset, length), RangeError)
      }
      await checkRead(device, Buffer.alloc(10_000, 1), { offset: 0, length: 10_000 })
    })

    test('is written to, or says that it cannot be', async () => {
      const random = new Random(seed + 2)
      const content = randomContent(random, 20_000)
      await using subject = await open(content)
      const { device } = subject
      if (device.readOnly) {
        await assert.rejects(async () => device.write(Buffer.alloc(1), 0), { code: 'READ_ONLY' })
        await assert.rejects(async () => device.trim(0, 1), { code: 'READ_ONLY' })
        await assert.rejects(async () => device.writeZeroes(0, 1), { code: 'READ_ONLY' })
        await device.flush()
      } else {
        await device.write(Buffer.from('here'), 5000)
        content.write('here', 5000)
      }
      await checkRead(device, content, { offset: 0, length: content.length })
    })

    test('keeps every write, trim and zeroing, and flushes of them outlive it', async () => {
      const random = new Random(seed + 3)
      for (const sizeBytes of [4096, 100_000, 1_000_001]) {
        const model = randomContent(random, sizeBytes)
        await using subject = await open(Buffer.from(model))
        if (subject.device.readOnly) return
        for (let round = 0; round < 400; round++) {
          await randomChange(random, subject.device, model)
          if (random.chance(0.2)) await checkRead(subject.device, model, randomRange(random, sizeBytes))
          if (random.chance(0.05)) checkExtents(subject.device, model, randomRange(random, sizeBytes))
          if (random.chance(0.05)) await subject.device.flush()
          if (random.chance(0.02)) await subject.disturb?.(random)
          if (random.chance(0.01) && subject.reopen !== undefined) {
            await subject.device.flush()
            await subject.reopen()
          }
        }
        await checkRead(subject.device, model, { offset: 0, length: sizeBytes })
        checkExtents(subject.device, model, { offset: 0, length: sizeBytes })
        await subject.reopen?.()
        await checkRead(subject.device, model, { offset: 0, length: sizeBytes })
      }
    })

    test('calls that overlap in time take effect one after another', async () => {
      const random = new Random(seed + 4)
      const sizeBytes = 40_000
      const model = randomContent(random, sizeBytes)
      await using subject = await open(Buffer.from(model))
      for (let round = 0; round < 120; round++) {
        const base = random.below(sizeBytes - 20_000)
        const calls = Array.from({ length: 4 }, () => randomCall(random, base, subject.device.readOnly))
        const before = Buffer.from(model)
        const disturbance = random.chance(0.2) ? subject.disturb?.(random) : undefined
        await Promise.all(calls.map(call => call.start(subject.device)))
        await disturbance
        await subject.device.read(model, 0)
        assert.ok(orders(calls).some(order => explains(order, before, model)), `round ${round}: no order of ${calls.map(String).join(', ')} explains what is there`)
      }
    })

    test('buffers belong to the caller again when a call has completed', async () => {
      await using subject = await open(Buffer.alloc(9000, 1))
      if (subject.device.readOnly) return
      const bytes = Buffer.alloc(5000, 2)
      await subject.device.write(bytes, 2000)
      bytes.fill(3)
      await checkRead(subject.device, Buffer.concat([Buffer.alloc(2000, 1), Buffer.alloc(5000, 2), Buffer.alloc(2000, 1)]), { offset: 0, length: 9000 })
    })

    test('closes twice, and answers nothing afterwards', async () => {
      await using subject = await open(Buffer.alloc(5000, 1))
      const { device } = subject
      await device[Symbol.asyncDispose]()
      await device[Symbol.asyncDispose]()
      await assert.rejects(async () => device.read(Buffer.alloc(1), 0), TypeError)
      await assert.rejects(async () => device.extents(0, 1), TypeError)
      await assert.rejects(async () => device.flush(), TypeError)
      if (!device.readOnly) await assert.rejects(async () => device.write(Buffer.alloc(1), 0), TypeError)
    })
  })
}

/** Random bytes with runs of zeroes, some of them of whole blocks. */
export function randomContent(random: Random, sizeBytes: number): Buffer {
  const content = random.bytes(sizeBytes)
  for (let at = 0; at < sizeBytes;) {
    const length = random.pick([1, 512, 4096, 8192, 65_536, random.between(1, 30_000)])
    if (random.chance(0.4)) content.fill(0, at, Math.min(sizeBytes, at + length))
    at += length
  }
  return content
}

interface Range {
  offset: number
  length: number
}

function randomRange(random: Random, sizeBytes: number): Range {
  const offset = random.chance(0.3) ? Math.min(sizeBytes, random.below(1 + sizeBytes / 4096) * 4096) : random.below(sizeBytes + 1)
  const length = Math.min(sizeBytes - offset, random.pick([0, 1, 512, 4096, 12_288, random.below(100_000), sizeBytes]))
  return { offset, length }
}

/** A view shows what a read gives, and is not held against what is written later. */
function checkView(device: BlockDevice, content: Buffer, offset: number): void {
  const view = device.view?.(offset, content.length)
  if (view === undefined) return
  assert.ok(Buffer.concat(view.parts).equals(content), `view of ${offset}+${content.length}`)
  view.release()
}


async function checkRead(device: BlockDevice, content: Buffer, { offset, length }: Range): Promise<void> {
  const into = Buffer.alloc(length, 0xee)
  await device.read(into, offset)
  if (length > 0) checkView(device, into, offset)
  assert.ok(into.equals(content.subarray(offset, offset + length)), `${length} bytes at ${offset} are not what was written`)
}

function checkExtents(device: BlockDevice, content: Buffer, { offset, length }: Range): void {
  const extents = device.extents(offset, length)
  let at = offset
  let previous: DeviceExtent | undefined
  for (const extent of extents) {
    assert.equal(extent.offset, at, 'extents follow each other')
    assert.ok(extent.length > 0)
    assert.notEqual(extent.type, previous?.type, 'neighbours of one type are merged')
    if (extent.type !== 'data') assert.ok(content.subarray(at, at + extent.length).every(byte => byte === 0), `${extent.type} at ${at}+${extent.length} is not zero`)
    at += extent.length
    previous = extent
  }
  assert.equal(at, offset + length, 'extents cover the range')
  for (const most of [1, 2, 5]) assert.deepEqual(device.extents(offset, length, most), extents.slice(0, most))
}

/** Writes, trims or zeroes at random, on the device and in the model. */
async function randomChange(random: Random, device: BlockDevice, model: Buffer): Promise<void> {
  const { offset, length } = randomRange(random, model.length)
  const options = { fua: random.chance(0.05), noHole: random.chance(0.3) }
  const kind = random.below(5)
  if (kind < 3) {
    const bytes = random.chance(0.1) ? Buffer.alloc(length) : random.bytes(length)
    await device.write(bytes, offset, { fua: options.fua })
    bytes.copy(model, offset)
  } else {
    await (kind === 3 ? device.trim(offset, length, { fua: options.fua }) : device.writeZeroes(offset, length, options))
    model.fill(0, offset, offset + length)
  }
}

/** A call that can be started on a device, and applied to a model. */
interface Call {
  start(device: BlockDevice): Promise<void>
  /** False if the call saw something else than what the model holds. */
  apply(model: Buffer): boolean
  toString(): string
}

function randomCall(random: Random, base: number, readOnly: boolean): Call {
  const offset = base + random.pick([0, 4096, random.below(10_000)])
  const length = random.pick([100, 4096, 8192, random.between(1, 10_000)])
  const kind = readOnly ? 0 : random.below(4)
  if (kind === 0) {
    const into = Buffer.alloc(length)
    return {
      start: async device => { await device.read(into, offset) },
      apply: model => model.subarray(offset, offset + length).equals(into),
      toString: () => `read ${offset}+${length}`,
    }
  }
  if (kind === 1) {
    return {
      start: async device => { await device.trim(offset, length) },
      apply: model => (model.fill(0, offset, offset + length), true),
      toString: () => `trim ${offset}+${length}`,
    }
  }
  const bytes = Buffer.alloc(length, random.between(1, 255))
  return {
    start: async device => { await device.write(bytes, offset, { fua: random.chance(0.1) }) },
    apply: model => (bytes.copy(model, offset), true),
    toString: () => `write ${offset}+${length}`,
  }
}

function orders<Item>(items: Item[]): Item[][] {
  if (items.length <= 1) return [items]
  return items.flatMap((item, index) => orders(items.toSpliced(index, 1)).map(rest => [item, ...rest]))
}

function explains(order: Call[], before: Buffer, after: Buffer): boolean {
  const model = Buffer.from(before)
  return order.every(call => call.apply(model)) && model.equals(after)
}
