/**
 * Raw disks: the image is the disk.
 */
import type { BlockDevice, ReadableDisk } from '../device/block-device.ts'
import { PiecewiseDevice } from '../device/piecewise-device.ts'
import { VarveError } from '../errors.ts'
import type { OpenImageOptions } from './disk-image.ts'

/** As OpenImage of disk-image.ts. */
export async function openRaw(file: ReadableDisk & AsyncDisposable, { snapshot }: OpenImageOptions = {}): Promise<BlockDevice> {
  if (snapshot !== undefined) throw new VarveError('FORMAT_UNSUPPORTED', `a raw disk has no snapshots; ${JSON.stringify(snapshot)} was asked for`)
  return sameBytes(file, async () => file[Symbol.asyncDispose]())
}

/** As ComputeImage of disk-image.ts. */
export async function computeRaw(disk: BlockDevice): Promise<BlockDevice> {
  return sameBytes(disk)
}

function sameBytes(source: ReadableDisk, close?: () => Promise<void>): BlockDevice {
  return new PiecewiseDevice({ sizeBytes: source.sizeBytes, locate: (at, length) => ({ length, source, at }), close })
}
