/**
 * Targets of links as POSIX has them: slashes, names in the case that directories have, and what lies on the same volume relative to the link.
 * What lies elsewhere is below `.NTFS-3G` in the root, where ntfs-3g too expects to be told the places of other drives.
 */
import { DEPTH_MAX } from '../../tree/limits.ts'
import { exceeded } from './format.ts'
import { encodeName } from '../utf16-names.ts'
import type { WindowsTarget } from './reparse-point.ts'

const ELSEWHERE = '.NTFS-3G'

/** What is asked of directories; all by what an id stands for. */
export interface Directories {
  root: number
  /** A name in a directory, whatever its case. */
  find(directory: number, name: string): Promise<FoundName | undefined>
  /** The directory that a file, or directory, is in; undefined for the root. */
  parent(id: number): Promise<number | undefined>
}

export interface FoundName {
  /** In UTF-16, as the directory has it. */
  name: string
  id: number
  /** A directory that is no reparse point. */
  isPlainDirectory: boolean
  isReparsePoint: boolean
}

/** @param link id of the link @returns bytes in latin1 */
export async function posixTarget(directories: Directories, link: number, target: WindowsTarget): Promise<string> {
  if (target.kind === 'linux') return target.path
  const names = target.path.split('\\')
  if (target.kind === 'relative') {
    const parent = await directories.parent(link) ?? directories.root
    return encodeName((await resolved(directories, parent, names)).names.join('/'))
  }
  const up = '../'.repeat(await depthOf(directories, link))
  // The root of a drive may be that of any volume; the root without a drive is ours.
  const mayBeHere = target.kind === 'absolute' && (target.path !== '' || target.drive === undefined)
  if (mayBeHere && !await isToldElsewhere(directories, target.drive)) {
    const { names: found, isFound } = await resolved(directories, directories.root, names)
    if (isFound || target.drive === undefined) return encodeName(up + found.join('/')) || '.'
  }
  return encodeName([`${up}${ELSEWHERE}`, ...(target.drive === undefined ? [] : [target.drive]), ...names].join('/'))
}

/** Directories between a link and the root, the root not counted. */
async function depthOf(directories: Directories, link: number): Promise<number> {
  let depth = 0
  for (let id = await directories.parent(link); id !== undefined && id !== directories.root; id = await directories.parent(id)) {
    if (++depth > DEPTH_MAX) throw exceeded(`a link is more than ${DEPTH_MAX} directories deep, or in a circle of them`)
  }
  return depth
}

async function isToldElsewhere(directories: Directories, drive: string | undefined): Promise<boolean> {
  const place = drive === undefined ? undefined : await directories.find(directories.root, ELSEWHERE)
  return place?.isPlainDirectory === true && await directories.find(place.id, drive!) !== undefined
}

/** Names as directories have them, up to the first that is not there, or is a link itself; `isFound` unless one is missing. */
async function resolved(directories: Directories, from: number, names: readonly string[]): Promise<{ names: string[]; isFound: boolean }> {
  const fixed: string[] = []
  let directory: number | undefined = from
  for (const [index, name] of names.entries()) {
    if (name === '.' || name === '') fixed.push(name)
    else if (name === '..') {
      directory = await directories.parent(directory)
      fixed.push(name)
    } else {
      const found = await directories.find(directory, name)
      if (found?.isReparsePoint === true) return { names: [...fixed, found.name, ...names.slice(index + 1)], isFound: true }
      const isLast = names.slice(index + 1).every((rest) => rest === '')
      if (found === undefined || (!isLast && !found.isPlainDirectory)) return { names: [...fixed, ...names.slice(index)], isFound: false }
      fixed.push(found.name)
      if (isLast) return { names: [...fixed, ...names.slice(index + 1)], isFound: true }
      directory = found.id
    }
    if (directory === undefined) return { names: [...fixed, ...names.slice(index + 1)], isFound: false }
  }
  return { names: fixed, isFound: true }
}
