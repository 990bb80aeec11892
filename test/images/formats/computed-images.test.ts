/** Images that we compute of disks, written out, and judged by QEMU, libqcow and libvmdk. VARVE_IMAGE_ROUNDS random disks. Served over NBD: served-images.test.ts. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { extname, join } from 'node:path'
import { after, describe, test } from 'node:test'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { computeImage } from '@varve/images/formats/compute-image.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { computeQcow2, computeQcow2Overlay } from '@varve/images/formats/qcow2/writer.ts'
import { openQcow2 } from '@varve/images/formats/qcow2/reader.ts'
import type { DiskRange } from '@varve/images/formats/stored-blocks.ts'
import { openVmdk } from '@varve/images/formats/vmdk/reader.ts'
import { computeVmdk } from '@varve/images/formats/vmdk/writer.ts'
import { Random, testSeed } from '../../random.ts'
import { assertReadsAlike, assertSameDisk, qemuImg, qemuSizeBytes, writeOut } from './image-judge.ts'
import { randomDiskBytes, randomPatch, writeRandomDisk } from './random-disk.ts'

const ROUNDS = Number(process.env.VARVE_IMAGE_ROUNDS ?? 40)
const TIB = 2 ** 40
const seed = testSeed()
const root = mkdtempSync(join(tmpdir(), 'varve-computed-'))
after(() => rmSync(root, { recursive: true }))

function directoryFor(name: string): string {
  const directory = join(root, name)
  mkdirSync(directory)
  return directory
}

/** Writes out what was computed, and looks at it at random too. */
async function judge(random: Random, computed: BlockDevice, path: string): Promise<void> {
  await writeOut(computed, path)
  await using written = FileDevice.open({ path, readOnly: true })
  const listed = computed.extents(0, computed.sizeBytes)
  for (let round = 0; round < 20; round++) {
    const offset = random.below(computed.sizeBytes)
    const length = Math.min(computed.sizeBytes - offset, random.pick([1, 8, 700, 70_000]))
    const [ours, theirs] = [Buffer.alloc(length, 0xee), Buffer.alloc(length)]
    await computed.read(ours, offset)
    written.read(theirs, offset)
    assert.ok(ours.equals(theirs), `${ours.length} bytes at ${offset} differ`)
  }
  assert.ok(listed.length > 0)
}

/** Fails unless libqcow or libvmdk finds the same disk as in a raw file. */
function assertPrintsDisk(image: string, raw: string): void {
  const printed = execFileSync('/usr/bin/python3', [join(import.meta.dirname, 'image-digest.py'), extname(image).slice(1), image], { encoding: 'utf8' })
  const content = readFileSync(raw)
  assert.equal(printed.trim(), `${content.length} ${createHash('sha256').update(content).digest('hex')}`)
}

describe(`computed images (seed ${seed})`, () => {
  for (let round = 0; round < ROUNDS; round++) {
    test(`of random disk ${round} hold what the disk does`, async () => {
      const random = new Random(seed + round)
      const directory = directoryFor(String(round))
      const raw = join(directory, 'disk.raw')
      writeRandomDisk(random, raw, { sizeBytesMax: 40 << 20 })
      await using disk = FileDevice.open({ path: raw, readOnly: true })
      const qcow2 = join(directory, 'disk.qcow2')
      await judge(random, await computeQcow2(disk), qcow2)
      qemuImg('check', '-f', 'qcow2', qcow2)
      assertSameDisk(qcow2, 'qcow2', raw)
      const vmdk = join(directory, 'disk.vmdk')
      await judge(random, await computeVmdk(disk, { fileName: 'disk.vmdk' }), vmdk)
      qemuImg('check', '-f', 'vmdk', vmdk)
      assertSameDisk(vmdk, 'vmdk', raw)
      for (const image of [qcow2, vmdk]) {
        await using opened = await openImage(image)
        await assertReadsAlike(random, opened.disk, disk, 5)
        // Not by QEMU alone: its readers forgive much.
        if (round % 4 === 0) assertPrintsDisk(image, raw)
      }
      rmSync(directory, { recursive: true })
    })

    test(`overlay ${round} of a disk over its predecessor holds what changed, and only that`, async () => {
      const random = new Random(seed + round)
      const directory = directoryFor(`overlay-${round}`)
      const { disk, before, changed } = await changedDisk(random, directory)
      await using computedBefore = await computeQcow2(before)
      await writeOut(computedBefore, join(directory, 'before.qcow2'))
      const backing = random.pick([{ name: 'before.qcow2', format: 'qcow2' as const }, { name: join(directory, 'before.raw'), format: 'raw' as const }])
      const overlay = join(directory, 'overlay.qcow2')
      const computed = await computeQcow2Overlay(disk, { changed, backing: { ...backing, sizeBytes: before.sizeBytes } })
      await judge(random, computed, overlay)
      qemuImg('check', '-f', 'qcow2', overlay)
      const raw = join(directory, 'disk.raw')
      await writeOut(disk, raw)
      assertSameDisk(overlay, 'qcow2', raw)
      await using opened = await openImage(overlay)
      await assertReadsAlike(random, opened.disk, disk, 5)
      const touched = new Set(changed.flatMap(({ offset, length }) => Array.from({ length: Math.ceil((offset + length) / 65_536) - Math.floor(offset / 65_536) }, (_, index) => Math.floor(offset / 65_536) + index)))
      const added = Math.max(0, Math.ceil(disk.sizeBytes / 65_536) - Math.floor(before.sizeBytes / 65_536))
      assert.ok(computed.sizeBytes <= (touched.size + added + 1 + 8) * 65_536, `${computed.sizeBytes} bytes for ${touched.size} clusters`)
      await before[Symbol.asyncDispose]()
      rmSync(directory, { recursive: true })
    })
  }

  test('a thin disk of 1 TiB is offered at once, in memory that does not grow with it', async () => {
    const disk = thinDisk(TIB)
    for (const compute of [computeQcow2, computeVmdk]) {
      const computed = await compute(disk)
      const open = compute === computeQcow2 ? openQcow2 : openVmdk
      await using inside = await open(computed)
      assert.equal(inside.sizeBytes, TIB)
      for (const at of [0, TIB / 2 - 512, TIB - 4096]) {
        const [ours, theirs] = [Buffer.alloc(4096), Buffer.alloc(4096)]
        await inside.read(ours, at)
        await disk.read(theirs, at)
        assert.ok(ours.equals(theirs))
      }
      assert.deepEqual(inside.extents(0, TIB).filter(({ type }) => type === 'data').map(({ offset }) => offset), [0, TIB / 2 - 65_536, TIB - 65_536])
    }
  })

  test('zeroes that were written are zeroes of a qcow2 image, and holes are holes', async () => {
    const disk = MemoryDevice.of(Buffer.alloc(1 << 20, 1))
    const types: Record<number, 'zero' | 'hole'> = { 1: 'zero', 2: 'hole', 3: 'zero' }
    const extents: BlockDevice['extents'] = (offset, length, most) => {
      const all = Array.from({ length: 16 }, (_, cluster) => ({ offset: cluster * 65_536, length: 65_536, type: types[cluster] ?? ('data' as const) }))
      return all.flatMap((extent) => (extent.offset + extent.length <= offset || extent.offset >= offset + length ? [] : [{ ...extent, length: extent.length - Math.max(0, offset - extent.offset), offset: Math.max(offset, extent.offset) }])).slice(0, most)
    }
    disk.writeZeroes(65_536, 3 * 65_536)
    await using inside = await openQcow2(await computeQcow2(Object.assign(disk, { extents })))
    assert.deepEqual(inside.extents(0, 5 * 65_536).map(({ type }) => type), ['data', 'zero', 'hole', 'zero', 'data'])
  })

  test('the same disk gives the same bytes, whatever a part of its size is', async () => {
    for (const sizeBytes of [0, 1, 511, 65_536, 65_537, 1 << 20]) {
      const disk = MemoryDevice.of(Buffer.alloc(sizeBytes, 7))
      for (const format of ['raw', 'qcow2', 'vmdk'] as const) {
        const path = join(root, `${sizeBytes}.${format}`)
        await writeOut(await computeImage(format, disk), path)
        const again = join(root, `${sizeBytes}-again.${format}`)
        await writeOut(await computeImage(format, disk), again)
        assert.match(qemuImg('compare', '-f', 'raw', '-F', 'raw', path, again), /identical/)
        await using opened = await openImage(path)
        assert.equal(opened.disk.sizeBytes, format === 'raw' ? sizeBytes : Math.ceil(sizeBytes / 512) * 512)
        if (format === 'raw') assert.equal(statSync(path).size, sizeBytes)
        // QEMU does not open an empty VMDK, its own neither.
        else if (sizeBytes > 0 || format === 'qcow2') assert.equal(qemuSizeBytes(path, format), Math.ceil(sizeBytes / 512) * 512)
      }
    }
  })
})

interface ChangedDisk {
  disk: BlockDevice
  before: BlockDevice
  changed: DiskRange[]
}

/** A disk, what it was before, of another size perhaps, and where the two differ. */
async function changedDisk(random: Random, directory: string): Promise<ChangedDisk> {
  const path = join(directory, 'before.raw')
  const beforeBytes = writeRandomDisk(random, path, { sizeBytesMax: 20 << 20 })
  const before = FileDevice.open({ path, readOnly: true })
  const disk = new MemoryDevice(random.chance(0.6) ? beforeBytes : randomDiskBytes(random, { sizeBytesMax: 20 << 20 }))
  const shared = Math.min(disk.sizeBytes, beforeBytes)
  for (const { offset, length, type } of before.extents(0, shared)) {
    if (type !== 'data') continue
    const content = Buffer.alloc(length)
    before.read(content, offset)
    disk.write(content, offset)
  }
  const changed: DiskRange[] = []
  for (let left = random.below(20); left > 0; left--) {
    const range = randomPatch(random, disk.sizeBytes)
    if (random.chance(0.3)) disk.trim(range.offset, range.length)
    else disk.write(random.bytes(range.length), range.offset)
    if (range.length > 0) changed.push(range)
  }
  return { disk, before, changed }
}

/** A disk that has three clusters. */
function thinDisk(sizeBytes: number): BlockDevice {
  const disk = new MemoryDevice(sizeBytes)
  const places = [0, sizeBytes / 2 - 65_536, sizeBytes - 65_536]
  for (const place of places) disk.write(Buffer.alloc(65_536, place / 65_536 + 1), place)
  return Object.assign(disk, {
    extents(offset: number, length: number, most = Infinity) {
      const borders = [offset, ...places.flatMap((place) => [place, place + 65_536]).filter((at) => at > offset && at < offset + length), offset + length]
      const extents = borders.slice(1).map((end, index) => ({ offset: borders[index], length: end - borders[index], type: places.some((place) => borders[index] >= place && borders[index] < place + 65_536) ? ('data' as const) : ('hole' as const) }))
      return extents.filter((extent) => extent.length > 0).slice(0, most)
    },
  })
}
