/**
 * InodeOrder: which inode number each inode of a tree gets, and in which order directories and files are laid out.
 * Directory by directory, depth first: what a directory holds has neighbouring inodes and neighbouring data.
 */
import { Kind } from '../../tree/tree.ts'
import type { Tree } from '../../tree/tree.ts'
import { ENTRY_TYPE, FIRST_INODE, LOST_FOUND_INODE, LOST_FOUND_NAME, ROOT_INODE } from './format.ts'

export interface InodeOrder {
  /** By inode of the tree: its inode number on the disk. */
  numbers: Uint32Array
  /** Inodes of the tree in order of their numbers. */
  inodes: Uint32Array
  /** Entries of the directories, parents before children. */
  directories: Uint32Array
  /** Directory of the tree that is the root's lost+found; -1 if the tree has none. */
  lostFoundEntry: number
  /** First number after those of the tree. */
  nextNumber: number
}

/** @throws TypeError for a tree with whiteouts, links or directories with two names: merging removes the former, no source has the latter */
export function orderInodes(tree: Tree): InodeOrder {
  const { inode, kind, firstChild, childCount } = tree
  const numbers = new Uint32Array(tree.inodeCount)
  const inodes = new Uint32Array(tree.inodeCount)
  const directories: number[] = []
  const lostFound = tree.child(0, LOST_FOUND_NAME)
  const lostFoundEntry = lostFound >= 0 && kind[inode[lostFound]] === Kind.directory ? lostFound : -1
  let filled = 0
  let next = FIRST_INODE + 1
  const assign = (at: number, number: number) => {
    numbers[at] = number
    inodes[filled++] = at
  }
  assign(inode[0], ROOT_INODE)
  if (lostFoundEntry >= 0) assign(inode[lostFoundEntry], LOST_FOUND_INODE)
  const stack = [0]
  for (let directory = stack.pop(); directory !== undefined; directory = stack.pop()) {
    directories.push(directory)
    const first = firstChild[directory]
    for (let entry = first; entry < first + childCount[directory]; entry++) {
      const at = inode[entry]
      if (ENTRY_TYPE[kind[at]] === 0) throw new TypeError(`${JSON.stringify(tree.path(entry))} is a whiteout or a link to a lower layer: merge before writing`)
      if (numbers[at] === 0) assign(at, next++)
      else if (kind[at] === Kind.directory && entry !== lostFoundEntry) throw new TypeError(`the directory ${JSON.stringify(tree.path(entry))} has two names`)
    }
    for (let entry = first + childCount[directory] - 1; entry >= first; entry--) {
      if (kind[inode[entry]] === Kind.directory) stack.push(entry)
    }
  }
  return { numbers, inodes, directories: Uint32Array.from(directories), lostFoundEntry, nextNumber: next }
}
