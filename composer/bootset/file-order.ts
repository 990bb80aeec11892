/**
 * The order in which a boot set has the files of a tree laid out.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { Part } from './boot-set.ts'
import type { BootSet } from './boot-set.ts'

/** Inodes of files, none twice. What the tree does not have is passed over. */
export function fileOrder(set: BootSet, tree: Tree): Uint32Array {
  const inodes = new Set<number>()
  for (const { part, path } of set.entries) {
    const entry = part === Part.file ? tree.find(path) : -1
    if (entry >= 0 && tree.kind[tree.inode[entry]] === Kind.file) inodes.add(tree.inode[entry])
  }
  return Uint32Array.from(inodes)
}
