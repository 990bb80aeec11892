/**
 * Sets of extended attributes: what makes two of them equal, and what one may hold.
 */
import { VarveError } from '../errors.ts'
import { XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX } from './limits.ts'
import type { Xattr } from './tree.ts'

/** The same for equal sets, different for different ones. */
export function xattrSetKey(xattrs: readonly Xattr[]): string {
  return xattrs.map(({ name, value }) => `${name}\0${value.length}\0${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('latin1')}`).join('')
}

/**
 * Sorted by name, and checked.
 * @throws VarveError LIMIT_EXCEEDED, SOURCE_INVALID
 */
export function sortedXattrs(xattrs: readonly Xattr[]): Xattr[] {
  const sorted = [...xattrs].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
  let listBytes = 0
  for (let index = 0; index < sorted.length; index++) {
    const { name, value } = sorted[index]
    listBytes += name.length + 1
    if (name === '' || name.length > XATTR_NAME_BYTES_MAX || name.includes('\0')) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(name.slice(0, 300))} is not the name of an attribute`)
    if (index > 0 && sorted[index - 1].name === name) throw new VarveError('SOURCE_INVALID', `the attribute ${JSON.stringify(name)} stands twice in one set`)
    if (value.length > XATTR_VALUE_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the attribute ${JSON.stringify(name)} has ${value.length} bytes; the limit is ${XATTR_VALUE_BYTES_MAX}`)
    if (listBytes > XATTR_LIST_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the names of the attributes of one inode have more than ${XATTR_LIST_BYTES_MAX} bytes`)
  }
  return sorted
}

/** A set as bytes: of each attribute the lengths of name and value, name and value. */
export function encodedXattrs(xattrs: readonly Xattr[]): Buffer {
  const bytes = Buffer.allocUnsafe(xattrs.reduce((sum, { name, value }) => sum + 8 + name.length + value.length, 0))
  let at = 0
  for (const { name, value } of xattrs) {
    at = bytes.writeUInt32LE(name.length, at)
    at += bytes.write(name, at, 'latin1')
    at = bytes.writeUInt32LE(value.length, at)
    bytes.set(value, at)
    at += value.length
  }
  return bytes
}

/** @param bytes as encodedXattrs has made them */
export function decodedXattrs(bytes: Uint8Array): Xattr[] {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const xattrs: Xattr[] = []
  for (let at = 0; at < view.length; ) {
    const nameEnd = at + 4 + view.readUInt32LE(at)
    const valueEnd = nameEnd + 4 + view.readUInt32LE(nameEnd)
    xattrs.push({ name: view.toString('latin1', at + 4, nameEnd), value: Uint8Array.prototype.slice.call(view, nameEnd + 4, valueEnd) })
    at = valueEnd
  }
  return xattrs
}
