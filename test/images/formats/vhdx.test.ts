/** VHDX images of QEMU, and built ones, read by us; ours read by QEMU and libvhdi. VARVE_IMAGE_ROUNDS random images each way. Logs: vhdx-log.test.ts. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { computeVhdx } from '@varve/images/formats/vhdx/compute-vhdx.ts'
import { openVhdx } from '@varve/images/formats/vhdx/open-vhdx.ts'
import { Random, testSeed } from '../../random.ts'
import { imageDirectories, openFile } from './image-directories.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, qemuSizeBytes, writeOut } from './image-judge.ts'
import { changeWithQemuIo, writeRandomDisk } from './random-disk.ts'
import { DirectoryFiles, assertLibvhdiSees, contentDigest } from './vhd-judge.ts'
import { buildVhdx, seal } from './vhdx-builder.ts'
import type { BuiltBlock } from './vhdx-builder.ts'

const ROUNDS = Number(process.env.VARVE_IMAGE_ROUNDS ?? 40)
const DISK = { sizeBytesMax: 24 << 20 }
const MIB = 1 << 20
const seed = testSeed()
const newDirectory = imageDirectories('vhdx')

describe(`VHDX images read (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`random image ${round} is the disk that QEMU sees`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const [raw, image, ours] = ['raw', 'image.vhdx', 'ours'].map((name) => join(directory, name))
      writeRandomDisk(random, raw, DISK)
      const subformat = random.pick(['fixed', 'dynamic', 'dynamic'])
      const zeroState = subformat === 'fixed' ? random.pick(['on', 'off']) : 'on'
      qemuImg('convert', '-f', 'raw', '-O', 'vhdx', '-o', `subformat=${subformat},block_size=${random.pick([0, 1, 1, 2, 8, 32])}M,log_size=${random.pick([1, 1, 2, 5])}M,block_state_zero=${zeroState}`, raw, image)
      changeWithQemuIo(random, image, 'vhdx', qemuSizeBytes(image, 'vhdx'), { count: random.below(20), discards: false })
      await using disk = await openVhdx(openFile(image))
      await writeOut(disk, ours)
      assertSameDisk(image, 'vhdx', ours)
      await using model = openFile(ours)
      await assertReadsAlike(random, disk, model)
      rmSync(directory, { recursive: true })
    })
  }

  test('each state of a block is read as it is meant', async () => {
    const image = join(newDirectory(), 'image.vhdx')
    const bytes = new Random(seed).bytes(MIB)
    const blocks = new Map<number, BuiltBlock>([[1, { state: 1 }], [2, { state: 2 }], [3, { state: 3 }], [4, { state: 6, bytes }]])
    writeFileSync(image, buildVhdx({ sizeBytes: 5 * MIB - 512, blocks }).bytes)
    await using disk = await openVhdx(openFile(image))
    assert.deepEqual(disk.extents(0, disk.sizeBytes).map(({ length, type }) => [length, type]), [[2 * MIB, 'hole'], [MIB, 'zero'], [MIB, 'hole'], [MIB - 512, 'data']])
    const read = Buffer.alloc(disk.sizeBytes, 1)
    await disk.read(read, 0)
    assert.ok(read.equals(Buffer.concat([Buffer.alloc(4 * MIB), bytes.subarray(0, MIB - 512)])))
    for (const state of [4, 5, 7]) {
      writeFileSync(image, buildVhdx({ sizeBytes: 5 * MIB, blocks: new Map([[3, { state, bytes }]]) }).bytes)
      await assert.rejects(openVhdx(openFile(image)), { code: 'FORMAT_INVALID', message: new RegExp(`state ${state}`) })
    }
  })

  test('entries of bitmaps stand between those of blocks, after every chunk', async () => {
    const directory = newDirectory()
    const random = new Random(seed)
    for (const sectorBytes of [512, 4096]) {
      const image = join(directory, `${sectorBytes}.vhdx`)
      // Blocks of 1 MiB in a chunk.
      const chunk = 8 * sectorBytes
      const numbers = [0, chunk - 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk, 2 * chunk + 7]
      const blocks = new Map<number, BuiltBlock>(numbers.map((number, index) => [number, { state: 6, bytes: Buffer.alloc(MIB, index + 1) }]))
      writeFileSync(image, buildVhdx({ sizeBytes: (2 * chunk + 8) * MIB, sectorBytes, blocks }).bytes)
      await using disk = await openVhdx(openFile(image))
      const data = disk.extents(0, disk.sizeBytes).filter(({ type }) => type === 'data')
      assert.deepEqual(data.map(({ offset, length }) => [offset / MIB, length / MIB]), [[0, 1], [chunk - 1, 3], [2 * chunk - 1, 2], [2 * chunk + 7, 1]])
      for (const [index, number] of numbers.entries()) {
        const read = Buffer.alloc(512)
        await disk.read(read, number * MIB + random.below(MIB - 512))
        assert.ok(read.equals(Buffer.alloc(512, index + 1)))
      }
      // QEMU does not read sectors of 4096 bytes.
      const commands = numbers.flatMap((number, index) => ['-c', `read -P ${index + 1} ${number}M 1M`])
      if (sectorBytes === 512) assert.doesNotMatch(execFileSync('qemu-io', ['-r', '-f', 'vhdx', ...commands, '-c', 'read -P 0 1M 1M', image], { encoding: 'utf8' }), /failed/)
    }
  })

  test('the newer of two sound headers counts, and either copy of headers and region tables is enough', async () => {
    const built = buildVhdx({ sizeBytes: MIB, blocks: new Map([[0, { state: 6, bytes: new Random(seed).bytes(MIB) }]]), sequences: [9, 8] })
    const open = async (change: (bytes: Buffer) => void): Promise<void> => {
      const bytes = Buffer.from(built.bytes)
      change(bytes)
      await using disk = await openVhdx(MemoryDevice.of(bytes, { readOnly: true }))
      assert.equal(disk.extents(0, MIB)[0].type, 'data')
    }
    const version = (bytes: Buffer, at: number): void => {
      bytes.writeUInt16LE(2, at + 66)
      seal(bytes.subarray(at, at + 4096))
    }
    await open(() => undefined)
    for (const at of [64 << 10, 128 << 10, 192 << 10, 256 << 10]) await open((bytes) => bytes.fill(1, at + 8, at + 9))
    await open((bytes) => version(bytes, 128 << 10))
    await assert.rejects(open((bytes) => version(bytes, 64 << 10)), { code: 'FORMAT_UNSUPPORTED' })
    await assert.rejects(open((bytes) => bytes.fill(1, 65_550, 65_560).fill(1, 131_090, 131_091)), { code: 'FORMAT_INVALID', message: /headers/ })
    await assert.rejects(open((bytes) => bytes.fill(1, 196_624, 196_625).fill(1, 262_160, 262_161)), { code: 'FORMAT_INVALID', message: /region tables/ })
    await assert.rejects(open((bytes) => bytes.fill(0, 0, 8)), { code: 'FORMAT_INVALID' })
    await assert.rejects(openVhdx(MemoryDevice.of(buildVhdx({ sizeBytes: MIB, sequences: [5, 5] }).bytes)), { code: 'FORMAT_INVALID', message: /same sequence number/ })
    await assert.rejects(openVhdx(MemoryDevice.of(built.bytes.subarray(0, built.bytes.length - 4096))), { code: 'FORMAT_INVALID', message: /cut short/ })
  })

  test('regions and metadata that are required and not known are refused, others are not looked at', async () => {
    const unknown = '01234567-89ab-cdef-0123-456789abcdef'
    await using disk = await openVhdx(MemoryDevice.of(buildVhdx({ sizeBytes: MIB, regions: [[unknown, false]], items: [[unknown, false]] }).bytes))
    assert.equal(disk.sizeBytes, MIB)
    await assert.rejects(openVhdx(MemoryDevice.of(buildVhdx({ sizeBytes: MIB, regions: [[unknown, true]] }).bytes)), { code: 'FORMAT_UNSUPPORTED', message: /region/ })
    await assert.rejects(openVhdx(MemoryDevice.of(buildVhdx({ sizeBytes: MIB, items: [[unknown, true]] }).bytes)), { code: 'FORMAT_UNSUPPORTED', message: /metadata/ })
  })
})

describe(`VHDX images computed (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`random disk ${round} is what QEMU and libvhdi see`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const [raw, image] = ['raw', 'image.vhdx'].map((name) => join(directory, name))
      writeRandomDisk(random, raw, DISK)
      await using disk = openFile(raw)
      await using computed = await computeVhdx(disk)
      await writeOut(computed, image)
      assertSameDisk(image, 'vhdx', raw)
      assert.match(qemuImg('check', '-f', 'vhdx', image), /No errors were found/)
      if (round < 10) await assertLibvhdiSees([image], disk)
      await using written = openFile(image)
      await assertReadsAlike(random, computed, written)
      await using again = await openVhdx(openFile(image))
      assert.equal(await contentDigest(again), await contentDigest(disk))
      rmSync(directory, { recursive: true })
    })
  }

  test('what was written as zeroes is so in the image, and what is a hole is one', async () => {
    const disk = new MemoryDevice(20 * MIB + 512)
    disk.write(Buffer.from('data'), 9 * MIB)
    const zeroed = new Proxy(disk, {
      get(target, key) {
        const value: unknown = key === 'extents' ? zeroesFrom(disk, 5 * MIB) : Reflect.get(target, key)
        return typeof value === 'function' ? (value.bind(target) as unknown) : value
      },
    })
    await using image = await openVhdx(await computeVhdx(zeroed))
    assert.deepEqual(image.extents(0, image.sizeBytes).map(({ length, type }) => [length / MIB, type]), [[6, 'hole'], [2, 'zero'], [2, 'data'], [10 + 512 / MIB, 'zero']])
  })

  test('the same disk gives the same bytes; one that is not whole sectors ends with zeroes, and an empty one is a disk', async () => {
    for (const sizeBytes of [0, 1, 1000, 2 * MIB + 1]) {
      const content = new Random(seed).bytes(sizeBytes)
      const computed = await computeVhdx(MemoryDevice.of(content))
      assert.equal(await contentDigest(computed), await contentDigest(await computeVhdx(MemoryDevice.of(content))))
      await using disk = await openVhdx(computed)
      const read = Buffer.alloc(disk.sizeBytes)
      await disk.read(read, 0)
      assert.ok(read.equals(Buffer.concat([content, Buffer.alloc(Math.ceil(sizeBytes / 512) * 512 - sizeBytes)])))
    }
  })

  test('a thin disk of 1 TiB, and one of 64 TiB, is an image of what it holds; a larger one is refused', async () => {
    const directory = newDirectory()
    const random = new Random(seed)
    for (const sizeBytes of [2 ** 40, 15 * 2 ** 40]) {
      const raw = join(directory, String(sizeBytes))
      await using disk = FileDevice.open({ path: raw, createBytes: sizeBytes })
      const places = Array.from({ length: 20 }, () => random.below(sizeBytes - 70_000))
      for (const place of places) await disk.write(random.bytes(70_000), place)
      await using read = await openVhdx(await computeVhdx(disk))
      assert.equal(read.sizeBytes, sizeBytes)
      for (const place of places) {
        const [ours, theirs] = [Buffer.alloc(70_000), Buffer.alloc(70_000)]
        await read.read(ours, place)
        disk.read(theirs, place)
        assert.ok(ours.equals(theirs))
      }
      if (sizeBytes > 2 ** 40) continue
      const image = join(directory, 'image.vhdx')
      await writeOut(await computeVhdx(disk), image)
      assert.equal(qemuSizeBytes(image, 'vhdx'), sizeBytes)
      assert.match(qemuImg('check', '-f', 'vhdx', image), /No errors were found/)
    }
    const huge = (sizeBytes: number): MemoryDevice => new Proxy(new MemoryDevice(0), { get: (_, key) => (key === 'sizeBytes' ? sizeBytes : key === 'extents' ? (offset: number, length: number) => [{ offset, length, type: 'hole' }] : undefined) })
    await computeVhdx(huge(2 ** 46))
    await assert.rejects(computeVhdx(huge(2 ** 46 + 1)), { code: 'LIMIT_EXCEEDED', message: /64 TiB/ })
  })
})

/** Extents of a disk whose holes from a place on were written as zeroes. */
function zeroesFrom(disk: MemoryDevice, from: number) {
  return (offset: number, length: number, most?: number) =>
    disk
      .extents(offset, length)
      .flatMap((extent) => {
        const end = extent.offset + extent.length
        if (extent.type === 'data' || end <= from) return [extent]
        const start = Math.max(extent.offset, from)
        const zero = { offset: start, length: end - start, type: 'zero' as const }
        return start === extent.offset ? [zero] : [{ ...extent, length: start - extent.offset }, zero]
      })
      .slice(0, most)
}

const GUIDS = ['11111111-2222-3333-4444-555555555555', '22222222-3333-4444-5555-666666666666', '33333333-4444-5555-6666-777777777777']

/** A chain of built images over one another, and the content that the uppermost shows. */
function randomChain(random: Random, directory: string, { sectorBytes, states }: { sectorBytes: number; states: number[] }): { images: string[]; content: Buffer; haveBitmaps: boolean } {
  const blockBytes = random.pick([1, 2]) * MIB
  const sizeBytes = random.between(1, (8 * MIB) / sectorBytes) * sectorBytes
  const content = Buffer.alloc(Math.ceil(sizeBytes / blockBytes) * blockBytes)
  const images: string[] = []
  let haveBitmaps = true
  for (let index = 0; index < 3; index++) {
    const blocks = new Map<number, BuiltBlock>()
    for (let block = 0; block < content.length / blockBytes; block++) {
      const here = content.subarray(block * blockBytes, (block + 1) * blockBytes)
      const state = index === 0 ? random.pick([0, 6]) : random.pick(states)
      if (state === 0) continue
      if (state < 6) {
        here.fill(0)
        blocks.set(block, { state })
        continue
      }
      const bytes = random.bytes(blockBytes)
      const present = state === 7 ? new Set<number>() : undefined
      for (let sector = 0; sector < blockBytes / sectorBytes;) {
        const run = random.between(1, random.pick([3, 30, 3000]))
        for (let end = Math.min(sector + run, blockBytes / sectorBytes), isPresent = state === 6 || random.chance(0.5); sector < end; sector++) {
          if (!isPresent) continue
          present?.add(sector)
          bytes.copy(here, sector * sectorBytes, sector * sectorBytes, (sector + 1) * sectorBytes)
        }
      }
      blocks.set(block, { state, bytes, present })
    }
    const image = join(directory, `${index}.vhdx`)
    const locator = index === 0 ? undefined : { parent_linkage: `{${GUIDS[index - 1]}}`, relative_path: `.\\${index - 1}.vhdx`, absolute_win32_path: `C:\\elsewhere\\${index - 1}.vhdx` }
    writeFileSync(image, buildVhdx({ sizeBytes, blockBytes, sectorBytes, blocks, locator, dataWriteGuid: GUIDS[index] }).bytes)
    images.push(image)
    haveBitmaps &&= index === 0 || [...blocks.values()].some(({ state }) => state === 7)
  }
  return { images, content: content.subarray(0, sizeBytes), haveBitmaps }
}

describe(`differencing VHDX images (seed ${seed})`, () => {
  for (let round = 0; round < Math.ceil(ROUNDS / 4); round++) {
    test(`random chain ${round} is the disk that was built, to us and to libvhdi`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const sectorBytes = random.pick([512, 4096])
      const states = random.pick([[0, 6, 7], [0, 1, 2, 3, 6, 7]])
      const { images, content, haveBitmaps } = randomChain(random, directory, { sectorBytes, states })
      await using disk = await openVhdx(openFile(images[2]), { files: new DirectoryFiles(directory) })
      const read = Buffer.alloc(disk.sizeBytes)
      await disk.read(read, 0)
      assert.ok(read.equals(content))
      await assertReadsAlike(random, disk, MemoryDevice.of(content))
      // libvhdi reads what is zero, undefined or unmapped in a differencing image from the parent, and takes the start of the file for the bitmaps of one that has none.
      if (states.length === 3 && haveBitmaps) await assertLibvhdiSees(images, disk)
      rmSync(directory, { recursive: true })
    })
  }

  test('a sector bitmap of two chunks is refused: a small file could claim a disk of more extents than can be listed', async () => {
    const image = join(newDirectory(), 'image.vhdx')
    // Blocks of 1 MiB in a chunk.
    const chunk = 4096
    const block: BuiltBlock = { state: 7, bytes: Buffer.alloc(MIB), present: new Set([1, 3]) }
    const { bytes, table } = buildVhdx({ sizeBytes: (chunk + 1) * MIB, blocks: new Map([[0, block], [chunk, block]]), locator: { parent_linkage: `{${GUIDS[0]}}`, relative_path: 'none.vhdx' } })
    bytes.copy(bytes, table + (2 * chunk + 1) * 8, table + chunk * 8, table + (chunk + 1) * 8)
    writeFileSync(image, bytes)
    await assert.rejects(openVhdx(openFile(image)), { code: 'FORMAT_INVALID', message: /twice/ })
  })

  test('a parent that is missing, is another disk, or may not be opened is told', async () => {
    const directory = newDirectory()
    const files = new DirectoryFiles(directory)
    const child = (locator: Record<string, string>): FileDevice => {
      writeFileSync(join(directory, 'child.vhdx'), buildVhdx({ sizeBytes: MIB, locator }).bytes)
      return openFile(join(directory, 'child.vhdx'))
    }
    writeFileSync(join(directory, 'parent.vhdx'), buildVhdx({ sizeBytes: MIB, dataWriteGuid: GUIDS[0] }).bytes)
    const linkage = { parent_linkage: `{${GUIDS[0]}}` }
    await assert.rejects(openVhdx(child({ ...linkage, relative_path: 'parent.vhdx' })), { code: 'SOURCE_UNSUPPORTED' })
    await assert.rejects(openVhdx(child({ ...linkage, relative_path: 'none.vhdx' }), { files }), { code: 'SOURCE_INVALID', message: /is not there/ })
    await assert.rejects(openVhdx(child({ parent_linkage: `{${GUIDS[1]}}`, relative_path: 'parent.vhdx' }), { files }), { code: 'SOURCE_INVALID', message: /another disk/ })
    await assert.rejects(openVhdx(child(linkage), { files }), { code: 'FORMAT_INVALID', message: /name its parent/ })
    const ways: Record<string, string>[] = [{ relative_path: 'none.vhdx', absolute_win32_path: 'C:\\disks\\parent.vhdx' }, { volume_path: '\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\disks\\parent.vhdx' }]
    for (const paths of ways) {
      await using disk = await openVhdx(child({ ...linkage, ...paths }), { files })
      assert.equal(disk.sizeBytes, MIB)
    }
    await using merging = await openVhdx(child({ parent_linkage: `{${GUIDS[2]}}`, parent_linkage2: `{${GUIDS[0]}}`, relative_path: 'parent.vhdx' }), { files })
    assert.equal(merging.sizeBytes, MIB)
  })
})
