/**
 * Constants of NTFS 3.x, by the names of their documentation (docs/filesystems.md#ntfs says where they are specified), and reading of its numbers.
 */
import { VarveError } from '../../errors.ts'
import type { Timestamp } from '../filesystem.ts'

/** Numbers of the records of system files. */
export const RECORD = { mft: 0, logFile: 2, volume: 3, root: 5, bitmap: 6, secure: 9, upCase: 10 } as const
/** Records before it are system files, which are not listed. */
export const FIRST_USER_RECORD = 16

/** Types of attributes. */
export const ATTRIBUTE = {
  standardInformation: 0x10,
  attributeList: 0x20,
  fileName: 0x30,
  objectId: 0x40,
  securityDescriptor: 0x50,
  volumeName: 0x60,
  volumeInformation: 0x70,
  data: 0x80,
  indexRoot: 0x90,
  indexAllocation: 0xa0,
  reparsePoint: 0xc0,
  extendedAttributes: 0xe0,
} as const

/** Flags of an attribute. */
export const ATTRIBUTE_FLAG = { compressionMask: 0xff, compressed: 0x0001, encrypted: 0x4000, sparse: 0x8000 } as const

/** Flags of a record. */
export const RECORD_FLAG = { inUse: 1, directory: 2 } as const

/** What DOS and Windows call the attributes of a file: bits of $STANDARD_INFORMATION. */
export const FILE_ATTRIBUTE = { readOnly: 0x1, hidden: 0x2, system: 0x4, directory: 0x10, normal: 0x80, reparsePoint: 0x400 } as const

/** Flags of $VOLUME_INFORMATION. */
export const VOLUME_DIRTY = 1

/** Sequence number of a reference that names any generation of a record. */
export const ANY_SEQUENCE = 0

export function invalid(what: string, options?: { cause?: unknown }): VarveError {
  return new VarveError('FORMAT_INVALID', `ntfs: ${what}`, options)
}

export function unsupported(what: string): VarveError {
  return new VarveError('FORMAT_UNSUPPORTED', `ntfs: ${what}`)
}

export function exceeded(what: string): VarveError {
  return new VarveError('LIMIT_EXCEEDED', `ntfs: ${what}`)
}

/** 64 bits, unsigned. @throws VarveError FORMAT_INVALID above 2^53 - 1, which nothing on a disk reaches */
export function readUInt64(bytes: Buffer, at: number): number {
  const value = bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32
  if (value > Number.MAX_SAFE_INTEGER) throw invalid(`the number 0x${bytes.readBigUInt64LE(at).toString(16)} cannot be`)
  return value
}

/** Reference of a record: its number, and the generation (sequence number) that is meant. */
export interface RecordReference {
  number: number
  sequence: number
}

export function readReference(bytes: Buffer, at: number): RecordReference {
  return { number: bytes.readUIntLE(at, 6), sequence: bytes.readUInt16LE(at + 6) }
}

/** From 1601 to 1970. */
const EPOCH_SECONDS = 11_644_473_600
const TICKS_PER_SECOND = 10_000_000n

/** Units of 100 ns since 1601. */
export function readTime(bytes: Buffer, at: number): Timestamp {
  const ticks = bytes.readBigUInt64LE(at)
  return { seconds: Number(ticks / TICKS_PER_SECOND) - EPOCH_SECONDS, nanoseconds: Number(ticks % TICKS_PER_SECOND) * 100 }
}
