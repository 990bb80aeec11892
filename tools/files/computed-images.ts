/**
 * Images that are computed of a disk, by the format's name.
 */
import type { ComputeImage, DiskFormat } from '@varve/images/formats/disk-image.ts'
import { computeQcow2 } from '@varve/images/formats/qcow2/writer.ts'
import { computeVhd } from '@varve/images/formats/vhd/compute-vhd.ts'
import { computeVhdx } from '@varve/images/formats/vhdx/compute-vhdx.ts'
import { computeVmdk } from '@varve/images/formats/vmdk/writer.ts'

/** Without raw, which is the disk itself. */
export const COMPUTED_IMAGES: Readonly<Record<Exclude<DiskFormat, 'raw'>, ComputeImage>> = { vhd: computeVhd, vhdx: computeVhdx, vmdk: computeVmdk, qcow2: computeQcow2 }
