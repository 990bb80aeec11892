/**
 * Record of the MFT: a file, or the continuation of one, as a list of attributes.
 */
import { RECORD_FLAG, invalid, readReference, readUInt64 } from './format.ts'
import type { RecordReference } from './format.ts'
import { restoreUpdateSequence } from './update-sequence.ts'

const HEAD_BYTES = 0x28
const RESIDENT_HEAD_BYTES = 0x18
const NON_RESIDENT_HEAD_BYTES = 0x40
const END = 0xffffffff

/** An attribute, or of one with many runs a part of it, as it stands in a record. */
export interface Attribute {
  type: number
  /** In UTF-16; '' for what has none. */
  name: string
  flags: number
  /** Of all attributes of a file, each has its own. */
  id: number
  isResident: boolean
  /** Of the attribute's clusters, the first one that is described here. */
  firstCluster: number
  /** From its head to its end. */
  bytes: Buffer
}

export interface MftRecord {
  number: number
  sequence: number
  flags: number
  /** The record that this one continues; number 0 and sequence 0 if it stands for itself. */
  base: RecordReference
  attributes: Attribute[]
}

/** @param bytes the whole record, which is kept and written to @throws VarveError FORMAT_INVALID, also for one that is not in use */
export function readRecord(bytes: Buffer, number: number): MftRecord {
  const magic = bytes.toString('latin1', 0, 4)
  if (magic !== 'FILE') throw invalid(`record ${number} of the MFT ${magic === 'BAAD' ? 'was found damaged before' : 'is none'}`)
  restoreUpdateSequence(bytes, `record ${number} of the MFT`)
  const flags = bytes.readUInt16LE(0x16)
  if ((flags & RECORD_FLAG.inUse) === 0) throw invalid(`record ${number} of the MFT is not in use`)
  const used = bytes.readUInt32LE(0x18)
  const first = bytes.readUInt16LE(0x14)
  if (used > bytes.length || first < HEAD_BYTES) throw invalid(`record ${number} of the MFT is damaged`)
  const attributes: Attribute[] = []
  for (let at = first; ;) {
    if (at + 4 > used) throw invalid(`the attributes of record ${number} do not end`)
    if (bytes.readUInt32LE(at) === END) break
    const attribute = at + RESIDENT_HEAD_BYTES <= used ? readAttribute(bytes.subarray(at, used)) : undefined
    if (attribute === undefined) throw invalid(`an attribute of record ${number} is damaged`)
    attributes.push(attribute)
    at += attribute.bytes.length
  }
  return { number, sequence: bytes.readUInt16LE(0x10), flags, base: readReference(bytes, 0x20), attributes }
}

/** @param bytes from its head to the end of the record @returns undefined if it is damaged */
function readAttribute(bytes: Buffer): Attribute | undefined {
  const length = bytes.readUInt32LE(4)
  const isResident = bytes[8] === 0
  if (length % 8 !== 0 || length > bytes.length || length < (isResident ? RESIDENT_HEAD_BYTES : NON_RESIDENT_HEAD_BYTES)) return undefined
  const nameEnd = bytes.readUInt16LE(0x0a) + 2 * bytes[9]
  if (nameEnd > length && bytes[9] > 0) return undefined
  if (isResident && bytes.readUInt16LE(0x14) + bytes.readUInt32LE(0x10) > length) return undefined
  return {
    type: bytes.readUInt32LE(0),
    name: bytes[9] === 0 ? '' : bytes.toString('utf16le', bytes.readUInt16LE(0x0a), nameEnd),
    flags: bytes.readUInt16LE(0x0c),
    id: bytes.readUInt16LE(0x0e),
    isResident,
    firstCluster: isResident ? 0 : readUInt64(bytes, 0x10),
    bytes: bytes.subarray(0, length),
  }
}

/** Content of a resident attribute. */
export function residentValue({ bytes }: Attribute): Buffer {
  const offset = bytes.readUInt16LE(0x14)
  return bytes.subarray(offset, offset + bytes.readUInt32LE(0x10))
}

/** Mapping pairs of a non-resident attribute, to the end of its record. @throws VarveError FORMAT_INVALID */
export function mappingPairs({ bytes }: Attribute): Buffer {
  const offset = bytes.readUInt16LE(0x20)
  if (offset < NON_RESIDENT_HEAD_BYTES || offset > bytes.length) throw invalid('the runs of an attribute are outside of it')
  return bytes.subarray(offset)
}

/** Sizes of a non-resident attribute, bytes; they stand in its first part only. @throws VarveError FORMAT_INVALID */
export function nonResidentSizes({ bytes }: Attribute): { sizeBytes: number; initializedBytes: number } {
  const sizeBytes = readUInt64(bytes, 0x30)
  const initializedBytes = readUInt64(bytes, 0x38)
  if (initializedBytes > sizeBytes) throw invalid(`of ${sizeBytes} bytes, ${initializedBytes} are said to be initialized`)
  return { sizeBytes, initializedBytes }
}

/** Size of an attribute's content, bytes; of its first part. */
export function attributeBytes(attribute: Attribute): number {
  return attribute.isResident ? attribute.bytes.readUInt32LE(0x10) : nonResidentSizes(attribute).sizeBytes
}
