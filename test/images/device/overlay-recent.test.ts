/** What was answered and not flushed outlives the process in the file `recent`. Kills at random: overlay-power-cut.test.ts, overlay-kill.test.ts. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, truncateSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { OverlayDevice } from '@varve/images/device/overlay-device.ts'
import { localFiles } from '@varve/images/device/overlay-files.ts'
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import { Frame } from '@varve/images/device/overlay-journal.ts'
import { OverlayRecent, readRecent, RECENT_BYTES_MAX, visitRecent } from '@varve/images/device/overlay-recent.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { Random, testSeed } from '../../random.ts'
import { PowerCutFiles } from './power-cut-files.ts'
import { fillSector, SECTOR_BYTES, versionIn } from './sector-history.ts'
import { TemporaryDirectory } from './temporary.ts'

const LOWER = digestOf(Buffer.from('lower'))
const DIRECTORY = '/overlays/a'
const SECTORS = 12_000
const random = new Random(testSeed())

async function openOverlay(files: OverlayFiles, { readOnly = false } = {}): Promise<OverlayDevice> {
  const lower = new MemoryDevice(SECTORS * SECTOR_BYTES, { readOnly: true })
  if (!OverlayDevice.exists(DIRECTORY, files)) await OverlayDevice.create({ directory: DIRECTORY, sizeBytes: lower.sizeBytes, lowerDigest: LOWER, files })
  return OverlayDevice.open({ directory: DIRECTORY, lower, lowerDigest: LOWER, readOnly, files })
}

function write(overlay: OverlayDevice, sector: number, value: number): void | Promise<void> {
  const bytes = new Uint8Array(SECTOR_BYTES)
  fillSector(bytes, 0, value)
  return overlay.write(bytes, sector * SECTOR_BYTES)
}

function versionAt(overlay: OverlayDevice, sector: number): number {
  const bytes = new Uint8Array(SECTOR_BYTES)
  assert.equal(overlay.read(bytes, sector * SECTOR_BYTES), undefined)
  return versionIn(bytes, 0)
}

/** What a process leaves that is killed now, or at a moment. */
function killed(files: PowerCutFiles, moment = files.moment): PowerCutFiles {
  return new PowerCutFiles(random, files.kill(moment, random))
}

function recentBytes(files: OverlayFiles): number {
  const fd = files.open(`${DIRECTORY}/recent`, 'read')
  const sizeBytes = files.sizeBytes(fd)
  files.close(fd)
  return sizeBytes
}

const full = (path: RegExp) => (call: keyof OverlayFiles, at: string): Error | undefined => (call === 'write' && path.test(at) ? Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' }) : undefined)

describe('what was answered', () => {
  test('is shown after the process has died, and has been made durable', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    await write(overlay, 5, 1)
    await overlay.flush()
    await write(overlay, 5, 2)
    await write(overlay, 7, 3)
    await overlay.trim(9 * SECTOR_BYTES, SECTOR_BYTES)
    const living = killed(files)
    await openOverlay(living)
    for (const remains of [living.kill(living.moment, random), living.cut(living.moment, random)]) {
      const after = await openOverlay(new PowerCutFiles(random, remains))
      assert.deepEqual([5, 6, 7, 9].map(sector => versionAt(after, sector)), [2, 0, 3, 0])
    }
  })

  test('costs nothing where sectors are written again, and one record where they follow one another', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    for (let sector = 0; sector < 100; sector++) await write(overlay, sector, 1)
    assert.equal(recentBytes(files), 48 + 16)
    const before = files.moment
    for (let sector = 0; sector < 100; sector++) await write(overlay, sector, 2)
    assert.equal(files.moment, before + 100, 'the writes of content alone')
    await write(overlay, 200, 2)
    assert.equal(recentBytes(files), 48 + 32)
  })

  test('is there also while the file is begun anew, at any moment', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    for (let sector = 0; sector < SECTORS; sector += 2) await write(overlay, sector, sector + 1)
    assert.ok(recentBytes(files) > 64 << 10)
    const first = files.moment
    const flush = overlay.flush()
    const answered: number[] = []
    let flushed = false
    void Promise.resolve(flush).then(() => { flushed = true })
    for (let sector = 1; !flushed; sector += 2) {
      await write(overlay, sector, sector + 1)
      answered.push(files.moment)
      await new Promise<void>(resolve => { setImmediate(resolve) })
    }
    assert.ok(recentBytes(files) < 1 << 10, 'it holds only what was written since the flush began')
    await write(overlay, SECTORS - 1, SECTORS)
    for (let moment = first; moment <= files.moment; moment++) {
      const after = await openOverlay(killed(files, moment))
      for (let sector = 0; sector < SECTORS; sector += 2) assert.equal(versionAt(after, sector), sector + 1)
      for (const [index, at] of answered.entries()) if (at <= moment) assert.equal(versionAt(after, index * 2 + 1), index * 2 + 2, `sector ${index * 2 + 1} at moment ${moment}`)
    }
    assert.equal(versionAt(await openOverlay(killed(files)), SECTORS - 1), SECTORS)
  })

  test('does not fail for want of room for the record; a commit makes it recorded again', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    await write(overlay, 1, 1)
    await overlay.flush()
    files.fault = full(/recent/)
    await write(overlay, 3, 3)
    assert.ok(!files.exists(`${DIRECTORY}/recent`), 'a history that does not go on would take back later commits')
    files.fault = () => undefined
    await overlay.trim(SECTOR_BYTES, SECTOR_BYTES)
    await overlay.flush()
    assert.equal(versionAt(await openOverlay(killed(files)), 1), 0)
    // Small commits go to the log; one that does not begins the file anew.
    for (let sector = 0; sector < SECTORS; sector += 2) await write(overlay, sector, 7)
    await overlay.flush()
    await write(overlay, 5, 5)
    assert.equal(versionAt(await openOverlay(killed(files)), 5), 5)
  })

  test('counts in no other cache, nor in its own once it was opened in another', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    await write(overlay, 1, 1)
    await overlay.flush()
    await write(overlay, 1, 2)
    await write(overlay, 3, 3)
    const other = killed(files)
    other.incarnation = () => undefined
    const reopened = await openOverlay(other)
    assert.deepEqual([1, 3].map(sector => versionAt(reopened, sector)), [1, 0], 'as after a power cut')
    await write(reopened, 3, 4)
    await reopened.trim(3 * SECTOR_BYTES, SECTOR_BYTES)
    await reopened.flush()
    assert.ok(!other.exists(`${DIRECTORY}/recent`))
    assert.equal(versionAt(await openOverlay(killed(other)), 3), 0)
  })

  test('is done away with when a sync has failed: what the cache shows, the disk may not have', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    await write(overlay, 1, 1)
    files.fault = call => (call === 'sync' ? new Error('EIO') : undefined)
    await assert.rejects(async () => overlay.flush(), { code: 'OVERLAY_FAILED' })
    assert.ok(!files.exists(`${DIRECTORY}/recent`))
  })

  test('keeps an overlay from being opened read-only as long as no commit has it', async () => {
    const files = new PowerCutFiles(random)
    const overlay = await openOverlay(files)
    await write(overlay, 1, 1)
    await overlay.trim(SECTOR_BYTES, SECTOR_BYTES)
    await assert.rejects(openOverlay(killed(files), { readOnly: true }), { code: 'OVERLAY_INVALID' })
    await overlay[Symbol.asyncDispose]()
    assert.ok(!files.exists(`${DIRECTORY}/recent`))
    for (let moment = files.moment - 1; moment <= files.moment; moment++) assert.equal(versionAt(await openOverlay(killed(files, moment), { readOnly: true }), 1), 0)
  })
})

describe('a name that a killed process gave is durable once it is relied upon', () => {
  const trace = (files: PowerCutFiles, first: number, isThere: (files: PowerCutFiles) => boolean): number => {
    for (let moment = first; ; moment++) if (isThere(killed(files, moment))) return moment
  }
  /** Some of these leave no name that was not made durable. */
  const cuts = (files: PowerCutFiles): PowerCutFiles[] => Array.from({ length: 12 }, () => new PowerCutFiles(random, files.cut(files.moment, random)))

  test('that of a journal that was written anew', async () => {
    const sizeBytes = 600_000 * SECTOR_BYTES
    const files = new PowerCutFiles(random)
    const open = (on: PowerCutFiles): Promise<OverlayDevice> => OverlayDevice.open({ directory: DIRECTORY, lower: new MemoryDevice(sizeBytes, { readOnly: true }), lowerDigest: LOWER, files: on })
    await OverlayDevice.create({ directory: DIRECTORY, sizeBytes, lowerDigest: LOWER, files })
    const overlay = await open(files)
    for (let sector = 0; sector < 600_000; sector += 2) await overlay.trim(sector * SECTOR_BYTES, SECTOR_BYTES)
    await overlay.flush()
    await overlay.trim(SECTOR_BYTES, 4096 * SECTOR_BYTES)
    const before = files.moment
    await overlay.flush()
    const written = trace(files, before, remains => remains.exists(`${DIRECTORY}/map.new`))
    const living = killed(files, trace(files, written, remains => !remains.exists(`${DIRECTORY}/map.new`)))
    const after = await open(living)
    await write(after, 1, 1)
    await after.flush()
    for (const cut of cuts(living)) assert.equal(versionAt(await open(cut), 1), 1)
  })

  test('that of a generation', async () => {
    const files = new PowerCutFiles(random)
    const options = { directory: '/overlays/cvd', lower: new MemoryDevice(SECTORS * SECTOR_BYTES, { readOnly: true }), lowerDigest: LOWER }
    const stack = await OverlayStack.open({ ...options, files })
    const before = files.moment
    await stack.snapshot()
    const living = killed(files, trace(files, before, remains => remains.exists('/overlays/cvd/2')))
    const after = await OverlayStack.open({ ...options, files: living })
    assert.equal(after.topGeneration, 2)
    await after.write(Buffer.alloc(SECTOR_BYTES, 1), 0)
    await after.flush()
    const found = Buffer.alloc(SECTOR_BYTES)
    for (const cut of cuts(living)) {
      await (await OverlayStack.open({ ...options, files: cut })).read(found, 0)
      assert.deepEqual(found, Buffer.alloc(SECTOR_BYTES, 1))
    }
  })
})

describe('the file', () => {
  test('does not grow without bound', () => {
    using directory = new TemporaryDirectory()
    let sizeBytes = 0
    const recent = new OverlayRecent({ ...localFiles, write: (_, bytes, offset) => { sizeBytes = offset + bytes.length } }, directory.path, Buffer.alloc(32))
    recent.restart(new Frame())
    for (let record = 0; recent.isRecording; record++) recent.add(record % 2, 1, 1)
    assert.equal(sizeBytes, RECENT_BYTES_MAX)
    assert.ok(!OverlayRecent.exists(localFiles, directory.path))
    assert.ok(recent.wantsRestart)
  })

  const seed = testSeed()
  test(`mutated, cut short or made up, gives runs of the disk, or is refused with a code, or ignored (seed ${seed})`, () => {
    const fuzz = new Random(seed)
    let bytes: Buffer = Buffer.alloc(10_000)
    const memory: OverlayFiles = {
      ...localFiles,
      exists: () => true, open: () => 3, close: () => {}, truncate: () => {}, rename: () => {},
      sizeBytes: () => bytes.length,
      read: (_, into, offset) => void bytes.copy(into, 0, offset),
      write: (_, written, offset) => bytes.set(written, offset),
    }
    const read = (): Buffer | undefined => readRecent(memory, '/', incarnation)
    const incarnation = fuzz.bytes(32)
    const recent = new OverlayRecent(memory, '/', incarnation)
    recent.restart(new Frame())
    for (let record = 0; record < 50; record++) recent.add(record * 3, 1 + fuzz.below(2), record % 2 === 0 ? 1 : 2)
    const valid = Buffer.from(bytes.subarray(0, 48 + 50 * 16))
    for (let round = 0; round < 20_000; round++) {
      bytes = Buffer.from(valid)
      if (fuzz.chance(0.1)) bytes = Buffer.concat([bytes.subarray(0, 48), fuzz.bytes(fuzz.below(500))])
      if (fuzz.chance(0.05)) bytes = fuzz.bytes(fuzz.below(500))
      if (fuzz.chance(0.2)) bytes = bytes.subarray(0, fuzz.below(bytes.length + 1))
      for (let change = fuzz.below(3); change > 0 && bytes.length > 0; change--) bytes[fuzz.below(bytes.length)] = fuzz.pick([0, 1, 0x80, 0xff, fuzz.below(256)])
      const found = read()
      assert.equal(found !== undefined, bytes.length >= 48 && bytes.subarray(0, 8).equals(valid.subarray(0, 8)) && bytes.subarray(16, 48).equals(incarnation))
      if (found === undefined) continue
      try {
        visitRecent(found, { directory: '/', sectorCount: 1000, visit: (first, count, state) => assert.ok(first >= 0 && count >= 1 && first + count <= 1000 && (state === 1 || state === 2)) })
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'OVERLAY_INVALID', String(error))
      }
    }
    bytes = valid
    const runs: number[] = []
    visitRecent(read()!, { directory: '/', sectorCount: 1000, visit: first => void runs.push(first) })
    assert.deepEqual(runs, Array.from({ length: 50 }, (_, record) => record * 3))
    bytes = Buffer.concat([valid, Buffer.alloc(RECENT_BYTES_MAX)])
    assert.equal(read(), undefined)
  })
})

test('a cache has another name for another file, and after its file system was mounted anew', () => {
  using directory = new TemporaryDirectory()
  const [image, mounted] = [`${directory.path}/image`, `${directory.path}/mounted`]
  writeFileSync(image, '')
  truncateSync(image, 16 << 20)
  execFileSync('mkfs.ext4', ['-q', image])
  mkdirSync(mounted)
  const nameOf = (path: string): string => {
    const fd = openSync(path, 'a')
    try {
      return Buffer.from(localFiles.incarnation(fd)!).toString('hex')
    } finally {
      closeSync(fd)
    }
  }
  const names = []
  for (let time = 0; time < 2; time++) {
    execFileSync('mount', ['-o', 'loop', image, mounted])
    try {
      names.push(nameOf(`${mounted}/a`), nameOf(`${mounted}/b`))
      assert.equal(nameOf(`${mounted}/a`), names.at(-2))
    } finally {
      execFileSync('umount', [mounted])
    }
  }
  assert.equal(new Set(names).size, 4)
})
