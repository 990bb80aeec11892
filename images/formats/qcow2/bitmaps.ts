/**
 * Persistent dirty bitmaps of a qcow2 image: what changed on the disk since each was begun. Section "Bitmaps" of docs/interop/qcow2.rst in QEMU.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import type { DiskRange } from '../stored-blocks.ts'
import { TablePages, readPart } from '../table-pages.ts'
import { checkedOffset, invalid, readQcow2Header } from './header.ts'
import type { Qcow2Header } from './header.ts'

/** As in QEMU. */
const BITMAPS_MAX = 65_535
const DIRECTORY_BYTES_MAX = 64 << 20
const GRANULARITY_BITS_MIN = 9
const GRANULARITY_BITS_MAX = 31
/** Ranges that are told of one bitmap. */
const BITMAP_RANGES_MAX = 1 << 22

const ENTRY_BYTES = 24
const DIRTY_TRACKING = 1
/** Flags of an entry. */
const IN_USE = 1
const EXTRA_DATA_COMPATIBLE = 4

interface Bitmap {
  tableOffset: number
  tableEntries: number
  granularityBits: number
}

/**
 * Ranges of the disk that a bitmap says have changed: ordered, disjoint.
 * @param file borrowed
 * @throws VarveError NOT_FOUND; FORMAT_INVALID for one that was not saved when its writer ended, too; FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export async function readQcow2Bitmap(file: ReadableDisk, name: string): Promise<DiskRange[]> {
  const header = await readQcow2Header(file)
  return changedRanges(file, header, await findBitmap(file, header, name))
}

async function findBitmap(file: ReadableDisk, header: Qcow2Header, name: string): Promise<Bitmap> {
  const { count, offset, length } = header.bitmaps ?? { count: 0, offset: 0, length: 0 }
  if (count > BITMAPS_MAX || length > DIRECTORY_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: ${count} bitmaps in ${length} bytes; at most ${BITMAPS_MAX} in ${DIRECTORY_BYTES_MAX} are read`)
  const directory = await readPart(file, offset, length, 'the directory of bitmaps')
  for (let at = 0, index = 0; index < count; index++) {
    if (at + ENTRY_BYTES > length) throw invalid('the directory of bitmaps is cut short')
    const nameBytes = directory.readUInt16BE(at + 18)
    const extraBytes = directory.readUInt32BE(at + 20)
    const end = at + ENTRY_BYTES + extraBytes + nameBytes
    if (end > length) throw invalid('the directory of bitmaps is cut short')
    if (directory.toString('utf8', end - nameBytes, end) === name) return checkedBitmap(directory.subarray(at, end), header, name)
    at = Math.ceil(end / 8) * 8
  }
  throw new VarveError('NOT_FOUND', `the image has no bitmap ${JSON.stringify(name)}, or a writer that knows none has changed it since; 'qemu-img info' lists them`)
}

function checkedBitmap(entry: Buffer, header: Qcow2Header, name: string): Bitmap {
  const flags = entry.readUInt32BE(12)
  const granularityBits = entry[17]
  if ((flags & IN_USE) !== 0) throw invalid(`the bitmap ${JSON.stringify(name)} was in use and not saved: what changed is not known`)
  if (entry[16] !== DIRTY_TRACKING) throw new VarveError('FORMAT_UNSUPPORTED', `qcow2: the bitmap ${JSON.stringify(name)} is of type ${entry[16]}, which is not known`)
  if (entry.readUInt32BE(20) > 0 && (flags & EXTRA_DATA_COMPATIBLE) === 0) throw new VarveError('FORMAT_UNSUPPORTED', `qcow2: the bitmap ${JSON.stringify(name)} has extra data that is not known`)
  if (granularityBits < GRANULARITY_BITS_MIN || granularityBits > GRANULARITY_BITS_MAX) throw invalid(`a bitmap with bits for 2^${granularityBits} bytes`)
  return { tableOffset: checkedOffset(entry, 0, header.clusterBytes, 'a bitmap'), tableEntries: entry.readUInt32BE(8), granularityBits }
}

/** Entries of the table are places of clusters of bits, the lowest bit first; 0 for all clear, 1 for all set. */
async function changedRanges(file: ReadableDisk, header: Qcow2Header, bitmap: Bitmap): Promise<DiskRange[]> {
  const { sizeBytes, clusterBytes } = header
  const granularityBytes = 2 ** bitmap.granularityBits
  const spanBytes = clusterBytes * 8 * granularityBytes
  const entries = Math.ceil(sizeBytes / spanBytes)
  if (bitmap.tableEntries < entries) throw invalid(`a bitmap has ${bitmap.tableEntries} clusters; the disk takes ${entries}`)
  if (bitmap.tableOffset + entries * 8 > file.sizeBytes) throw invalid('the image is cut short: a bitmap is behind its end')
  const table = new TablePages(file)
  const ranges = new Ranges(sizeBytes)
  for (let index = 0; index < entries; index++) {
    const entry = table.at(bitmap.tableOffset + index * 8, 8)
    const at = Number(entry.readBigUInt64BE(0) & 0x00ff_ffff_ffff_fe00n)
    if (at === 0) {
      if ((entry[7] & 1) !== 0) ranges.add(index * spanBytes, spanBytes)
      continue
    }
    const bits = await readPart(file, at, Math.min(clusterBytes, Math.ceil((sizeBytes - index * spanBytes) / granularityBytes / 8)), 'a bitmap')
    for (let byte = 0; byte < bits.length; byte++) {
      if (bits[byte] === 0) continue
      for (let bit = 0; bit < 8; bit++) {
        if ((bits[byte] >> bit) & 1) ranges.add(index * spanBytes + (byte * 8 + bit) * granularityBytes, granularityBytes)
      }
    }
  }
  return ranges.ranges
}

/** Ranges that are added in order; those that touch become one. */
class Ranges {
  readonly ranges: DiskRange[] = []
  readonly #sizeBytes: number

  constructor(sizeBytes: number) {
    this.#sizeBytes = sizeBytes
  }

  add(offset: number, lengthMax: number): void {
    const length = Math.min(lengthMax, this.#sizeBytes - offset)
    if (length <= 0) return
    const last = this.ranges.at(-1)
    if (last !== undefined && last.offset + last.length === offset) {
      last.length += length
      return
    }
    if (this.ranges.length === BITMAP_RANGES_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: a bitmap has more than ${BITMAP_RANGES_MAX} ranges`)
    this.ranges.push({ offset, length })
  }
}
