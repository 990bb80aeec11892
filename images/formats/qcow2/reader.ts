/**
 * The disk in a qcow2 image: docs/interop/qcow2.rst in QEMU, versions 2 and 3. Reference counts are for writers only, and not looked at.
 * What is read and what refused: docs/formats-of-images.md
 */
import type { BlockDevice, ReadableDisk } from '../../device/block-device.ts'
import { PiecewiseDevice } from '../../device/piecewise-device.ts'
import { VarveError } from '../../errors.ts'
import { below } from '../disk-image.ts'
import type { ImageFile, OpenImageOptions } from '../disk-image.ts'
import { openBacking } from '../open-image.ts'
import { readPart, repeatedPlace } from '../table-pages.ts'
import { Clusters, l2EntriesOf, placeOf } from './clusters.ts'
import { L1_BYTES_MAX, invalid, readQcow2Header } from './header.ts'
import type { Qcow2Header } from './header.ts'
import { findQcow2Snapshot } from './snapshots.ts'

/** As OpenImage of ../disk-image.ts. @throws VarveError NOT_FOUND too, for a snapshot */
export async function openQcow2(file: ImageFile, options: OpenImageOptions = {}): Promise<BlockDevice> {
  const header = await readQcow2Header(file)
  if (header.corrupt) options.warn?.('the qcow2 image says that it is corrupt; it is read as far as that goes')
  const { l1Entries, l1Offset, sizeBytes } = options.snapshot === undefined ? header : await findQcow2Snapshot(file, header, options.snapshot)
  const l1 = await readL1(file, header, { l1Entries, l1Offset, sizeBytes })
  await using opened = new AsyncDisposableStack()
  const dataFile = header.dataFileName === undefined ? file : opened.use(await openDataFile(header.dataFileName, options))
  const backing = header.backingName === undefined || options.alone === true ? undefined : opened.use(await openBackingOf(header.backingName, header.backingFormat, options))
  const clusters = new Clusters({ file, dataFile, backing, header, l1 })
  const parts = opened.move()
  // Last, so that whoever asked still owns the file if anything before failed.
  parts.use(file)
  return new PiecewiseDevice({ sizeBytes, locate: (offset, length) => clusters.locate(offset, length), close: () => parts.disposeAsync() })
}

async function openDataFile(name: string, { files }: OpenImageOptions): Promise<ImageFile> {
  if (name === '') throw invalid('the file that holds its data is not named')
  if (files === undefined) throw new VarveError('SOURCE_UNSUPPORTED', `the qcow2 image keeps its data in another file, ${JSON.stringify(name)}, which may not be opened here`)
  return (await files.open(name)).file
}

async function openBackingOf(name: string, format: string | undefined, options: OpenImageOptions): Promise<BlockDevice> {
  if (options.files === undefined) throw new VarveError('SOURCE_UNSUPPORTED', `the qcow2 image lies over another, ${JSON.stringify(name)}, which may not be opened here`)
  const { file, files } = await options.files.open(name)
  try {
    return await openBacking(file, format, below(options, files))
  } catch (error) {
    await file[Symbol.asyncDispose]()
    throw error
  }
}

interface L1 {
  l1Entries: number
  l1Offset: number
  sizeBytes: number
}

/** Places of L2 tables, 0 where there is none. */
async function readL1(file: ReadableDisk, header: Qcow2Header, { l1Entries, l1Offset, sizeBytes }: L1): Promise<Float64Array> {
  const { clusterBytes } = header
  const needed = Math.ceil(sizeBytes / (clusterBytes * l2EntriesOf(header)))
  if (needed * 8 > L1_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `qcow2: an L1 table of ${needed * 8} bytes; at most ${L1_BYTES_MAX} are read`)
  if (l1Entries < needed) throw invalid(`the L1 table has ${l1Entries} entries; the disk takes ${needed}`)
  const bytes = await readPart(file, l1Offset, needed * 8, 'the L1 table')
  const l1 = new Float64Array(needed)
  for (let index = 0; index < needed; index++) {
    l1[index] = placeOf(bytes, index * 8)
    if (l1[index] % clusterBytes !== 0) throw invalid(`the L2 table ${index} is at byte ${l1[index]}, which is not the border of a cluster`)
  }
  const twice = repeatedPlace(l1)
  if (twice !== undefined) throw invalid(`the L2 table at byte ${twice} is used twice`)
  return l1
}
