/**
 * Reads VHD images: fixed, dynamic, and differencing over their parents.
 * Virtual Hard Disk Image Format Specification 1.0; what it leaves open: docs/formats-of-images.md#vhd. All bytes come from outside.
 */
import type { BlockDevice, ReadableDisk } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import { PLACE, blockDisk } from '../block-disk.ts'
import type { ImageFile, OpenImageOptions } from '../disk-image.ts'
import { openParent, pathOfUrl, pathOfWindows } from '../parent-image.ts'
import { SectorBitmaps } from '../sector-bitmaps.ts'
import { readPart, repeatedPlace } from '../table-pages.ts'
import { DISK_TYPE, FOOTER_BYTES, HEADER_BYTES, PLATFORM, SECTOR_BYTES, UNUSED, bitmapBytesOf, decodeFooter, decodeHeader, footerState, invalid } from './format.ts'
import type { VhdFooter, VhdHeader } from './format.ts'

/** Entries of a block allocation table: 2 TiB in blocks of 512 KiB. */
const ENTRIES_MAX = 1 << 22
const BLOCK_BYTES_MAX = 256 << 20
/** Of a parent locator: the longest path of Windows, in UTF-16. */
const LOCATOR_BYTES_MAX = 64 << 10

/** The disk inside a VHD image. As OpenImage. */
export async function openVhd(file: ImageFile, options: OpenImageOptions = {}): Promise<BlockDevice> {
  const { footer, endBytes } = await readFooter(file, options)
  return footer.type === DISK_TYPE.fixed ? fixedDisk(file, footer, endBytes) : dynamicDisk(file, footer, options)
}

/** @param tail the last 512 bytes of a file. True if it ends as a VHD image; what begins as one may have lost its end, and is one as well. */
export function endsAsVhd(tail: Uint8Array): boolean {
  const bytes = Buffer.from(tail)
  return footerState(bytes) === 'sound' || footerState(shortFooter(bytes)) === 'sound'
}

/** The footer at the end, or its copy at the start. Fixed disks have no copy. */
async function readFooter(file: ReadableDisk, { warn }: OpenImageOptions): Promise<{ footer: VhdFooter; endBytes: number }> {
  let isDamaged = false
  // Before 2004, a footer had 511 bytes.
  for (const [length, isCopy] of [[FOOTER_BYTES, false], [FOOTER_BYTES - 1, false], [FOOTER_BYTES, true]] as const) {
    if (length > file.sizeBytes) continue
    const bytes = Buffer.alloc(FOOTER_BYTES)
    await file.read(bytes.subarray(0, length), isCopy ? 0 : file.sizeBytes - length)
    const state = footerState(bytes)
    isDamaged ||= state === 'damaged'
    if (state !== 'sound') continue
    const footer = decodeFooter(bytes)
    if (isCopy && footer.type === DISK_TYPE.fixed) continue
    if (isCopy) warn?.('VHD: the footer at its end is missing or damaged; the copy at its start was read')
    if (footer.savedState) warn?.('VHD: it belongs to a machine that was suspended; what that had in its memory is not on the disk')
    return { footer, endBytes: length }
  }
  throw invalid(isDamaged ? 'the checksum of its footer is wrong, and there is no copy that is sound' : 'there is no footer, neither at its end nor at its start')
}

function shortFooter(tail: Buffer): Buffer {
  return Buffer.concat([tail.subarray(1), Buffer.alloc(1)])
}

function fixedDisk(file: ImageFile, { sizeBytes }: VhdFooter, endBytes: number): BlockDevice {
  if (sizeBytes > file.sizeBytes - endBytes) throw invalid(`its file has ${file.sizeBytes} bytes, too few for a disk of ${sizeBytes}`)
  return new PiecewiseDevice({ sizeBytes, locate: (offset, length) => ({ length, source: file, at: offset }), close: () => Promise.resolve(file[Symbol.asyncDispose]()) })
}

async function dynamicDisk(file: ImageFile, footer: VhdFooter, options: OpenImageOptions): Promise<BlockDevice> {
  const header = decodeHeader(await readPart(file, footer.headerOffset, HEADER_BYTES, 'the header of the dynamic disk'))
  const table = await readTable(file, footer, header)
  const { sizeBytes } = footer
  const { blockBytes } = header
  const bitmapBytes = bitmapBytesOf(blockBytes)
  const bitmaps = new SectorBitmaps(file, { placeOf: (block) => table[block] * SECTOR_BYTES, highBitFirst: true })
  await using opened = new AsyncDisposableStack()
  const parent = footer.type === DISK_TYPE.differencing ? opened.use(await parentDisk(file, header, options)) : undefined
  const placeOf = (block: number): number => (table[block] === UNUSED ? PLACE.below : table[block] * SECTOR_BYTES + bitmapBytes)
  const parts = opened.move()
  parts.use(file)
  return blockDisk({ file, sizeBytes, blockBytes, sectorBytes: SECTOR_BYTES, placeOf, bitmaps, parent, close: () => parts.disposeAsync() })
}

/** The block allocation table: first sector of each block's bitmap. */
async function readTable(file: ReadableDisk, { sizeBytes }: VhdFooter, { tableOffset, entries, blockBytes }: VhdHeader): Promise<Uint32Array> {
  if (blockBytes < SECTOR_BYTES || !Number.isInteger(Math.log2(blockBytes))) throw invalid(`its block size is ${blockBytes}, no power of two from ${SECTOR_BYTES} up`)
  if (blockBytes > BLOCK_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHD: blocks of ${blockBytes} bytes are larger than ${BLOCK_BYTES_MAX}`)
  const blocks = Math.ceil(sizeBytes / blockBytes)
  if (blocks > ENTRIES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHD: ${blocks} blocks of ${blockBytes} bytes are more than ${ENTRIES_MAX}`)
  if (blocks > entries) throw invalid(`its block allocation table has ${entries} entries, the disk ${blocks} blocks`)
  const bytes = await readPart(file, tableOffset, blocks * 4, 'the block allocation table')
  const table = Uint32Array.from({ length: blocks }, (_, block) => bytes.readUInt32BE(block * 4))
  const bitmapBytes = bitmapBytesOf(blockBytes)
  for (let block = 0; block < blocks; block++) {
    if (table[block] === UNUSED) continue
    const end = table[block] * SECTOR_BYTES + bitmapBytes + Math.min(blockBytes, sizeBytes - block * blockBytes)
    if (end > file.sizeBytes) throw invalid(`its file has ${file.sizeBytes} bytes, but block ${block} ends at ${end}; the file was cut short, or its block allocation table is damaged`)
  }
  const twice = repeatedPlace(table, UNUSED)
  if (twice !== undefined) throw invalid(`two blocks are in sector ${twice}: its block allocation table names it twice`)
  return table
}

/** Whatever its locators and name lead to that has the right id. Time stamps are not compared: Windows writes none, and copying a file changes them. */
async function parentDisk(file: ReadableDisk, header: VhdHeader, options: OpenImageOptions): Promise<BlockDevice> {
  const names: string[] = []
  for (const known of [PLATFORM.relative, PLATFORM.absolute, PLATFORM.url]) {
    for (const { platform, offset, length } of header.locators) {
      if (platform !== known) continue
      if (length > LOCATOR_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `VHD: a parent locator of ${length} bytes is longer than ${LOCATOR_BYTES_MAX}`)
      const bytes = await readPart(file, offset, length, 'a parent locator')
      names.push(platform === PLATFORM.url ? pathOfUrl(bytes.toString()) : pathOfWindows(bytes.toString('utf16le')))
    }
  }
  names.push(pathOfWindows(header.parentName))
  const mismatchOf = async (parent: ReadableDisk): Promise<string | undefined> => {
    const { id } = (await readFooter(parent, {})).footer
    return id === header.parentId ? undefined : `its unique id is ${id}, that of the parent ${header.parentId}`
  }
  return openParent(names, options, { mismatchOf, open: openVhd })
}
