/**
 * Source: what a layer is imported from, as people write it: `dir:PATH`, `tar:FILE`, `tar:-`, `oci:DIR[:TAG]`, `overlay:UPPERDIR`.
 */
import { VarveError } from '@varve/images/errors.ts'

export type Source =
  | { kind: 'dir'; path: string }
  | { kind: 'overlay'; path: string }
  /** `path` `-` is standard input. */
  | { kind: 'tar'; path: string }
  | { kind: 'oci'; path: string; tag?: string }

export const SOURCE_FORMS = 'dir:PATH, tar:FILE, tar:-, oci:DIR[:TAG] or overlay:UPPERDIR'

/** @throws VarveError SOURCE_INVALID, SOURCE_UNSUPPORTED */
export function parseSource(text: string): Source {
  const colon = text.indexOf(':')
  const kind = text.slice(0, Math.max(colon, 0))
  const path = text.slice(colon + 1)
  if (kind === 'disk') throw new VarveError('SOURCE_UNSUPPORTED', `${text}: disk images cannot be imported yet; mount the disk and import it with dir:PATH`)
  if (kind !== 'dir' && kind !== 'tar' && kind !== 'oci' && kind !== 'overlay') {
    throw new VarveError('SOURCE_INVALID', `${JSON.stringify(text)} is not a source; give ${SOURCE_FORMS}`)
  }
  if (path === '' || path.includes('\0')) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(text)} names no path; give ${SOURCE_FORMS}`)
  if (kind !== 'oci') return { kind, path }
  // What follows the last colon is a tag unless it has a slash: then the colon belongs to the path.
  const tagColon = path.lastIndexOf(':')
  const tag = path.slice(tagColon + 1)
  if (tagColon <= 0 || tag === '' || tag.includes('/')) return { kind, path }
  return { kind, path: path.slice(0, tagColon), tag }
}
