/**
 * Lays a merged tree out as a whole disk: partition table, boot loader, EFI system partition, root filesystem.
 * Depends on nothing but its arguments: no clock, no machine. Bytes: docs/formats/disk.md
 */
import { DiskLayout } from '@varve/images/blockmap/disk-layout.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { VarveError } from '@varve/images/errors.ts'
import { demandOf } from '@varve/images/filesystems/ext4/demand.ts'
import type { Demand } from '@varve/images/filesystems/ext4/demand.ts'
import { ext4SizeBytes, writeExt4 } from '@varve/images/filesystems/ext4/writer.ts'
import type { Ext4Figures } from '@varve/images/filesystems/ext4/writer.ts'
import { fat32SizeBytes, writeFat32 } from '@varve/images/filesystems/fat/writer.ts'
import { writeGpt } from '@varve/images/formats/gpt.ts'
import type { ChunkWriter } from '@varve/images/store/chunk-store.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { placeBiosBoot } from '../boot/boot-kit.ts'
import type { BootKit } from '../boot/boot-kit.ts'
import { grubConfig } from '../boot/grub-config.ts'
import { findKernels, linksTo } from '../boot/kernels.ts'
import { deriveSerial, deriveUuid, uuidToString } from '../recipe.ts'
import type { DiskOptions } from '../recipe.ts'
import { planDisk } from './disk-plan.ts'
import type { DiskPlan } from './disk-plan.ts'
import { EFI_BYTES_MIN, efiTree, lendKernels } from './efi-volume.ts'

export interface DiskSource {
  /** Digest of the recipe: all identifiers are derived from it. */
  recipe: Digest
  disk: DiskOptions
  tree: Tree
  /** Present where `disk.boot` asks for one. */
  bootKit: BootKit | undefined
  /** Inodes of the tree whose data comes first, in this order. */
  order: ArrayLike<number>
}

export interface LaidOutDisk {
  layout: DiskLayout
  plan: DiskPlan
  /** UUID of the root filesystem, text form. */
  rootUuid: string
  root: Ext4Figures
}

/** Free space where the recipe does not say: a quarter of the content, and at least this, bytes. */
const FREE_BYTES_MIN = 1 << 30
const FREE_SHARE = 0.25
/**
 * Times that the disk itself carries (superblocks, boot files) are those of its newest file, but never later than this Varve,
 * and so never later than a guest's clock: fsck takes a superblock from the future for damage. Seconds since 1970.
 */
const TIME_SECONDS_MAX = Date.UTC(2026, 0, 1) / 1000
const EFI_LABEL = 'EFI'

/**
 * What the disk holds, for DiskLayout.build; chunks of generated files are put into `writer`.
 * @throws VarveError DISK_TOO_SMALL, BOOT_MISSING (no kernel), LIMIT_EXCEEDED
 */
export function layOutDisk(source: DiskSource, writer: ChunkWriter): LaidOutDisk {
  const { recipe, disk, tree, bootKit, order } = source
  const timeSeconds = diskTime(tree)
  const rootUuid = deriveUuid(recipe, 'root filesystem')
  const freeBytes = disk.sizeBytes === null ? (disk.freeBytes ?? Math.max(FREE_BYTES_MIN, Math.ceil(tree.contentBytes * FREE_SHARE))) : 0
  const demand = demandOf(tree)
  const rootBytes = ext4SizeBytes(tree, { freeBytes, demand })
  // The configuration names partitions, whose identifiers do not depend on their sizes; so the plan can be made twice.
  const sizes = { efiBytes: EFI_BYTES_MIN, rootBytes }
  const efi = bootKit === undefined ? undefined : bootTree(source, bootKit, planDisk(recipe, { ...disk, sizeBytes: null }, sizes), { demand, timeSeconds, writer })
  if (efi !== undefined) sizes.efiBytes = Math.max(EFI_BYTES_MIN, fat32SizeBytes(efi, { freeBytes: 0 }))
  const plan = planDisk(recipe, disk, sizes)
  const layout = new DiskLayout(plan.diskBytes)
  writePartitionTable(layout, plan, bootKit)
  if (plan.efiSystem !== undefined && efi !== undefined) {
    const { firstByte, byteLength } = plan.efiSystem
    const volumeId = deriveSerial(recipe, 'efi system partition')
    writeFat32(efi, layout.volume(firstByte, byteLength, efi), { sizeBytes: byteLength, volumeId, label: EFI_LABEL, timeSeconds, diskOffset: firstByte })
  }
  const root = writeExt4(tree, layout.volume(plan.root.firstByte, plan.root.byteLength, tree), {
    sizeBytes: plan.root.byteLength,
    uuid: rootUuid,
    hashSeed: deriveUuid(recipe, 'directory hash'),
    label: disk.label,
    timeSeconds,
    demand,
    order,
  })
  return { layout, plan, rootUuid: uuidToString(rootUuid), root }
}

function bootTree({ recipe, disk, tree }: DiskSource, bootKit: BootKit, plan: DiskPlan, { demand, timeSeconds, writer }: { demand: Demand; timeSeconds: number; writer: ChunkWriter }): Tree {
  const kernels = findKernels(tree)
  if (kernels.length === 0) throw new VarveError('BOOT_MISSING', 'no layer holds a kernel (boot/vmlinuz-VERSION); add one that does, or give the CVD --boot none')
  // GRUB refuses filesystems with extended attributes so long that they have inodes of their own (ea_inode).
  const lent = demand.outsideBlocks === 0 ? undefined : lendKernels(kernels)
  const config = grubConfig({
    kernels: lent?.kernels ?? kernels,
    kernelsOn: lent === undefined ? 'root' : 'efi',
    links: lent === undefined ? linksTo(tree, kernels[0]) : undefined,
    rootUuid: uuidToString(deriveUuid(recipe, 'root filesystem')),
    rootPartitionGuid: plan.root.guid,
    rootPartition: plan.rootNumber,
    kernelCommandLine: disk.kernelCommandLine,
  })
  return efiTree(bootKit, config, { timeSeconds, writer, source: tree, kernels: lent?.files ?? [] })
}

function writePartitionTable(layout: DiskLayout, plan: DiskPlan, bootKit: BootKit | undefined): void {
  const bios = bootKit === undefined || plan.biosBoot === undefined ? undefined : placeBiosBoot(bootKit, plan.biosBoot.firstByte)
  const sink = layout.volume(0, plan.diskBytes)
  writeGpt(sink, { diskBytes: plan.diskBytes, diskGuid: plan.diskGuid, partitions: plan.partitions, bootCode: bios?.bootCode })
  if (bios !== undefined) sink.bytes(plan.biosBoot!.firstByte, bios.core)
}

function diskTime(tree: Tree): number {
  let newest = 0
  for (let inode = 0; inode < tree.inodeCount; inode++) newest = Math.max(newest, tree.mtimeSeconds[inode])
  return Math.min(newest, TIME_SECONDS_MAX)
}
