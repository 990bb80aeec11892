/**
 * Overlay marks: how overlayfs says in an upper directory what is deleted, hidden or moved, and what that is in a tree.
 * Documentation/filesystems/overlayfs.rst of Linux.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import { printPath } from '../merge/print-path.ts'

/** With the mount option `userxattr` the marks are in `user`. */
const PREFIXES = ['trusted.overlay.', 'user.overlay.']
/** An attribute `overlay.overlay.X` stands for a plain one, `overlay.X`, that the upper directory itself holds (nested overlays). */
const ESCAPE = 'overlay.'

const YES = 'y'.charCodeAt(0)

export interface OverlayMarks {
  /** The attributes that are no marks. */
  xattrs: Xattr[]
  /** Of a directory: what lies below it is hidden. */
  opaque: boolean
  /** Of an empty file: it stands for a deleted name. */
  whiteout: boolean
}

/**
 * Tells marks from plain attributes.
 * @param path in latin1, for the message
 * @throws VarveError SOURCE_UNSUPPORTED for what refers to the layers below by path
 */
export function overlayMarks(xattrs: readonly Xattr[], path: string): OverlayMarks {
  const marks: OverlayMarks = { xattrs: [], opaque: false, whiteout: false }
  for (const xattr of xattrs) {
    const prefix = PREFIXES.find((start) => xattr.name.startsWith(start))
    if (prefix === undefined) {
      marks.xattrs.push(xattr)
      continue
    }
    const mark = xattr.name.slice(prefix.length)
    if (mark.startsWith(ESCAPE)) marks.xattrs.push({ name: prefix + mark.slice(ESCAPE.length), value: xattr.value })
    else if (mark === 'opaque') marks.opaque ||= xattr.value[0] === YES
    else if (mark === 'whiteout') marks.whiteout = true
    else if (mark === 'redirect') throw unsupported(path, 'was renamed', 'redirect_dir=off')
    else if (mark === 'metacopy') throw unsupported(path, 'has its content in a layer below', 'metacopy=off')
  }
  return marks
}

function unsupported(path: string, what: string, option: string): VarveError {
  return new VarveError('SOURCE_UNSUPPORTED', `${printPath(path)} ${what} (an overlayfs mark that needs the layers below); mount the overlay with ${option},index=off and make the change again, or import the merged directory with dir:PATH`)
}
