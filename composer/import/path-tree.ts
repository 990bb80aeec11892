/**
 * Path tree: names that come as paths, in any order and again and again, as archives have them; the last one stands.
 * Layers can be put one on another, each deleting what those below it have. The names are the entries of a TreeBuilder; here is what finds them.
 */
import { VarveError } from '@varve/images/errors.ts'
import { Column } from '@varve/images/tree/column.ts'
import { nameHash } from '@varve/images/tree/name-column.ts'
import { HASH_SECRET, SlotTable } from '@varve/images/tree/slot-table.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { REMOVED } from '@varve/images/tree/tree-builder.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { printPath } from '../merge/print-path.ts'

/** As in Linux: symlinks followed for one path. */
const SYMLINKS_MAX = 40
/** Names, those that were replaced included. */
const NAMES_MAX = 16_000_000

const ROOT = 0

/** Where a path leads to: a name in a directory, or the root itself (name ''). */
export interface Place {
  directory: number
  name: string
}

/**
 * Makes the inode of a directory that no member describes.
 * @param path in latin1
 */
export type ImplicitDirectory = (path: string) => number

export class PathTree {
  readonly #builder: TreeBuilder
  readonly #implicit: ImplicitDirectory
  readonly #space: Workspace
  readonly #slots: SlotTable
  // The name that is sought there.
  #directory = ROOT
  #name = ''
  /** Layer that has touched the name last, as a member or on the way to one; from the second layer on. */
  #layer: Column<Uint16Array> | undefined
  #currentLayer = 1
  /** Names of which the current layer says that they are deleted below it; directories that it says hide what is below. */
  readonly #deletions: Column<Uint32Array>
  readonly #hiding: Column<Uint32Array>
  // The directory part that was resolved last: members of one directory mostly come together.
  #lastPath: string | undefined
  #lastDirectory = ROOT

  /** @param space borrowed, the builder's */
  constructor(builder: TreeBuilder, space: Workspace, implicit: ImplicitDirectory) {
    this.#builder = builder
    this.#implicit = implicit
    this.#space = space
    this.#deletions = new Column(space, new Uint32Array())
    this.#hiding = new Column(space, new Uint32Array())
    this.#slots = new SlotTable(space, {
      get count() {
        return builder.entryCount
      },
      // What was removed is not found again: a name that comes back is a new one, and has nothing of what was below the old one.
      isEntered: (name) => name !== ROOT && builder.inodeOf(name) !== REMOVED,
      hashOf: (name) => mixed(builder.names.hash(name, HASH_SECRET ^ builder.parentOf(name))),
      isSought: (name) => builder.parentOf(name) === this.#directory && builder.names.equals(name, this.#name),
    })
  }

  /**
   * Where a member's path leads. Directories on the way are made if they are missing; symlinks on the way are followed, inside the tree.
   * @param path in latin1, as it stands in the archive
   * @throws VarveError SOURCE_INVALID for a path with `..`
   */
  locate(path: string): Place {
    const slash = lastSlash(path)
    const end = path.endsWith('/') ? path.length - trailingSlashes(path) : path.length
    const name = path.slice(slash + 1, end)
    if (name !== '' && name !== '.' && name !== '..' && this.#lastPath !== undefined && path.slice(0, slash + 1) === this.#lastPath) {
      return { directory: this.#lastDirectory, name }
    }
    const names = componentsOf(path)
    const last = names.pop()
    if (last === undefined) return { directory: ROOT, name: '' }
    const directory = this.#walk(names, path, true)
    if (last === name) {
      this.#lastPath = path.slice(0, slash + 1)
      this.#lastDirectory = directory
    }
    return { directory, name: last }
  }

  /** Number of the directory at a path, which is made if it is missing. */
  directory(path: string): number {
    return this.#walk(componentsOf(path), path, true)
  }

  /** Number of the name at a place, or -1. */
  at({ directory, name }: Place): number {
    return name === '' ? ROOT : this.#child(directory, name)
  }

  /** True if something that is no directory stands in the way to a path. */
  isBlocked(path: string): boolean {
    let at = ROOT
    for (const name of componentsOf(path).slice(0, -1)) {
      at = this.#child(at, name)
      if (at < 0) return false
      if (!this.#isDirectory(this.inode(at))) return true
    }
    return false
  }

  /** Inode of the name at a path, or -1; makes nothing, and follows symlinks on the way but not at the end. */
  find(path: string): number {
    const found = this.#lookUp(path)
    return found < 0 ? -1 : this.inode(found)
  }

  /** Inode of a name. */
  inode(name: number): number {
    return this.#builder.inodeOf(name)
  }

  /** Gives a place an inode. What stood there goes, with all below it unless both are directories. */
  put({ directory, name }: Place, inode: number): number {
    if (name === '') throw new RangeError('the root is not put')
    const found = this.#child(directory, name)
    if (found < 0) return this.#addName(directory, name, inode)
    const wasDirectory = this.#isDirectory(this.inode(found))
    if (wasDirectory && !this.#isDirectory(inode)) {
      this.#remove(found)
      return this.#addName(directory, name, inode)
    }
    this.#builder.setInodeOf(found, inode)
    this.#touch(found)
    // It may have been a symlink on the way to the directory that was resolved last.
    if (!wasDirectory) this.#lastPath = undefined
    return found
  }

  /** The current layer deletes the name in the layers below it. Makes nothing. */
  delete(path: string): void {
    const found = this.#lookUp(path)
    if (found > ROOT) this.#deletions.push(found)
  }

  /** The current layer hides what the layers below it have in a directory. Makes nothing. */
  hide(path: string): void {
    const found = this.#lookUp(path)
    if (found >= ROOT) this.#hiding.push(found)
  }

  /** Ends a layer: what it deletes goes; what comes next is put on top of it. */
  endLayer(): void {
    for (let index = 0; index < this.#deletions.length; index++) {
      const name = this.#deletions.values[index]
      // A name that the layer has again is a new one: only what the old one held goes.
      if (this.#layerOf(name) === this.#currentLayer) this.#hiding.push(name)
      else this.#remove(name)
    }
    if (this.#hiding.length > 0) this.#removeHidden()
    this.#deletions.clear()
    this.#hiding.clear()
    this.#lastPath = undefined
    this.#currentLayer++
    if (this.#layer !== undefined) return
    this.#layer = new Column(this.#space, new Uint16Array())
    this.#layer.extend(this.#builder.entryCount)
    this.#layer.values.fill(1)
  }

  /** Nothing can be asked of this afterwards: its memory is for others. */
  finish(): void {
    this.#slots.clear()
    this.#layer?.clear()
    this.#deletions.clear()
    this.#hiding.clear()
  }

  #lookUp(path: string): number {
    const names = componentsOf(path)
    const last = names.pop()
    if (last === undefined) return ROOT
    const directory = this.#walk(names, path, false)
    return directory < 0 ? -1 : this.#child(directory, last)
  }

  /** @returns the directory, or -1 if it is not there and is not to be made */
  #walk(names: string[], path: string, make: boolean): number {
    let at = ROOT
    let symlinks = 0
    // From the last to the first, so that a symlink's target is put in front cheaply.
    const left = names.reverse()
    for (let name = left.pop(); name !== undefined; name = left.pop()) {
      if (name === '..') {
        at = this.#builder.parentOf(at)
        continue
      }
      let next = this.#child(at, name)
      const kind = next < 0 ? undefined : this.#builder.kind(this.inode(next))
      if (kind === Kind.symlink) {
        const target = Buffer.from(this.#builder.target(this.inode(next))).toString('latin1')
        if (++symlinks > SYMLINKS_MAX) throw new VarveError('SOURCE_INVALID', `${printPath(path)} leads through more than ${SYMLINKS_MAX} symlinks`)
        if (target.startsWith('/')) at = ROOT
        for (const part of target.split('/').reverse()) if (part !== '' && part !== '.') left.push(part)
        continue
      }
      if (kind !== Kind.directory) {
        if (!make) return -1
        const parentPath = this.#builder.path(at)
        next = this.put({ directory: at, name }, this.#implicit(parentPath === '' ? name : `${parentPath}/${name}`))
      }
      if (make) this.#touch(next)
      at = next
    }
    return at
  }

  #isDirectory(inode: number): boolean {
    return this.#builder.kind(inode) === Kind.directory
  }

  #remove(name: number): void {
    this.#builder.setInodeOf(name, REMOVED)
    this.#lastPath = undefined
  }

  /** A directory comes before what is in it. */
  #removeHidden(): void {
    /** By name: it hides what is in it, or is in what does. */
    const hides = new Column(this.#space, new Uint8Array())
    hides.extend(this.#builder.entryCount)
    for (let index = 0; index < this.#hiding.length; index++) hides.values[this.#hiding.values[index]] = 1
    for (let name = 1; name < hides.length; name++) {
      if (hides.values[this.#builder.parentOf(name)] === 0) continue
      hides.values[name] = 1
      if (this.#layerOf(name) < this.#currentLayer) this.#remove(name)
    }
    hides.clear()
  }

  #touch(name: number): void {
    if (this.#layer !== undefined) this.#layer.values[name] = this.#currentLayer
  }

  #layerOf(name: number): number {
    return this.#layer === undefined ? 1 : this.#layer.values[name]
  }

  /** Name in a directory, or -1. The directory was not removed, nor what it is in. */
  #child(directory: number, name: string): number {
    const found = this.#slots.find(this.#seek(directory, name))
    return found >= 0 && this.inode(found) !== REMOVED ? found : -1
  }

  #addName(directory: number, name: string, inode: number): number {
    if (this.#builder.entryCount >= NAMES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the source has more than ${NAMES_MAX} names`)
    const added = this.#builder.addEntry(directory, name, inode)
    this.#layer?.push(this.#currentLayer)
    this.#slots.put(this.#seek(directory, name), added)
    return added
  }

  /** @returns the hash of the name */
  #seek(directory: number, name: string): number {
    this.#directory = directory
    this.#name = name
    return mixed(nameHash(name, HASH_SECRET ^ directory))
  }
}

function mixed(hash: number): number {
  const value = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  return Math.imul(value ^ (value >>> 13), 0xc2b2ae35)
}

/** Where the last name of a path begins, less one. */
function lastSlash(path: string): number {
  return path.lastIndexOf('/', path.length - 1 - trailingSlashes(path))
}

function trailingSlashes(path: string): number {
  let count = 0
  while (count < path.length && path.charCodeAt(path.length - 1 - count) === 0x2f) count++
  return count
}

/** Names of a member's path: it is relative to the root, however it is written. */
function componentsOf(path: string): string[] {
  const names = path.split('/').filter((name) => name !== '' && name !== '.')
  if (names.includes('..')) throw new VarveError('SOURCE_INVALID', `${printPath(path)} in the archive leads out of it`)
  return names
}
