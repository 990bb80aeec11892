/** VHD images of QEMU read by us, and ours by QEMU and libvhdi. VARVE_IMAGE_ROUNDS random images each way. */
import assert from 'node:assert/strict'
import { copyFileSync, cpSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { computeDifferencingVhd, computeFixedVhd, computeVhd, vhdId } from '@varve/images/formats/vhd/compute-vhd.ts'
import { openVhd } from '@varve/images/formats/vhd/open-vhd.ts'
import type { ImageFiles } from '@varve/images/formats/disk-image.ts'
import type { DiskRange } from '@varve/images/formats/stored-blocks.ts'
import { Random, testSeed } from '../../random.ts'
import { imageDirectories, openFile } from './image-directories.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, qemuSizeBytes, writeOut } from './image-judge.ts'
import { changeWithQemuIo, randomPatch, writeRandomDisk } from './random-disk.ts'
import { DirectoryFiles, assertLibvhdiSees, assertSectorsAre, contentDigest } from './vhd-judge.ts'

const ROUNDS = Number(process.env.VARVE_IMAGE_ROUNDS ?? 40)
const DISK = { sizeBytesMax: 24 << 20 }
const seed = testSeed()
const newDirectory = imageDirectories('vhd')

/** Puts a footer's checksum right, after a change. */
function reseal(footer: Buffer): void {
  footer.writeUInt32BE(0, 64)
  footer.writeUInt32BE(~footer.reduce((sum, byte) => sum + byte, 0) >>> 0, 64)
}

describe(`VHD images read (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`random image ${round} is the disk that QEMU sees`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const [raw, image, ours] = ['raw', 'image.vhd', 'ours'].map((name) => join(directory, name))
      writeRandomDisk(random, raw, DISK)
      const subformat = random.pick(['fixed', 'dynamic', 'dynamic'])
      qemuImg('convert', '-f', 'raw', '-O', 'vpc', '-o', `subformat=${subformat},force_size=${random.pick(['on', 'off'])}`, raw, image)
      changeWithQemuIo(random, image, 'vpc', qemuSizeBytes(image, 'vpc'), { count: random.below(20) })
      await using disk = await openVhd(openFile(image))
      await writeOut(disk, ours)
      assertSameDisk(image, 'vpc', ours)
      await using model = openFile(ours)
      await assertReadsAlike(random, disk, model)
      rmSync(directory, { recursive: true })
    })
  }

  test('the size is that of the geometry where QEMU takes it for that of the disk', async () => {
    const directory = newDirectory()
    const image = join(directory, 'image.vhd')
    // Not a whole number of cylinders.
    const sizeBytes = 10_000_384
    await writeOut(await computeVhd(new MemoryDevice(sizeBytes)), image)
    const bytes = readFileSync(image)
    const sizes = new Map<string, number>()
    for (const creator of ['vpc ', 'qemu', 'qem2', 'win ', 'd2v ', 'tap\0', 'CTXS']) {
      for (const footer of [bytes.subarray(0, 512), bytes.subarray(bytes.length - 512)]) {
        footer.write(creator, 28, 'latin1')
        reseal(footer)
      }
      writeFileSync(image, bytes)
      await using disk = await openVhd(openFile(image))
      assert.equal(disk.sizeBytes, qemuSizeBytes(image, 'vpc'), creator)
      sizes.set(creator, disk.sizeBytes)
    }
    assert.ok(sizes.get('vpc ')! < sizeBytes)
    assert.equal(sizes.get('win '), sizeBytes)
  })

  test('either footer may be damaged or missing, not both; one of a fixed disk has no copy', async () => {
    const directory = newDirectory()
    const image = join(directory, 'image.vhd')
    await using raw = FileDevice.open({ path: join(directory, 'raw'), createBytes: 5 << 20 })
    await raw.write(new Random(seed).bytes(100_000), 3 << 20)
    const digest = await contentDigest(raw)
    await writeOut(await computeVhd(raw), image)
    const sound = readFileSync(image)
    let warnings: string[] = []
    const opened = async (change: (bytes: Buffer) => Buffer): Promise<string> => {
      warnings = []
      writeFileSync(image, change(Buffer.from(sound)))
      await using disk = await openVhd(openFile(image), { warn: (message) => warnings.push(message) })
      return await contentDigest(disk)
    }
    const end = sound.length - 512
    assert.equal(await opened((bytes) => bytes), digest)
    assert.deepEqual(warnings, [])
    assert.equal(await opened((bytes) => bytes.fill(0, end)), digest)
    assert.match(warnings.join(), /copy/)
    assert.equal(await opened((bytes) => bytes.fill(1, end + 100, end + 101)), digest)
    assert.equal(await opened((bytes) => bytes.subarray(0, end)), digest)
    assert.equal(await opened((bytes) => bytes.fill(0, 0, 512)), digest)
    assert.equal(await opened((bytes) => bytes.subarray(0, bytes.length - 1)), digest, 'a footer of 511 bytes')
    await assert.rejects(opened((bytes) => bytes.fill(0, end).fill(0, 0, 512)), { code: 'FORMAT_INVALID' })
    await assert.rejects(opened((bytes) => bytes.fill(1, end + 100, end + 101).fill(1, 100, 101)), { code: 'FORMAT_INVALID', message: /checksum/ })
    await assert.rejects(opened((bytes) => bytes.subarray(0, end - (1 << 20))), { code: 'FORMAT_INVALID', message: /cut short/ })
    await assert.rejects(opened((bytes) => bytes.fill(1, 600, 601)), { code: 'FORMAT_INVALID', message: /checksum/ })

    rmSync(image)
    await writeOut(await computeFixedVhd(raw), image)
    truncateSync(image, raw.sizeBytes + 511)
    {
      await using disk = await openVhd(openFile(image))
      assert.equal(await contentDigest(disk), digest)
    }
    truncateSync(image, raw.sizeBytes + 500)
    await assert.rejects(openVhd(openFile(image)), { code: 'FORMAT_INVALID' })
  })

  test('a sector that the bitmap of a dynamic disk does not have reads as zeroes, and is a hole', async () => {
    const image = join(newDirectory(), 'image.vhd')
    const content = new Random(seed).bytes(2 << 20)
    await writeOut(await computeVhd(MemoryDevice.of(content)), image)
    const bytes = readFileSync(image)
    const bitmap = bytes.readUInt32BE(1536) * 512
    // The third sector.
    bytes[bitmap] = 0b1101_1111
    writeFileSync(image, bytes)
    content.fill(0, 1024, 1536)
    await using disk = await openVhd(openFile(image))
    const read = Buffer.alloc(content.length)
    await disk.read(read, 0)
    assert.ok(read.equals(content))
    assert.deepEqual(disk.extents(0, disk.sizeBytes, 2), [{ offset: 0, length: 1024, type: 'data' }, { offset: 1024, length: 512, type: 'hole' }])
  })

  test('a block that is there twice is refused: a small file could claim a disk of more extents than can be listed', async () => {
    const image = join(newDirectory(), 'image.vhd')
    await writeOut(await computeVhd(MemoryDevice.of(new Random(seed).bytes(4 << 20))), image)
    const bytes = readFileSync(image)
    bytes.copy(bytes, 1540, 1536, 1540)
    writeFileSync(image, bytes)
    await assert.rejects(openVhd(openFile(image)), { code: 'FORMAT_INVALID', message: /twice/ })
  })
})

describe(`VHD images computed (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`random disk ${round} is what QEMU and libvhdi see`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      const [raw, image] = ['raw', 'image.vhd'].map((name) => join(directory, name))
      writeRandomDisk(random, raw, DISK)
      await using disk = openFile(raw)
      const isFixed = random.chance(0.3)
      await using computed = await (isFixed ? computeFixedVhd : computeVhd)(disk)
      await writeOut(computed, image)
      assertSameDisk(image, 'vpc', raw)
      if (round < 10) await assertLibvhdiSees([image], disk)
      await using written = openFile(image)
      await assertReadsAlike(random, computed, written)
      await using again = await openVhd(openFile(image))
      assert.equal(await contentDigest(again), await contentDigest(disk))
      if (!isFixed) assert.deepEqual(again.extents(0, again.sizeBytes), disk.extents(0, disk.sizeBytes))
      rmSync(directory, { recursive: true })
    })
  }

  test('the same disk gives the same bytes, and another digest another id', async () => {
    const disk = MemoryDevice.of(new Random(seed).bytes(100_000))
    const digests = [await computeVhd(disk), await computeVhd(disk), await computeVhd(disk, { digest: Buffer.alloc(32, 1) })].map(contentDigest)
    const [one, two, three] = await Promise.all(digests)
    assert.equal(one, two)
    assert.notEqual(one, three)
  })

  test('a disk that is not whole sectors ends with zeroes, and an empty one is a disk', async () => {
    const directory = newDirectory()
    for (const compute of [computeVhd, computeFixedVhd]) {
      for (const sizeBytes of [0, 1, 1000, (2 << 20) + 1]) {
        const image = join(directory, `${compute.name}-${sizeBytes}.vhd`)
        const content = new Random(seed).bytes(sizeBytes)
        await writeOut(await compute(MemoryDevice.of(content)), image)
        await using disk = await openVhd(openFile(image))
        assert.equal(disk.sizeBytes, Math.ceil(sizeBytes / 512) * 512)
        const read = Buffer.alloc(disk.sizeBytes)
        await disk.read(read, 0)
        assert.ok(read.equals(Buffer.concat([content, Buffer.alloc(disk.sizeBytes - sizeBytes)])))
      }
    }
  })

  test('a thin disk of 1 TiB is an image without a byte of it being read, and one of more than 2040 GiB is refused', async () => {
    const directory = newDirectory()
    const [raw, image] = ['raw', 'image.vhd'].map((name) => join(directory, name))
    await using disk = FileDevice.open({ path: raw, createBytes: 2 ** 40 })
    const random = new Random(seed)
    const places = Array.from({ length: 20 }, () => random.below(2 ** 40 - 70_000))
    for (const place of places) await disk.write(random.bytes(70_000), place)
    const thin = new Proxy(disk, {
      get(target, key) {
        if (key === 'read') assert.fail('nothing is read of the disk')
        const value: unknown = Reflect.get(target, key)
        return typeof value === 'function' ? (value.bind(target) as unknown) : value
      },
    })
    const computed = await computeVhd(thin)
    assert.ok(computed.sizeBytes < 64 << 20)
    await writeOut(await computeVhd(disk), image)
    await using read = await openVhd(openFile(image))
    assert.equal(read.sizeBytes, 2 ** 40)
    assert.deepEqual(read.extents(0, 2 ** 40), disk.extents(0, 2 ** 40))
    for (const place of places) {
      const [ours, theirs] = [Buffer.alloc(70_000), Buffer.alloc(70_000)]
      await read.read(ours, place)
      disk.read(theirs, place)
      assert.ok(ours.equals(theirs))
    }
    assert.equal(qemuSizeBytes(image, 'vpc'), 2 ** 40)
    await using larger = FileDevice.open({ path: join(directory, 'larger'), createBytes: 2041 * 2 ** 30 })
    for (const compute of [computeVhd, computeFixedVhd]) await assert.rejects(compute(larger), { code: 'LIMIT_EXCEEDED', message: /2040 GiB/ })
    await using largest = FileDevice.open({ path: join(directory, 'largest'), createBytes: 2040 * 2 ** 30 })
    await largest.write(Buffer.from('end'), largest.sizeBytes - 3)
    await computeVhd(largest)
  })
})

/** A chain of images in a directory: the lowest of all of its disk, each other of what changed, in units of `unit` bytes. @returns paths of images and of raw disks, the lowest first */
async function randomChain(random: Random, directory: string, length: number, unit = 1): Promise<{ images: string[]; raws: string[] }> {
  const images: string[] = []
  const raws: string[] = []
  let parentId = vhdId(Buffer.alloc(32))
  for (let index = 0; index < length; index++) {
    const raw = join(directory, `${index}.raw`)
    const image = join(directory, `${index} é.vhd`)
    const digest = random.bytes(32)
    if (index === 0) {
      writeRandomDisk(random, raw, DISK)
      await using disk = openFile(raw)
      await writeOut(await (random.chance(0.2) ? computeFixedVhd : computeVhd)(disk, { digest }), image)
    } else {
      cpSync(raws[index - 1], raw)
      await using disk = FileDevice.open({ path: raw })
      const changed = Array.from({ length: random.below(30) }, () => randomPatch(random, disk.sizeBytes)).map((patch) => wholeUnits(patch, unit, disk.sizeBytes)).filter((patch) => patch.length > 0)
      for (const { offset, length: bytes } of changed) await disk.write(random.chance(0.2) ? Buffer.alloc(bytes) : random.bytes(bytes), offset)
      await writeOut(await computeDifferencingVhd(disk, { digest, changed, parent: { name: `${index - 1} é.vhd`, id: parentId } }), image)
    }
    parentId = vhdId(digest)
    images.push(image)
    raws.push(raw)
  }
  return { images, raws }
}

function wholeUnits({ offset, length }: DiskRange, unit: number, sizeBytes: number): DiskRange {
  const from = Math.floor(offset / unit) * unit
  return { offset: from, length: Math.min(Math.ceil((offset + length) / unit) * unit, sizeBytes) - from }
}

describe(`differencing VHD images (seed ${seed})`, () => {
  for (let round = 0; round < Math.ceil(ROUNDS / 4); round++) {
    test(`random chain ${round} is the disk that was changed, to libvhdi, to the specification and to us`, async () => {
      const random = new Random(seed + round)
      const directory = newDirectory()
      // Eight sectors are a byte of a bitmap.
      const unit = random.pick([1, 4096])
      const { images, raws } = await randomChain(random, directory, random.between(2, 5), unit)
      await using model = openFile(raws.at(-1)!)
      if (unit === 4096) await assertLibvhdiSees(images, model)
      await assertSectorsAre(images.at(-1)!, model)
      await using disk = await openVhd(openFile(images.at(-1)!), { files: new DirectoryFiles(directory) })
      assert.equal(await contentDigest(disk), await contentDigest(model))
      await assertReadsAlike(random, disk, model)
      rmSync(directory, { recursive: true })
    })
  }

  test('only the blocks that changed are in the image', async () => {
    const disk = MemoryDevice.of(new Random(seed).bytes(20 << 20))
    const computed = await computeDifferencingVhd(disk, { digest: Buffer.alloc(32), changed: [{ offset: (9 << 20) + 700, length: 600 }], parent: { name: 'parent.vhd', id: Buffer.alloc(16) } })
    assert.ok(computed.sizeBytes < 3 << 20)
    const data = computed.extents(0, computed.sizeBytes).filter(({ type }) => type === 'data')
    assert.ok(data.reduce((sum, { length }) => sum + length, 0) < 8192)
  })

  test('a parent that is missing, is another disk, or may not be opened is told; so is a chain that goes round', async () => {
    const directory = newDirectory()
    const { images } = await randomChain(new Random(seed), directory, 2)
    const [parent, child] = images
    const files = new DirectoryFiles(directory)
    await assert.rejects(openVhd(openFile(child)), { code: 'SOURCE_UNSUPPORTED' })
    const other = join(directory, 'other.vhd')
    await writeOut(await computeVhd(new MemoryDevice(1 << 20), { digest: Buffer.alloc(32, 9) }), other)
    copyFileSync(other, parent)
    await assert.rejects(openVhd(openFile(child), { files }), { code: 'SOURCE_INVALID', message: /another disk/ })
    rmSync(parent)
    await assert.rejects(openVhd(openFile(child), { files }), { code: 'SOURCE_INVALID', message: /is not there/ })
    const loop = join(directory, 'loop.vhd')
    const digest = Buffer.alloc(32, 3)
    await writeOut(await computeDifferencingVhd(new MemoryDevice(4096), { digest, changed: [], parent: { name: 'loop.vhd', id: vhdId(digest) } }), loop)
    await assert.rejects(openVhd(openFile(loop), { files }), { code: 'LIMIT_EXCEEDED' })
  })

  test('what a wrong parent lies over is not opened', async () => {
    const directory = newDirectory()
    const { images } = await randomChain(new Random(seed), directory, 2)
    const opened: string[] = []
    const files: ImageFiles = {
      async open(name) {
        opened.push(name)
        return new DirectoryFiles(directory).open(name)
      },
    }
    // Of the parent's name, but with a parent of its own.
    const wrong = join(directory, 'wrong.vhd')
    await writeOut(await computeDifferencingVhd(new MemoryDevice(4096), { digest: Buffer.alloc(32, 4), changed: [], parent: { name: 'none.vhd', id: Buffer.alloc(16) } }), wrong)
    copyFileSync(wrong, images[0])
    await assert.rejects(openVhd(openFile(images[1]), { files }), { code: 'SOURCE_INVALID', message: /another disk/ })
    assert.ok(opened.every((name) => name.endsWith('0 é.vhd')), opened.join())
  })

  test('a file that is no image does not keep the parent from being found by another of its names', async () => {
    const directory = newDirectory()
    const { images, raws } = await randomChain(new Random(seed), directory, 2)
    cpSync(images[0], join(directory, 'base.vhd'))
    const bytes = readFileSync(images[1])
    const header = bytes.subarray(512, 1536)
    // The locator leads to what is none.
    header.fill(0, 64, 576).set(Buffer.from('base.vhd', 'utf16le').swap16(), 64)
    header.writeUInt32BE(0, 36)
    header.writeUInt32BE(~header.reduce((sum, byte) => sum + byte, 0) >>> 0, 36)
    writeFileSync(images[1], bytes)
    writeFileSync(images[0], Buffer.alloc(4096, 'text'))
    await using model = openFile(raws[1])
    {
      await using disk = await openVhd(openFile(images[1]), { files: new DirectoryFiles(directory) })
      assert.equal(await contentDigest(disk), await contentDigest(model))
    }
    rmSync(join(directory, 'base.vhd'))
    await assert.rejects(openVhd(openFile(images[1]), { files: new DirectoryFiles(directory) }), { code: 'SOURCE_INVALID', message: /0 é\.vhd is another disk: VHD: there is no footer/ })
  })

  test('a parent is found by each of the names that Windows and macOS give it', async () => {
    const directory = newDirectory()
    const { images, raws } = await randomChain(new Random(seed), directory, 2)
    await using model = openFile(raws[1])
    cpSync(images[0], join(directory, 'base.vhd'))
    rmSync(images[0])
    const sound = readFileSync(images[1])
    const utf16 = (text: string): Buffer => Buffer.from(text, 'utf16le')
    for (const [platform, name] of [['W2ru', utf16('.\\base.vhd')], ['W2ku', utf16('C:\\disks\\base.vhd')], ['W2ku', utf16('\\\\server\\share\\base.vhd')], ['MacX', Buffer.from('file://localhost/base.vhd')], ['MacX', Buffer.from('file://./base%2Evhd\0')], ['none', Buffer.alloc(0)]] as const) {
      const bytes = Buffer.from(sound)
      const header = bytes.subarray(512, 1536)
      // The name in the header is the last resort.
      header.fill(0, 64, 576)
      if (platform === 'none') header.set(utf16('base.vhd').swap16(), 64)
      header.write(platform, 576, 'latin1')
      header.writeUInt32BE(name.length, 584)
      bytes.fill(0, 1536, 2048).set(name, 1536)
      header.writeUInt32BE(0, 36)
      header.writeUInt32BE(~header.reduce((sum, byte) => sum + byte, 0) >>> 0, 36)
      writeFileSync(images[1], bytes)
      await using disk = await openVhd(openFile(images[1]), { files: new DirectoryFiles(directory) })
      assert.equal(await contentDigest(disk), await contentDigest(model), `${platform} ${name.toString()}`)
    }
  })
})
