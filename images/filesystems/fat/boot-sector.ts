/**
 * Boot sector of FAT12, FAT16 and FAT32: what a volume says of itself, and whether it is FAT at all, which has no magic number.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03, sections "Boot Sector and BPB" and "FAT Type Determination".
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { decodeCodePage437 } from './code-page-437.ts'
import { DIRECTORY_ENTRY_BYTES } from './directory.ts'
import { FAT32_CLUSTERS_MAX, FAT32_CLUSTERS_MIN } from './geometry.ts'

export const BOOT_SECTOR_BYTES = 512
/** A volume with at least so many clusters is FAT16, unless it is FAT32. */
const FAT16_CLUSTERS_MIN = 4085
const SECTOR_BYTES_MIN = 512
const SECTOR_BYTES_MAX = 4096
/** FAT copies are numbered in four bits of the FAT32 flags. */
const FATS_MAX = 16
const MIRRORING_OFF = 0x80
const EXTENDED_SIGNATURE = 0x29
const EXTENDED_SIGNATURE_WITHOUT_LABEL = 0x28
const STATE_DIRTY = 0x01

export interface FatBootSector {
  type: 'fat12' | 'fat16' | 'fat32'
  sizeBytes: number
  clusterBytes: number
  clusters: number
  /** Of the FAT to be read: the first, or the one that FAT32 says is active. */
  fatOffset: number
  /** Directory in front of the clusters; 0 bytes for FAT32. */
  rootOffset: number
  rootBytes: number
  /** FAT32: first cluster of the root directory; else 0. */
  rootCluster: number
  /** Of the first cluster. */
  heapOffset: number
  /** Media descriptor, which is the first byte of the FAT as well. */
  media: number
  /** '' if there is none; trailing spaces are left out. */
  label: string
  /** XXXX-XXXX; '' if there is none. */
  uuid: string
  /** The state says that it was in use. */
  isDirty: boolean
}

/** True if there is FAT: its boot sector has nothing that cannot be, and its table begins with the media descriptor as it must (section "FAT Data Structure"). */
export async function isFat(volume: ReadableDisk): Promise<boolean> {
  const boot = Buffer.alloc(BOOT_SECTOR_BYTES)
  if (volume.sizeBytes < boot.length) return false
  await volume.read(boot, 0)
  const tableOffset = boot.readUInt16LE(14) * boot.readUInt16LE(11)
  if (!isFatBootSector(boot) || tableOffset + 3 > volume.sizeBytes) return false
  const start = Buffer.alloc(3)
  await volume.read(start, tableOffset)
  return start[0] === boot[21] && start[1] === 0xff && (start[2] & 0xf) === 0xf
}

/** True if the fields hold what they can, and no other filesystem says that it is its own. */
function isFatBootSector(boot: Buffer): boolean {
  const owner = boot.toString('latin1', 3, 11)
  const media = boot[21]
  return (boot[0] === 0xeb || boot[0] === 0xe9) && boot.readUInt16LE(510) === 0xaa55
    && !['NTFS    ', 'EXFAT   ', '-FVE-FS-', 'HPFS    ', 'JFS     '].includes(owner)
    && isPowerOfTwo(boot.readUInt16LE(11)) && boot.readUInt16LE(11) >= SECTOR_BYTES_MIN && boot.readUInt16LE(11) <= SECTOR_BYTES_MAX
    && isPowerOfTwo(boot[13]) && boot.readUInt16LE(14) > 0 && boot[16] >= 1 && boot[16] <= FATS_MAX && (media === 0xf0 || media >= 0xf8)
    && (boot.readUInt16LE(19) > 0 || boot.readUInt32LE(32) > 0) && (boot.readUInt16LE(22) > 0 || boot.readUInt32LE(36) > 0)
}

/** @param volumeBytes of what it stands on @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED */
export function readFatBootSector(boot: Buffer, volumeBytes: number): FatBootSector {
  if (!isFatBootSector(boot)) throw invalid('this is no boot sector of FAT')
  const sectorBytes = boot.readUInt16LE(11)
  const clusterBytes = sectorBytes * boot[13]
  const reservedBytes = boot.readUInt16LE(14) * sectorBytes
  const fats = boot[16]
  const rootBytes = Math.ceil((boot.readUInt16LE(17) * DIRECTORY_ENTRY_BYTES) / sectorBytes) * sectorBytes
  const sizeBytes = (boot.readUInt16LE(19) || boot.readUInt32LE(32)) * sectorBytes
  // Drivers tell FAT32 by the place of this field, and so do we: formatters make FAT32 with fewer clusters than the specification wants.
  const isFat32 = boot.readUInt16LE(22) === 0
  const fatBytes = (isFat32 ? boot.readUInt32LE(36) : boot.readUInt16LE(22)) * sectorBytes
  const rootOffset = reservedBytes + fats * fatBytes
  const heapOffset = rootOffset + rootBytes
  const counted = Math.floor((sizeBytes - heapOffset) / clusterBytes)
  if (counted < 1) throw invalid('the boot sector leaves no room for clusters')
  if (sizeBytes > volumeBytes) throw invalid(`the volume has ${volumeBytes} bytes, and its boot sector says ${sizeBytes}`)
  const type = isFat32 ? 'fat32' : counted < FAT16_CLUSTERS_MIN ? 'fat12' : 'fat16'
  if (isFat32 && rootBytes !== 0) throw invalid('the root directory is of FAT16, and the table of FAT32')
  if (isFat32 && boot.readUInt16LE(42) !== 0) throw new VarveError('FORMAT_UNSUPPORTED', `FAT32 of version ${boot.readUInt16LE(42)} is not read`)
  if (!isFat32 && rootBytes === 0) throw invalid('there is no root directory')
  if (counted > FAT32_CLUSTERS_MAX || (type === 'fat16' && counted >= FAT32_CLUSTERS_MIN)) throw invalid(`${counted} clusters are too many for ${type}`)
  const flags = isFat32 ? boot.readUInt16LE(40) : 0
  const active = (flags & MIRRORING_OFF) !== 0 ? flags & 0xf : 0
  if (active >= fats) throw invalid(`table ${active} is said to be the active one of ${fats}`)
  const extended = isFat32 ? 64 : 36
  const signature = boot[extended + 2]
  const hasSerial = signature === EXTENDED_SIGNATURE || signature === EXTENDED_SIGNATURE_WITHOUT_LABEL
  const label = decodeCodePage437(boot.subarray(extended + 7, extended + 18)).replace(/[ \0]+$/, '')
  return {
    type,
    sizeBytes,
    clusterBytes,
    // Clusters that the table has no entries for cannot be used.
    clusters: Math.min(counted, Math.floor((fatBytes * 8) / ENTRY_BITS[type]) - 2),
    fatOffset: reservedBytes + active * fatBytes,
    rootOffset,
    rootBytes,
    rootCluster: isFat32 ? boot.readUInt32LE(44) : 0,
    heapOffset,
    media: boot[21],
    label: signature === EXTENDED_SIGNATURE && label !== 'NO NAME' ? label : '',
    uuid: hasSerial ? serialNumber(boot.readUInt32LE(extended + 3)) : '',
    isDirty: (boot[extended + 1] & STATE_DIRTY) !== 0,
  }
}

const ENTRY_BITS = { fat12: 12, fat16: 16, fat32: 32 }

/** As `blkid` writes it. */
export function serialNumber(number: number): string {
  const digits = number.toString(16).toUpperCase().padStart(8, '0')
  return `${digits.slice(0, 4)}-${digits.slice(4)}`
}

function isPowerOfTwo(number: number): boolean {
  return number > 0 && (number & (number - 1)) === 0
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `FAT: ${what}`)
}
