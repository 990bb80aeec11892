/**
 * Paths inside a tree, as Tree.path gives them: names with single slashes between them, no slash before or after.
 */
import { VarveError } from '../errors.ts'
import { DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX } from './limits.ts'

/** @param name bytes in latin1 */
export function isTreeName(name: string): boolean {
  return name !== '' && name !== '.' && name !== '..' && name.length <= NAME_BYTES_MAX && !name.includes('/') && !name.includes('\0')
}

/** @param path raw bytes; that of the root, which is empty, is not one here */
export function isTreePath(path: Uint8Array): boolean {
  return Buffer.from(path.buffer, path.byteOffset, path.byteLength).toString('latin1').split('/').every(isTreeName)
}

/**
 * @param parent by entry: that of the directory that holds it, which comes before it
 * @throws VarveError LIMIT_EXCEEDED
 */
export function checkDepth(names: readonly string[], parent: Uint32Array): void {
  const depth = new Uint16Array(names.length)
  const pathBytes = new Uint32Array(names.length)
  for (let entry = 1; entry < names.length; entry++) {
    const above = parent[entry]
    const bytes = pathBytes[above] + names[entry].length + (above === 0 ? 0 : 1)
    pathBytes[entry] = bytes
    depth[entry] = depth[above] + 1
    if (depth[entry] > DEPTH_MAX || bytes > PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a path is longer than ${DEPTH_MAX} names or ${PATH_BYTES_MAX} bytes`)
  }
}
