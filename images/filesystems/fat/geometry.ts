/**
 * Geometry of a FAT32 volume: how its bytes divide into reserved sectors, two FATs and clusters.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.
 */
import { VarveError } from '../../errors.ts'

export const FAT_SECTOR_BYTES = 512
export const FAT_ENTRY_BYTES = 4
export const FAT_COUNT = 2
/** A volume with fewer clusters is FAT16 to every reader. */
export const FAT32_CLUSTERS_MIN = 65525
/** Cluster numbers from 0x0ffffff7 on have a meaning of their own. */
export const FAT32_CLUSTERS_MAX = 0x0ffffff5 - 2
/** The first cluster; entries 0 and 1 of the FAT are reserved. */
export const FIRST_CLUSTER = 2
/** Sectors before the first FAT, at least. */
const RESERVED_SECTORS_MIN = 32
/** Alignment of the first cluster, sectors: 4 KiB. */
const DATA_ALIGN_SECTORS = 8
const VOLUME_SECTORS_MAX = 0xffffffff

export interface FatGeometry {
  sectors: number
  clusterBytes: number
  reservedSectors: number
  /** Sectors of one FAT. */
  fatSectors: number
  /** Number of clusters; they are numbered FIRST_CLUSTER .. FIRST_CLUSTER + clusters - 1. */
  clusters: number
  /** Offset of the first cluster, bytes. */
  dataOffset: number
}

/** Bytes per cluster for a volume of this size, as Microsoft's formatter chooses them. */
export function clusterBytesFor(sizeBytes: number): number {
  const gib = 2 ** 30
  if (sizeBytes <= 260 * 2 ** 20) return 512
  if (sizeBytes <= 8 * gib) return 4 << 10
  if (sizeBytes <= 16 * gib) return 8 << 10
  if (sizeBytes <= 32 * gib) return 16 << 10
  return 32 << 10
}

/**
 * @throws VarveError DISK_TOO_SMALL if the volume is too small to be FAT32, LIMIT_EXCEEDED if it is too large
 */
export function fatGeometry(sizeBytes: number): FatGeometry {
  const clusterBytes = clusterBytesFor(sizeBytes)
  const sectors = Math.floor(sizeBytes / FAT_SECTOR_BYTES)
  if (sectors > VOLUME_SECTORS_MAX) throw new VarveError('LIMIT_EXCEEDED', `a FAT32 volume of ${sizeBytes} bytes is larger than 2 TiB`)
  const sectorsPerCluster = clusterBytes / FAT_SECTOR_BYTES
  const entriesPerSector = FAT_SECTOR_BYTES / FAT_ENTRY_BYTES
  // Every cluster costs its sectors and two entries; the first two entries of a FAT stand for no cluster.
  const fatSectors = Math.ceil((sectors - RESERVED_SECTORS_MIN + FIRST_CLUSTER * sectorsPerCluster) / (entriesPerSector * sectorsPerCluster + FAT_COUNT))
  const unaligned = RESERVED_SECTORS_MIN + FAT_COUNT * fatSectors
  const dataSector = Math.ceil(unaligned / DATA_ALIGN_SECTORS) * DATA_ALIGN_SECTORS
  const clusters = Math.floor((sectors - dataSector) / sectorsPerCluster)
  if (clusters < FAT32_CLUSTERS_MIN) throw new VarveError('DISK_TOO_SMALL', `a FAT32 volume has at least 34 MiB; ${sizeBytes} bytes are too few`)
  if (clusters > FAT32_CLUSTERS_MAX) throw new VarveError('LIMIT_EXCEEDED', `a FAT32 volume of ${sizeBytes} bytes has too many clusters`)
  return { sectors, clusterBytes, reservedSectors: dataSector - FAT_COUNT * fatSectors, fatSectors, clusters, dataOffset: dataSector * FAT_SECTOR_BYTES }
}
