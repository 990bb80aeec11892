/**
 * Pack files, their bytes: a header, then records one behind the other. docs/formats/pack.md.
 * Nothing here opens files or knows the index.
 */
import { crc32c } from '@node-rs/crc32'
import { CODECS } from '../chunk/codec.ts'
import type { Codec } from '../chunk/codec.ts'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'

export const PACK_VERSION = 1
export const PACK_ID_BYTES = 16
export const PACK_HEADER_BYTES = 32
export const RECORD_HEADER_BYTES = 48
/** A pack that has reached this size takes no further record. */
export const PACK_BYTES_TARGET = 64 << 20
/** Largest record, header and payload. */
export const RECORD_BYTES_MAX = RECORD_HEADER_BYTES + CHUNK_BYTES_MAX

const PACK_MAGIC = Buffer.from('VARVPACK', 'latin1')
/** 'VCHK' read as a little-endian number. */
const RECORD_MAGIC = 0x4b484356
const PACK_FILE_NAME = /^([0-9a-f]{32})\.pack$/

/** What a record's header says. */
export interface RecordHeader {
  digest: Digest
  codec: Codec
  /** Bytes of the content, 1 .. CHUNK_BYTES_MAX. */
  raw: number
  /** Bytes of the payload that follows the header, 1 .. raw. */
  stored: number
}

/** @param id 32 hexadecimal digits */
export function packFileName(id: string): string {
  return `${id}.pack`
}

/** Id of the pack that a file of this name is, if it is one. */
export function packIdOfFile(name: string): string | undefined {
  return PACK_FILE_NAME.exec(name)?.[1]
}

export function encodePackHeader(id: string): Buffer {
  const bytes = Buffer.alloc(PACK_HEADER_BYTES)
  PACK_MAGIC.copy(bytes)
  bytes.writeUInt32LE(PACK_VERSION, 8)
  bytes.write(id, 12, PACK_ID_BYTES, 'hex')
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 28)), 28)
  return bytes
}

/** What is wrong with the header of the pack that is named `id`; undefined if nothing is. */
export function packHeaderProblem(bytes: Uint8Array, id: string): string | undefined {
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (header.length < PACK_HEADER_BYTES) return 'shorter than the header of a pack'
  if (!header.subarray(0, 8).equals(PACK_MAGIC)) return 'does not begin as a pack does'
  if (crc32c(header.subarray(0, 28)) !== header.readUInt32LE(28)) return 'checksum of the header does not fit'
  const version = header.readUInt32LE(8)
  if (version !== PACK_VERSION) return `version ${version} of packs; this program knows ${PACK_VERSION}`
  const named = header.toString('hex', 12, 12 + PACK_ID_BYTES)
  if (named !== id) return `is pack ${named} by its header`
  return undefined
}

/** Writes the header of a record at `at`. */
export function encodeRecordHeader(target: Buffer, at: number, header: RecordHeader): void {
  target.writeUInt32LE(RECORD_MAGIC, at)
  target.writeUInt32LE(CODECS.indexOf(header.codec) + header.raw * 0x100, at + 4)
  target.writeUInt32LE(header.stored, at + 8)
  target.set(header.digest, at + 12)
  target.writeUInt32LE(crc32c(target.subarray(at, at + 44)), at + 44)
}

/** The header of a record at `at`; undefined if there is none, or not a valid one. */
export function decodeRecordHeader(bytes: Buffer, at: number): RecordHeader | undefined {
  if (at + RECORD_HEADER_BYTES > bytes.length || bytes.readUInt32LE(at) !== RECORD_MAGIC) return undefined
  if (crc32c(bytes.subarray(at, at + 44)) !== bytes.readUInt32LE(at + 44)) return undefined
  const codec = CODECS[bytes[at + 4]]
  const raw = bytes.readUInt32LE(at + 4) >>> 8
  const stored = bytes.readUInt32LE(at + 8)
  if (codec === undefined || raw < 1 || raw > CHUNK_BYTES_MAX || stored < 1 || stored > raw) return undefined
  return { codec, raw, stored, digest: Buffer.from(bytes.subarray(at + 12, at + 12 + DIGEST_BYTES)) }
}

/** Place of the next thing that may be a record's header, at `from` or behind it; -1 if there is none. */
export function nextRecordMagic(bytes: Buffer, from: number): number {
  return bytes.indexOf('VCHK', from, 'latin1')
}
