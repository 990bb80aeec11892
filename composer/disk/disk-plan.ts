/**
 * Disk plan: which partitions a composed disk has, and where. Bytes: docs/formats/disk.md
 * Everything is aligned to 1 MiB; the root filesystem comes last, so that a disk can grow.
 */
import { VarveError } from '@varve/images/errors.ts'
import { GPT_TAIL_BYTES, PartitionType } from '@varve/images/formats/gpt.ts'
import type { GptPartition } from '@varve/images/formats/gpt.ts'
import { SECTOR_BYTES } from '@varve/images/formats/mbr.ts'
import { CORE_BYTES_MAX } from '../boot/boot-kit.ts'
import { deriveUuid, uuidToString } from '../recipe.ts'
import type { DiskOptions } from '../recipe.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'

/** Partitions begin at multiples of this, bytes. */
export const ALIGN_BYTES = 1 << 20

export interface DiskPlan {
  diskBytes: number
  /** Text form. */
  diskGuid: string
  /** In the order of their numbers. */
  partitions: GptPartition[]
  /** Undefined without a boot loader. */
  biosBoot: GptPartition | undefined
  efiSystem: GptPartition | undefined
  root: GptPartition
  /** Number of the root partition, first is 1. */
  rootNumber: number
}

/** Bytes that the volumes need. */
export interface VolumeSizes {
  /** Of the EFI system partition; not used without a boot loader. */
  efiBytes: number
  /** Of the root filesystem: at least this, and exactly this, in whole MiB, where the recipe does not say how large the disk is. */
  rootBytes: number
}

/**
 * @param recipe digest of the recipe; all identifiers are derived from it
 * @throws VarveError DISK_TOO_SMALL
 */
export function planDisk(recipe: Digest, disk: DiskOptions, sizes: VolumeSizes): DiskPlan {
  const partitions: GptPartition[] = []
  let at = ALIGN_BYTES
  const add = (name: string, typeGuid: string, byteLength: number): GptPartition => {
    const guid = uuidToString(deriveUuid(recipe, `partition ${name}`))
    const partition = { typeGuid, guid, name, firstByte: at, byteLength }
    partitions.push(partition)
    at += byteLength
    return partition
  }
  const bootable = disk.boot === 'grub'
  const biosBoot = bootable ? add('bios', PartitionType.biosBoot, CORE_BYTES_MAX) : undefined
  const efiSystem = bootable ? add('efi', PartitionType.efiSystem, align(sizes.efiBytes)) : undefined
  const root = add('root', PartitionType.linuxRootX64, rootBytes(disk, sizes, at))
  const diskBytes = disk.sizeBytes ?? align(at + GPT_TAIL_BYTES)
  return { diskBytes, diskGuid: uuidToString(deriveUuid(recipe, 'disk')), partitions, biosBoot, efiSystem, root, rootNumber: partitions.length }
}

function rootBytes(disk: DiskOptions, sizes: VolumeSizes, at: number): number {
  if (disk.sizeBytes === null) return align(sizes.rootBytes)
  if (disk.sizeBytes % SECTOR_BYTES !== 0) throw new RangeError(`a disk of ${disk.sizeBytes} bytes is not whole sectors`)
  const room = Math.floor((disk.sizeBytes - GPT_TAIL_BYTES - at) / ALIGN_BYTES) * ALIGN_BYTES
  if (room < sizes.rootBytes) {
    throw new VarveError('DISK_TOO_SMALL', `the disk of ${disk.sizeBytes} bytes is too small: the content needs ${align(at + align(sizes.rootBytes) + GPT_TAIL_BYTES)}, free space not counted`)
  }
  return room
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGN_BYTES) * ALIGN_BYTES
}
