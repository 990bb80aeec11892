/**
 * Differences between the files of two filesystems, by path. Content of one size is compared by the chunks that hold it where both sides know them, and otherwise byte by byte.
 */
import type { FileNode } from '@varve/images/filesystems/filesystem.ts'
import { sortedEntries } from '@varve/images/filesystems/file-paths.ts'
import { VarveError } from '@varve/images/errors.ts'
import { DEPTH_MAX } from '@varve/images/tree/limits.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { TreeChange } from '@varve/images/tree/tree-diff.ts'
import type { OpenedFiles } from './open-files.ts'

interface Pair {
  path: string
  depth: number
  /** Ids; undefined where one side has none. */
  before: number | undefined
  after: number | undefined
}

const COMPARED_BYTES = 1 << 20

/** Changes that lead from `before` to `after`; what lies below an added or removed directory is listed too. Access times, and inodes' own, do not count. */
export async function* diffFiles(before: OpenedFiles, after: OpenedFiles, { signal }: { signal: AbortSignal }): AsyncGenerator<TreeChange> {
  const pending: Pair[] = [{ path: '', depth: 0, before: before.files.root, after: after.files.root }]
  const visited = [new Set<number>(), new Set<number>()]
  for (let pair = pending.pop(); pair !== undefined; pair = pending.pop()) {
    signal.throwIfAborted()
    const { path } = pair
    const left = pair.before === undefined ? undefined : await before.files.node(pair.before)
    const right = pair.after === undefined ? undefined : await after.files.node(pair.after)
    if (left === undefined || right === undefined) yield { path, change: left === undefined ? 'added' : 'removed', what: [] }
    else {
      const what = await differences(before, left, after, right)
      if (what.length > 0) yield { path, change: 'changed', what }
    }
    const directories = [directoryOf(left, visited[0], path), directoryOf(right, visited[1], path)]
    if (directories.every((one) => one === undefined)) continue
    if (pair.depth === DEPTH_MAX) throw new VarveError('LIMIT_EXCEEDED', `directories are nested more than ${DEPTH_MAX} deep at /${path.slice(0, 200)}`)
    pending.push(...(await pairsBelow(before, after, pair, directories)).reverse())
  }
}

function directoryOf(node: FileNode | undefined, visited: Set<number>, path: string): number | undefined {
  if (node?.kind !== Kind.directory) return undefined
  if (visited.has(node.id)) throw new VarveError('FORMAT_INVALID', `the directory /${path} has another name, too`)
  visited.add(node.id)
  return node.id
}

async function pairsBelow(before: OpenedFiles, after: OpenedFiles, { path, depth }: Pair, [left, right]: (number | undefined)[]): Promise<Pair[]> {
  const pairs = new Map<string, Pair>()
  const at = (name: string): Pair => {
    const found = pairs.get(name) ?? { path: path === '' ? name : `${path}/${name}`, depth: depth + 1, before: undefined, after: undefined }
    pairs.set(name, found)
    return found
  }
  if (left !== undefined) for (const { name, id } of await sortedEntries(before.files, left, path)) at(name).before = id
  if (right !== undefined) for (const { name, id } of await sortedEntries(after.files, right, path)) at(name).after = id
  return [...pairs.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, pair]) => pair)
}

async function differences(before: OpenedFiles, a: FileNode, after: OpenedFiles, b: FileNode): Promise<string[]> {
  const what: string[] = []
  const differs = (name: string, different: boolean): void => {
    if (different) what.push(name)
  }
  differs('kind', a.kind !== b.kind)
  differs('mode', a.mode !== b.mode)
  differs('owner', a.uid !== b.uid || a.gid !== b.gid)
  differs('mtime', a.modified.seconds !== b.modified.seconds || a.modified.nanoseconds !== b.modified.nanoseconds)
  differs('size', a.kind === Kind.file && b.kind === Kind.file && a.sizeBytes !== b.sizeBytes)
  differs('content', a.kind === Kind.file && b.kind === Kind.file && (a.sizeBytes !== b.sizeBytes || await contentDiffers(before, a, after, b)))
  if (a.kind === Kind.symlink && b.kind === Kind.symlink) differs('target', Buffer.compare(await before.files.target(a.id), await after.files.target(b.id)) !== 0)
  differs('device', a.deviceMajor !== b.deviceMajor || a.deviceMinor !== b.deviceMinor)
  differs('xattrs', await xattrsDiffer(before, a, after, b))
  return what
}

async function contentDiffers(before: OpenedFiles, a: FileNode, after: OpenedFiles, b: FileNode): Promise<boolean> {
  if (a.sizeBytes === 0) return false
  const keys = await Promise.all([before.contentKey?.(a), after.contentKey?.(b)])
  if (keys[0] !== undefined && keys[0] === keys[1]) return false
  const [left, right] = [Buffer.allocUnsafe(COMPARED_BYTES), Buffer.allocUnsafe(COMPARED_BYTES)]
  for (let at = 0; at < a.sizeBytes; at += COMPARED_BYTES) {
    const length = Math.min(COMPARED_BYTES, a.sizeBytes - at)
    await before.files.read(a.id, left.subarray(0, length), at)
    await after.files.read(b.id, right.subarray(0, length), at)
    if (left.compare(right, 0, length, 0, length) !== 0) return true
  }
  return false
}

async function xattrsDiffer(before: OpenedFiles, a: FileNode, after: OpenedFiles, b: FileNode): Promise<boolean> {
  const [left, right] = [await before.files.xattrs(a.id), await after.files.xattrs(b.id)]
  return left.length !== right.length || left.some(({ name, value }, index) => name !== right[index].name || Buffer.compare(value, right[index].value) !== 0)
}
