/**
 * Persistent dirty bitmaps of a qcow2 image: what changed on the disk since each was begun. Section "Bitmaps" of docs/interop/qcow2.rst in QEMU.
 */
import { RangesBuilder } from '../../blockmap/ranges.ts'
import type { Ranges } from '../../blockmap/ranges.ts'
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { readPart, repeatedPlace } from '../table-pages.ts'
import { placeOf } from './clusters.ts'
import { checkedOffset, invalid, readQcow2Header } from './header.ts'
import type { Qcow2Header } from './header.ts'

/** As in QEMU. */
const BITMAPS_MAX = 65_535
const DIRECTORY_BYTES_MAX = 64 << 20
const GRANULARITY_BITS_MIN = 9
const GRANULARITY_BITS_MAX = 31
/** Ranges that are told of one bitmap. */
const RANGES_MAX = 1 << 22
/** Clusters of one bitmap. */
const TABLE_ENTRIES_MAX = 1 << 20

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
 * Ranges of the disk that a bitmap says have changed.
 * @param file borrowed
 * @throws VarveError NOT_FOUND; FORMAT_INVALID for one that was not saved when its writer ended, too; FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
 */
export async function readQcow2Bitmap(file: ReadableDisk, name: string): Promise<Ranges> {
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
async function changedRanges(file: ReadableDisk, header: Qcow2Header, bitmap: Bitmap): Promise<Ranges> {
  const { sizeBytes, clusterBytes } = header
  const granularityBytes = 2 ** bitmap.granularityBits
  const spanBytes = clusterBytes * 8 * granularityBytes
  const entries = Math.ceil(sizeBytes / spanBytes)
  if (bitmap.tableEntries < entries) throw invalid(`a bitmap has ${bitmap.tableEntries} clusters; the disk takes ${entries}`)
  if (entries > TABLE_ENTRIES_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: a bitmap of ${entries} clusters; at most ${TABLE_ENTRIES_MAX} are read`)
  const table = await readPart(file, bitmap.tableOffset, entries * 8, 'a bitmap')
  const places = Float64Array.from({ length: entries }, (_, index) => placeOf(table, index * 8))
  const twice = repeatedPlace(places)
  if (twice !== undefined) throw invalid(`the cluster of a bitmap at byte ${twice} is used twice`)
  const ranges = new RangesBuilder()
  const add = (offset: number, length: number): void => {
    ranges.add(offset, Math.min(length, sizeBytes - offset))
    if (ranges.count > RANGES_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: a bitmap has more than ${RANGES_MAX} ranges`)
  }
  for (let index = 0; index < entries; index++) {
    const start = index * spanBytes
    if (places[index] === 0) {
      if ((table[index * 8 + 7] & 1) !== 0) add(start, spanBytes)
      continue
    }
    const bits = await readPart(file, places[index], Math.min(clusterBytes, Math.ceil((sizeBytes - start) / granularityBytes / 8)), 'a bitmap')
    for (let byte = 0; byte < bits.length; byte++) {
      for (let bit = 0, left = bits[byte]; left !== 0; bit++, left >>= 1) {
        if ((left & 1) !== 0) add(start + (byte * 8 + bit) * granularityBytes, granularityBytes)
      }
    }
  }
  return ranges.build()
}
