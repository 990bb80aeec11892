/** What a VMDK disk may be made of: extents of all kinds, parents that are checked, images that are cut short or were changed on the way. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { parseDescriptor } from '@varve/images/formats/vmdk/descriptor.ts'
import { openVmdk } from '@varve/images/formats/vmdk/reader.ts'
import { computeVmdk } from '@varve/images/formats/vmdk/writer.ts'
import { Random, testSeed } from '../../random.ts'
import { cowdDisk } from './cowd.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, writeOut } from './image-judge.ts'
import { writeRandomDisk } from './random-disk.ts'

const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-vmdk-features-'))
after(() => rmSync(root, { recursive: true }))

function directoryFor(name: string): string {
  const directory = join(root, name)
  mkdirSync(directory)
  return directory
}

function describeDisk(directory: string, extents: string[], lines: string[] = ['parentCID=ffffffff']): string {
  const path = join(directory, 'disk.vmdk')
  writeFileSync(path, ['# Disk DescriptorFile', 'version=1', 'CID=12345678', ...lines, 'createType="custom"', '', '# Extent description', ...extents, ''].join('\r\n'))
  return path
}

describe(`VMDK (seed ${seed})`, () => {
  test('disks of ESX are what QEMU sees, with grains of any size, over a parent or not', async () => {
    const random = new Random(seed)
    for (const grainSectors of [1, 8, 128]) {
      const directory = directoryFor(`esx-${grainSectors}`)
      const raw = join(directory, 'disk.raw')
      writeRandomDisk(random, raw, { sizeBytesMax: 9 << 20 })
      for (const [name, bytes] of cowdDisk(readFileSync(raw), { grainSectors })) writeFileSync(join(directory, name), bytes)
      const image = join(directory, 'image')
      assertSameDisk(image, 'vmdk', raw)
      await using opened = await openImage(image)
      await using model = FileDevice.open({ path: raw, readOnly: true })
      await assertReadsAlike(random, opened.disk, model, 60)
      await assert.rejects(openImage(join(directory, 'image-delta.vmdk')), { code: 'SOURCE_UNSUPPORTED', message: /descriptor/ })
    }
  })

  test('a delta of ESX shows its parent where it has no grain', async () => {
    const random = new Random(seed + 1)
    const directory = directoryFor('delta')
    const [below, above] = [random.bytes(1 << 20), random.bytes(1 << 20)]
    writeFileSync(join(directory, 'base-flat.vmdk'), below)
    writeFileSync(join(directory, 'base.vmdk'), '# Disk DescriptorFile\nversion=1\nCID=abcd0123\nparentCID=ffffffff\ncreateType="vmfs"\nRW 2048 VMFS "base-flat.vmdk"\n')
    const has = (_grain: Buffer, index: number) => index % 3 === 0
    for (const [name, bytes] of cowdDisk(above, { grainSectors: 4, has, lines: ['parentCID=ABCD0123', 'parentFileNameHint="/vmfs/volumes/4f0a/elsewhere/base.vmdk"'] })) writeFileSync(join(directory, name), bytes)
    const expected = Buffer.from(below)
    for (let grain = 0; grain < 512; grain += 3) above.copy(expected, grain * 2048, grain * 2048, (grain + 1) * 2048)
    await using opened = await openImage(join(directory, 'image'))
    await assertReadsAlike(random, opened.disk, MemoryDevice.of(expected), 60)
  })

  test('a parent that was changed by itself is refused', async () => {
    const directory = directoryFor('changed-parent')
    const [base, image] = [join(directory, 'base.vmdk'), join(directory, 'image.vmdk')]
    qemuImg('create', '-f', 'vmdk', base, '1M')
    qemuImg('create', '-f', 'vmdk', '-b', base, '-F', 'vmdk', image)
    await using sound = await openImage(image)
    assert.equal(sound.disk.sizeBytes, 1 << 20)
    const bytes = readFileSync(base)
    // QEMU writes no leading zeroes, so that the id may have one digit only.
    const digit = bytes.indexOf('CID=') + 'CID='.length
    bytes[digit] = bytes[digit] === 0x31 ? 0x32 : 0x31
    writeFileSync(base, bytes)
    await assert.rejects(openImage(image), { code: 'SOURCE_INVALID', message: /CID/ })
  })

  test('extents of different kinds stand one behind the other, zeroes among them', async () => {
    const random = new Random(seed + 2)
    const directory = directoryFor('mixed')
    const flat = random.bytes(1 << 20)
    writeFileSync(join(directory, 'flat'), flat)
    const sparse = MemoryDevice.of(random.bytes(700 << 10))
    await writeOut(await computeVmdk(sparse), join(directory, 'sparse'))
    const path = describeDisk(directory, ['RW 100 FLAT "flat" 7', 'RW 0 ZERO', 'RW 50 ZERO', `RDONLY ${1400} SPARSE "sparse"`, 'RW 30 VMFS "flat"'])
    const content = Buffer.alloc(700 << 10)
    sparse.read(content, 0)
    const expected = Buffer.concat([flat.subarray(7 * 512, 107 * 512), Buffer.alloc(50 * 512), content, flat.subarray(0, 30 * 512)])
    await using opened = await openImage(path)
    await assertReadsAlike(random, opened.disk, MemoryDevice.of(expected), 80)
  })

  test('an extent that is not as long as the descriptor says is refused, and so are kinds that are not read', async () => {
    const directory = directoryFor('short')
    writeFileSync(join(directory, 'flat'), Buffer.alloc(1 << 20))
    await assert.rejects(openImage(describeDisk(directory, ['RW 2049 FLAT "flat" 0'])), { code: 'FORMAT_INVALID', message: /cut short/ })
    await assert.rejects(openImage(describeDisk(directory, ['RW 2048 SPARSE "flat"'])), { code: 'FORMAT_INVALID' })
    await assert.rejects(openImage(describeDisk(directory, [])), { code: 'FORMAT_INVALID', message: /no extents/ })
    await assert.rejects(openImage(describeDisk(directory, ['RW 99999999999999999 ZERO'])), { code: 'FORMAT_INVALID' })
    await assert.rejects(openImage(describeDisk(directory, ['RW 9999999999999999 ZERO'])), { code: 'LIMIT_EXCEEDED' })
    for (const line of ['RW 2048 SESPARSE "flat"', 'RW 2048 VMFSRDM "flat"', 'NOACCESS 2048 FLAT "flat" 0']) {
      await assert.rejects(openImage(describeDisk(directory, [line])), { code: 'FORMAT_UNSUPPORTED' }, line)
    }
    await assert.rejects(openImage(describeDisk(directory, ['RW 2048 FLAT "flat" 0'], ['parentCID=00000001'])), { code: 'FORMAT_INVALID', message: /does not name/ })
  })

  test('extents that are longer than a disk can be together are refused, and closed', async () => {
    const directory = directoryFor('long')
    writeFileSync(join(directory, 'flat'), Buffer.alloc(512))
    const path = describeDisk(directory, ['RW 1 FLAT "flat" 0', 'RW 9007199254740 ZERO', 'RW 17592186044415 ZERO'])
    const openFiles = readdirSync('/proc/self/fd').length
    await assert.rejects(openImage(path), { code: 'LIMIT_EXCEEDED' })
    assert.equal(readdirSync('/proc/self/fd').length, openFiles)
  })

  test('one extent that is named many times does not take its memory as often', async () => {
    const directory = directoryFor('many')
    const count = 4 << 20
    const header = Buffer.alloc(512)
    header.write('KDMV', 0, 'latin1')
    for (const [at, value] of [[4, 1], [12, count], [20, 1], [44, 1], [56, 1]]) header.writeUInt32LE(value, at)
    writeFileSync(join(directory, 'extent'), header)
    truncateSync(join(directory, 'extent'), 512 + count * 4)
    const lines = (times: number): string[] => Array.from({ length: times }, () => `RW ${count} SPARSE "extent"`)
    await using twice = await openImage(describeDisk(directory, lines(2)))
    assert.equal(twice.disk.sizeBytes, 2 * count * 512)
    await assert.rejects(openImage(describeDisk(directory, lines(3))), { code: 'LIMIT_EXCEEDED', message: /director/ })
  })

  test('a stream-optimized image whose footer says where its directory is, is what QEMU sees', async () => {
    const random = new Random(seed + 3)
    const directory = directoryFor('stream')
    const [raw, image] = [join(directory, 'disk.raw'), join(directory, 'disk.vmdk')]
    writeRandomDisk(random, raw, { sizeBytesMax: 9 << 20 })
    qemuImg('convert', '-f', 'raw', '-O', 'vmdk', '-o', 'subformat=streamOptimized', raw, image)
    const bytes = readFileSync(image)
    const footer = [Buffer.alloc(512), Buffer.from(bytes.subarray(0, 512)), Buffer.alloc(512)]
    footer[0].writeBigUInt64LE(1n, 0)
    footer[0].writeUInt32LE(3, 12)
    bytes.writeBigUInt64LE(0xffff_ffff_ffff_ffffn, 56)
    writeFileSync(image, Buffer.concat([bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512), ...footer]))
    assertSameDisk(image, 'vmdk', raw)
    await using opened = await openImage(image)
    await using model = FileDevice.open({ path: raw, readOnly: true })
    await assertReadsAlike(random, opened.disk, model, 60)
    writeFileSync(image, bytes)
    await assert.rejects(openImage(image), { code: 'FORMAT_INVALID', message: /footer/ })
    bytes[73] = 0x0d
    await assert.rejects(openVmdk(MemoryDevice.of(Buffer.concat([bytes, ...footer.with(1, bytes.subarray(0, 512))]))), { code: 'FORMAT_INVALID', message: /line ends/ })
  })

  test('an image that its writer did not close is read with a warning', async () => {
    const image = join(directoryFor('unclean'), 'disk.vmdk')
    await writeOut(await computeVmdk(MemoryDevice.of(Buffer.alloc(1 << 20, 1))), image)
    const bytes = readFileSync(image)
    bytes[72] = 1
    writeFileSync(image, bytes)
    const warnings: string[] = []
    await using opened = await openImage(image, { warn: (message) => warnings.push(message) })
    assert.equal(opened.disk.sizeBytes, 1 << 20)
    assert.match(warnings.join(), /not closed/)
  })

  test('names in a descriptor are in the encoding that it states', () => {
    const lines = ['# Disk DescriptorFile', 'version=1', 'encoding="windows-1252"', 'CID=1', 'parentCID=ffffffff', 'RW 1 FLAT "Gr\xfc\xdfe.vmdk" 0', '\0behind the end']
    const { cid, extents } = parseDescriptor(Buffer.from(lines.join('\n'), 'latin1'))
    assert.equal(cid, '00000001')
    assert.equal(extents[0].fileName, 'Grüße.vmdk')
  })

  test('a disk with more than 2 TiB of data is refused', async () => {
    const disk = Object.assign(new MemoryDevice(3 * 2 ** 40), { extents: (offset: number, length: number) => [{ offset, length, type: 'data' as const }] })
    await assert.rejects(computeVmdk(disk), { code: 'LIMIT_EXCEEDED', message: /2 TiB/ })
  })
})
