/**
 * Path tree: names that come as paths, in any order and again and again, as archives have them; the last one stands.
 * Layers can be put one on another, each deleting what those below it have. At the end the names that stand go to a TreeBuilder, which holds the inodes all along.
 */
import { VarveError } from '@varve/images/errors.ts'
import { Column } from '@varve/images/tree/column.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
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
  // By name. A name that was removed stays here, and is found again if it comes back.
  readonly #parent = new Column(new Uint32Array())
  readonly #inode = new Column(new Uint32Array())
  readonly #names: string[] = []
  readonly #isAlive = new Column(new Uint8Array())
  /** Counts removals: a child whose `parentLife` is not its parent's `life` went with it. */
  readonly #life = new Column(new Uint32Array())
  readonly #parentLife = new Column(new Uint32Array())
  /** Layer that has touched the name last, as a member or on the way to one. */
  readonly #layer = new Column(new Uint32Array())
  /** Hash table by directory and name, at most half full: number plus 1, or 0. */
  #slots = new Uint32Array(4096)
  #currentLayer = 1
  /** Names of which the current layer says that they are deleted below it; directories that it says hide what is below. */
  #deletions: number[] = []
  readonly #hiding = new Set<number>()
  // The directory part that was resolved last: members of one directory mostly come together.
  #lastPath: string | undefined
  #lastDirectory = ROOT

  constructor(builder: TreeBuilder, implicit: ImplicitDirectory) {
    this.#builder = builder
    this.#implicit = implicit
    this.#addName(ROOT, '', 0)
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
      if (this.#builder.kind(this.#inode.values[at]) !== Kind.directory) return true
    }
    return false
  }

  /** Inode of the name at a path, or -1; makes nothing, and follows symlinks on the way but not at the end. */
  find(path: string): number {
    const found = this.#lookUp(path)
    return found < 0 ? -1 : this.#inode.values[found]
  }

  /** Inode of a name. */
  inode(name: number): number {
    return this.#inode.values[name]
  }

  /** Gives a place an inode. What stood there goes, with all below it unless both are directories. */
  put({ directory, name }: Place, inode: number): number {
    if (name === '') throw new RangeError('the root is not put')
    let found = this.#child(directory, name)
    if (found < 0) {
      found = this.#addName(directory, name, inode)
    } else {
      const wasDirectory = this.#builder.kind(this.#inode.values[found]) === Kind.directory
      if (!wasDirectory || this.#builder.kind(inode) !== Kind.directory) this.#forget(found)
      this.#isAlive.values[found] = 1
      this.#inode.values[found] = inode
      this.#layer.values[found] = this.#currentLayer
    }
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
    if (found >= ROOT) this.#hiding.add(found)
  }

  /** Ends a layer: what it deletes goes; what comes next is put on top of it. */
  endLayer(): void {
    for (const name of this.#deletions) {
      // A name that the layer has again is a new one: only what the old one held goes.
      if (this.#layer.values[name] === this.#currentLayer) this.#hiding.add(name)
      else this.#forget(name)
    }
    if (this.#hiding.size > 0) this.#forgetHidden()
    this.#deletions = []
    this.#hiding.clear()
    this.#lastPath = undefined
    this.#currentLayer++
  }

  /** Hands all names to the builder. Nothing can be asked of this afterwards: its memory is for others. */
  finish(): void {
    const entries = new Uint32Array(this.#names.length)
    for (let name = 1; name < this.#names.length; name++) {
      const parent = this.#parent.values[name]
      if (!this.#stands(name) || (parent !== ROOT && entries[parent] === 0)) continue
      entries[name] = this.#builder.addEntry(entries[parent], this.#names[name], this.#inode.values[name])
    }
    for (const column of [this.#parent, this.#inode, this.#isAlive, this.#life, this.#parentLife, this.#layer]) column.clear()
    this.#names.length = 0
    this.#slots = new Uint32Array(2)
  }

  /** Path of a name, in latin1. */
  path(name: number): string {
    const names: string[] = []
    for (let at = name; at !== ROOT; at = this.#parent.values[at]) names.push(this.#names[at])
    return names.reverse().join('/')
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
        at = this.#parent.values[at]
        continue
      }
      let next = this.#child(at, name)
      const kind = next < 0 ? undefined : this.#builder.kind(this.#inode.values[next])
      if (kind === Kind.symlink) {
        const target = Buffer.from(this.#builder.target(this.#inode.values[next])!).toString('latin1')
        if (++symlinks > SYMLINKS_MAX) throw new VarveError('SOURCE_INVALID', `${printPath(path)} leads through more than ${SYMLINKS_MAX} symlinks`)
        if (target.startsWith('/')) at = ROOT
        for (const part of target.split('/').reverse()) if (part !== '' && part !== '.') left.push(part)
        continue
      }
      if (kind !== Kind.directory) {
        if (!make) return -1
        const parentPath = this.path(at)
        next = this.put({ directory: at, name }, this.#implicit(parentPath === '' ? name : `${parentPath}/${name}`))
      }
      if (make) this.#layer.values[next] = this.#currentLayer
      at = next
    }
    return at
  }

  #forget(name: number): void {
    this.#isAlive.values[name] = 0
    this.#life.values[name]++
    this.#lastPath = undefined
  }

  /** A directory comes before what is in it. */
  #forgetHidden(): void {
    const isHidden = new Uint8Array(this.#names.length)
    for (let name = 1; name < this.#names.length; name++) {
      const parent = this.#parent.values[name]
      isHidden[name] = isHidden[parent] | (this.#hiding.has(parent) ? 1 : 0)
      if (isHidden[name] === 1 && this.#layer.values[name] < this.#currentLayer && this.#stands(name)) this.#forget(name)
    }
  }

  #stands(name: number): boolean {
    return this.#isAlive.values[name] === 1 && this.#parentLife.values[name] === this.#life.values[this.#parent.values[name]]
  }

  /** Name in a directory that stands, or -1. */
  #child(directory: number, name: string): number {
    const found = this.#slots[this.#slot(directory, name)] - 1
    return found >= 0 && this.#stands(found) ? found : -1
  }

  #addName(directory: number, name: string, inode: number): number {
    const slot = this.#names.length === 0 ? -1 : this.#slot(directory, name)
    const gone = slot < 0 ? -1 : this.#slots[slot] - 1
    if (gone >= 0) {
      // What was below it when it was removed has gone.
      this.#life.values[gone]++
      this.#isAlive.values[gone] = 1
      this.#parentLife.values[gone] = this.#life.values[directory]
      this.#inode.values[gone] = inode
      this.#layer.values[gone] = this.#currentLayer
      return gone
    }
    if (this.#names.length >= NAMES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the source has more than ${NAMES_MAX} names`)
    const added = this.#names.push(name) - 1
    this.#parent.push(directory)
    this.#inode.push(inode)
    this.#isAlive.push(1)
    this.#life.push(0)
    this.#parentLife.push(added === ROOT ? 0 : this.#life.values[directory])
    this.#layer.push(this.#currentLayer)
    if (slot >= 0) this.#slots[slot] = added + 1
    if (this.#names.length * 2 > this.#slots.length) this.#growSlots()
    return added
  }

  /** Slot of the name, or the free one where it belongs. */
  #slot(directory: number, name: string): number {
    const mask = this.#slots.length - 1
    let slot = hash(directory, name) & mask
    for (let at = this.#slots[slot]; at !== 0; at = this.#slots[slot]) {
      if (this.#parent.values[at - 1] === directory && this.#names[at - 1] === name) return slot
      slot = (slot + 1) & mask
    }
    return slot
  }

  #growSlots(): void {
    this.#slots = new Uint32Array(this.#slots.length * 2)
    for (let name = 1; name < this.#names.length; name++) this.#slots[this.#slot(this.#parent.values[name], this.#names[name])] = name + 1
  }
}

/** FNV-1a, with its bits mixed once more. */
function hash(directory: number, name: string): number {
  let value = (0x811c9dc5 ^ directory) | 0
  for (let at = 0; at < name.length; at++) value = Math.imul(value ^ name.charCodeAt(at), 0x01000193)
  value ^= Math.imul(directory, 0x9e3779b1)
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  return value ^ (value >>> 13)
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
