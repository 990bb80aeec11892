/**
 * Backing chain of a qcow2 image: what it, and the images between, have written since the disk was that of an image below.
 */
import path from 'node:path'
import { RangesBuilder } from '../../blockmap/ranges.ts'
import type { Ranges } from '../../blockmap/ranges.ts'
import { FileDevice } from '../../device/file-device.ts'
import { CHAIN_MAX } from '../disk-image.ts'
import { detectFormat } from '../open-image.ts'
import { readQcow2Header } from './header.ts'
import type { Qcow2Header } from './header.ts'
import { openQcow2 } from './reader.ts'

/** Extents that are asked for at a time. */
const EXTENTS_AT_ONCE = 8192

/**
 * @param file an image that was opened with all below it before: what may be opened was checked then
 * @param isKnown of an image below, by its path
 * @returns the first that is known, and what was written above it; undefined if none is, or if what is known of it is not all: its data is in another file
 * @throws VarveError FORMAT_INVALID, FORMAT_UNSUPPORTED
 */
export async function changedAbove(file: string, isKnown: (file: string) => boolean): Promise<{ file: string; changed: Ranges } | undefined> {
  const changed = new RangesBuilder()
  let format: string | undefined
  for (let at = file, depth = 0; depth < CHAIN_MAX; depth++) {
    const header = await readHeader(at, format)
    if (depth > 0 && isKnown(at)) return header?.dataFileName === undefined ? { file: at, changed: changed.build() } : undefined
    // Names of other machines, and options, are of no file that is known here.
    if (header?.backingName === undefined || /^[a-z][a-z0-9+.-]+:/i.test(header.backingName)) return undefined
    await addOwn(at, header.sizeBytes, changed)
    at = path.resolve(path.dirname(at), header.backingName)
    format = header.backingFormat
  }
  return undefined
}

/** @param format as the image above states it: a raw disk may hold anything, an image too @returns undefined if it is no qcow2 image */
async function readHeader(file: string, format: string | undefined): Promise<Qcow2Header | undefined> {
  if (format !== undefined && format !== 'qcow2') return undefined
  await using opened = FileDevice.open({ path: file, readOnly: true })
  return (await detectFormat(opened)) === 'qcow2' ? await readQcow2Header(opened) : undefined
}

/** What an image has itself, data or zeroes. */
async function addOwn(file: string, sizeBytes: number, changed: RangesBuilder): Promise<void> {
  await using disk = await openQcow2(FileDevice.open({ path: file, readOnly: true }), { alone: true })
  for (let at = 0; at < sizeBytes; ) {
    for (const { offset, length, type } of disk.extents(at, sizeBytes - at, EXTENTS_AT_ONCE)) {
      if (type !== 'hole') changed.add(offset, length)
      at = offset + length
    }
  }
}
