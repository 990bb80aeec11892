/** What a qcow2 image may have beside its disk: snapshots, bitmaps, features that are refused or passed over. */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readSync, rmSync, truncateSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { readQcow2Bitmap } from '@varve/images/formats/qcow2/bitmaps.ts'
import { openQcow2 } from '@varve/images/formats/qcow2/reader.ts'
import { computeQcow2 } from '@varve/images/formats/qcow2/writer.ts'
import { Random, testSeed } from '../../random.ts'
import { deviceConformance } from '../device/conformance.ts'
import { assertReadsAlike, qemuImg, writeOut } from './image-judge.ts'
import { changeWithQemuIo, writeRandomDisk } from './random-disk.ts'

const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-qcow2-features-'))
after(() => rmSync(root, { recursive: true }))

deviceConformance('disk in a qcow2 image', async (content) => {
  const computed = await computeQcow2(MemoryDevice.of(content))
  const image = Buffer.alloc(computed.sizeBytes)
  await computed.read(image, 0)
  // A disk need not be whole sectors, though ours and QEMU's are.
  image.writeBigUInt64BE(BigInt(content.length), 24)
  const device = await openQcow2(MemoryDevice.of(image))
  return { device, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() }
})

/** Changes bytes of a file in place. */
function patch(path: string, offset: number, change: (bytes: Buffer) => void, length = 8): void {
  const fd = openSync(path, 'r+')
  const bytes = Buffer.alloc(length)
  readSync(fd, bytes, 0, length, offset)
  change(bytes)
  writeSync(fd, bytes, 0, length, offset)
  closeSync(fd)
}

describe(`qcow2 (seed ${seed})`, () => {
  test('snapshots are read by id and by name, with the size that the disk had', async () => {
    const random = new Random(seed)
    const raw = join(root, 'snapshots.raw')
    const image = join(root, 'snapshots.qcow2')
    const sizeBytes = writeRandomDisk(random, raw, { sizeBytesMax: 8 << 20 })
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', raw, image)
    for (const name of ['first', 'second', 'third']) {
      changeWithQemuIo(random, image, 'qcow2', sizeBytes, { count: 10 })
      qemuImg('snapshot', '-c', name, image)
      if (name === 'second') qemuImg('resize', image, '+1M')
    }
    changeWithQemuIo(random, image, 'qcow2', sizeBytes, { count: 10 })
    for (const [snapshot, parameter] of [['first', 'snapshot.name=first'], ['second', 'snapshot.name=second'], ['3', 'snapshot.id=3']]) {
      const expected = join(root, `${snapshot}.raw`)
      qemuImg('convert', '-l', parameter, '-f', 'qcow2', '-O', 'raw', image, expected)
      await using opened = await openImage(image, { snapshot })
      assert.equal(opened.disk.sizeBytes, snapshot === '3' ? sizeBytes + (1 << 20) : sizeBytes)
      // QEMU shows all snapshots with the size of now.
      truncateSync(expected, opened.disk.sizeBytes)
      await using model = FileDevice.open({ path: expected, readOnly: true })
      await assertReadsAlike(random, opened.disk, model, 60)
    }
    await assert.rejects(openImage(image, { snapshot: 'fourth' }), { code: 'NOT_FOUND' })
    await assert.rejects(openImage(raw, { snapshot: 'first' }), { code: 'FORMAT_UNSUPPORTED' })
  })

  test('a bitmap tells what changed as qemu-nbd tells it', async () => {
    const random = new Random(seed + 1)
    for (const granularity of [512, 65_536, 1 << 20]) {
      const image = join(root, `bitmap-${granularity}.qcow2`)
      // More than one cluster of bits, where these are small.
      const sizeBytes = granularity === 512 ? 600 << 20 : 37 << 20
      qemuImg('create', '-f', 'qcow2', image, String(sizeBytes))
      qemuImg('bitmap', '--add', '-g', String(granularity), image, 'other')
      qemuImg('bitmap', '--add', '-g', String(granularity), image, 'since')
      changeWithQemuIo(random, image, 'qcow2', sizeBytes, { count: 30 })
      const map = JSON.parse(execFileSync('nbdinfo', ['--json', '--map=qemu:dirty-bitmap:since', '--', '[', 'qemu-nbd', '-r', '-f', 'qcow2', '-B', 'since', image, ']'], { encoding: 'utf8' })) as { offset: number; length: number; type: number }[]
      await using file = FileDevice.open({ path: image, readOnly: true })
      const expected = map.filter(({ type }) => type === 1).flatMap(({ offset, length }) => [offset, offset + length])
      assert.ok(expected.length > 2)
      assert.deepEqual([...(await readQcow2Bitmap(file, 'since'))], expected)
      await assert.rejects(readQcow2Bitmap(file, 'never'), { code: 'NOT_FOUND' })
    }
  })

  test('a bitmap that was not saved tells nothing', async () => {
    const image = join(root, 'unsaved.qcow2')
    qemuImg('create', '-f', 'qcow2', image, '1M')
    qemuImg('bitmap', '--add', image, 'since')
    assert.equal(spawnSync('qemu-io', ['-f', 'qcow2', '-c', 'write 0 64k', '-c', 'abort', image]).signal, 'SIGABRT')
    await using file = FileDevice.open({ path: image, readOnly: true })
    await assert.rejects(readQcow2Bitmap(file, 'since'), { code: 'FORMAT_INVALID' })
    // The disk itself is none the worse, though its writer died.
    await using opened = await openImage(image)
    assert.equal(opened.disk.extents(0, 1 << 20)[0].type, 'data')
  })

  test('an image that says that it is corrupt is read with a warning', async () => {
    const image = join(root, 'corrupt.qcow2')
    qemuImg('create', '-f', 'qcow2', image, '1M')
    patch(image, 72, (bytes) => bytes.writeBigUInt64BE(2n))
    const warnings: string[] = []
    await using opened = await openImage(image, { warn: (message) => warnings.push(message) })
    assert.equal(opened.disk.sizeBytes, 1 << 20)
    assert.match(warnings.join(), /corrupt/)
  })

  test('features that are not known are refused by their names', async () => {
    const image = join(root, 'feature.qcow2')
    qemuImg('create', '-f', 'qcow2', image, '1M')
    patch(image, 72, (bytes) => bytes.writeBigUInt64BE(1n << 63n))
    await assert.rejects(openImage(image), { code: 'FORMAT_UNSUPPORTED', message: /bit 63/ })
  })

  test('encrypted images and qcow of version 1 are refused', async () => {
    const encrypted = join(root, 'encrypted.qcow2')
    qemuImg('create', '-f', 'qcow2', encrypted, '1M')
    // LUKS; to make one, QEMU measures how fast the machine is, and fails if it is busy.
    patch(encrypted, 32, (bytes) => bytes.writeUInt32BE(2), 4)
    await assert.rejects(openImage(encrypted), { code: 'FORMAT_UNSUPPORTED', message: /encrypted/ })
    const old = join(root, 'old.qcow')
    qemuImg('create', '-f', 'qcow', old, '1M')
    await assert.rejects(openImage(old), { code: 'FORMAT_UNSUPPORTED', message: /version 1/ })
  })

  test('an image over another is not read where files may not be opened', async () => {
    const [base, image] = [join(root, 'base.qcow2'), join(root, 'over.qcow2')]
    qemuImg('create', '-f', 'qcow2', base, '1M')
    qemuImg('create', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image)
    await using file = FileDevice.open({ path: image, readOnly: true })
    await assert.rejects(openQcow2(file), { code: 'SOURCE_UNSUPPORTED' })
    // Its format is found in its content if the image does not state it.
    qemuImg('rebase', '-u', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image)
    patch(image, 112, (bytes) => bytes.writeUInt32BE(0))
    await using opened = await openImage(image)
    assert.equal(opened.disk.sizeBytes, 1 << 20)
  })

  test('a table that is used twice is refused, and so are places off the borders of clusters', async () => {
    const computed = await computeQcow2(MemoryDevice.of(Buffer.alloc(1 << 20, 1)))
    const path = join(root, 'sound.qcow2')
    await writeOut(computed, path)
    const bytes = Buffer.alloc(computed.sizeBytes)
    await computed.read(bytes, 0)
    const l1 = Number(bytes.readBigUInt64BE(40))
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0xff_ffff_ffff_ffffn)
    const twice = Buffer.from(bytes)
    twice.writeBigUInt64BE(2n ** 30n, 24)
    twice.writeUInt32BE(2, 36)
    twice.copy(twice, l1 + 8, l1, l1 + 8)
    await assert.rejects(openQcow2(MemoryDevice.of(twice)), { code: 'FORMAT_INVALID', message: /used twice/ })
    const unaligned = Buffer.from(bytes)
    unaligned[l2 + 6] |= 2
    await using disk = await openQcow2(MemoryDevice.of(unaligned))
    await assert.rejects(async () => disk.read(Buffer.alloc(512), 0), { code: 'FORMAT_INVALID', message: /border/ })
    assert.throws(() => disk.extents(0, 1 << 20), { code: 'FORMAT_INVALID' })
  })
})
