/** Durable copy-on-write: what it shows, what it costs, what it refuses. Crashes: overlay-kill.test.ts, overlay-power-cut.test.ts. */
import assert from 'node:assert/strict'
import { cpSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { OverlayDevice } from '@varve/images/device/overlay-device.ts'
import { localFiles } from '@varve/images/device/overlay-files.ts'
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import { Frame, OVERLAY_VERSION, readJournal, RECORD_BYTES, wholeJournal } from '@varve/images/device/overlay-journal.ts'
import { LogFrame, readLog } from '@varve/images/device/overlay-log.ts'
import type { LogVisit } from '@varve/images/device/overlay-log.ts'
import { Random, testSeed } from '../../random.ts'
import { deviceConformance } from './conformance.ts'
import { DelayedDevice } from './delayed.ts'
import { TemporaryDirectory } from './temporary.ts'

const random = new Random(testSeed())
const LOWER = digestOf(Buffer.from('lower'))

/** The real file system without waiting for its disk: for tests that count commits and do not cut the power. */
const hastyFiles: OverlayFiles = { ...localFiles, sync: async () => {}, syncDirectory: async () => {} }

async function openOverlay(directory: string, lower: BlockDevice, { files = hastyFiles, lowerDigest = LOWER, readOnly = false } = {}): Promise<OverlayDevice> {
  if (!OverlayDevice.exists(directory)) await OverlayDevice.create({ directory, sizeBytes: lower.sizeBytes, lowerDigest, files })
  return OverlayDevice.open({ directory, lower, lowerDigest, readOnly, files })
}

for (const late of [false, true]) {
  deviceConformance(late ? 'OverlayDevice over a disk that answers late' : 'OverlayDevice', async content => {
    const directory = new TemporaryDirectory()
    const memory = MemoryDevice.of(content, { readOnly: true })
    const lower = late ? new DelayedDevice(memory, random) : memory
    const subject = {
      device: await openOverlay(`${directory.path}/overlay`, lower),
      async reopen() {
        await subject.device[Symbol.asyncDispose]()
        subject.device = await openOverlay(`${directory.path}/overlay`, lower)
      },
      async [Symbol.asyncDispose]() {
        await subject.device[Symbol.asyncDispose]()
        directory[Symbol.dispose]()
      },
    }
    return subject
  })
}

/** Content of a device. */
async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.sizeBytes)
  await device.read(content, 0)
  return content
}

describe('an overlay', () => {
  test('shows the disk below until it is written to, and never changes it', async () => {
    using directory = new TemporaryDirectory()
    const lower = MemoryDevice.of(Buffer.alloc(20_000, 1), { readOnly: true })
    await using overlay = await openOverlay(`${directory.path}/a`, lower)
    assert.deepEqual(await contentOf(overlay), Buffer.alloc(20_000, 1))
    await overlay.write(Buffer.alloc(10, 2), 5000)
    await overlay.trim(10_000, 5000)
    assert.deepEqual(await contentOf(lower), Buffer.alloc(20_000, 1))
    assert.equal((await contentOf(overlay)).subarray(5000, 5010).toString('hex'), '02'.repeat(10))
  })

  test('completes reads and writes at once where the disk below does', async () => {
    using directory = new TemporaryDirectory()
    await using overlay = await openOverlay(`${directory.path}/a`, MemoryDevice.of(Buffer.alloc(20_000, 1)))
    assert.equal(overlay.write(Buffer.alloc(100), 50), undefined)
    assert.equal(overlay.read(Buffer.alloc(20_000), 0), undefined)
    assert.equal(overlay.trim(1, 15_000), undefined)
  })

  test('a flush of nothing new completes at once; a flush of something is a promise', async () => {
    using directory = new TemporaryDirectory()
    await using overlay = await openOverlay(`${directory.path}/a`, new MemoryDevice(20_000))
    assert.equal(overlay.flush(), undefined)
    await overlay.write(Buffer.alloc(1), 0)
    const flushed = overlay.flush()
    assert.ok(flushed instanceof Promise)
    await flushed
    assert.equal(overlay.flush(), undefined)
    assert.ok(overlay.write(Buffer.alloc(1), 0, { fua: true }) instanceof Promise)
  })

  test('calls that come together share a sync, and so do those that come while it is under way; no two syncs overlap', async () => {
    using directory = new TemporaryDirectory()
    let syncs = 0
    let underWay = 0
    const files: OverlayFiles = {
      ...localFiles,
      async sync(fd) {
        syncs++
        assert.equal(++underWay, 1)
        await localFiles.sync(fd)
        underWay--
      },
    }
    await using overlay = await openOverlay(`${directory.path}/a`, new MemoryDevice(1 << 24), { files })
    syncs = 0
    await Promise.all(Array.from({ length: 50 }, async (_, round) => {
      const written = overlay.write(Buffer.alloc(4096, 1), round * 4096, { fua: round % 2 === 0 })
      await overlay.flush()
      await written
    }))
    assert.equal(syncs, 1)
    assert.equal(overlay.flush(), undefined)
    await Promise.all(Array.from({ length: 64 }, async (_, lane) => {
      for (let write = 0; write < 10; write++) await overlay.write(Buffer.alloc(4096, 2), (lane * 10 + write) * 4096, { fua: true })
    }))
    assert.equal(syncs, 11)
    const first = overlay.write(Buffer.alloc(4096, 3), 0, { fua: true })
    await new Promise<void>(resolve => { setImmediate(resolve) })
    await Promise.all([first, ...Array.from({ length: 20 }, async (_, write) => { await overlay.write(Buffer.alloc(4096, 3), write * 8192, { fua: true }) })])
    assert.ok(syncs <= 13)
  })

  test('a disk of 32 TiB that is trimmed whole costs little memory, and its journal one record', async () => {
    using directory = new TemporaryDirectory()
    const sizeBytes = 2 ** 45
    // Not every file system has files of this size; the overlay asks nothing of its data here.
    const files: OverlayFiles = { ...hastyFiles, truncate: (fd, bytes) => localFiles.truncate(fd, Math.min(bytes, 1 << 30)), sizeBytes: fd => { const bytes = localFiles.sizeBytes(fd); return bytes === 1 << 30 ? sizeBytes : bytes } }
    await using overlay = await openOverlay(`${directory.path}/a`, new MemoryDevice(sizeBytes), { files })
    const before = process.memoryUsage()
    await overlay.trim(0, sizeBytes)
    await overlay.write(Buffer.alloc(4096, 1), 4096 * 100)
    await overlay.trim(4096 * 100, 4096)
    await overlay.flush()
    const after = process.memoryUsage()
    assert.ok(after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers < 100 << 20)
    assert.ok(statSync(`${directory.path}/a/map`).size <= 2048)
    assert.deepEqual(overlay.extents(0, sizeBytes), [{ offset: 0, length: sizeBytes, type: 'zero' }])
  })

  test('a trim gives space back; zeroes where no hole may be keep it', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    await using overlay = await openOverlay(path, new MemoryDevice(1 << 24))
    const usedBytes = (): number => statSync(`${path}/data`).blocks * 512
    await overlay.write(Buffer.alloc(1 << 20, 1), 0)
    await localFilesSync(path)
    assert.ok(usedBytes() >= 1 << 20)
    await overlay.trim(0, 1 << 20)
    assert.ok(usedBytes() < 1 << 16)
    await overlay.writeZeroes(0, 1 << 20, { noHole: true })
    assert.ok(usedBytes() >= 1 << 20)
    await overlay.writeZeroes(0, 1 << 20)
    assert.ok(usedBytes() < 1 << 16, 'also what was zero, and allocated')
    assert.ok((await contentOf(overlay)).every(byte => byte === 0))
  })

  test('512 bytes are written as 512 bytes and a record of what they are, and read nothing from below', async () => {
    using directory = new TemporaryDirectory()
    const counted = { writtenBytes: 0, readBelow: 0 }
    const files: OverlayFiles = { ...hastyFiles, write: (fd, bytes, offset) => { counted.writtenBytes += bytes.length; localFiles.write(fd, bytes, offset) } }
    const memory = MemoryDevice.of(Buffer.alloc(1 << 24, 7), { readOnly: true })
    const lower: BlockDevice = Object.assign(new DelayedDevice(memory, random), { read: (into: Uint8Array, offset: number) => { counted.readBelow++; memory.read(into, offset) } })
    await using overlay = await openOverlay(`${directory.path}/a`, lower, { files })
    const each = async (count: number, call: (index: number) => unknown): Promise<number> => {
      const before = counted.writtenBytes
      for (let index = 0; index < count; index++) await call(index)
      return (counted.writtenBytes - before) / count
    }
    const plain = await each(500, index => overlay.write(Buffer.alloc(512, 1), index * 12_288 + 512))
    assert.equal(plain, 512 + RECORD_BYTES)
    // A log frame is 48 bytes, 16 for the run, and the content: three sectors with it. The log's own room is written once.
    await overlay.flush()
    await each(100, index => overlay.write(Buffer.alloc(512, 2), index * 12_288 + 1024, { fua: true }))
    const forced = await each(20, index => overlay.write(Buffer.alloc(512, 2), index * 12_288 + 1536, { fua: true }))
    assert.equal(forced, 512 + RECORD_BYTES + 1024)
    const zeroed = await each(500, index => overlay.writeZeroes(index * 12_288 + 2048, 512))
    assert.equal(zeroed, RECORD_BYTES)
    assert.equal(counted.readBelow, 0)
    const expected = Buffer.alloc(4096, 7)
    expected.fill(1, 512, 1024).fill(2, 1024, 2048).fill(0, 2048, 2560)
    const content = await contentOf(overlay)
    assert.ok(content.subarray(0, 4096).equals(expected) && content.subarray(12_288, 12_288 + 4096).equals(expected))
  })

  test('old data under zeroes never shows again, however little is written over it', async () => {
    using directory = new TemporaryDirectory()
    const lower = MemoryDevice.of(Buffer.alloc(8192, 7))
    const keepsData: OverlayFiles = { ...hastyFiles, punch: () => false }
    let overlay = await openOverlay(`${directory.path}/a`, lower, { files: keepsData })
    await overlay.write(Buffer.alloc(8192, 1), 0)
    await overlay.trim(0, 8192)
    await overlay.write(Buffer.from([9]), 100)
    const expected = Buffer.alloc(8192)
    expected[100] = 9
    assert.deepEqual(await contentOf(overlay), expected)
    await overlay[Symbol.asyncDispose]()
    overlay = await openOverlay(`${directory.path}/a`, lower)
    assert.deepEqual(await contentOf(overlay), expected)
    await overlay[Symbol.asyncDispose]()
  })

  test('its journal is written anew when it has grown, and says the same', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const lower = new MemoryDevice(1 << 26)
    // What the sectors hold does not matter.
    const sector = Buffer.alloc(512)
    let overlay = await openOverlay(path, lower, { files: { ...hastyFiles, allocate: () => true, write: (fd, bytes, offset) => { if (bytes !== sector) localFiles.write(fd, bytes, offset) } } })
    let largest = 0
    for (let round = 0; round < 11; round++) {
      // Runs of one sector each, more than the log takes.
      for (let at = 0; at < lower.sizeBytes; at += 2048) {
        if (round % 2 === 0) await overlay.write(sector, at)
        else await overlay.writeZeroes(at, 512, { noHole: true })
      }
      await overlay.flush()
      largest = Math.max(largest, statSync(`${path}/map`).size)
    }
    assert.ok(largest > 4 << 20)
    assert.ok(statSync(`${path}/map`).size < 2 << 20, 'it was written anew')
    const content = await contentOf(overlay)
    await overlay[Symbol.asyncDispose]()
    overlay = await openOverlay(path, lower)
    assert.ok(content.equals(await contentOf(overlay)))
    await overlay[Symbol.asyncDispose]()
  })
})

async function localFilesSync(path: string): Promise<void> {
  const fd = localFiles.open(`${path}/data`, 'read')
  await localFiles.sync(fd)
  localFiles.close(fd)
}

describe('an overlay on a disk that fails', () => {
  /** Files of which journal and log cannot be written to, or nothing can be made durable, while `faults` says so. */
  function failingFiles(faults: { write?: boolean; sync?: boolean }): OverlayFiles {
    const journals = new Set<number>()
    return {
      ...localFiles,
      open(path, mode) {
        const fd = localFiles.open(path, mode)
        if (/(map(\.new)?|log)$/.test(path)) journals.add(fd)
        else journals.delete(fd)
        return fd
      },
      write(fd, bytes, offset) {
        if (faults.write && journals.has(fd)) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' })
        localFiles.write(fd, bytes, offset)
      },
      async sync(fd) {
        if (faults.sync) throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' })
        await localFiles.sync(fd)
      },
    }
  }

  test('a full disk fails the flush and loses nothing: the next one that finds room covers it', async () => {
    using directory = new TemporaryDirectory()
    const faults = { write: false }
    const lower = new MemoryDevice(1 << 20)
    let overlay = await openOverlay(`${directory.path}/a`, lower, { files: failingFiles(faults) })
    faults.write = true
    await overlay.write(Buffer.alloc(4096, 1), 8192)
    await assert.rejects(async () => overlay.flush(), { code: 'ENOSPC' })
    await overlay.write(Buffer.alloc(4096, 2), 65_536)
    await assert.rejects(async () => overlay.flush(), { code: 'ENOSPC' })
    faults.write = false
    await overlay.flush()
    const content = await contentOf(overlay)
    await overlay[Symbol.asyncDispose]()
    overlay = await openOverlay(`${directory.path}/a`, lower)
    assert.deepEqual(await contentOf(overlay), content)
    await overlay[Symbol.asyncDispose]()
  })

  test('after a failed sync nothing is accepted, since nobody knows what is durable; reads go on', async () => {
    using directory = new TemporaryDirectory()
    const faults = { sync: false }
    const lower = new MemoryDevice(1 << 20)
    const overlay = await openOverlay(`${directory.path}/a`, lower, { files: failingFiles(faults) })
    await overlay.write(Buffer.alloc(4096, 1), 0)
    await overlay.flush()
    await overlay.write(Buffer.alloc(4096, 2), 4096)
    faults.sync = true
    await assert.rejects(async () => overlay.flush(), { code: 'OVERLAY_FAILED' })
    faults.sync = false
    await assert.rejects(async () => overlay.flush(), { code: 'OVERLAY_FAILED' })
    await assert.rejects(async () => overlay.write(Buffer.alloc(1), 0), { code: 'OVERLAY_FAILED' })
    assert.equal((await contentOf(overlay))[0], 1)
    await overlay[Symbol.asyncDispose]()
    await using again = await openOverlay(`${directory.path}/a`, lower)
    assert.equal((await contentOf(again))[0], 1)
  })
})

describe('the log of an overlay', () => {
  const lower = new MemoryDevice(1 << 20)
  const blockOf = async (overlay: OverlayDevice, block: number): Promise<number> => (await contentOf(overlay))[block * 4096]

  /** What a process leaves that is killed: overlays of `directory` are not closed, so their files are copied as they are. */
  async function abandoned(directory: string, write: (overlay: OverlayDevice) => Promise<void>): Promise<string> {
    await using overlay = await openOverlay(directory, lower)
    await write(overlay)
    cpSync(directory, `${directory}.left`, { recursive: true })
    return `${directory}.left`
  }

  test('has what was forced out, content and all, also when the data has lost it', async () => {
    using directory = new TemporaryDirectory()
    const left = await abandoned(`${directory.path}/a`, async overlay => {
      for (let write = 0; write < 50; write++) await overlay.write(Buffer.alloc(4096, write + 1), (write % 30) * 8192, { fua: true })
      await overlay.trim(8192, 4096, { fua: true })
    })
    assert.equal(statSync(`${left}/map`).size, 1024, 'the journal knows nothing of it')
    truncateSync(`${left}/data`, 0)
    truncateSync(`${left}/data`, lower.sizeBytes)
    for (let opening = 0; opening < 2; opening++) {
      await using overlay = await openOverlay(left, lower)
      for (let block = 0; block < 30; block++) assert.equal(await blockOf(overlay, block * 2), block === 1 ? 0 : block < 20 ? block + 31 : block + 1)
    }
  })

  test('is written again from its start once it is full, and never grows beyond its bound', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    let largest = 0
    const left = await abandoned(path, async overlay => {
      for (let write = 0; write < 200; write++) {
        await overlay.write(Buffer.alloc(262_144, write + 1), (write % 4) * 262_144, { fua: true })
        largest = Math.max(largest, statSync(`${path}/log`).size)
      }
    })
    assert.equal(largest, 16 << 20)
    await using overlay = await openOverlay(left, lower)
    for (let part = 0; part < 4; part++) assert.equal(await blockOf(overlay, part * 64), 197 + part)
  })

  test('cut short or damaged at its end shows the commits that are whole; damaged before its end it is refused', async () => {
    using directory = new TemporaryDirectory()
    const left = await abandoned(`${directory.path}/a`, async overlay => {
      for (let write = 0; write < 5; write++) await overlay.write(Buffer.alloc(4096, write + 1), write * 8192, { fua: true })
    })
    const log = readFileSync(`${left}/log`)
    const frame = 4096 + 512
    const show = async (bytes: Buffer): Promise<number[]> => {
      using copy = new TemporaryDirectory()
      cpSync(left, `${copy.path}/a`, { recursive: true })
      writeFileSync(`${copy.path}/a/log`, bytes)
      await using overlay = await openOverlay(`${copy.path}/a`, lower)
      return Promise.all([0, 1, 2, 3, 4].map(write => blockOf(overlay, write * 2)))
    }
    assert.deepEqual(await show(log), [1, 2, 3, 4, 5])
    for (const bytes of [log.subarray(0, frame * 5 - 1), log.subarray(0, frame * 4 + 100)]) assert.deepEqual(await show(bytes), [1, 2, 3, 4, 0])
    for (const at of [0, 9, 20, 30, 33, 41, 50, 600, 4000]) {
      for (let index = 0; index < 5; index++) {
        const damaged = Buffer.from(log)
        damaged[frame * index + at] ^= 1
        if (index === 4) assert.deepEqual(await show(damaged), [1, 2, 3, 4, 0])
        else await assert.rejects(show(damaged), { code: 'OVERLAY_INVALID' })
      }
    }
    rmSync(`${left}/log`)
    await assert.rejects(openOverlay(left, lower), { code: 'OVERLAY_INVALID' })
  })

  const seed = testSeed()
  test(`mutated, cut short or made up, gives frames that are whole, or is refused with a code (seed ${seed})`, () => {
    const fuzz = new Random(seed)
    const position = { nonce: fuzz.bytes(8), sequence: 7 }
    const frames: Buffer[] = []
    for (let index = 0; index < 12; index++) {
      const frame = new LogFrame()
      frame.add(index * 8, 3, 1)
      frame.add(index * 8 + 4, 2, 2)
      const bytes = Buffer.alloc(frame.bytes)
      frame.seal(bytes, position, index, content => content.fill(index + 1))
      frames.push(bytes)
    }
    const log = Buffer.concat(frames)
    for (let round = 0; round < 5000; round++) {
      let bytes: Buffer = Buffer.from(log)
      if (fuzz.chance(0.05)) bytes = fuzz.bytes(fuzz.below(3000))
      if (fuzz.chance(0.2)) bytes = bytes.subarray(0, fuzz.below(bytes.length + 1))
      if (fuzz.chance(0.2) && bytes.length > 1024) bytes.copyWithin(512 * fuzz.below(bytes.length / 512), 512 * fuzz.below(bytes.length / 512), 512 * fuzz.below(bytes.length / 512))
      for (let change = fuzz.below(3); change > 0 && bytes.length > 0; change--) bytes[fuzz.below(bytes.length)] = fuzz.pick([0, 1, 0x80, 0xff, fuzz.below(256)])
      const runs: number[] = []
      try {
        const visit: LogVisit = (first, count, state, content) => {
          runs.push(first)
          if (state === 1) assert.ok(Buffer.alloc(count * 512, Math.floor(first / 8) + 1).equals(content!))
        }
        const count = readLog(bytes, { position, sectorCount: 1000, visit, path: 'log' })
        assert.deepEqual(runs, Array.from({ length: count * 2 }, (_, run) => run % 2 === 0 ? run * 4 : (run - 1) * 4 + 4))
      } catch (error) {
        if (error instanceof assert.AssertionError) throw error
        assert.equal((error as { code?: string }).code, 'OVERLAY_INVALID')
      }
    }
  })

  test('with checksums that are right and records that make no sense is refused', () => {
    const position = { nonce: Buffer.alloc(8), sequence: 1 }
    for (const runs of [[[0, 1, 0]], [[0, 1, 3]], [[0, 0, 2]], [[1000, 1, 1]], [[999, 2, 2]], [[5, 2, 1], [6, 2, 1]], [[0, 2 ** 52, 2]]] as [number, number, number][][]) {
      const frame = new LogFrame()
      for (const [first, count, state] of runs) frame.add(first, count, state as 1)
      const bytes = Buffer.alloc(frame.bytes)
      frame.seal(bytes, position, 0, () => {})
      assert.throws(() => readLog(bytes, { position, sectorCount: 1000, visit: () => {}, path: 'log' }), { code: 'OVERLAY_INVALID' })
    }
  })
})

describe('opening an overlay', () => {
  test('needs one, whole, that belongs to the disk below', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const lower = new MemoryDevice(10_000)
    await assert.rejects(OverlayDevice.open({ directory: path, lower, lowerDigest: LOWER }), { code: 'NOT_FOUND' })
    await (await openOverlay(path, lower))[Symbol.asyncDispose]()
    await assert.rejects(OverlayDevice.create({ directory: path, sizeBytes: 1, lowerDigest: LOWER }), { code: 'ALREADY_EXISTS' })
    await assert.rejects(openOverlay(path, lower, { lowerDigest: digestOf(Buffer.from('other')) }), { code: 'OVERLAY_INVALID' })
    await assert.rejects(openOverlay(path, new MemoryDevice(10_001)), { code: 'OVERLAY_INVALID' })
    await (await openOverlay(path, lower))[Symbol.asyncDispose]()
    truncateSync(`${path}/data`, 9999)
    await assert.rejects(openOverlay(path, lower), { code: 'OVERLAY_INVALID' })
    rmSync(`${path}/data`)
    await assert.rejects(openOverlay(path, lower), { code: 'OVERLAY_INVALID' })
    await assert.rejects(OverlayDevice.create({ directory: `${directory.path}/b`, sizeBytes: 2 ** 46 + 1, lowerDigest: LOWER }), { code: 'LIMIT_EXCEEDED' })
  })

  test('one of version 1, which counts in blocks and has no log, shows what it holds, and becomes one of version 2 when it is opened for writing', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const sizeBytes = 4096 * 10 + 1000
    const lower = MemoryDevice.of(Buffer.alloc(sizeBytes, 1))
    await (await openOverlay(path, lower))[Symbol.asyncDispose]()
    rmSync(`${path}/log`)
    const frame = new Frame()
    frame.add(1, 2, 1)
    frame.add(5, 1, 2)
    frame.add(10, 1, 1)
    writeFileSync(`${path}/map`, wholeJournal({ version: 1, sizeBytes, lower: LOWER, nonce: random.bytes(8) }, frame))
    const expected = Buffer.alloc(sizeBytes, 1).fill(0, 4096, 12_288).fill(0, 20_480, 24_576).fill(0, 40_960)
    for (const readOnly of [true, false]) {
      await using overlay = await openOverlay(path, lower, { readOnly })
      assert.ok((await contentOf(overlay)).equals(expected))
      assert.equal(readFileSync(`${path}/map`).readUInt32LE(8), readOnly ? 1 : 2)
    }
    await using overlay = await openOverlay(path, lower)
    await overlay.write(Buffer.alloc(512, 3), 4096 * 4, { fua: true })
    assert.ok((await contentOf(overlay)).equals(expected.fill(3, 16_384, 16_896)))
  })

  test('for writing is for one process, which the error names; read-only is for all', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const lower = new MemoryDevice(10_000)
    const overlay = await openOverlay(path, lower)
    await overlay.write(Buffer.from('flushed'), 0)
    await overlay.flush()
    await assert.rejects(openOverlay(path, lower), { code: 'STORE_LOCKED', message: new RegExp(`process ${process.pid};`) })
    await assert.rejects(openOverlay(path, lower, { readOnly: true }), { code: 'OVERLAY_INVALID', message: /was not closed/ })
    await overlay[Symbol.asyncDispose]()
    await using reader = await openOverlay(path, lower, { readOnly: true })
    assert.equal((await contentOf(reader)).toString('latin1', 0, 7), 'flushed')
    await assert.rejects(async () => reader.write(Buffer.alloc(1), 0), { code: 'READ_ONLY' })
    await (await openOverlay(path, lower))[Symbol.asyncDispose]()
  })
})

describe('the journal of an overlay', () => {
  const lower = new MemoryDevice(1 << 20)

  /** An overlay that was opened, written to in one block and closed `commits` times: two frames each, the second one empty. `closed`: the last one too. */
  async function committed(directory: string, commits: number, { closed = true } = {}): Promise<Buffer> {
    for (let commit = 0; commit < commits; commit++) {
      await using overlay = await openOverlay(directory, lower)
      await overlay.write(Buffer.alloc(4096, commit + 1), commit * 8192)
    }
    if (!closed) truncateSync(`${directory}/map`, statSync(`${directory}/map`).size - 512)
    return readFileSync(`${directory}/map`)
  }

  async function blocksOf(directory: string): Promise<number[]> {
    await using overlay = await openOverlay(directory, lower)
    const content = await contentOf(overlay)
    return Array.from({ length: 20 }, (_, commit) => content[commit * 8192])
  }

  test('cut short, or damaged at its end, shows the commits that are whole', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const journal = await committed(path, 5, { closed: false })
    assert.equal(journal.length, 512 * 11, 'header, first frame, five commits, and four that say it was closed')
    for (const length of [journal.length - 1, journal.length - 300, journal.length - 512]) {
      writeFileSync(`${path}/map`, journal.subarray(0, length))
      assert.deepEqual((await blocksOf(path)).slice(0, 6), [1, 2, 3, 4, 0, 0])
    }
    for (const at of [0, 5, 30, 32, 47]) {
      const damaged = Buffer.from(journal)
      damaged[512 * 10 + at] ^= 1
      writeFileSync(`${path}/map`, damaged)
      assert.deepEqual((await blocksOf(path)).slice(0, 6), [1, 2, 3, 4, 0, 0])
    }
    writeFileSync(`${path}/map`, Buffer.concat([journal, random.bytes(700)]))
    assert.deepEqual((await blocksOf(path)).slice(0, 6), [1, 2, 3, 4, 5, 0])
  })

  test('damaged anywhere before its end is refused, and its end too once the overlay was closed', async () => {
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const journal = await committed(path, 5)
    for (let sector = 0; sector < 11; sector++) {
      for (const at of [0, 5, 10, 20, 25, 30, 33]) {
        const damaged = Buffer.from(journal)
        damaged[512 * sector + at] ^= 0x10
        // Frames that say that it was closed have no records.
        if (sector % 2 === 1 && at === 33) continue
        writeFileSync(`${path}/map`, damaged)
        await assert.rejects(openOverlay(path, lower), (error: { code?: string }) => error.code === 'OVERLAY_INVALID' || (sector === 0 && error.code === 'FORMAT_UNSUPPORTED'), `sector ${sector}, byte ${at}`)
      }
    }
    writeFileSync(`${path}/map`, journal.subarray(0, 600))
    await assert.rejects(openOverlay(path, lower), { code: 'OVERLAY_INVALID' })
  })

  test('with frames of another journal in it is not taken for its own', async () => {
    using directory = new TemporaryDirectory()
    const own = await committed(`${directory.path}/own`, 3, { closed: false })
    const other = await committed(`${directory.path}/other`, 6)
    writeFileSync(`${directory.path}/own/map`, Buffer.concat([own, other.subarray(own.length)]))
    assert.deepEqual((await blocksOf(`${directory.path}/own`)).slice(0, 6), [1, 2, 3, 0, 0, 0])
  })

  const seed = testSeed()
  test(`mutated, cut short or made up, opens to commits that are whole, or is refused with a code (seed ${seed})`, async () => {
    const fuzz = new Random(seed)
    using directory = new TemporaryDirectory()
    const path = `${directory.path}/a`
    const journal = await committed(path, 20)
    for (let round = 0; round < 20_000; round++) {
      let bytes: Buffer = Buffer.from(journal)
      if (fuzz.chance(0.05)) bytes = fuzz.bytes(fuzz.below(3000))
      if (fuzz.chance(0.2)) bytes = bytes.subarray(0, fuzz.below(bytes.length + 1))
      if (fuzz.chance(0.2) && bytes.length > 1024) bytes.copyWithin(512 * fuzz.below(bytes.length / 512), 512 * fuzz.below(bytes.length / 512), 512 * fuzz.below(bytes.length / 512))
      for (let change = fuzz.below(3); change > 0 && bytes.length > 0; change--) bytes[fuzz.below(bytes.length)] = fuzz.pick([0, 1, 0x80, 0xff, fuzz.below(256)])
      const blocks: number[] = []
      try {
        const content = readJournal(bytes, () => first => void blocks.push(first), 'map')
        assert.deepEqual(blocks, Array.from({ length: blocks.length }, (_, commit) => commit * 16))
        assert.ok(content.validBytes <= bytes.length)
      } catch (error) {
        if (error instanceof assert.AssertionError) throw error
        assert.match((error as { code?: string }).code ?? String(error), /^(OVERLAY_INVALID|FORMAT_UNSUPPORTED)$/)
      }
    }
  })

  test('with checksums that are right and records that make no sense is refused', () => {
    const records: [number, number, number][] = [[0, 1, 0], [0, 1, 3], [0, 0, 1], [2048, 1, 1], [2047, 2, 1], [0, 2 ** 52, 1]]
    for (const [first, count, state] of records) {
      const frame = new Frame()
      frame.add(first, count, state as 1)
      assert.throws(() => readJournal(wholeJournal({ version: OVERLAY_VERSION, sizeBytes: 1 << 20, lower: LOWER, nonce: Buffer.alloc(8) }, frame), () => () => {}, 'map'), { code: 'OVERLAY_INVALID' })
    }
    const overlapping = new Frame()
    overlapping.add(5, 2, 1)
    overlapping.add(6, 2, 1)
    assert.throws(() => readJournal(wholeJournal({ version: OVERLAY_VERSION, sizeBytes: 1 << 20, lower: LOWER, nonce: Buffer.alloc(8) }, overlapping), () => () => {}, 'map'), { code: 'OVERLAY_INVALID' })
    const huge = wholeJournal({ version: OVERLAY_VERSION, sizeBytes: 2 ** 47, lower: LOWER, nonce: Buffer.alloc(8) }, new Frame())
    assert.throws(() => readJournal(huge, () => () => {}, 'map'), { code: 'OVERLAY_INVALID' })
  })
})
