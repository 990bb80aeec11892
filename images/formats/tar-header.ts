/**
 * Tar header: the block of 512 bytes before every member. v7, POSIX ustar, and old GNU.
 * POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
 */
import { VarveError } from '../errors.ts'

export const TAR_BLOCK_BYTES = 512

export interface TarHeader {
  /** In latin1, with the prefix if there is one. */
  name: string
  mode: number
  uid: number
  gid: number
  sizeBytes: number
  mtimeSeconds: number
  /** One character; NUL is written as `0`. */
  type: string
  linkName: string
  deviceMajor: number
  deviceMinor: number
  /** The old GNU format, whose sparse files have their map in the header. */
  isGnu: boolean
}

/** True for a block of zeroes. */
export function isZeroBlock(block: Uint8Array): boolean {
  for (let at = 0; at < TAR_BLOCK_BYTES; at++) if (block[at] !== 0) return false
  return true
}

/**
 * @param offset of the block in the archive, for messages
 * @throws VarveError FORMAT_INVALID
 */
export function readTarHeader(block: Uint8Array, offset: number): TarHeader {
  checkSum(block, offset)
  const text = Buffer.from(block.buffer, block.byteOffset, TAR_BLOCK_BYTES)
  const magic = text.toString('latin1', 257, 265)
  const isGnu = magic === 'ustar  \0'
  const isUstar = magic.startsWith('ustar\0')
  const number = (from: number, length: number, field: string) => tarNumber(block, from, length, { offset, field })
  let name = field(text, 0, 100)
  if (isUstar) {
    const prefix = field(text, 345, 155)
    if (prefix !== '') name = `${prefix}/${name}`
  }
  const type = block[156] === 0 ? '0' : String.fromCharCode(block[156])
  const isDevice = (isUstar || isGnu) && (type === '3' || type === '4')
  return {
    name,
    mode: number(100, 8, 'mode') & 0o7777,
    uid: number(108, 8, 'uid'),
    gid: number(116, 8, 'gid'),
    sizeBytes: number(124, 12, 'size'),
    mtimeSeconds: number(136, 12, 'mtime'),
    type,
    linkName: field(text, 157, 100),
    deviceMajor: isDevice ? number(329, 8, 'devmajor') : 0,
    deviceMinor: isDevice ? number(337, 8, 'devminor') : 0,
    isGnu,
  }
}

/** Text up to NUL or the end of the field, in latin1. */
function field(text: Buffer, from: number, length: number): string {
  const end = text.indexOf(0, from)
  return text.toString('latin1', from, end < 0 || end > from + length ? from + length : end)
}

/** Sum of all bytes, those of the sum itself as spaces; some old writers took the bytes as signed. */
function checkSum(block: Uint8Array, offset: number): void {
  let unsigned = 0
  let signed = 0
  for (let at = 0; at < TAR_BLOCK_BYTES; at++) {
    const byte = at >= 148 && at < 156 ? 0x20 : block[at]
    unsigned += byte
    signed += byte < 0x80 ? byte : byte - 0x100
  }
  const stated = tarNumber(block, 148, 8, { offset, field: 'checksum' })
  if (stated !== unsigned && stated !== signed) {
    throw new VarveError('FORMAT_INVALID', `the tar header at byte ${offset} has a wrong checksum: this is not a tar archive, or it is damaged`)
  }
}

/**
 * A number: octal digits, or the binary form of GNU and star, in which the highest bit of the first byte is set.
 * @throws VarveError FORMAT_INVALID
 */
export function tarNumber(block: Uint8Array, from: number, length: number, where: { offset: number; field: string }): number {
  const refuse = () => new VarveError('FORMAT_INVALID', `the tar header at byte ${where.offset} has no number in its field ${where.field}`)
  if ((block[from] & 0x80) !== 0) {
    // Two's complement; the highest bit is the mark, the one below it the sign.
    let value = (block[from] & 0x3f) - (block[from] & 0x40)
    for (let at = from + 1; at < from + length; at++) value = value * 0x100 + block[at]
    if (!Number.isSafeInteger(value)) throw refuse()
    return value
  }
  let at = from
  const end = from + length
  while (at < end && (block[at] === 0x20 || block[at] === 0)) at++
  let value = 0
  for (; at < end && block[at] >= 0x30 && block[at] <= 0x37; at++) value = value * 8 + block[at] - 0x30
  if (at < end && block[at] !== 0x20 && block[at] !== 0) throw refuse()
  return value
}
