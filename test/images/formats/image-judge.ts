/**
 * What QEMU says of images, and images that we compute as files for it to judge.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, ftruncateSync, openSync, statSync, writeSync } from 'node:fs'
import type { BlockDevice, DeviceExtent } from '@varve/images/device/block-device.ts'
import type { Random } from '../../random.ts'

const PART_BYTES = 1 << 20

export function qemuImg(...parameters: string[]): string {
  return execFileSync('qemu-img', parameters, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

/** @param image of qcow2 */
export function qemuIo(image: string, ...commands: string[]): void {
  execFileSync('qemu-io', ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), image], { stdio: ['ignore', 'pipe', 'pipe'] })
}

/** Size of the disk that QEMU sees in an image, bytes. */
export function qemuSizeBytes(image: string, format: string): number {
  return (JSON.parse(qemuImg('info', '--output=json', '-f', format, image)) as { 'virtual-size': number })['virtual-size']
}

/** Fails unless QEMU finds in an image the same disk as in a raw file, of the same size; what is allocated may differ. */
export function assertSameDisk(image: string, format: string, raw: string): void {
  assert.equal(qemuSizeBytes(image, format), statSync(raw).size)
  assert.match(qemuImg('compare', '-f', format, '-F', 'raw', image, raw), /Images are identical/)
}

/** Writes a device to a new file; what it says are holes and zeroes stay holes. */
export async function writeOut(device: BlockDevice, path: string): Promise<void> {
  const fd = openSync(path, 'wx')
  try {
    ftruncateSync(fd, device.sizeBytes)
    const part = Buffer.alloc(PART_BYTES)
    for (const { offset, length, type } of device.extents(0, device.sizeBytes)) {
      for (let at = offset; type === 'data' && at < offset + length;) {
        const bytes = part.subarray(0, Math.min(PART_BYTES, offset + length - at))
        await device.read(bytes, at)
        for (let done = 0; done < bytes.length;) done += writeSync(fd, bytes, done, bytes.length - done, at + done)
        at += bytes.length
      }
    }
  } finally {
    closeSync(fd)
  }
}

/** Random reads and listings of one device are like those of another with the same content. */
export async function assertReadsAlike(random: Random, device: BlockDevice, model: BlockDevice, rounds = 20): Promise<void> {
  assert.equal(device.sizeBytes, model.sizeBytes)
  const listed = device.extents(0, device.sizeBytes)
  for (let round = 0; round < rounds; round++) {
    const offset = random.below(device.sizeBytes + 1)
    const length = Math.min(device.sizeBytes - offset, random.pick([1, 512, 4096, random.below(100_000), 1 << 20]))
    const [ours, theirs] = [Buffer.alloc(length, 0xee), Buffer.alloc(length)]
    await device.read(ours, offset)
    await model.read(theirs, offset)
    assert.ok(ours.equals(theirs), `${length} bytes at ${offset} differ`)
    const most = random.pick([Infinity, Infinity, 1, 3])
    assert.deepEqual(device.extents(offset, length, most), cut(listed, offset, length).slice(0, most))
  }
}

function cut(extents: DeviceExtent[], offset: number, length: number): DeviceExtent[] {
  return extents.flatMap((extent) => {
    const from = Math.max(extent.offset, offset)
    const to = Math.min(extent.offset + extent.length, offset + length)
    return to > from ? [{ offset: from, length: to - from, type: extent.type }] : []
  })
}
