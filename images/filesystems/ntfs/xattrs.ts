/**
 * What NTFS keeps beside a file's content and POSIX has no place for, as extended attributes; docs/filesystems.md#ntfs lists them.
 */
import { XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX } from '../../tree/limits.ts'
import { Kind } from '../../tree/tree.ts'
import type { Xattr } from '../../tree/tree.ts'
import { ATTRIBUTE, ATTRIBUTE_FLAG, FILE_ATTRIBUTE, invalid } from './format.ts'
import { attributeBytes } from './mft-record.ts'
import { encodeName } from '../utf16-names.ts'
import type { NtfsNode } from './node.ts'
import { EXTENDED_ATTRIBUTES_BYTES_MAX } from './node.ts'
import { REPARSE_BYTES_MAX, REPARSE_TAG } from './reparse-point.ts'
import { DESCRIPTOR_BYTES_MAX } from './security.ts'
import { WOF_STREAM } from './wof-content.ts'

const PREFIX = 'user.ntfs.'
/** Values of the streams of one file, together, bytes: what has no room is only listed. */
const STREAMS_BYTES_MAX = 1 << 20
/** Names of the streams of one file, together; the other attributes have theirs beside. */
const STREAM_NAMES_BYTES_MAX = XATTR_LIST_BYTES_MAX - 1024

/**
 * Sorted by name. Linux allows attributes of users to files and directories only; other nodes have none.
 * @param descriptor gives the security descriptor of an id
 * @throws VarveError FORMAT_INVALID, LIMIT_EXCEEDED
 */
export async function xattrsOf(node: NtfsNode, descriptor: (securityId: number) => Promise<Buffer | undefined>): Promise<Xattr[]> {
  if (node.kind !== Kind.file && node.kind !== Kind.directory) return []
  const { file, standard, reparse } = node
  // That it is one, a directory does not say itself; nor a file that it has none ([MS-FSCC] 2.6).
  const attributes = (node.kind === Kind.directory ? standard.attributes | FILE_ATTRIBUTE.directory : standard.attributes) || FILE_ATTRIBUTE.normal
  const xattrs: Xattr[] = [{ name: `${PREFIX}attributes`, value: Buffer.from(`0x${(attributes >>> 0).toString(16).padStart(8, '0')}`) }]
  const add = (name: string, value: Buffer | undefined): void => {
    if (value !== undefined && value.length > 0) xattrs.push({ name: PREFIX + name, value })
  }
  const own = await file.value(ATTRIBUTE.securityDescriptor, DESCRIPTOR_BYTES_MAX)
  add('security', own.length > 0 || standard.securityId === 0 ? own : await descriptor(standard.securityId))
  add('extended-attributes', await file.value(ATTRIBUTE.extendedAttributes, EXTENDED_ATTRIBUTES_BYTES_MAX))
  if (reparse !== undefined && reparse.tag !== REPARSE_TAG.windowsOverlay) add('reparse-point', await file.value(ATTRIBUTE.reparsePoint, REPARSE_BYTES_MAX))
  await addStreams(node, xattrs)
  return xattrs.sort((one, other) => (one.name < other.name ? -1 : 1))
}

/** Alternate data streams; those that are no extended attribute, for their size or their encryption, are listed in one: size and name, a line each. */
async function addStreams({ file, reparse }: NtfsNode, xattrs: Xattr[]): Promise<void> {
  let valueBytes = 0
  let nameBytes = 0
  let others = ''
  for (const attribute of await file.all(ATTRIBUTE.data)) {
    if (attribute.name === '' || (attribute.name === WOF_STREAM && reparse?.tag === REPARSE_TAG.windowsOverlay)) continue
    if (attribute.name.includes('\0')) throw invalid(`record ${file.number} has a stream whose name cannot be`)
    const name = `${PREFIX}streams.${encodeName(attribute.name)}`
    const sizeBytes = attributeBytes(attribute)
    const isEncrypted = (attribute.flags & ATTRIBUTE_FLAG.encrypted) !== 0
    const hasRoom = sizeBytes <= XATTR_VALUE_BYTES_MAX && valueBytes + sizeBytes <= STREAMS_BYTES_MAX && name.length <= XATTR_NAME_BYTES_MAX && nameBytes + name.length + 1 <= STREAM_NAMES_BYTES_MAX
    if (!hasRoom || isEncrypted) {
      others += `${sizeBytes} ${encodeName(attribute.name)}\n`
      continue
    }
    const content = (await file.content(ATTRIBUTE.data, attribute.name))!
    const value = Buffer.alloc(content.sizeBytes)
    await content.read(value, 0)
    xattrs.push({ name, value })
    valueBytes += value.length
    nameBytes += name.length + 1
  }
  if (others !== '') xattrs.push({ name: `${PREFIX}other-streams`, value: Buffer.from(shortened(others), 'latin1') })
}

/** A list that is longer than a value may be says so in its last line. */
function shortened(list: string): string {
  const more = '...\n'
  return list.length <= XATTR_VALUE_BYTES_MAX ? list : list.slice(0, list.lastIndexOf('\n', XATTR_VALUE_BYTES_MAX - more.length - 1) + 1) + more
}
