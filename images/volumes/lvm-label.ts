/**
 * Physical volumes of LVM2: their label, and the metadata areas that it points to.
 * Bytes: docs/volumes.md; the on-disk structures of the text format of LVM2.
 */
import { crc32 } from 'node:zlib'
import type { ReadableDisk } from '../device/block-device.ts'
import { VarveError } from '../errors.ts'

const SECTOR_BYTES = 512
/** A label stands in one of the first sectors. */
const LABEL_SECTORS = 4
const LABEL_ID = 'LABELONE'
const LABEL_TYPE = 'LVM2 001'
/** What is summed of a label begins here. */
const LABEL_SUMMED_FROM = 20
/** Data and metadata areas of one physical volume. */
const AREAS_MAX = 64
const AREA_MAGIC = '\x20LVM2\x20x[5A%r0N*>'
const AREA_HEADER_BYTES = 512
const LOCATION_OFFSET = 40
const LOCATION_IGNORED = 1
/** Length of a metadata text; areas are of 1 MiB by default. */
const TEXT_BYTES_MAX = 16 << 20
/** Register in which LVM starts its CRC-32, which it does not invert at the end. */
const CHECKSUM_START = 0xf597a6cf

export interface PhysicalVolume {
  /** 32 characters, without dashes. */
  id: string
  /** Sound texts of its metadata areas; none where other physical volumes keep the metadata. */
  texts: string[]
  /** Bytes of texts that were read, sound or not. */
  textBytes: number
  /** What is wrong with it, in words. */
  notices: string[]
}

/** @param textBytesMax of all its texts, read; what has no room is told by `notices` @returns undefined if it is none */
export async function readPhysicalVolume(volume: ReadableDisk, { textBytesMax }: { textBytesMax: number }): Promise<PhysicalVolume | undefined> {
  const head = Buffer.alloc(Math.min(LABEL_SECTORS * SECTOR_BYTES, volume.sizeBytes))
  await volume.read(head, 0)
  for (let sector = 0; (sector + 1) * SECTOR_BYTES <= head.length; sector++) {
    const label = head.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
    if (label.toString('latin1', 0, 8) !== LABEL_ID || label.toString('latin1', 24, 32) !== LABEL_TYPE || label.readBigUInt64LE(8) !== BigInt(sector)) continue
    if (checksum(label.subarray(LABEL_SUMMED_FROM)) !== label.readUInt32LE(16)) return { id: '', texts: [], textBytes: 0, notices: ['its label is damaged'] }
    return readHeader(volume, label, textBytesMax)
  }
  return undefined
}

/** The header that follows the label: an id, the size, a list of data areas and one of metadata areas, each ended by zeroes. */
async function readHeader(volume: ReadableDisk, label: Buffer, textBytesMax: number): Promise<PhysicalVolume> {
  const header = label.readUInt32LE(20)
  const id = label.toString('latin1', header, header + 32)
  const found: PhysicalVolume = { id, texts: [], textBytes: 0, notices: [] }
  for (let at = header + 40, ended = 0, areas = 0; ended < 2; at += 16, areas++) {
    if (at + 16 > label.length || areas > AREAS_MAX) {
      found.notices.push('the list of its areas does not end')
      break
    }
    const [offset, length] = [Number(label.readBigUInt64LE(at)), Number(label.readBigUInt64LE(at + 8))]
    if (offset === 0) ended++
    else if (ended === 1) await readArea(volume, { offset, length, textBytesMax }, found)
  }
  return found
}

interface Area {
  offset: number
  length: number
  /** Of all texts of the physical volume. */
  textBytesMax: number
}

async function readArea(volume: ReadableDisk, area: Area, found: PhysicalVolume): Promise<void> {
  try {
    const text = await readText(volume, area, found)
    if (text !== undefined) found.texts.push(text)
  } catch (error) {
    if (!(error instanceof VarveError) || error.code !== 'FORMAT_INVALID') throw error
    found.notices.push(error.message)
  }
}

/** @returns undefined if the area is empty, or not in use */
async function readText(volume: ReadableDisk, { offset, length, textBytesMax }: Area, found: PhysicalVolume): Promise<string | undefined> {
  const invalid = (what: string): VarveError => new VarveError('FORMAT_INVALID', `the metadata area at ${offset} ${what}`)
  if (length < AREA_HEADER_BYTES || !(offset + length <= volume.sizeBytes)) throw invalid('is not inside of the volume')
  const header = Buffer.alloc(AREA_HEADER_BYTES)
  await volume.read(header, offset)
  const isSound = header.toString('latin1', 4, 20) === AREA_MAGIC && header.readUInt32LE(20) === 1 && checksum(header.subarray(4)) === header.readUInt32LE(0)
  if (!isSound || header.readBigUInt64LE(24) !== BigInt(offset)) throw invalid('is damaged')
  const areaBytes = Number(header.readBigUInt64LE(32))
  const [textOffset, textBytes] = [Number(header.readBigUInt64LE(LOCATION_OFFSET)), Number(header.readBigUInt64LE(LOCATION_OFFSET + 8))]
  if (textOffset === 0 || (header.readUInt32LE(LOCATION_OFFSET + 20) & LOCATION_IGNORED) !== 0) return undefined
  if (areaBytes > length || textOffset < AREA_HEADER_BYTES || textOffset >= areaBytes || textBytes > areaBytes - AREA_HEADER_BYTES || textBytes > TEXT_BYTES_MAX) throw invalid('points outside of itself')
  if (found.textBytes + textBytes > textBytesMax) throw invalid(`has a text of ${textBytes} bytes, which is more than is read of one disk`)
  found.textBytes += textBytes
  const bytes = Buffer.alloc(textBytes)
  // The area is a ring behind its header.
  const first = Math.min(textBytes, areaBytes - textOffset)
  await volume.read(bytes.subarray(0, first), offset + textOffset)
  if (first < textBytes) await volume.read(bytes.subarray(first), offset + AREA_HEADER_BYTES)
  if (checksum(bytes) !== header.readUInt32LE(LOCATION_OFFSET + 16)) throw invalid('has a damaged text')
  return bytes.toString('utf8').replace(/\0+$/, '')
}

function checksum(bytes: Uint8Array): number {
  return ~crc32(bytes, ~CHECKSUM_START >>> 0) >>> 0
}
