/**
 * Computes images of disks in every format: one place that knows which function makes which.
 */
import type { BlockMap } from '../blockmap/block-map.ts'
import { differenceOfMaps } from '../blockmap/map-difference.ts'
import type { Digest } from '../chunk/digest.ts'
import type { BlockDevice } from '../device/block-device.ts'
import { VarveError } from '../errors.ts'
import type { DiskFormat } from './disk-image.ts'
import { computeQcow2, computeQcow2Overlay } from './qcow2/writer.ts'
import { computeDifferencingVhd, computeFixedVhd, computeVhd, vhdId } from './vhd/compute-vhd.ts'
import { computeVhdx } from './vhdx/compute-vhdx.ts'
import { computeVmdk } from './vmdk/writer.ts'

/** Kinds of a format that can be asked for; the first is what is made unless another is. */
export const SUBFORMATS: { readonly [Format in DiskFormat]: readonly string[] } = { raw: ['sparse'], vhd: ['dynamic', 'fixed'], vhdx: ['dynamic'], vmdk: ['monolithicSparse'], qcow2: ['plain'] }

export interface ComputeImageOptions {
  subformat?: string
  /** Names the disk: identifiers in the image come from it. */
  digest?: Digest
}

/**
 * The file that holds `disk` in a format. It borrows the disk, which must not change.
 * @throws VarveError FORMAT_UNSUPPORTED for a kind that there is not, LIMIT_EXCEEDED for a disk that is larger than the format allows
 */
export async function computeImage(format: DiskFormat, disk: BlockDevice, { subformat = SUBFORMATS[format][0], digest }: ComputeImageOptions = {}): Promise<BlockDevice> {
  if (!SUBFORMATS[format].includes(subformat)) throw new VarveError('FORMAT_UNSUPPORTED', `there is no ${subformat} ${format}; there are ${SUBFORMATS[format].join(', ')}`)
  switch (format) {
    case 'raw': return disk
    case 'vhd': return subformat === 'fixed' ? computeFixedVhd(disk, { digest }) : computeVhd(disk, { digest })
    case 'vhdx': return computeVhdx(disk, { digest })
    case 'vmdk': return computeVmdk(disk, { digest })
    case 'qcow2': return computeQcow2(disk)
  }
}

/** A disk of a block map, and the digest of that. */
export interface MappedDisk {
  device: BlockDevice & { map: BlockMap }
  digest: Digest
}

/**
 * The file that holds what of a disk differs from another, and names the image of that.
 * @param base `file` as the image names it, relative to itself; the image was computed in the same format
 * @throws VarveError FORMAT_UNSUPPORTED for a format that has no such images, or disks that cannot be so
 */
export async function computeImageOver(format: DiskFormat, { device, digest }: MappedDisk, base: MappedDisk & { file: string }): Promise<BlockDevice> {
  const ranges = differenceOfMaps(device.map, base.device.map)
  const changed = Array.from({ length: ranges.length / 2 }, (_, index) => ({ offset: ranges[2 * index], length: ranges[2 * index + 1] - ranges[2 * index] }))
  const { sizeBytes } = base.device
  if (format === 'qcow2') return computeQcow2Overlay(device, { changed, backing: { name: base.file, format, sizeBytes } })
  if (format !== 'vhd') throw new VarveError('FORMAT_UNSUPPORTED', `images of ${format} are written whole; over another are vhd and qcow2`)
  if (sizeBytes !== device.sizeBytes) throw new VarveError('FORMAT_UNSUPPORTED', `a differencing VHD has the size of its parent, and these disks have ${device.sizeBytes} and ${sizeBytes} bytes`)
  return computeDifferencingVhd(device, { digest, changed, parent: { name: base.file, id: vhdId(base.digest) } })
}
