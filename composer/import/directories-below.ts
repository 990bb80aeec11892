/**
 * Directories below: what the layers of an image that were read say of its directories, for the layers above, which need not describe them again.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import { REMOVED, TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { Column } from '@varve/images/tree/column.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { IMPLICIT_DIRECTORY } from './archive-members.ts'
import { PathTree } from './path-tree.ts'

const UNKNOWN = 0xffffffff

export class DirectoriesBelow {
  readonly #space: Workspace
  readonly #builder: TreeBuilder
  readonly #paths: PathTree
  /** Inode of a name that is no directory any more. */
  readonly #other: number

  /** @param space borrowed */
  constructor(space: Workspace) {
    this.#space = space
    this.#builder = new TreeBuilder(IMPLICIT_DIRECTORY, space)
    this.#paths = new PathTree(this.#builder, space, () => this.#builder.addInode(IMPLICIT_DIRECTORY))
    this.#other = this.#builder.addInode({ ...IMPLICIT_DIRECTORY, kind: Kind.whiteout })
  }

  /** Metadata of the directory at a path in latin1: that of the topmost layer that has the path, if it is a directory there. */
  at(path: string): InodeInit {
    let at = 0
    for (const name of path.split('/')) {
      if (name === '') continue
      at = this.#paths.at({ directory: at, name })
      if (at < 0) return IMPLICIT_DIRECTORY
    }
    const inode = this.#builder.inodeOf(at)
    return inode === this.#other ? IMPLICIT_DIRECTORY : this.#builder.inodeInit(inode)
  }

  /** Puts the directories of a layer on top, before its builder is spent. */
  add(layer: TreeBuilder): void {
    /** By entry of the layer: the name here. */
    const known = new Column(this.#space, new Uint32Array())
    known.push(0)
    this.#builder.replaceInode(0, { ...layer.inodeInit(0), opaque: false })
    for (let entry = 1; entry < layer.entryCount; entry++) {
      const directory = known.values[layer.parentOf(entry)]
      const inode = layer.inodeOf(entry)
      if (directory === UNKNOWN || inode === REMOVED) known.push(UNKNOWN)
      else known.push(this.#put(directory, layer.names.get(entry), layer.kind(inode) === Kind.directory ? layer.inodeInit(inode) : undefined))
    }
    known.clear()
  }

  #put(directory: number, name: string, init: InodeInit | undefined): number {
    const at = this.#paths.at({ directory, name })
    if (init === undefined) {
      // What lower layers have below it stays: it is asked for again if the name becomes a directory.
      if (at >= 0) this.#builder.setInodeOf(at, this.#other)
      return UNKNOWN
    }
    const inode = this.#builder.addInode({ ...init, opaque: false })
    if (at < 0) return this.#paths.put({ directory, name }, inode)
    this.#builder.setInodeOf(at, inode)
    return at
  }
}
