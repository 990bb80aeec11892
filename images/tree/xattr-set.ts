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
