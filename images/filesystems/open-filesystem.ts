/** What filesystem is on a volume, by its content. */
import type { ReadableDisk } from '../device/block-device.ts'
import { hasExfatBoot } from './exfat/boot-region.ts'
import { openExfat } from './exfat/reader.ts'
import { openExt4 } from './ext4/filesystem.ts'
import { isFat } from './fat/boot-sector.ts'
import { openFat } from './fat/reader.ts'
import type { VolumeFilesystem } from './filesystem.ts'
import { isNtfs } from './ntfs/boot-sector.ts'
import { openNtfs } from './ntfs/filesystem.ts'

/** In this order: the first two say whose boot sector it is, FAT is known by all of its own, and what ext4 has may stand in a table of FAT by chance. */
const FILESYSTEMS: readonly { has: (volume: ReadableDisk) => Promise<boolean>; open: (volume: ReadableDisk) => Promise<VolumeFilesystem> }[] = [
  { has: hasExfatBoot, open: openExfat },
  { has: isNtfs, open: openNtfs },
  { has: isFat, open: openFat },
  { has: hasExt4Magic, open: openExt4 },
]
const EXT4_MAGIC = 0xef53
const EXT4_MAGIC_OFFSET = 1024 + 0x38

/**
 * Opens the filesystem that fills `volume`.
 * @returns undefined if it is none that Varve reads
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED if it is one, but damaged or of a kind that is not read
 */
export async function openFilesystem(volume: ReadableDisk): Promise<VolumeFilesystem | undefined> {
  for (const { has, open } of FILESYSTEMS) if (await has(volume)) return open(volume)
  return undefined
}

async function hasExt4Magic(volume: ReadableDisk): Promise<boolean> {
  const magic = Buffer.alloc(2)
  if (volume.sizeBytes < EXT4_MAGIC_OFFSET + magic.length) return false
  await volume.read(magic, EXT4_MAGIC_OFFSET)
  return magic.readUInt16LE(0) === EXT4_MAGIC
}
