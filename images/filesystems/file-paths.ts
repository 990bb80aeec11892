/**
 * Paths in a Filesystem: the node of one, and the names of a directory. What is read may lie: loops, depth and repeated names are looked at here. All below a node: walk.ts.
 */
import { VarveError } from '../errors.ts'
import { DEPTH_MAX, PATH_BYTES_MAX } from '../tree/limits.ts'
import { Kind } from '../tree/tree.ts'
import type { DirectoryEntry, FileNode, Filesystem } from './filesystem.ts'

/** Symlinks on the way to one node (MAXSYMLINKS of Linux). */
const SYMLINKS_MAX = 40

/**
 * The node of a path. Symlinks are followed inside of the filesystem, whose root is `/` to them; the last one of the path only with `follow`.
 * @param path bytes in latin1; slashes too many do not matter
 * @throws VarveError NOT_FOUND, LIMIT_EXCEEDED, and as Filesystem.node
 */
export async function resolvePath(files: Filesystem, path: string, { follow = false } = {}): Promise<FileNode> {
  const missing = (): VarveError => new VarveError('NOT_FOUND', `there is no /${path.replace(/^\/+/, '')}`)
  if (path.length > PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a path of ${path.length} bytes; at most ${PATH_BYTES_MAX} are looked up`)
  // Names yet to go, the next one last; directories that were come through.
  const names = path.split('/').reverse()
  const followsLast = follow || path.endsWith('/')
  const ways = [files.root]
  let node = await files.node(files.root)
  for (let symlinks = 0; names.length > 0; ) {
    const name = names.pop()!
    if (name === '' || name === '.') continue
    if (node.kind !== Kind.directory) throw missing()
    if (name === '..') {
      if (ways.length > 1) ways.pop()
      node = await files.node(ways.at(-1)!)
      continue
    }
    const id = await files.child(node.id, name)
    if (id === undefined) throw missing()
    const next = await files.node(id)
    const isLast = names.every((rest) => rest === '' || rest === '.')
    if (next.kind === Kind.symlink && (!isLast || followsLast)) {
      if (++symlinks > SYMLINKS_MAX) throw new VarveError('LIMIT_EXCEEDED', `/${path} goes through more than ${SYMLINKS_MAX} symlinks`)
      const target = Buffer.from(await files.target(id)).toString('latin1')
      if (names.length + target.length > 2 * PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `/${path} leads too far through symlinks`)
      names.push(...target.split('/').reverse())
      if (target.startsWith('/')) {
        ways.length = 1
        node = await files.node(files.root)
      }
      continue
    }
    node = next
    if (node.kind === Kind.directory) ways.push(id)
    if (ways.length > DEPTH_MAX) throw tooDeep(path)
  }
  return node
}

/** Names of a directory in the order of their bytes. @throws VarveError FORMAT_INVALID if one stands twice; as Filesystem.list */
export async function sortedEntries(files: Filesystem, directory: number, path: string): Promise<readonly DirectoryEntry[]> {
  const entries = [...(await files.list(directory))].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
  for (let index = 1; index < entries.length; index++) {
    if (entries[index].name === entries[index - 1].name) throw new VarveError('FORMAT_INVALID', `the directory /${path} has the name ${JSON.stringify(entries[index].name)} twice`)
  }
  return entries
}

function tooDeep(path: string): VarveError {
  return new VarveError('LIMIT_EXCEEDED', `directories are nested more than ${DEPTH_MAX} deep at /${path.slice(0, 200)}`)
}
