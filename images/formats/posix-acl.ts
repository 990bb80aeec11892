/**
 * POSIX ACLs: between text, as archives have them, and the value of the extended attribute.
 * Text: POSIX 1003.1e draft 17, section 23.3.1, with star's fourth field for the numeric id. Attribute: include/uapi/linux/posix_acl_xattr.h of Linux.
 */
import { VarveError } from '../errors.ts'

const VERSION = 2
const UNDEFINED_ID = 0xffffffff
const TAG = { userObject: 1, user: 2, groupObject: 4, group: 8, mask: 16, other: 32 } as const
/** A file has few; the attribute would not hold more. */
const ENTRIES_MAX = 8000

interface AclEntry {
  tag: number
  permissions: number
  id: number
}

/** Numeric id of a name; undefined if there is none. */
export type IdOfName = (name: string, of: 'user' | 'group') => number | undefined

/**
 * Value of `system.posix_acl_access` or `system.posix_acl_default`.
 * @returns undefined for an ACL that says no more than the mode does
 * @throws VarveError FORMAT_INVALID, SOURCE_UNSUPPORTED for a name without id
 */
export function aclFromText(text: string, options: { isDefault: boolean; idOfName: IdOfName }): Uint8Array | undefined {
  const lines = text.split(/[,\n]/).map((line) => line.replace(/#.*/, '').trim()).filter((line) => line !== '')
  if (lines.length > ENTRIES_MAX) throw new VarveError('LIMIT_EXCEEDED', `an ACL of ${lines.length} entries`)
  const entries = lines.map((line) => entryFromText(line, options.idOfName))
  const isMinimal = entries.every(({ tag }) => tag === TAG.userObject || tag === TAG.groupObject || tag === TAG.other)
  if (entries.length === 0 || (isMinimal && !options.isDefault)) return undefined
  entries.sort((a, b) => a.tag - b.tag || a.id - b.id)
  const value = Buffer.alloc(4 + entries.length * 8)
  value.writeUInt32LE(VERSION, 0)
  entries.forEach(({ tag, permissions, id }, index) => {
    value.writeUInt16LE(tag, 4 + index * 8)
    value.writeUInt16LE(permissions, 6 + index * 8)
    value.writeUInt32LE(id, 8 + index * 8)
  })
  return Uint8Array.from(value)
}

/** Names of tags as text has them. */
const TAG_TEXT: Readonly<Record<number, string>> = { [TAG.userObject]: 'user', [TAG.user]: 'user', [TAG.groupObject]: 'group', [TAG.group]: 'group', [TAG.mask]: 'mask', [TAG.other]: 'other' }

/**
 * Text of the value of an attribute, ids as numbers.
 * @throws VarveError FORMAT_INVALID
 */
export function aclToText(value: Uint8Array): string {
  const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  const refuse = () => new VarveError('FORMAT_INVALID', 'the extended attribute of an ACL is damaged')
  if (bytes.length < 4 || bytes.length % 8 !== 4 || bytes.readUInt32LE(0) !== VERSION) throw refuse()
  const entries: string[] = []
  for (let at = 4; at < bytes.length; at += 8) {
    const [tag, permissions, id] = [bytes.readUInt16LE(at), bytes.readUInt16LE(at + 2), bytes.readUInt32LE(at + 4)]
    if (!(tag in TAG_TEXT)) throw refuse()
    const rights = ['r', 'w', 'x'].map((letter, index) => ((permissions & (4 >> index)) !== 0 ? letter : '-')).join('')
    entries.push(`${TAG_TEXT[tag]}:${tag === TAG.user || tag === TAG.group ? id : ''}:${rights}`)
  }
  return entries.join(',')
}

function entryFromText(line: string, idOfName: IdOfName): AclEntry {
  const fields = line.split(':')
  if (fields[0] === 'default' || fields[0] === 'd') fields.shift()
  // `mask::rwx` and `other::rwx` are also written with one colon.
  if (fields.length === 2) fields.splice(1, 0, '')
  const [type, name, permissionText, idText] = fields
  const match = /^([r-])([w-])([x-])/.exec(permissionText ?? '') ?? refuse(line)
  const permissions = (match[1] === 'r' ? 4 : 0) | (match[2] === 'w' ? 2 : 0) | (match[3] === 'x' ? 1 : 0)
  switch (type) {
    case 'user':
    case 'u':
      return name === '' ? { tag: TAG.userObject, permissions, id: UNDEFINED_ID } : { tag: TAG.user, permissions, id: idOf(name, idText, 'user', idOfName) }
    case 'group':
    case 'g':
      return name === '' ? { tag: TAG.groupObject, permissions, id: UNDEFINED_ID } : { tag: TAG.group, permissions, id: idOf(name, idText, 'group', idOfName) }
    case 'mask':
    case 'm':
      return { tag: TAG.mask, permissions, id: UNDEFINED_ID }
    case 'other':
    case 'o':
      return { tag: TAG.other, permissions, id: UNDEFINED_ID }
  }
  return refuse(line)
}

function idOf(name: string, idText: string | undefined, of: 'user' | 'group', idOfName: IdOfName): number {
  const text = idText !== undefined && idText !== '' ? idText : name
  const id = /^\d{1,10}$/.test(text) ? Number(text) : idOfName(name, of)
  if (id === undefined || id > UNDEFINED_ID) {
    throw new VarveError('SOURCE_UNSUPPORTED', `an ACL names the ${of} ${JSON.stringify(name)}, whose number is not known here; write the archive with --numeric-owner`)
  }
  return id
}

function refuse(line: string): never {
  throw new VarveError('FORMAT_INVALID', `${JSON.stringify(line.slice(0, 200))} is not an entry of an ACL`)
}
