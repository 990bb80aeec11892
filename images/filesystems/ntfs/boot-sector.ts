/**
 * Boot sector of NTFS: where the MFT is, and the sizes of clusters and records.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { invalid, readUInt64 } from './format.ts'

const BOOT_SECTOR_BYTES = 512
const NAME = 'NTFS    '
const NAME_AT = 3
const SECTOR_BYTES_MAX = 4096
const CLUSTER_BYTES_MAX = 2 << 20
/** Of records of the MFT; Windows makes 1 KiB and, on disks with sectors of 4 KiB, 4 KiB. */
const RECORD_BYTES_MAX = 64 << 10

export interface Geometry {
  sectorBytes: number
  clusterBytes: number
  clusters: number
  /** Of a record of the MFT. */
  recordBytes: number
  /** First clusters of $MFT and $MFTMirr. */
  mftCluster: number
  mirrorCluster: number
  /** Hexadecimal. */
  serialNumber: string
}

/** True if a volume says that it is NTFS. */
export async function isNtfs(volume: ReadableDisk): Promise<boolean> {
  if (volume.sizeBytes < BOOT_SECTOR_BYTES) return false
  const name = Buffer.alloc(NAME.length)
  await volume.read(name, NAME_AT)
  return name.toString('latin1') === NAME
}

/** @throws VarveError FORMAT_INVALID */
export async function readBootSector(volume: ReadableDisk): Promise<Geometry> {
  if (!await isNtfs(volume)) throw invalid('there is no boot sector')
  const sector = Buffer.alloc(BOOT_SECTOR_BYTES)
  await volume.read(sector, 0)
  const sectorBytes = sector.readUInt16LE(0x0b)
  // Above 128, it is the negative of a power of two.
  const clusterSectors = sector[0x0d] > 0x80 ? 2 ** (256 - sector[0x0d]) : sector[0x0d]
  const clusterBytes = sectorBytes * clusterSectors
  const recordBytes = sizeOf(sector.readInt8(0x40), clusterBytes)
  const isPossible = isPowerOfTwo(sectorBytes, 512, SECTOR_BYTES_MAX) && isPowerOfTwo(clusterBytes, sectorBytes, CLUSTER_BYTES_MAX) && isPowerOfTwo(recordBytes, 512, RECORD_BYTES_MAX)
  if (!isPossible) throw invalid(`the boot sector has sectors of ${sectorBytes} bytes, clusters of ${clusterBytes} and records of ${recordBytes}`)
  const clusters = Math.floor(readUInt64(sector, 0x28) / clusterSectors)
  const mftCluster = readUInt64(sector, 0x30)
  const mirrorCluster = readUInt64(sector, 0x38)
  if (clusters * clusterBytes > volume.sizeBytes) throw invalid(`the volume has ${volume.sizeBytes} bytes of ${clusters} clusters of ${clusterBytes}`)
  if (mftCluster >= clusters) throw invalid(`the MFT begins at cluster ${mftCluster} of ${clusters}`)
  const serialNumber = sector.readBigUInt64LE(0x48).toString(16).toUpperCase().padStart(16, '0')
  return { sectorBytes, clusterBytes, clusters, recordBytes, mftCluster, mirrorCluster, serialNumber }
}

/** Clusters, or if negative the negative of a power of two of bytes. */
function sizeOf(code: number, clusterBytes: number): number {
  return code < 0 ? 2 ** -code : code * clusterBytes
}

function isPowerOfTwo(value: number, from: number, to: number): boolean {
  return value >= from && value <= to && (value & (value - 1)) === 0
}
