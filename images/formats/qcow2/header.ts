/**
 * Header of a qcow2 image with its extensions: sections "Header" and "Header extensions" of docs/interop/qcow2.rst in QEMU. All numbers are big-endian.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { readPart } from '../table-pages.ts'

export const QCOW2_MAGIC = 0x5146_49fb
const HEADER_V2_BYTES = 72
/** Smallest header of version 3, and the one that we write, which has the compression type. */
const HEADER_V3_BYTES_MIN = 104
export const HEADER_BYTES = 112
const CLUSTER_BITS_MIN = 9
const CLUSTER_BITS_MAX = 21
/** As in QEMU, bytes. */
export const L1_BYTES_MAX = 32 << 20
const BACKING_NAME_BYTES_MAX = 1023
const DATA_FILE_NAME_BYTES_MAX = 1023

/** Types of header extensions. */
export const Extension = {
  end: 0,
  backingFormat: 0xe279_2aca,
  featureNames: 0x6803_f857,
  bitmaps: 0x2385_2875,
  dataFile: 0x4441_5441,
} as const

/** Bits of incompatible_features. */
const DIRTY = 1
const CORRUPT = 2
const EXTERNAL_DATA = 4
const COMPRESSION_TYPE = 8
const EXTENDED_L2 = 16
/** Bit of autoclear_features: the bitmaps extension is as the last writer left it. */
const BITMAPS = 1

/** Table of dirty bitmaps: section "Bitmaps extension". */
export interface BitmapDirectory {
  count: number
  /** Bytes from the start of the file, and bytes. */
  offset: number
  length: number
}

export interface Qcow2Header {
  version: 2 | 3
  /** Bytes of the disk. */
  sizeBytes: number
  clusterBits: number
  clusterBytes: number
  l1Entries: number
  l1Offset: number
  snapshotCount: number
  snapshotsOffset: number
  /** True if the image says that it is damaged. */
  corrupt: boolean
  /** L2 entries have a bitmap of 32 subclusters. */
  extendedL2: boolean
  compression: 'zlib' | 'zstd'
  backingName?: string
  backingFormat?: string
  /** Set if guest data stands in another file, whose name may be missing: ''. */
  dataFileName?: string
  bitmaps?: BitmapDirectory
}

/** @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED */
export async function readQcow2Header(file: ReadableDisk): Promise<Qcow2Header> {
  const head = await readPart(file, 0, HEADER_V2_BYTES, 'the header')
  if (head.readUInt32BE(0) !== QCOW2_MAGIC) throw invalid('it is not a qcow2 image')
  const version = head.readUInt32BE(4)
  if (version !== 2 && version !== 3) throw new VarveError('FORMAT_UNSUPPORTED', `qcow version ${version}, which is not read; convert it with 'qemu-img convert -O qcow2'`)
  const clusterBits = head.readUInt32BE(20)
  if (clusterBits < CLUSTER_BITS_MIN || clusterBits > CLUSTER_BITS_MAX) throw invalid(`clusters of 2^${clusterBits} bytes`)
  const clusterBytes = 2 ** clusterBits
  const cluster = await readPart(file, 0, Math.min(clusterBytes, file.sizeBytes), 'the header')
  const headerBytes = version === 2 ? HEADER_V2_BYTES : checkedHeaderBytes(cluster)
  const extensions = readExtensions(cluster, headerBytes)
  const incompatible = version === 2 ? 0n : cluster.readBigUInt64BE(72)
  const features = checkedFeatures(incompatible, extensions)
  const header: Qcow2Header = {
    version,
    sizeBytes: checkedNumber(head, 24, 'disk size'),
    clusterBits,
    clusterBytes,
    l1Entries: head.readUInt32BE(36),
    l1Offset: checkedOffset(head, 40, clusterBytes, 'the L1 table'),
    snapshotCount: head.readUInt32BE(60),
    snapshotsOffset: checkedNumber(head, 64, 'place of the snapshots'),
    corrupt: (features & CORRUPT) !== 0,
    extendedL2: (features & EXTENDED_L2) !== 0,
    compression: compressionOf(cluster, headerBytes, features),
    backingName: backingName(cluster),
    backingFormat: extensions.get(Extension.backingFormat)?.toString('utf8'),
    bitmaps: version === 3 && (cluster.readBigUInt64BE(88) & BigInt(BITMAPS)) !== 0n ? bitmapDirectory(extensions) : undefined,
  }
  if (head.readUInt32BE(32) !== 0) throw new VarveError('FORMAT_UNSUPPORTED', `the image is encrypted; decrypt it with 'qemu-img convert'`)
  if (header.extendedL2 && clusterBits < 14) throw invalid(`subclusters in clusters of ${clusterBytes} bytes`)
  if ((features & EXTERNAL_DATA) !== 0) {
    header.dataFileName = extensions.get(Extension.dataFile)?.toString('utf8') ?? ''
    if (header.dataFileName.length > DATA_FILE_NAME_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: the data file has a name of more than ${DATA_FILE_NAME_BYTES_MAX} bytes`)
  }
  return header
}

function checkedHeaderBytes(cluster: Buffer): number {
  if (cluster.length < HEADER_V3_BYTES_MIN) throw invalid('it ends within the header')
  const bytes = cluster.readUInt32BE(100)
  if (bytes < HEADER_V3_BYTES_MIN || bytes > cluster.length) throw invalid(`a header of ${bytes} bytes`)
  return bytes
}

/** By type; the area ends where the backing file's name begins, or with the cluster. */
function readExtensions(cluster: Buffer, headerBytes: number): Map<number, Buffer> {
  const extensions = new Map<number, Buffer>()
  const backingOffset = cluster.readBigUInt64BE(8)
  const end = backingOffset > 0n && backingOffset < BigInt(cluster.length) ? Number(backingOffset) : cluster.length
  for (let at = headerBytes; at + 8 <= end;) {
    const type = cluster.readUInt32BE(at)
    if (type === Extension.end) break
    const length = cluster.readUInt32BE(at + 4)
    if (at + 8 + length > end) throw invalid(`extension 0x${type.toString(16)} of the header has ${length} bytes, more than there is room for`)
    extensions.set(type, cluster.subarray(at + 8, at + 8 + length))
    at += 8 + Math.ceil(length / 8) * 8
  }
  return extensions
}

function checkedFeatures(incompatible: bigint, extensions: Map<number, Buffer>): number {
  const known = BigInt(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2)
  const unknown = incompatible & ~known
  if (unknown !== 0n) {
    const bits = Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => (unknown >> BigInt(bit)) & 1n)
    const names = bits.map((bit) => featureName(extensions.get(Extension.featureNames), bit) ?? `bit ${bit}`)
    throw new VarveError('FORMAT_UNSUPPORTED', `qcow2: features that are not known: ${names.join(', ')}; convert it with 'qemu-img convert -O qcow2'`)
  }
  return Number(incompatible)
}

/** Section "Feature name table": entries of 48 bytes: type (0: incompatible), bit, name. */
function featureName(table: Buffer | undefined, bit: number): string | undefined {
  for (let at = 0; table !== undefined && at + 48 <= table.length; at += 48) {
    if (table[at] === 0 && table[at + 1] === bit) return table.toString('latin1', at + 2, at + 48).replace(/\0.*$/s, '').replace(/[^\x20-\x7e]/g, '?')
  }
  return undefined
}

function compressionOf(cluster: Buffer, headerBytes: number, features: number): 'zlib' | 'zstd' {
  const type = headerBytes > HEADER_V3_BYTES_MIN ? cluster[HEADER_V3_BYTES_MIN] : 0
  if ((features & COMPRESSION_TYPE) !== 0 ? type === 0 : type !== 0) throw invalid(`compression type ${type} does not fit the features`)
  if (type > 1) throw new VarveError('FORMAT_UNSUPPORTED', `qcow2: compression of type ${type} is not known; convert it with 'qemu-img convert -O qcow2'`)
  return type === 0 ? 'zlib' : 'zstd'
}

function backingName(cluster: Buffer): string | undefined {
  const offset = cluster.readBigUInt64BE(8)
  if (offset === 0n) return undefined
  const length = cluster.readUInt32BE(16)
  if (length > BACKING_NAME_BYTES_MAX || offset + BigInt(length) > BigInt(cluster.length)) throw invalid(`the backing file's name has ${length} bytes at byte ${offset}`)
  return length === 0 ? undefined : cluster.toString('utf8', Number(offset), Number(offset) + length)
}

function bitmapDirectory(extensions: Map<number, Buffer>): BitmapDirectory | undefined {
  const extension = extensions.get(Extension.bitmaps)
  if (extension === undefined) return undefined
  if (extension.length < 24) throw invalid('the extension of bitmaps is too short')
  return { count: extension.readUInt32BE(0), length: checkedNumber(extension, 8, 'size of the bitmap directory'), offset: checkedNumber(extension, 16, 'place of the bitmap directory') }
}

/** A 64-bit number that is exact in JavaScript. */
export function checkedNumber(bytes: Buffer, at: number, what: string): number {
  const value = bytes.readBigUInt64BE(at)
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new VarveError('LIMIT_EXCEEDED', `qcow2: ${what} ${value} is above ${Number.MAX_SAFE_INTEGER}`)
  return Number(value)
}

/** Place of a table, on a cluster's border. */
export function checkedOffset(bytes: Buffer, at: number, clusterBytes: number, what: string): number {
  const offset = checkedNumber(bytes, at, `place of ${what}`)
  if (offset % clusterBytes !== 0) throw invalid(`${what} is at byte ${offset}, which is not the border of a cluster`)
  return offset
}

export function invalid(problem: string): VarveError {
  return new VarveError('FORMAT_INVALID', `qcow2: ${problem}`)
}
