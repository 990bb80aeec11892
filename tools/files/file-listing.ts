/**
 * How the command shows files: as `ls -l` does, and as documents.
 */
import { printPath } from '@varve/composer/merge/print-path.ts'
import type { FileNode, Filesystem, Timestamp } from '@varve/images/filesystems/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'

/** By the letter of `ls -l` and `find -type`; whiteouts are overlayfs's, links those of a layer to the ones below it. */
const LETTERS: Readonly<Record<Kind, string>> = {
  [Kind.file]: '-', [Kind.directory]: 'd', [Kind.symlink]: 'l', [Kind.character]: 'c', [Kind.block]: 'b', [Kind.fifo]: 'p', [Kind.socket]: 's', [Kind.whiteout]: 'w', [Kind.link]: 'h',
}
const KIND_NAMES = new Map<Kind, string>(Object.entries(Kind).map(([name, kind]) => [kind, name]))

/** `-` is written `f` by those who look for files. */
export function kindOfLetter(letter: string): Kind | undefined {
  const found = Object.entries(LETTERS).find(([, own]) => own === (letter === 'f' ? '-' : letter))
  return found === undefined ? undefined : (Number(found[0]) as Kind)
}

export async function fileDocument(files: Filesystem, path: string, node: FileNode) {
  const isLink = node.kind === Kind.symlink || node.kind === Kind.link
  return {
    path: printPath(path),
    kind: KIND_NAMES.get(node.kind)!,
    mode: node.mode.toString(8).padStart(4, '0'),
    uid: node.uid,
    gid: node.gid,
    sizeBytes: node.sizeBytes,
    links: node.links,
    modified: timeText(node.modified),
    ...(isLink ? { target: printPath(Buffer.from(await files.target(node.id)).toString('latin1')) } : {}),
    ...(node.kind === Kind.character || node.kind === Kind.block ? { device: `${node.deviceMajor}:${node.deviceMinor}` } : {}),
  }
}

export type FileDocument = Awaited<ReturnType<typeof fileDocument>>

/** Cells of a line of `ls -l`. */
export function listingRow({ kind, mode, links, uid, gid, sizeBytes, modified, path, target, device }: FileDocument): string[] {
  const letter = LETTERS[Kind[kind as keyof typeof Kind]]
  return [`${letter}${permissions(Number.parseInt(mode, 8))}`, String(links), String(uid), String(gid), device ?? String(sizeBytes), modified.slice(0, 19).replace('T', ' '), target === undefined ? path : `${path} -> ${target}`]
}

/** `rwxr-sr-t` */
function permissions(mode: number): string {
  const letters = [...'rwxrwxrwx'].map((letter, index) => ((mode & (0o400 >> index)) !== 0 ? letter : '-'))
  for (const [bit, index, letter] of [[0o4000, 2, 's'], [0o2000, 5, 's'], [0o1000, 8, 't']] as const) {
    if ((mode & bit) !== 0) letters[index] = letters[index] === 'x' ? letter : letter.toUpperCase()
  }
  return letters.join('')
}

/** `2026-11-22T10:00:00.123456789Z`; a number of seconds where the calendar ends. */
export function timeText({ seconds, nanoseconds }: Timestamp): string {
  const date = new Date(seconds * 1000)
  if (Number.isNaN(date.getTime())) return String(seconds)
  const fraction = nanoseconds === 0 ? '' : `.${String(nanoseconds).padStart(9, '0')}`
  return date.toISOString().replace(/\.\d{3}Z$/, `${fraction}Z`)
}
