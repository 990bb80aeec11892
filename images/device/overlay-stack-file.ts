/**
 * The file `stack` of an overlay stack: which block maps its generations lie on. Bytes: docs/formats/overlay.md#stack
 */
import { crc32c } from '@node-rs/crc32'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { readWhole, writeWhole } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { OVERLAY_BYTES_MAX } from './overlay-journal.ts'

const NAME = 'stack'
const MAGIC = Buffer.from('VARVESTK')
const VERSION = 1
const HEADER_BYTES = 64
const BASE_BYTES = DIGEST_BYTES + 8
/** Maps that one stack may lie on; it grows by one for each generation that is settled and not dropped. */
const BASES_MAX = 4096
const GENERATION_MAX = 1e15

export interface StackBase {
  /** Digest of the block map, 32 bytes. */
  lowerDigest: Uint8Array
  /** Lowest generation that lies on it: what was written by those below is in the map. */
  firstGeneration: number
}

export interface StackFile {
  /** 32 random bytes, which the generations' own names are made of. */
  id: Uint8Array
  sizeBytes: number
  /** At least one; each shows the same disk with the generations above it. */
  bases: StackBase[]
}

export function stackFileExists(files: OverlayFiles, directory: string): boolean {
  return files.exists(`${directory}/${NAME}`)
}

/** The whole file or nothing; durable when this resolves. */
export async function writeStackFile(files: OverlayFiles, directory: string, file: StackFile): Promise<void> {
  if (file.bases.length > BASES_MAX) throw new VarveError('LIMIT_EXCEEDED', `overlay ${directory} lies on more than ${BASES_MAX} block maps; drop those that are not used`)
  const bytes = Buffer.alloc(HEADER_BYTES + file.bases.length * BASE_BYTES + 4)
  bytes.set(MAGIC)
  bytes.writeUInt32LE(VERSION, 8)
  bytes.writeUInt32LE(file.bases.length, 12)
  bytes.writeBigUInt64LE(BigInt(file.sizeBytes), 16)
  bytes.set(file.id, 32)
  file.bases.forEach((base, index) => {
    bytes.set(base.lowerDigest, HEADER_BYTES + index * BASE_BYTES)
    bytes.writeBigUInt64LE(BigInt(base.firstGeneration), HEADER_BYTES + index * BASE_BYTES + DIGEST_BYTES)
  })
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, -4)), bytes.length - 4)
  await writeWhole(files, { directory, name: NAME, bytes })
}

/** @throws VarveError OVERLAY_INVALID, FORMAT_UNSUPPORTED */
export function readStackFile(files: OverlayFiles, directory: string): StackFile {
  const path = `${directory}/${NAME}`
  const bytes = readWhole(files, path, HEADER_BYTES + BASES_MAX * BASE_BYTES + 4)
  if (bytes === undefined) throw new VarveError('OVERLAY_INVALID', `${path} is too large`)
  return decodeStackFile(bytes, path)
}

/** @throws VarveError OVERLAY_INVALID, FORMAT_UNSUPPORTED */
export function decodeStackFile(bytes: Buffer, path: string): StackFile {
  const invalid = (what: string): VarveError => new VarveError('OVERLAY_INVALID', `${path}: ${what}`)
  if (bytes.length < HEADER_BYTES + BASE_BYTES + 4 || !bytes.subarray(0, 8).equals(MAGIC)) throw invalid('is not the file of an overlay stack')
  const version = bytes.readUInt32LE(8)
  if (version !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `${path}: version ${version} is not known; this is version ${VERSION}`)
  const count = bytes.readUInt32LE(12)
  if (count < 1 || count > BASES_MAX || bytes.length !== HEADER_BYTES + count * BASE_BYTES + 4) throw invalid(`${count} block maps in ${bytes.length} bytes`)
  if (crc32c(bytes.subarray(0, -4)) !== bytes.readUInt32LE(bytes.length - 4)) throw invalid('is damaged')
  const sizeBytes = Number(bytes.readBigUInt64LE(16))
  if (sizeBytes > OVERLAY_BYTES_MAX) throw invalid(`a disk of ${sizeBytes} bytes is larger than ${OVERLAY_BYTES_MAX}`)
  const bases = Array.from({ length: count }, (_, index) => {
    const at = HEADER_BYTES + index * BASE_BYTES
    return { lowerDigest: bytes.subarray(at, at + DIGEST_BYTES), firstGeneration: Number(bytes.readBigUInt64LE(at + DIGEST_BYTES)) }
  })
  for (const { firstGeneration } of bases) if (firstGeneration < 1 || firstGeneration > GENERATION_MAX) throw invalid(`there is no generation ${firstGeneration}`)
  return { id: bytes.subarray(32, 64), sizeBytes, bases }
}
