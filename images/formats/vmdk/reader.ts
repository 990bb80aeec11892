/**
 * The disk in a VMDK image: one file, or a descriptor that names extents, over a parent or not. Virtual Disk Format 5.0.
 * What is read and what refused: docs/formats-of-images.md
 */
import type { BlockDevice, ReadableDisk } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import type { Piece, PiecewiseOptions } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import type { ImageFile, OpenImageOptions } from '../disk-image.ts'
import { lastUpTo } from '../ordered-keys.ts'
import { openParent, pathOfWindows } from '../parent-image.ts'
import { readPart } from '../table-pages.ts'
import { NO_PARENT, VMDK_DESCRIPTOR_BYTES_MAX, checkedBytes, invalid, parseDescriptor, SECTOR_BYTES } from './descriptor.ts'
import type { VmdkDescriptor, VmdkExtentLine } from './descriptor.ts'
import { SparseExtent, checkDirectoryBytes, readCowdHeader, readSparseHeader } from './sparse-extent.ts'

/** A part of the disk; a hole in it is what the parent has. */
interface Extent {
  readonly sizeBytes: number
  /** Memory that its directory takes, if it has one. */
  readonly directoryBytes?: number
  locate(offset: number, length: number): Piece
}

/** As OpenImage of ../disk-image.ts. */
export async function openVmdk(file: ImageFile, options: OpenImageOptions = {}): Promise<BlockDevice> {
  const magic = (await readPart(file, 0, 4, 'the header')).toString('latin1')
  if (magic === 'COWD') throw extentAlone()
  await using opened = new AsyncDisposableStack()
  const { descriptor, extents } = magic === 'KDMV' ? await openSparse(file, options, opened) : await openDescribed(parseDescriptor(await readDescriptorFile(file)), options, opened)
  const parent = descriptor.parentCid === NO_PARENT ? undefined : opened.use(await openVmdkParent(descriptor, options))
  const disk = joined(extents, parent)
  const parts = opened.move()
  // Last, so that whoever asked still owns the file if anything before failed.
  parts.use(file)
  return new PiecewiseDevice({ ...disk, close: () => parts.disposeAsync() })
}

function readDescriptorFile(file: ReadableDisk): Promise<Buffer> {
  return readPart(file, 0, Math.min(file.sizeBytes, VMDK_DESCRIPTOR_BYTES_MAX), 'the descriptor')
}

function extentAlone(): VarveError {
  return new VarveError('SOURCE_UNSUPPORTED', 'the file is one extent of a VMDK disk; open the descriptor that names it')
}

interface Described {
  descriptor: VmdkDescriptor
  extents: Extent[]
}

/** One file that has its descriptor inside. */
async function openSparse(file: ImageFile, options: OpenImageOptions, opened: AsyncDisposableStack): Promise<Described> {
  const header = await readSparseHeader(file)
  if (header.descriptorOffset === 0) throw extentAlone()
  const descriptor = parseDescriptor(await readPart(file, header.descriptorOffset, header.descriptorBytes, 'the descriptor'))
  // An image without room of its own is a descriptor only.
  if (header.sizeBytes === 0 && descriptor.extents.some(({ length }) => length > 0)) return openDescribed(descriptor, options, opened)
  if (header.unclean) options.warn?.('the VMDK image was not closed by its last writer')
  return { descriptor, extents: [await SparseExtent.open(file, header)] }
}

async function openDescribed(descriptor: VmdkDescriptor, options: OpenImageOptions, opened: AsyncDisposableStack): Promise<Described> {
  if (descriptor.extents.length === 0) throw invalid('its descriptor names no extents')
  const extents: Extent[] = []
  let directoryBytes = 0
  for (const line of descriptor.extents) {
    const extent = line.type === 'ZERO' ? zeroExtent(line.length) : await openExtent(line, options, opened)
    directoryBytes += extent.directoryBytes ?? 0
    checkDirectoryBytes(directoryBytes)
    extents.push(extent)
  }
  return { descriptor, extents }
}

function zeroExtent(sizeBytes: number): Extent {
  return { sizeBytes, locate: (_offset, length) => ({ length, at: 0, type: 'zero' }) }
}

async function openExtent(line: VmdkExtentLine, { files, warn }: OpenImageOptions, opened: AsyncDisposableStack): Promise<Extent> {
  const { type, length, fileName, offset } = line
  if (files === undefined) throw new VarveError('SOURCE_UNSUPPORTED', `the VMDK image has its extents in other files, ${JSON.stringify(fileName)}, which may not be opened here`)
  const { file } = await files.open(fileName)
  opened.use(file)
  if (type === 'FLAT' || type === 'VMFS') {
    if (offset + length > file.sizeBytes) throw invalid(`the extent ${JSON.stringify(fileName)} is cut short: it has ${file.sizeBytes} bytes; the descriptor says ${offset + length}`)
    return { sizeBytes: length, locate: (at, most) => ({ length: most, source: file, at: offset + at }) }
  }
  const magic = (await readPart(file, 0, 4, 'the header')).toString('latin1')
  if (magic !== 'KDMV' && magic !== 'COWD') throw invalid(`the extent ${JSON.stringify(fileName)} is not a sparse one`)
  const header = magic === 'KDMV' ? await readSparseHeader(file) : await readCowdHeader(file)
  if (header.unclean) warn?.(`the VMDK extent ${JSON.stringify(fileName)} was not closed by its last writer`)
  if (header.sizeBytes < length) throw invalid(`the extent ${JSON.stringify(fileName)} holds ${header.sizeBytes} bytes; the descriptor says ${length}`)
  const extent = await SparseExtent.open(file, header)
  return { sizeBytes: length, directoryBytes: extent.directoryBytes, locate: (at, most) => extent.locate(at, most) }
}

async function openVmdkParent({ parentCid, parentName }: VmdkDescriptor, options: OpenImageOptions): Promise<BlockDevice> {
  if (parentName === undefined) throw invalid('it lies over another, which it does not name')
  const baseName = parentName.replace(/^.*[\\/]/s, '')
  const mismatchOf = async (file: ReadableDisk): Promise<string | undefined> => {
    const isSparse = (await readPart(file, 0, 4, 'the header')).toString('latin1') === 'KDMV'
    const header = isSparse ? await readSparseHeader(file) : undefined
    const { cid } = parseDescriptor(header === undefined ? await readDescriptorFile(file) : await readPart(file, header.descriptorOffset, header.descriptorBytes, 'the descriptor'))
    return cid === parentCid ? undefined : `its CID is ${cid}, where the image above says ${parentCid}: one of them was changed by itself`
  }
  return openParent([parentName, pathOfWindows(parentName), baseName], options, { mismatchOf, open: openVmdk })
}

/** Extents one behind the other. */
function joined(extents: readonly Extent[], parent: BlockDevice | undefined): Pick<PiecewiseOptions, 'sizeBytes' | 'locate'> {
  const starts = new Float64Array(extents.length)
  let sizeBytes = 0
  extents.forEach((extent, index) => {
    starts[index] = sizeBytes
    sizeBytes = checkedBytes((sizeBytes + extent.sizeBytes) / SECTOR_BYTES)
  })
  let current = 0
  function locate(offset: number, length: number): Piece {
    // An empty extent has the start of the next.
    if (offset < starts[current] || offset >= starts[current] + extents[current].sizeBytes) current = lastUpTo(starts, offset)
    const start = starts[current]
    const extent = extents[current]
    const piece = extent.locate(offset - start, Math.min(length, start + extent.sizeBytes - offset))
    if (piece.type !== 'hole' || parent === undefined || offset >= parent.sizeBytes) return piece
    return { length: Math.min(piece.length, parent.sizeBytes - offset), source: parent, at: offset }
  }
  return { sizeBytes, locate }
}
