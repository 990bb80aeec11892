/**
 * FAT32 writer: lays a tree out as a FAT32 volume with long names. File data is referred to by chunk, never read.
 * Owners, permissions but read-only, xattrs and nanoseconds have no place in FAT and are left out; a hard link becomes a copy.
 * Bytes: Microsoft's "FAT: General Overview of On-Disk Format", version 1.03; the choices left open there: docs/formats/disk.md.
 */
import type { LayoutSink } from '../../blockmap/layout-sink.ts'
import { VarveError } from '../../errors.ts'
import { HOLE, Kind } from '../../tree/tree.ts'
import type { Tree } from '../../tree/tree.ts'
import { Attribute, DIRECTORY_ENTRY_BYTES, entriesOf, writeLongEntries, writeShortEntry } from './directory.ts'
import { FAT_COUNT, FAT_ENTRY_BYTES, FAT_SECTOR_BYTES, FIRST_CLUSTER, FAT32_CLUSTERS_MIN, clusterBytesFor, fatGeometry } from './geometry.ts'
import type { FatGeometry } from './geometry.ts'
import { SHORT_NAME_BYTES, fatNames } from './names.ts'
import type { FatName } from './names.ts'

export interface FatOptions {
  /** Size of the volume; the part behind its last whole cluster is not used. */
  sizeBytes: number
  /** Volume serial number, 32 bits: `blkid` shows it as UUID. */
  volumeId: number
  /** Up to 11 characters: capital letters, digits and `-_`. */
  label: string
  /** Time of the volume label, seconds since 1970. */
  timeSeconds: number
  /** Offset of the volume on its disk, bytes. */
  diskOffset?: number
}

export interface FatFigures {
  clusterBytes: number
  /** Clusters that directories and files take. */
  clustersUsed: number
  clusters: number
  /** Bytes that were generated: boot sectors, FATs, directories. */
  metadataBytes: number
}

const FILE_BYTES_MAX = 0xffffffff
/** Entries of one directory, all kinds. */
const DIRECTORY_ENTRIES_MAX = 65536
const MEDIA_FIXED = 0xf8
const END_OF_CHAIN = 0x0fffffff
const FSINFO_SECTOR = 1
const BACKUP_SECTOR = 6
/** int 18h (no boot from here, try the next), then halt for ever. */
const BOOT_CODE = Uint8Array.of(0xcd, 0x18, 0xf4, 0xeb, 0xfd)

/**
 * Lays `tree` out.
 * @throws VarveError DISK_TOO_SMALL, NAME_INVALID, LIMIT_EXCEEDED (file or directory too large), FORMAT_UNSUPPORTED (symlinks, devices)
 */
export function writeFat32(tree: Tree, sink: LayoutSink, options: FatOptions): FatFigures {
  if (!/^[A-Z0-9_-]{1,11}$/.test(options.label)) throw new RangeError(`${options.label} is not a label of FAT`)
  const geometry = fatGeometry(options.sizeBytes)
  const names = allNames(tree)
  const { first, end } = assignClusters(tree, names, geometry.clusterBytes)
  const clustersUsed = end - FIRST_CLUSTER
  if (clustersUsed > geometry.clusters) {
    throw new VarveError('DISK_TOO_SMALL', `the content takes ${clustersUsed * geometry.clusterBytes} bytes, the FAT32 volume holds ${geometry.clusters * geometry.clusterBytes}`)
  }
  const volume: Volume = { tree, names, first, geometry, sink, options }
  let metadataBytes = writeBootSectors(volume, clustersUsed)
  metadataBytes += writeFats(volume, end)
  for (let entry = 0; entry < tree.entryCount; entry++) {
    const kind = tree.kind[tree.inode[entry]]
    if (kind === Kind.directory) metadataBytes += writeDirectory(volume, entry)
    else writeFile(volume, entry)
  }
  return { clusterBytes: geometry.clusterBytes, clustersUsed, clusters: geometry.clusters, metadataBytes }
}

/** Size of a volume that holds `tree` and has `freeBytes` left, a multiple of 1 MiB. @throws as writeFat32 */
export function fat32SizeBytes(tree: Tree, options: { freeBytes: number }): number {
  const mib = 2 ** 20
  const names = allNames(tree)
  // Larger clusters take more room, and more room may mean larger clusters: ends, since there are only five sizes of cluster.
  for (let sizeBytes = mib; ; ) {
    const clusterBytes = clusterBytesFor(sizeBytes)
    const used = assignClusters(tree, names, clusterBytes).end - FIRST_CLUSTER
    const clusters = Math.max(used + Math.ceil(options.freeBytes / clusterBytes), FAT32_CLUSTERS_MIN)
    const fatBytes = Math.ceil((clusters + FIRST_CLUSTER) / 128 + 1) * FAT_SECTOR_BYTES * FAT_COUNT
    const needed = Math.ceil((clusters * clusterBytes + fatBytes + 64 * FAT_SECTOR_BYTES) / mib) * mib
    if (clusterBytesFor(needed) === clusterBytes || needed < sizeBytes) return Math.max(needed, sizeBytes)
    sizeBytes = needed
  }
}

interface Volume {
  tree: Tree
  names: FatName[]
  /** First cluster by entry, 0 for empty files. */
  first: Uint32Array
  geometry: FatGeometry
  sink: LayoutSink
  options: FatOptions
}

/** Names by entry; checks what FAT cannot hold. */
function allNames(tree: Tree): FatName[] {
  const names = new Array<FatName>(tree.entryCount)
  names[0] = { short: ''.padEnd(SHORT_NAME_BYTES), long: undefined }
  for (let entry = 0; entry < tree.entryCount; entry++) {
    const inode = tree.inode[entry]
    const kind = tree.kind[inode]
    if (kind === Kind.directory) {
      const from = tree.firstChild[entry]
      const children = fatNames(tree.names.slice(from, from + tree.childCount[entry]), `/${tree.path(entry)}`)
      for (let index = 0; index < children.length; index++) names[from + index] = children[index]
    } else if (kind !== Kind.file) {
      throw new VarveError('FORMAT_UNSUPPORTED', `FAT holds files and directories only, and ${tree.path(entry)} is neither`)
    } else if (tree.sizeBytes[inode] > FILE_BYTES_MAX) {
      throw new VarveError('LIMIT_EXCEEDED', `${tree.path(entry)} has ${tree.sizeBytes[inode]} bytes; FAT holds files below 4 GiB`)
    }
  }
  return names
}

/** Directories first, then files, each contiguous. `end` is the first free cluster. */
function assignClusters(tree: Tree, names: FatName[], clusterBytes: number): { first: Uint32Array; end: number } {
  const first = new Uint32Array(tree.entryCount)
  let end = FIRST_CLUSTER
  for (let entry = 0; entry < tree.entryCount; entry++) {
    if (tree.kind[tree.inode[entry]] !== Kind.directory) continue
    first[entry] = end
    end += Math.ceil(directoryBytes(tree, names, entry) / clusterBytes)
  }
  for (let entry = 0; entry < tree.entryCount; entry++) {
    const inode = tree.inode[entry]
    if (tree.kind[inode] === Kind.directory || tree.sizeBytes[inode] === 0) continue
    first[entry] = end
    end += Math.ceil(tree.sizeBytes[inode] / clusterBytes)
  }
  return { first, end }
}

/** The root holds the label; every other directory holds `.` and `..`. */
function directoryBytes(tree: Tree, names: FatName[], entry: number): number {
  let count = entry === 0 ? 1 : 2
  const from = tree.firstChild[entry]
  for (let child = from; child < from + tree.childCount[entry]; child++) count += entriesOf(names[child])
  if (count > DIRECTORY_ENTRIES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the directory /${tree.path(entry)} is too large for FAT: ${count} of at most ${DIRECTORY_ENTRIES_MAX} entries`)
  return count * DIRECTORY_ENTRY_BYTES
}

function writeBootSectors({ geometry, sink, options }: Volume, clustersUsed: number): number {
  const bytes = Buffer.alloc((BACKUP_SECTOR + 2) * FAT_SECTOR_BYTES)
  const boot = bytes.subarray(0, FAT_SECTOR_BYTES)
  boot.set([0xeb, 0x58, 0x90])
  boot.write('VARVE   ', 3, 'latin1')
  boot.writeUInt16LE(FAT_SECTOR_BYTES, 11)
  boot[13] = geometry.clusterBytes / FAT_SECTOR_BYTES
  boot.writeUInt16LE(geometry.reservedSectors, 14)
  boot[16] = FAT_COUNT
  boot[21] = MEDIA_FIXED
  boot.writeUInt16LE(63, 24)
  boot.writeUInt16LE(255, 26)
  boot.writeUInt32LE(Math.min((options.diskOffset ?? 0) / FAT_SECTOR_BYTES, 0xffffffff), 28)
  boot.writeUInt32LE(geometry.sectors, 32)
  boot.writeUInt32LE(geometry.fatSectors, 36)
  boot.writeUInt32LE(FIRST_CLUSTER, 44)
  boot.writeUInt16LE(FSINFO_SECTOR, 48)
  boot.writeUInt16LE(BACKUP_SECTOR, 50)
  boot[64] = 0x80
  boot[66] = 0x29
  boot.writeUInt32LE(options.volumeId >>> 0, 67)
  boot.write(options.label.padEnd(11), 71, 'latin1')
  boot.write('FAT32   ', 82, 'latin1')
  boot.set(BOOT_CODE, 90)
  boot.writeUInt16LE(0xaa55, 510)
  const info = bytes.subarray(FSINFO_SECTOR * FAT_SECTOR_BYTES, (FSINFO_SECTOR + 1) * FAT_SECTOR_BYTES)
  info.write('RRaA', 0, 'latin1')
  info.write('rrAa', 484, 'latin1')
  info.writeUInt32LE(geometry.clusters - clustersUsed, 488)
  info.writeUInt32LE(clustersUsed < geometry.clusters ? FIRST_CLUSTER + clustersUsed : 0xffffffff, 492)
  info.writeUInt16LE(0xaa55, 510)
  bytes.copy(bytes, BACKUP_SECTOR * FAT_SECTOR_BYTES, 0, 2 * FAT_SECTOR_BYTES)
  sink.bytes(0, bytes)
  return bytes.length
}

/** Both FATs, as far as they are not zero. */
function writeFats({ tree, names, first, geometry, sink }: Volume, end: number): number {
  const fat = new Uint32Array(Math.ceil((end * FAT_ENTRY_BYTES) / FAT_SECTOR_BYTES) * (FAT_SECTOR_BYTES / FAT_ENTRY_BYTES))
  fat[0] = 0x0fffff00 | MEDIA_FIXED
  // All bits set: unmounted cleanly, no errors seen.
  fat[1] = END_OF_CHAIN
  for (let cluster = FIRST_CLUSTER; cluster < end; cluster++) fat[cluster] = cluster + 1
  for (let entry = 0; entry < tree.entryCount; entry++) {
    if (first[entry] === 0) continue
    const inode = tree.inode[entry]
    const bytes = tree.kind[inode] === Kind.directory ? directoryBytes(tree, names, entry) : tree.sizeBytes[inode]
    fat[first[entry] + Math.ceil(bytes / geometry.clusterBytes) - 1] = END_OF_CHAIN
  }
  const bytes = new Uint8Array(fat.buffer)
  for (let copy = 0; copy < FAT_COUNT; copy++) sink.bytes((geometry.reservedSectors + copy * geometry.fatSectors) * FAT_SECTOR_BYTES, bytes)
  return bytes.length * FAT_COUNT
}

function writeDirectory({ tree, names, first, geometry, sink, options }: Volume, entry: number): number {
  const { clusterBytes } = geometry
  const bytes = Buffer.alloc(Math.ceil(directoryBytes(tree, names, entry) / clusterBytes) * clusterBytes)
  let at = 0
  const write = (target: number, short: string, attributes: number) => {
    const inode = tree.inode[target]
    const directory = tree.kind[inode] === Kind.directory
    // The root is cluster 0 to its children's `..`.
    const cluster = target === 0 ? 0 : first[target]
    writeShortEntry(bytes, at, { short, attributes, cluster, sizeBytes: directory ? 0 : tree.sizeBytes[inode], mtimeSeconds: tree.mtimeSeconds[inode] })
    at += DIRECTORY_ENTRY_BYTES
  }
  if (entry === 0) {
    writeShortEntry(bytes, at, { short: options.label.padEnd(SHORT_NAME_BYTES), attributes: Attribute.volumeLabel, cluster: 0, sizeBytes: 0, mtimeSeconds: options.timeSeconds })
    at += DIRECTORY_ENTRY_BYTES
  } else {
    write(entry, '.'.padEnd(SHORT_NAME_BYTES), Attribute.directory)
    write(tree.parent[entry], '..'.padEnd(SHORT_NAME_BYTES), Attribute.directory)
  }
  const from = tree.firstChild[entry]
  for (let child = from; child < from + tree.childCount[entry]; child++) {
    const inode = tree.inode[child]
    const readOnly = (tree.mode[inode] & 0o200) === 0 ? Attribute.readOnly : 0
    at = writeLongEntries(bytes, at, names[child])
    write(child, names[child].short, tree.kind[inode] === Kind.directory ? Attribute.directory : Attribute.archive | readOnly)
  }
  sink.bytes(clusterOffset(geometry, first[entry]), bytes)
  return bytes.length
}

function writeFile({ tree, first, geometry, sink }: Volume, entry: number): void {
  const inode = tree.inode[entry]
  let at = clusterOffset(geometry, first[entry])
  for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
    const length = tree.pieceBytes[piece]
    if (tree.pieceChunk[piece] !== HOLE) sink.chunk(at, length, tree.pieceChunk[piece], 0)
    at += length
  }
}

function clusterOffset(geometry: FatGeometry, cluster: number): number {
  return geometry.dataOffset + (cluster - FIRST_CLUSTER) * geometry.clusterBytes
}
