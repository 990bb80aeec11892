/**
 * Boot region of exFAT: eleven sectors and their checksum, and a copy of them behind.
 * Specified by Microsoft's "exFAT file system specification", section 3.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { serialNumber } from '../fat/boot-sector.ts'
import { FIRST_CLUSTER } from '../fat/geometry.ts'

/** Sectors of a boot region, the one of checksums included. */
const REGION_SECTORS = 12
const SECTOR_SHIFT_MIN = 9
const SECTOR_SHIFT_MAX = 12
/** Clusters have at most 32 MiB. */
const CLUSTER_SHIFT_MAX = 25
const CLUSTERS_MAX = 2 ** 32 - 11
const REVISION_MAJOR = 1
const EXTENDED_SIGNATURE = 0xaa550000
const FLAG_SECOND_FAT = 0x1
const FLAG_DIRTY = 0x2
/** Flags and percentage in use change while it is mounted, and are not in the checksum. */
const NOT_SUMMED = [106, 107, 112]

export interface ExfatBoot {
  sizeBytes: number
  clusterBytes: number
  clusters: number
  /** Of the active FAT. */
  fatOffset: number
  /** 0 or 1: which FAT and which allocation bitmap is active. */
  active: 0 | 1
  heapOffset: number
  rootCluster: number
  uuid: string
  isDirty: boolean
}

/**
 * True if the first sector is a boot sector of exFAT; or, if it alone was overwritten, one where the backup would begin. What is made on a volume later
 * (swap, say) takes more than the first sector, and may leave the backup.
 */
export async function hasExfatBoot(volume: ReadableDisk): Promise<boolean> {
  if (isBootSector(await sectorAt(volume, 0))) return true
  for (const offset of backupOffsets()) {
    if (isBootSector(await sectorAt(volume, offset)) && await isExtendedBootSector(volume, offset / REGION_SECTORS)) return true
  }
  return false
}

/** Whether the second sector is still one of a boot region (section 3.2). */
async function isExtendedBootSector(volume: ReadableDisk, sectorBytes: number): Promise<boolean> {
  const signature = Buffer.alloc(4)
  await volume.read(signature, 2 * sectorBytes - signature.length)
  return signature.readUInt32LE() === EXTENDED_SIGNATURE
}

/** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED; what is wrong with the main region, if the backup is not valid either */
export async function readExfatBoot(volume: ReadableDisk): Promise<ExfatBoot> {
  let failure: VarveError
  try {
    return await readRegion(volume, 0)
  } catch (error) {
    if (!(error instanceof VarveError) || error.code !== 'FORMAT_INVALID') throw error
    failure = error
  }
  for (const offset of backupOffsets()) {
    const sector = await sectorAt(volume, offset)
    if (!isBootSector(sector) || REGION_SECTORS << sector[108] !== offset) continue
    try {
      // Its flags are not kept up to date (section 3.1.13.2), and whatever damaged the main region may have damaged more.
      return { ...await readRegion(volume, offset), isDirty: true }
    } catch (error) {
      if (!(error instanceof VarveError) || error.code !== 'FORMAT_INVALID') throw error
    }
  }
  throw failure
}

function* backupOffsets(): Generator<number> {
  for (let shift = SECTOR_SHIFT_MIN; shift <= SECTOR_SHIFT_MAX; shift++) yield REGION_SECTORS << shift
}

/** The 512 bytes at `offset`, or nothing if the volume ends before. */
async function sectorAt(volume: ReadableDisk, offset: number): Promise<Buffer> {
  if (offset + 512 > volume.sizeBytes) return Buffer.alloc(0)
  const sector = Buffer.alloc(512)
  await volume.read(sector, offset)
  return sector
}

/** Where FAT has its parameters, exFAT has zeroes. */
function isBootSector(sector: Buffer): boolean {
  return sector.length > 0 && sector.toString('latin1', 3, 11) === 'EXFAT   ' && sector.readUInt16LE(510) === 0xaa55 && sector.subarray(11, 64).every((byte) => byte === 0)
}

async function readRegion(volume: ReadableDisk, offset: number): Promise<ExfatBoot> {
  const sector = await sectorAt(volume, offset)
  if (!isBootSector(sector)) throw invalid('this is no boot sector of exFAT')
  const shift = sector[108]
  if (shift < SECTOR_SHIFT_MIN || shift > SECTOR_SHIFT_MAX || shift + sector[109] > CLUSTER_SHIFT_MAX) throw invalid(`sectors of 2^${shift} bytes in clusters of 2^${shift + sector[109]} are impossible`)
  const sectorBytes = 1 << shift
  const region = Buffer.alloc(REGION_SECTORS * sectorBytes)
  if (offset + region.length > volume.sizeBytes) throw invalid('the volume ends in its boot region')
  await volume.read(region, offset)
  checkSum(region, sectorBytes)
  const major = sector[105]
  if (major !== REVISION_MAJOR) throw new VarveError('FORMAT_UNSUPPORTED', `exFAT of revision ${major}.${sector[104]} is not read`)
  const clusterBytes = sectorBytes << sector[109]
  const sectors = sector.readBigUInt64LE(72)
  if (sectors * BigInt(sectorBytes) > BigInt(volume.sizeBytes)) throw invalid(`the volume has ${volume.sizeBytes} bytes, and its boot sector says ${sectors * BigInt(sectorBytes)}`)
  const fats = sector[110]
  const fatBytes = sector.readUInt32LE(84) * sectorBytes
  const fatOffset = sector.readUInt32LE(80) * sectorBytes
  const heapOffset = sector.readUInt32LE(88) * sectorBytes
  const clusters = sector.readUInt32LE(92)
  const flags = sector.readUInt16LE(106)
  const active = (flags & FLAG_SECOND_FAT) === 0 ? 0 : 1
  const isPossible = (fats === 1 || fats === 2) && active < fats && clusters >= 1 && clusters <= CLUSTERS_MAX
    && fatOffset >= 2 * region.length && fatBytes >= (clusters + FIRST_CLUSTER) * 4 && fatOffset + fats * fatBytes <= heapOffset
    && heapOffset + clusters * clusterBytes <= Number(sectors) * sectorBytes
  if (!isPossible) throw invalid('the boot sector says what cannot be')
  return {
    sizeBytes: Number(sectors) * sectorBytes,
    clusterBytes,
    clusters,
    fatOffset: fatOffset + active * fatBytes,
    active,
    heapOffset,
    rootCluster: sector.readUInt32LE(96),
    uuid: serialNumber(sector.readUInt32LE(100)),
    isDirty: (flags & FLAG_DIRTY) !== 0,
  }
}

/** The last sector repeats the sum of those before it (section 3.4). */
function checkSum(region: Buffer, sectorBytes: number): void {
  const summed = (REGION_SECTORS - 1) * sectorBytes
  let sum = 0
  for (let at = 0; at < summed; at++) if (!NOT_SUMMED.includes(at)) sum = addToSum32(sum, region[at])
  for (let at = summed; at < region.length; at += 4) if (region.readUInt32LE(at) !== sum) throw invalid('the checksum of the boot region is wrong')
}

/** One byte more in a checksum of 32 bits: of boot regions and up-case tables. */
export function addToSum32(sum: number, byte: number): number {
  return (((sum >>> 1) | (sum << 31)) + byte) >>> 0
}

function invalid(what: string): VarveError {
  return new VarveError('FORMAT_INVALID', `exfat: ${what}`)
}
