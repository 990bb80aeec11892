/**
 * Writes disks of ESX: a descriptor that names one sparse extent ("COWD"), and that. Virtual Disk Format 5.0, "ESX Server Sparse Extents". Nothing here makes such.
 */
const SECTOR_BYTES = 512
const TABLE_ENTRIES = 4096

export interface CowdOptions {
  grainSectors?: number
  /** Lines of the descriptor besides, as of a parent. */
  lines?: string[]
  /** Which grains are in the extent. @param grain its content */
  has?: (grain: Buffer, index: number) => boolean
}

/** @returns files by name: `image`, the descriptor, and `image-delta.vmdk` */
export function cowdDisk(disk: Buffer, { grainSectors = 1, lines = ['parentCID=ffffffff'], has = (grain) => grain.some((byte) => byte !== 0) }: CowdOptions = {}): Map<string, Buffer> {
  const grainBytes = grainSectors * SECTOR_BYTES
  const grains = Math.ceil(disk.length / grainBytes)
  const tables = Math.ceil(grains / TABLE_ENTRIES)
  const directorySectors = Math.ceil((tables * 4) / SECTOR_BYTES)
  const firstTable = 4 + directorySectors
  const table = Buffer.alloc(tables * TABLE_ENTRIES * 4)
  const stored: Buffer[] = []
  for (let index = 0; index < grains; index++) {
    const grain = Buffer.alloc(grainBytes)
    disk.copy(grain, 0, index * grainBytes)
    if (!has(grain, index)) continue
    table.writeUInt32LE(firstTable + table.length / SECTOR_BYTES + stored.length * grainSectors, index * 4)
    stored.push(grain)
  }
  const directory = Buffer.alloc(directorySectors * SECTOR_BYTES)
  for (let index = 0; index < tables; index++) directory.writeUInt32LE(firstTable + (index * TABLE_ENTRIES * 4) / SECTOR_BYTES, index * 4)
  const header = Buffer.alloc(4 * SECTOR_BYTES)
  header.write('COWD', 0, 'latin1')
  for (const [at, value] of [[4, 1], [8, 3], [12, disk.length / SECTOR_BYTES], [16, grainSectors], [20, 4], [24, tables]]) header.writeUInt32LE(value, at)
  // QEMU takes an extent that follows an empty line twice.
  const descriptor = ['# Disk DescriptorFile', 'version=1', 'CID=fffffffe', ...lines, 'createType="vmfsSparse"', '# Extent description', `RW ${disk.length / SECTOR_BYTES} VMFSSPARSE "image-delta.vmdk"`, ''].join('\n')
  return new Map([['image', Buffer.from(descriptor)], ['image-delta.vmdk', Buffer.concat([header, directory, table, ...stored])]])
}
