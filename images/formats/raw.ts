/**
 * Raw disks: the image is the disk.
 */
import type { BlockDevice } from '../device/block-device.ts'
import { PiecewiseDevice } from '../device/piecewise-device.ts'
import type { ImageFile } from './disk-image.ts'

/** As OpenImage of disk-image.ts. */
export async function openRaw(file: ImageFile): Promise<BlockDevice> {
  return new PiecewiseDevice({ sizeBytes: file.sizeBytes, locate: (at, length) => ({ length, source: file, at }), close: async () => file[Symbol.asyncDispose]() })
}
