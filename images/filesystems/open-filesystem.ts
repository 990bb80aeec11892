/** What filesystem is on a volume, by its content. */
import type { ReadableDisk } from '../device/block-device.ts'
import { hasExfatBoot } from './exfat/boot-region.ts'
import { openExfat } from './exfat/reader.ts'
import { isFat } from './fat/boot-sector.ts'
import { openFat } from './fat/reader.ts'
import type { VolumeFilesystem } from './filesystem.ts'

/** In this order: FAT, which has no magic number of its own, comes last. `has` reads little. */
const FILESYSTEMS: readonly { has: (volume: ReadableDisk) => Promise<boolean>; open: (volume: ReadableDisk) => Promise<VolumeFilesystem> }[] = [
  { has: hasExfatBoot, open: openExfat },
  { has: isFat, open: openFat },
]

/**
 * Opens the filesystem that fills `volume`.
 * @returns undefined if it is none that Varve reads
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED if it is one, but damaged or of a kind that is not read
 */
export async function openFilesystem(volume: ReadableDisk): Promise<VolumeFilesystem | undefined> {
  for (const { has, open } of FILESYSTEMS) if (await has(volume)) return open(volume)
  return undefined
}
