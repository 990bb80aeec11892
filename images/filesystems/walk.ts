/**
 * A walk over all names of a filesystem, which may be damaged or hostile: bounded, and never in a circle.
 */
import { VarveError, isVarveError } from '../errors.ts'
import { DEPTH_MAX, PATH_BYTES_MAX } from '../tree/limits.ts'
import { Kind } from '../tree/tree.ts'
import { sortedEntries } from './file-paths.ts'
import type { FileNode, Filesystem } from './filesystem.ts'

/** What a walk finds: a name with what it stands for. */
export interface Found {
  /** From where the walk began, without a leading slash, bytes in latin1; '' for the start itself. */
  path: string
  node: FileNode
}

export interface WalkOptions {
  /** Id of the node that the walk begins at, and paths with it; the root by default. */
  from?: number
  /** Names in the order of their bytes, none twice, instead of that of the filesystem. */
  sorted?: boolean
  /** Told of a path that cannot be read; it is left out, with all below it. Without it, the walk ends there. */
  damaged?: (path: string, error: VarveError) => void
}

/** Names of one walk. */
const NAMES_MAX = 1 << 26

/**
 * The root, or another node, and every name below it: directories before what they hold, depth first. A file with several names comes several times.
 * @throws VarveError as the filesystem; FORMAT_INVALID for a directory that has two names, and with `sorted` for a name that stands twice; LIMIT_EXCEEDED
 */
export async function* walk(filesystem: Filesystem, { from = filesystem.root, sorted = false, damaged }: WalkOptions = {}): AsyncGenerator<Found> {
  const pending: { path: string; id: number; depth: number }[] = [{ path: '', id: from, depth: 0 }]
  const directories = new Set<number>()
  for (let names = 0; pending.length > 0;) {
    const { path, id, depth } = pending.pop()!
    try {
      const node = await filesystem.node(id)
      if (node.kind === Kind.directory) {
        if (directories.has(id)) throw new VarveError('FORMAT_INVALID', `${filesystem.type}: directory ${id} has two names`)
        directories.add(id)
      }
      yield { path, node }
      if (node.kind !== Kind.directory) continue
      const entries = sorted ? await sortedEntries(filesystem, id, path) : await filesystem.list(id)
      names += entries.length
      checkLimits(filesystem, { names, depth, pathBytes: path.length })
      for (let index = entries.length - 1; index >= 0; index--) {
        const { name, id: child } = entries[index]
        pending.push({ path: path === '' ? name : `${path}/${name}`, id: child, depth: depth + 1 })
      }
    } catch (error) {
      if (damaged === undefined || !isVarveError(error, 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) throw error
      damaged(path, error)
    }
  }
}

function checkLimits({ type }: Filesystem, { names, depth, pathBytes }: { names: number; depth: number; pathBytes: number }): void {
  if (names > NAMES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${type}: more than ${NAMES_MAX} names`)
  if (depth >= DEPTH_MAX) throw new VarveError('LIMIT_EXCEEDED', `${type}: directories are nested more than ${DEPTH_MAX} deep`)
  if (pathBytes > PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${type}: a path of more than ${PATH_BYTES_MAX} bytes`)
}
