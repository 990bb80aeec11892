/**
 * Source: what a layer is imported from, as people write it: `dir:PATH`, `tar:FILE`, `tar:-`, `oci:DIR[:TAG]`, `overlay:UPPERDIR`,
 * `disk:FILE|DEVICE`, `nbd:URI`.
 */
import { VarveError } from '@varve/images/errors.ts'

export type Source =
  | { kind: 'dir'; path: string }
  | { kind: 'overlay'; path: string }
  /** `path` `-` is standard input. */
  | { kind: 'tar'; path: string }
  | { kind: 'oci'; path: string; tag?: string }

/** A disk is imported by import-disk-layer.ts; `nbd` is opened by whoever has a client. */
export type DiskSource = { kind: 'disk'; path: string } | { kind: 'nbd'; uri: string }

export const SOURCE_FORMS = 'dir:PATH, tar:FILE, tar:-, oci:DIR[:TAG], overlay:UPPERDIR, disk:FILE|DEVICE or nbd:URI'

/** @returns undefined for what is no disk @throws VarveError SOURCE_INVALID */
export function parseDiskSource(text: string): DiskSource | undefined {
  const [, kind, rest] = /^(disk|nbd):(.*)$/s.exec(text) ?? []
  if (kind === undefined) return undefined
  if (rest === '' || rest.includes('\0')) throw new VarveError('SOURCE_INVALID', `${JSON.stringify(text)} names no disk; give disk:FILE, disk:DEVICE or nbd:URI`)
  // A URI begins with nbd: by itself.
  return kind === 'disk' ? { kind, path: rest } : { kind: 'nbd', uri: rest.startsWith('//') ? text : rest }
}

/** @throws VarveError SOURCE_INVALID, SOURCE_UNSUPPORTED */
export function parseSource(text: string): Source {
  const colon = text.indexOf(':')
  const kind = text.slice(0, Math.max(colon, 0))
  const path = text.slice(colon + 1)
  if (kind === 'disk' || kind === 'nbd') throw new VarveError('SOURCE_UNSUPPORTED', `${text} is a disk, which becomes a layer by itself`)
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
