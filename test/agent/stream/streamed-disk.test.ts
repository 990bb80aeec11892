/**
 * A streamed disk as a block device, on real files; and what it does while it fills.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, copyFileSync, mkdirSync, openSync, readFileSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { StreamedDisk } from '@varve/agent/stream/streamed-disk.ts'
import { Target } from '@varve/agent/stream/target.ts'
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { deviceConformance } from '../../images/device/conformance.ts'
import { TemporaryDirectory } from '../../images/device/temporary.ts'
import { Random, testSeed } from '../../random.ts'
import { randomDisk } from './streaming.ts'

const seed = testSeed()

/** Gives what is wanted, some of it late. */
function streamed(target: Target, chunks: readonly Buffer[], random: Random): StreamedDisk {
  const disk: StreamedDisk = new StreamedDisk({
    target,
    want: async (wanted) => {
      for (const chunk of wanted) {
        if (random.chance(0.3)) await new Promise<void>((resolve) => setImmediate(resolve))
        disk.install(chunk, chunks[chunk])
      }
    },
  })
  return disk
}

function fillAll(disk: StreamedDisk, chunks: readonly Buffer[]): void {
  // Some chunks may have to come again, where what they share a block with came much later.
  for (let round = 0; round < 3 && !disk.target.isComplete; round++) {
    for (const [chunk, bytes] of chunks.entries()) if (disk.needs(chunk)) disk.install(chunk, bytes)
    disk.installZeroes(0, disk.target.blockCount)
  }
  assert.ok(disk.target.isComplete)
}

deviceConformance('a streamed disk', async (content) => {
  const random = new Random(seed + content.length)
  const directory = new TemporaryDirectory()
  const chunks: Buffer[] = []
  const builder = new BlockMapBuilder(content.length)
  for (let at = 0; at < content.length;) {
    const length = Math.min(content.length - at, random.between(1, 20_000))
    const bytes = content.subarray(at, at + length)
    if (!bytes.every((byte) => byte === 0)) builder.data(at, length, builder.addChunk(digestOf(bytes), length), 0)
    at += length
  }
  const map = builder.build()
  for (let index = 0; index < map.extentCount; index++) {
    const ref = map.refs[index]
    if (ref < map.chunkCount && chunks[ref] === undefined) chunks[ref] = Buffer.from(content.subarray(map.starts[index], map.endOf(index)))
  }
  const file = path.join(directory.path, 'target')
  let target = await Target.create({ path: file, map, note: {} })
  const subject = {
    device: streamed(target, chunks, random),
    reopen: async () => {
      await target[Symbol.asyncDispose]()
      target = (await Target.open(file)) as Target
      subject.device = streamed(target, chunks, random)
    },
    disturb: async () => {
      const chunk = random.below(chunks.length)
      if (chunks.length > 0) subject.device.install(chunk, chunks[chunk])
    },
    [Symbol.asyncDispose]: async () => {
      await target[Symbol.asyncDispose]()
      directory[Symbol.dispose]()
    },
  }
  return subject
})

test(`a disk that has come whole is a plain file with the same bytes (seed ${seed})`, async () => {
  const random = new Random(seed + 1)
  using directory = new TemporaryDirectory()
  for (const [index, sizeBytes] of [1, 4095, 300_000, 2_000_001].entries()) {
    const file = path.join(directory.path, `target-${index}`)
    const source = randomDisk(random, { sizeBytes })
    const target = await Target.create({ path: file, map: source.map, note: { of: index, privateKey: 'a key' } })
    const disk = streamed(target, source.chunks, random)
    const expected = Buffer.from(source.content)
    for (let round = 0; round < 40; round++) {
      const offset = random.below(sizeBytes)
      const bytes = random.bytes(random.between(1, Math.min(9000, sizeBytes - offset)))
      if (random.chance(0.3)) {
        await disk.trim(offset, bytes.length)
        expected.fill(0, offset, offset + bytes.length)
      } else {
        await disk.write(bytes, offset)
        bytes.copy(expected, offset)
      }
      const into = Buffer.alloc(Math.min(20_000, sizeBytes - offset))
      await disk.read(into, offset)
      assert.ok(into.equals(expected.subarray(offset, offset + into.length)))
      if (source.chunks.length > 0 && random.chance(0.5)) {
        const chunk = random.below(source.chunks.length)
        disk.install(chunk, source.chunks[chunk])
      }
    }
    fillAll(disk, source.chunks)
    const { wrongBytes } = await disk.verify()
    assert.equal(wrongBytes, 0)
    await target.complete()
    assert.ok(!readFileSync(file).includes('a key'), 'the note is gone although the target is still open')
    const last = random.bytes(Math.min(sizeBytes, 700))
    await disk.write(last, 0)
    last.copy(expected)
    await disk.flush()
    // As a process leaves it that is killed, and as one does that ends in order.
    if (random.chance(0.5)) {
      const copy = `${file}-copy`
      copyFileSync(file, copy)
      assert.equal(await Target.open(copy), 'complete')
      assert.ok(readFileSync(copy).equals(expected))
    }
    await target[Symbol.asyncDispose]()
    assert.ok(readFileSync(file).equals(expected))
    assert.equal(await Target.open(file), undefined)
  }
})

test(`verifying finds what the target has lost, and it comes again (seed ${seed})`, async () => {
  const random = new Random(seed + 2)
  using directory = new TemporaryDirectory()
  const file = path.join(directory.path, 'target')
  const source = randomDisk(random, { sizeBytes: 1_000_000, aligned: 4096 })
  await using target = await Target.create({ path: file, map: source.map, note: {} })
  const disk = streamed(target, source.chunks, random)
  fillAll(disk, source.chunks)
  const index = source.map.refs.findIndex((ref, extent) => ref < source.map.chunkCount && source.map.starts[extent] >= 4096 && source.map.endOf(extent) - source.map.starts[extent] === source.map.chunkBytes[ref])
  const fd = openSync(file, 'r+')
  writeSync(fd, Buffer.from([source.content[source.map.starts[index]] ^ 1]), 0, 1, source.map.starts[index])
  closeSync(fd)
  assert.ok((await disk.verify()).wrongBytes > 0)
  assert.ok(!target.isComplete)
  const into = Buffer.alloc(source.content.length)
  await disk.read(into, 0)
  assert.ok(into.equals(source.content))
  assert.equal((await disk.verify()).wrongBytes, 0)
})

test('a target that holds something is not taken, nor one in use, nor one that is damaged', async () => {
  const random = new Random(seed + 3)
  using directory = new TemporaryDirectory()
  const file = path.join(directory.path, 'target')
  const { map } = randomDisk(random, { sizeBytes: 100_000 })
  writeFileSync(file, 'somebody\'s work')
  await assert.rejects(Target.create({ path: file, map, note: {} }), { code: 'TARGET_INVALID' })
  assert.equal(readFileSync(file, 'utf8'), 'somebody\'s work')
  {
    await using _target = await Target.create({ path: file, map, note: { cvd: 'desk' }, overwrite: true })
    await assert.rejects(Target.open(file), { code: 'STORE_LOCKED' })
    await assert.rejects(Target.create({ path: file, map, note: {}, overwrite: true }), { code: 'STORE_LOCKED' })
  }
  {
    await using target = await Target.open(file) as Target
    assert.deepEqual(target.note, { cvd: 'desk' })
  }
  const whole = readFileSync(file)
  const size = statSync(file).size
  for (let round = 0; round < 200; round++) {
    const damaged = Buffer.from(whole)
    for (let hit = random.between(1, 8); hit > 0; hit--) damaged[random.between(100_000, size - 1)] = random.below(256)
    writeFileSync(file, damaged)
    try {
      const target = await Target.open(file)
      if (target instanceof Target) await target[Symbol.asyncDispose]()
    } catch (error) {
      assert.match((error as { code?: string }).code ?? String(error), /^(TARGET_INVALID|FORMAT_|LIMIT_)/)
    }
  }
})

test('a device of which something is mounted is not taken, and nothing of one that is streamed to can be mounted', async () => {
  const random = new Random(seed + 4)
  using directory = new TemporaryDirectory()
  const { map } = randomDisk(random, { sizeBytes: 1_000_000 })
  const [file, mountPoint] = [path.join(directory.path, 'disk'), path.join(directory.path, 'mounted')]
  mkdirSync(mountPoint)
  writeFileSync(file, '')
  truncateSync(file, 16 << 20)
  execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', file])
  const device = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim()
  const mount = () => execFileSync('mount', ['-o', 'ro', device, mountPoint], { stdio: 'pipe' })
  try {
    mount()
    try {
      await assert.rejects(Target.create({ path: device, map, note: {}, overwrite: true }), { code: 'STORE_LOCKED' })
    } finally {
      execFileSync('umount', [mountPoint])
    }
    await using _target = await Target.create({ path: device, map, note: {}, overwrite: true })
    assert.throws(mount, /already mounted|busy/)
  } finally {
    execFileSync('losetup', ['--detach', device])
  }
})
