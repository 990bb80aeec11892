/**
 * Special files: how Interix (Services for UNIX; ntfs-3g by default) and WSL keep symlinks, devices, FIFOs and sockets in NTFS.
 */
import { Kind } from '../../tree/tree.ts'
import type { Content } from './content.ts'
import { FILE_ATTRIBUTE, invalid } from './format.ts'
import { encodeName } from '../utf16-names.ts'
import { REPARSE_TAG } from './reparse-point.ts'

export interface SpecialFile {
  kind: Kind
  /** Bytes in latin1; of symlinks. */
  target?: string
  deviceMajor?: number
  deviceMinor?: number
}

const MAGIC_BYTES = 8
const KIND_OF_MAGIC = new Map<string, Kind>([['IntxLNK\x01', Kind.symlink], ['IntxCHR\0', Kind.character], ['IntxBLK\0', Kind.block]])
const DEVICE_BYTES = MAGIC_BYTES + 16
/** Magic, and as many units of UTF-16 as PATH_MAX of Linux has bytes. */
const LINK_BYTES_MAX = MAGIC_BYTES + 2 * 4096

/** What a file of Interix stands for: it is marked as a system file, and begins with a magic, or is empty (FIFO), or one byte long (socket). */
export async function interixFile(attributes: number, content: Content): Promise<SpecialFile | undefined> {
  if ((attributes & FILE_ATTRIBUTE.system) === 0) return undefined
  // Windows hides its own system files.
  if (content.sizeBytes <= 1) return (attributes & FILE_ATTRIBUTE.hidden) !== 0 ? undefined : { kind: content.sizeBytes === 0 ? Kind.fifo : Kind.socket }
  if (content.sizeBytes < MAGIC_BYTES) return undefined
  const bytes = Buffer.alloc(Math.min(content.sizeBytes, LINK_BYTES_MAX))
  await content.read(bytes, 0)
  const kind = KIND_OF_MAGIC.get(bytes.toString('latin1', 0, MAGIC_BYTES))
  if (kind === undefined) return undefined
  if (kind !== Kind.symlink) return bytes.length < DEVICE_BYTES ? undefined : { kind, deviceMajor: bytes.readUInt32LE(MAGIC_BYTES), deviceMinor: bytes.readUInt32LE(MAGIC_BYTES + 8) }
  const target = bytes.toString('utf16le', MAGIC_BYTES)
  return content.sizeBytes > LINK_BYTES_MAX || target === '' || target.includes('\0') ? undefined : { kind, target: encodeName(target) }
}

const KIND_OF_TAG = new Map<number, Kind>([[REPARSE_TAG.linuxSocket, Kind.socket], [REPARSE_TAG.linuxFifo, Kind.fifo], [REPARSE_TAG.linuxCharacter, Kind.character], [REPARSE_TAG.linuxBlock, Kind.block]])

/** What a file of WSL stands for. @param extendedAttributes content of $EA, where the number of a device is */
export function linuxFile(tag: number, extendedAttributes: Buffer): SpecialFile | undefined {
  const kind = KIND_OF_TAG.get(tag)
  if (kind !== Kind.character && kind !== Kind.block) return kind === undefined ? undefined : { kind }
  const device = extendedAttribute(extendedAttributes, '$LXDEV')
  if (device?.length !== 8) throw invalid('a device of WSL has no number')
  return { kind, deviceMajor: device.readUInt32LE(0), deviceMinor: device.readUInt32LE(4) }
}

const EA_HEAD_BYTES = 8

/** [MS-FSCC] FileFullEaInformation. */
function extendedAttribute(list: Buffer, name: string): Buffer | undefined {
  for (let at = 0; at + EA_HEAD_BYTES <= list.length;) {
    const next = list.readUInt32LE(at)
    const valueAt = at + EA_HEAD_BYTES + list[at + 5] + 1
    const valueEnd = valueAt + list.readUInt16LE(at + 6)
    if (valueEnd > list.length) throw invalid('extended attributes are damaged')
    if (list.toString('latin1', at + EA_HEAD_BYTES, valueAt - 1) === name) return list.subarray(valueAt, valueEnd)
    if (next < EA_HEAD_BYTES) break
    at += next
  }
  return undefined
}
