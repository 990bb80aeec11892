/**
 * How files are named on the command line: what holds them, and a path inside.
 * `NAME[@S]` a CVD, or one of its snapshots; `layer:NAME[@N]`; `disk:FILE[#VOLUME]`; `dir:DIRECTORY`; each followed by `:PATH` where a path is wanted.
 */
import { VarveError } from '@varve/images/errors.ts'
import { checkName, parseCvdName } from '@varve/images/store/names.ts'

export type FilesReference =
  | { kind: 'cvd'; cvd: string; snapshot?: string }
  | { kind: 'layer'; layer: string }
  /** `volume`: number of a partition, or GROUP/NAME of a logical volume; the one with the operating system, or else the largest, unless given. */
  | { kind: 'disk'; file: string; volume?: string }
  | { kind: 'directory'; directory: string }

/** Stands for every snapshot of a CVD, and what it shows now. */
export const ALL_SNAPSHOTS = '*'

/** @throws VarveError NAME_INVALID */
export function parseFilesReference(text: string): FilesReference {
  if (text.startsWith('layer:')) return { kind: 'layer', layer: text.slice('layer:'.length) }
  if (text.startsWith('dir:')) return { kind: 'directory', directory: text.slice('dir:'.length) }
  if (text.startsWith('disk:')) {
    const [, file, volume] = /^disk:([^#]+)(?:#(.+))?$/s.exec(text) ?? []
    if (file === undefined) throw new VarveError('NAME_INVALID', `${text} names no file; give disk:FILE or disk:FILE#VOLUME`)
    return { kind: 'disk', file, ...(volume === undefined ? {} : { volume }) }
  }
  return { kind: 'cvd', ...parseCvdName(text) }
}

/**
 * A reference with a path behind its last part: `desk@monday:/etc/fstab`. Paths of directories and disk images follow the first colon after `dir:` and `disk:`.
 * @returns the path as bytes in latin1, '' for the root; `of` may have `@*` for a CVD
 * @throws VarveError NAME_INVALID
 */
export function splitPath(text: string): { of: string; path: string } {
  const prefix = /^(?:layer|dir|disk):/.exec(text)?.[0] ?? ''
  const colon = text.indexOf(':', prefix.length)
  if (colon < 0) throw new VarveError('NAME_INVALID', `${text} has no path; give ${text}:/ for all of it`)
  return { of: text.slice(0, colon), path: Buffer.from(text.slice(colon + 1)).toString('latin1') }
}

/** Name of the CVD if a reference means all of its snapshots. @throws VarveError NAME_INVALID */
export function cvdOfAllSnapshots(of: string): string | undefined {
  if (!of.endsWith(`@${ALL_SNAPSHOTS}`)) return undefined
  const cvd = of.slice(0, -1 - ALL_SNAPSHOTS.length)
  checkName(cvd, 'CVD')
  return cvd
}
