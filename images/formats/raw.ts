/**
 * Raw disks: the image is the disk.
 */
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'
import { PiecewiseDevice } from '../device/piecewise-device.ts'

/** As OpenImage of disk-image.ts. */
export async function openRaw(file: ReadableDisk & AsyncDisposable): Promise<BlockDevice> {
  return sameBytes(file, async () => file[Symbol.asyncDispose]())
}

/** As ComputeImage of disk-image.ts. */
export async function computeRaw(disk: BlockDevice): Promise<BlockDevice> {
  return sameBytes(disk)
}

function sameBytes(source: ReadableDisk, close?: () => Promise<void>): BlockDevice {
  return new PiecewiseDevice({ sizeBytes: source.sizeBytes, locate: (at, length) => ({ length, source, at }), close })
}
