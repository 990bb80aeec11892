/**
 * Stack: looks paths up in the state that the lower layers of a stack make together, without merging them.
 * Used for the few paths that are asked for by name; the merge itself (merge-entries.ts) never asks by path.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'

/** An inode of one layer. */
export interface LayerInode {
  /** Place in the stack, 0 is the bottom. */
  layer: number
  inode: number
}

/** The directories that make one merged directory together, topmost first. */
export interface StackDirectory {
  layers: number[]
  entries: number[]
}

/** What `lookIn` answers instead of a layer. */
export const ABSENT = -1
/** The topmost layer that speaks of the name deletes it. */
export const DELETED = -2

/** Links to links that are followed, at most. */
const LINK_HOPS_MAX = 40

export class Stack {
  readonly #trees: readonly Tree[]

  /** @param trees bottom first */
  constructor(trees: readonly Tree[]) {
    this.#trees = trees
  }

  /** The merged directory at `path` in the state of layers 0 .. top, or null. Symlinks are not followed. */
  directory(path: string, top: number): StackDirectory | null {
    let directory = this.#root(top)
    for (const name of path.split('/')) {
      if (name === '') continue
      const next = this.#step(directory, name)
      if (next.layers.length === 0 || !this.#isDirectory(next)) return null
      directory = next
    }
    return directory
  }

  /** The inode at `path` in the state of layers 0 .. top, or null. It may be a link or a directory. */
  find(path: string, top: number): LayerInode | null {
    const slash = path.lastIndexOf('/')
    const directory = this.directory(slash < 0 ? '' : path.slice(0, slash), top)
    const name = path.slice(slash + 1)
    if (directory === null) return null
    const found = this.#step(directory, name)
    if (found.layers.length === 0) return null
    return { layer: found.layers[0], inode: this.#trees[found.layers[0]].inode[found.entries[0]] }
  }

  /** The topmost layer of `directory` that provides `name`, or ABSENT, or DELETED. */
  lookIn(directory: StackDirectory, name: string): number {
    for (let index = 0; index < directory.layers.length; index++) {
      const layer = directory.layers[index]
      const tree = this.#trees[layer]
      const entry = tree.child(directory.entries[index], name)
      if (entry >= 0) return tree.kind[tree.inode[entry]] === Kind.whiteout ? DELETED : layer
    }
    return ABSENT
  }

  /**
   * What a link of a layer stands for: the inode at its target in that layer itself, or else in the state of the layers below.
   * Whiteouts of the layer itself do not hide the target: the link was made before the name was deleted.
   * @returns null if there is nothing that can be linked
   */
  resolveLink(layer: number, inode: number): LayerInode | null {
    let at: LayerInode = { layer, inode }
    for (let hop = 0; hop < LINK_HOPS_MAX; hop++) {
      const tree = this.#trees[at.layer]
      const path = linkPath(tree, at.inode)
      const own = tree.find(path)
      let found: LayerInode | null
      if (own > 0 && tree.kind[tree.inode[own]] !== Kind.whiteout) found = { layer: at.layer, inode: tree.inode[own] }
      else found = at.layer === 0 ? null : this.find(path, at.layer - 1)
      if (found === null) return null
      const kind = this.#trees[found.layer].kind[found.inode]
      if (kind === Kind.directory) return null
      if (kind !== Kind.link) return found
      at = found
    }
    return null
  }

  #root(top: number): StackDirectory {
    const directory: StackDirectory = { layers: [], entries: [] }
    for (let layer = top; layer >= 0; layer--) {
      directory.layers.push(layer)
      directory.entries.push(0)
      if (this.#trees[layer].opaque[this.#trees[layer].inode[0]] === 1) break
    }
    return directory
  }

  /** The entry of `name`: one that is not a directory, or all directories that merge; empty if there is none. */
  #step(directory: StackDirectory, name: string): StackDirectory {
    const next: StackDirectory = { layers: [], entries: [] }
    for (let index = 0; index < directory.layers.length; index++) {
      const layer = directory.layers[index]
      const tree = this.#trees[layer]
      const entry = tree.child(directory.entries[index], name)
      if (entry < 0) continue
      const inode = tree.inode[entry]
      const isDirectory = tree.kind[inode] === Kind.directory
      if (tree.kind[inode] === Kind.whiteout || (!isDirectory && next.layers.length > 0)) break
      next.layers.push(layer)
      next.entries.push(entry)
      if (!isDirectory || tree.opaque[inode] === 1) break
    }
    return next
  }

  #isDirectory(directory: StackDirectory): boolean {
    const tree = this.#trees[directory.layers[0]]
    return tree.kind[tree.inode[directory.entries[0]]] === Kind.directory
  }
}

/** Target of a link: a path of the tree, bytes in latin1. */
export function linkPath(tree: Tree, inode: number): string {
  return Buffer.from(tree.targets.get(inode)!).toString('latin1')
}
