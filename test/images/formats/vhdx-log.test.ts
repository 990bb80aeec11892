/**
 * Logs of VHDX images, replayed by us in memory and by QEMU in a copy: both must find the same disk. QEMU leaves a log when it is killed, or when a write fails
 * after it was logged, always of one entry; longer ones are built. VARVE_IMAGE_ROUNDS, a quarter of them each way.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { copyFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { openVhdx } from '@varve/images/formats/vhdx/open-vhdx.ts'
import { Random, testSeed } from '../../random.ts'
import { imageDirectories, openFile } from './image-directories.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, writeOut } from './image-judge.ts'
import { changeWithQemuIo } from './random-disk.ts'
import { buildVhdx, seal } from './vhdx-builder.ts'
import type { BuiltBlock, BuiltLogEntry, BuiltLogWrite } from './vhdx-builder.ts'

const ROUNDS = Math.ceil(Number(process.env.VARVE_IMAGE_ROUNDS ?? 40) / 4)
const MIB = 1 << 20
const SECTOR = 4096
/** Of the images that QEMU makes. */
const DISK_BYTES = 150 * MIB
/** Sectors of a log of 1 MiB. */
const LOG_SECTORS = 256
const seed = testSeed()
const newDirectory = imageDirectories('vhdx-log')

/** True if QEMU says that a log waits to be replayed. */
function isDirty(image: string): boolean {
  return /log that needs to be replayed/.test(spawnSync('qemu-img', ['check', '-f', 'vhdx', image], { encoding: 'utf8' }).stderr)
}

/** Fails unless we see in an image what QEMU does after its own replay. */
async function assertReplaysAlike(random: Random, directory: string, image: string): Promise<void> {
  const [copy, ours] = ['copy.vhdx', 'ours'].map((name) => join(directory, name))
  copyFileSync(image, copy)
  execFileSync('qemu-img', ['check', '-q', '-r', 'all', '-f', 'vhdx', copy])
  await using disk = await openVhdx(openFile(image))
  await writeOut(disk, ours)
  assertSameDisk(copy, 'vhdx', ours)
  await using model = openFile(ours)
  await assertReadsAlike(random, disk, model)
}

function createImage(random: Random, image: string): void {
  qemuImg('create', '-q', '-f', 'vhdx', '-o', `block_size=1M,log_size=${random.pick([1, 2])}M,block_state_zero=${random.pick(['on', 'off'])}`, image, String(DISK_BYTES))
  changeWithQemuIo(random, image, 'vhdx', DISK_BYTES, { count: random.below(10), discards: false })
}

describe(`logs that QEMU leaves (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`after a failed write, ${round}`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const image = join(directory, 'image.vhdx')
      createImage(random, image)
      const rules = ['event=none', 'iotype=write', `sector=${(await tableOffset(image)) / 512}`, 'errno=5'].map((rule) => `file.inject-error.0.${rule}`)
      const blocks = Array.from({ length: 5 }, () => random.below(DISK_BYTES / MIB))
      spawnSync('qemu-io', ['--image-opts', `driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename=${image},${rules.join(',')}`, ...blocks.flatMap((block) => ['-c', `write -P ${random.between(1, 255)} ${block}M ${random.between(1, 9000)}`])])
      assert.ok(isDirty(image), 'QEMU left a log')
      await assertReplaysAlike(random, directory, image)
      rmSync(directory, { recursive: true })
    })

    test(`after kill -9, ${round}`, async (t) => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const image = join(directory, 'image.vhdx')
      createImage(random, image)
      const blocks = Array.from({ length: 100 }, () => random.below(DISK_BYTES / MIB))
      // Slow enough that the log is full most of the time: allocating a block takes some ten writes.
      const slow = ['--object', 'throttle-group,id=slow,x-iops-write=400', '--image-opts', `driver=vhdx,file.driver=throttle,file.throttle-group=slow,file.file.driver=file,file.file.filename=${image}`]
      const qemu = spawn('qemu-io', slow, { stdio: ['pipe', 'pipe', 'ignore'] })
      const ended = new Promise((resolve) => qemu.on('close', resolve))
      const killed = setTimeout(() => qemu.kill('SIGKILL'), random.between(50, 400))
      qemu.stdin.on('error', () => undefined)
      qemu.stdin.end(blocks.map((block) => `write -P ${random.between(1, 255)} ${block}M 4096\n`).join(''))
      await ended
      clearTimeout(killed)
      t.diagnostic(isDirty(image) ? 'QEMU left a log' : 'QEMU left no log')
      await assertReplaysAlike(random, directory, image)
      rmSync(directory, { recursive: true })
    })
  }
})

/** Where the block allocation table of an image is that QEMU made: its region is the first in the table. */
async function tableOffset(image: string): Promise<number> {
  const bytes = Buffer.alloc(8)
  await using file = openFile(image)
  file.read(bytes, (192 << 10) + 32)
  return Number(bytes.readBigUInt64LE())
}

/** Entries one after another, from a sector of the log on, around its end. */
function sequence(random: Random, { sector, first, count, blocks, blocksOffset }: { sector: number; first: number; count: number; blocks: number; blocksOffset: number }): BuiltLogEntry[] {
  const entries: BuiltLogEntry[] = []
  for (let index = 0, at = sector; index < count; index++) {
    const writes = Array.from({ length: random.pick([0, 1, 2, random.below(20), 130]) }, (): BuiltLogWrite => {
      const place = random.below((blocks * MIB) / SECTOR)
      const isZero = random.chance(0.3)
      const sectors = Math.min(random.between(1, 300), (blocks * MIB) / SECTOR - place)
      return { fileOffset: blocksOffset + place * SECTOR, content: isZero ? sectors * SECTOR : random.bytes(SECTOR) }
    })
    const length = Math.ceil((64 + 32 * writes.length) / SECTOR) + writes.filter(({ content }) => typeof content !== 'number').length
    if (entries.length > 0 && at + length - sector > LOG_SECTORS - 10) break
    entries.push({ sector: at % LOG_SECTORS, sequence: first + index, tail: sector, writes })
    at += length
  }
  return entries
}

function randomBlocks(random: Random, count: number): Map<number, BuiltBlock> {
  return new Map(Array.from({ length: count }, (_, block) => [block, { state: 6, bytes: random.bytes(MIB) }]))
}

/** The disk after the writes of entries, one after another. */
function written(content: Buffer, entries: BuiltLogEntry[], blocksOffset: number): Buffer {
  for (const { fileOffset, content: bytes } of entries.flatMap(({ writes }) => writes)) {
    if (typeof bytes === 'number') content.fill(0, fileOffset - blocksOffset, fileOffset - blocksOffset + bytes)
    else bytes.copy(content, fileOffset - blocksOffset)
  }
  return content
}

describe(`logs that are built (seed ${seed})`, () => {
  /** As the builder lays it out: behind the log of 1 MiB, a table and the metadata of 1 MiB each. */
  const blocksOffset = 4 * MIB

  for (let round = 0; round < ROUNDS; round++) {
    test(`random entries, with older ones beside them and torn ones behind them, ${round}`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const image = join(directory, 'image.vhdx')
      const blocks = random.between(1, 4)
      const start = random.below(LOG_SECTORS)
      const newest = sequence(random, { sector: start, first: random.between(100, 200), count: random.between(1, 12), blocks, blocksOffset })
      const older = random.chance(0.5) ? sequence(random, { sector: (start + LOG_SECTORS - 9) % LOG_SECTORS, first: 5, count: 1, blocks, blocksOffset }).filter(({ writes }) => writes.length < 5) : []
      const content = randomBlocks(random, blocks)
      const built = buildVhdx({ sizeBytes: blocks * MIB, blocks: content, log: { entries: [...older, ...newest] } })
      assert.equal(built.blocks, blocksOffset)
      const isTorn = random.chance(0.3)
      if (isTorn) built.bytes[built.log + newest.at(-1)!.sector * SECTOR + random.pick([100, 8, 200])] ^= 1
      const whole = isTorn ? newest.slice(0, -1) : newest
      const expected = written(Buffer.concat([...content.values()].map(({ bytes }) => bytes!)), whole.length > 0 ? whole : older, blocksOffset)
      {
        await using disk = await openVhdx(MemoryDevice.of(built.bytes))
        const read = Buffer.alloc(disk.sizeBytes)
        await disk.read(read, 0)
        assert.ok(read.equals(expected))
      }
      // QEMU takes entries behind the log's end for a sequence of their own, and reads one sector of descriptors of each entry.
      if (newest.slice(1).some(({ sector }) => sector < start) || [...older, ...newest].some(({ writes }) => writes.length > 126)) return
      writeFileSync(image, built.bytes)
      await assertReplaysAlike(random, directory, image)
      rmSync(directory, { recursive: true })
    })
  }

  const open = (entries: BuiltLogEntry[], change: (bytes: Buffer, log: number) => void = () => undefined) => {
    const built = buildVhdx({ sizeBytes: MIB, blocks: randomBlocks(new Random(seed), 1), log: { entries } })
    change(built.bytes, built.log)
    return openVhdx(MemoryDevice.of(built.bytes))
  }
  const write = (byte: number, fileOffset = blocksOffset): BuiltLogWrite => ({ fileOffset, content: Buffer.alloc(SECTOR, byte) })
  const firstBytes = async (entries: BuiltLogEntry[], change?: (bytes: Buffer, log: number) => void): Promise<number[]> => {
    await using disk = await open(entries, change)
    return [0, SECTOR].map((offset) => {
      const read = Buffer.alloc(1)
      void disk.read(read, offset)
      return read[0]
    })
  }

  test('what the last entry says is no longer needed is not replayed, and a sequence that lacks what is needed is not either', async () => {
    const [one, two] = [{ sector: 0, sequence: 1, tail: 0, writes: [write(1), write(1, blocksOffset + SECTOR)] }, { sector: 3, sequence: 2, tail: 3, writes: [write(2)] }]
    const [, before] = await firstBytes([])
    assert.deepEqual(await firstBytes([one, two]), [2, before])
    assert.deepEqual(await firstBytes([one, { ...two, tail: 0 }]), [2, 1])
    const incomplete = [{ sector: 10, sequence: 5, tail: 8, writes: [write(5)] }, { sector: 12, sequence: 6, tail: 8, writes: [write(6)] }]
    assert.deepEqual(await firstBytes([one, ...incomplete]), [1, 1])
    await assert.rejects(open(incomplete), { code: 'FORMAT_INVALID', message: /lacks/ })
  })

  test('a log whose only entry was cut short is empty', async () => {
    const entries = [{ sector: 0, sequence: 1, tail: 0, writes: [write(1)] }]
    const before = await firstBytes([])
    assert.deepEqual(await firstBytes(entries, (bytes, log) => bytes.fill(0, log + SECTOR, log + 2 * SECTOR)), before)
    assert.deepEqual(await firstBytes(entries), [1, before[1]])
  })

  test('a file that is shorter than its log says was cut; one that the log makes longer is so', async () => {
    const length = buildVhdx({ sizeBytes: MIB, blocks: randomBlocks(new Random(seed), 1) }).bytes.length
    const entry = { sector: 0, sequence: 1, tail: 0, writes: [write(1)] }
    await assert.rejects(open([{ ...entry, flushedBytes: length + SECTOR, lastBytes: length + SECTOR }]), { code: 'FORMAT_INVALID', message: /when its log was written/ })
    const built = buildVhdx({ sizeBytes: 2 * MIB, blocks: randomBlocks(new Random(seed), 2), log: { entries: [{ ...entry, flushedBytes: length, lastBytes: length + MIB }] } })
    await using disk = await openVhdx(MemoryDevice.of(built.bytes.subarray(0, length)))
    const read = Buffer.alloc(MIB)
    await disk.read(read, MIB)
    assert.ok(read.equals(Buffer.alloc(MIB)))
  })

  test('a log of another version is refused, unless it is empty', async () => {
    const other = (bytes: Buffer): void => {
      for (const at of [64 << 10, 128 << 10]) {
        bytes.writeUInt16LE(1, at + 64)
        seal(bytes.subarray(at, at + SECTOR))
      }
    }
    await assert.rejects(open([{ sector: 0, sequence: 1, tail: 0, writes: [] }], other), { code: 'FORMAT_UNSUPPORTED', message: /log/ })
    const { bytes } = buildVhdx({ sizeBytes: MIB })
    other(bytes)
    await openVhdx(MemoryDevice.of(bytes))
  })
})
