/**
 * The names of a merge: walks the directories of all layers at once, breadth first, and writes the merged entries in their final order.
 * A directory that one layer alone provides is copied without comparison. Inodes are only numbered here; merge-columns.ts fills them in.
 */
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { InodeSources } from './merge-columns.ts'
import type { Merger } from './mergers/merger.ts'
import { NameHeap } from './name-heap.ts'
import { printPath } from './print-path.ts'
import type { MergePath, MergeReason, ReportBuilder } from './report.ts'
import { sameContent, sameMetadata } from './same-inode.ts'
import { linkPath } from './stack.ts'
import type { LayerInode, Stack } from './stack.ts'

/** One layer's version of a file. */
export interface FileVersion {
  /** The layer that provides the name. */
  layer: number
  /** What the name stands for; of a lower layer if it is a link. */
  source: LayerInode
}

/** A file that several layers provide and a merger joins. */
export interface SharedFile {
  merger: Merger
  /** Bytes in latin1. */
  path: string
  /** Merged inode: metadata of the topmost version, content still to be set. */
  inode: number
  /** Bottom first, at least two. */
  versions: FileVersion[]
  reported: MergePath
}

/** Paths that mergers claim, as a tree of names. */
interface Claim {
  merger: Merger | null
  names: Map<string, Claim>
}

/** The directories that a merged directory consists of, topmost first. The first `visible` give it its names; the rest is hidden by an opaque directory and only reported. */
interface Parts {
  layers: number[]
  entries: number[]
  visible: number
}

const ENTRIES_INITIAL = 4096

export class MergeEntries {
  readonly names: string[] = []
  readonly shared: SharedFile[] = []
  #count = 0
  #parent = new Uint32Array(ENTRIES_INITIAL)
  #inode = new Uint32Array(ENTRIES_INITIAL)
  #firstChild = new Uint32Array(ENTRIES_INITIAL)
  #childCount = new Uint32Array(ENTRIES_INITIAL)
  /** By merged entry: the entry of its inode's layer that it comes from. */
  #sourceEntry = new Uint32Array(ENTRIES_INITIAL)
  #inodeCount = 0
  #inodeLayer = new Uint32Array(ENTRIES_INITIAL)
  #inodeSource = new Uint32Array(ENTRIES_INITIAL)
  /** By layer and its inode: merged inode + 1, or 0. Names that share an inode in a layer find each other here. */
  readonly #merged: Uint32Array[]
  /** By merged entry: directories of several parts that are still to be walked. */
  readonly #parts = new Map<number, Parts>()
  readonly #claims = new Map<number, Claim>()
  readonly #trees: readonly Tree[]
  readonly #stack: Stack
  readonly #report: ReportBuilder

  /** @param trees bottom first */
  constructor(trees: readonly Tree[], options: { stack: Stack; mergers: readonly Merger[]; report: ReportBuilder }) {
    this.#trees = trees
    this.#stack = options.stack
    this.#report = options.report
    this.#merged = trees.map((tree) => new Uint32Array(tree.inodeCount))
    this.#claims.set(0, claimsOf(options.mergers))
    this.#addRoot()
    for (let entry = 0; entry < this.#count; entry++) this.#walk(entry)
  }

  entryColumns() {
    const { names } = this
    const count = this.#count
    return {
      names,
      parent: this.#parent.slice(0, count),
      inode: this.#inode.slice(0, count),
      firstChild: this.#firstChild.slice(0, count),
      childCount: this.#childCount.slice(0, count),
    }
  }

  inodeSources(): InodeSources {
    return { count: this.#inodeCount, layer: this.#inodeLayer, inode: this.#inodeSource }
  }

  #addRoot(): void {
    const roots: Parts = { layers: [], entries: [], visible: this.#trees.length }
    for (let layer = this.#trees.length - 1; layer >= 0; layer--) {
      roots.layers.push(layer)
      roots.entries.push(0)
    }
    this.#addDirectory(0, '', roots, '')
  }

  #walk(entry: number): void {
    const first = this.#count
    this.#firstChild[entry] = first
    const inode = this.#inode[entry]
    const layer = this.#inodeLayer[inode]
    if (this.#trees[layer].kind[this.#inodeSource[inode]] !== Kind.directory) return
    const parts = this.#parts.get(entry)
    if (parts === undefined) {
      this.#copyNames(entry, layer, this.#sourceEntry[entry])
    } else {
      this.#parts.delete(entry)
      this.#mergeNames(entry, parts)
    }
    this.#childCount[entry] = this.#count - first
  }

  /** A directory that comes from one layer alone. */
  #copyNames(directory: number, layer: number, source: number): void {
    const tree = this.#trees[layer]
    const first = tree.firstChild[source]
    const end = first + tree.childCount[source]
    for (let entry = first; entry < end; entry++) this.#addOnly(directory, tree.names[entry], layer, entry)
  }

  #mergeNames(directory: number, parts: Parts): void {
    const trees = this.#trees
    const heap = new NameHeap(parts.layers.map((layer) => trees[layer]), parts.entries)
    const claim = this.#claims.get(directory)
    let path: string | undefined
    while (heap.place >= 0) {
      const place = heap.place
      const name = heap.name
      const entry = heap.entry
      heap.advance()
      if (heap.place < 0 || heap.name !== name) {
        if (place < parts.visible) this.#addOnly(directory, name, parts.layers[place], entry)
        continue
      }
      const same: Parts = { layers: [parts.layers[place]], entries: [entry], visible: place < parts.visible ? 1 : 0 }
      for (; heap.place >= 0 && heap.name === name; heap.advance()) {
        same.layers.push(parts.layers[heap.place])
        same.entries.push(heap.entry)
        if (heap.place < parts.visible) same.visible++
      }
      path ??= this.#path(directory)
      this.#addSame(directory, name, same, { path: path === '' ? name : `${path}/${name}`, claim: claim?.names.get(name), hider: parts.layers[parts.visible - 1] })
    }
  }

  /** A name that one layer alone provides. */
  #addOnly(directory: number, name: string, layer: number, entry: number): void {
    const tree = this.#trees[layer]
    const inode = tree.inode[entry]
    const kind = tree.kind[inode]
    if (kind === Kind.whiteout) return
    if (kind === Kind.link) this.#addLink(directory, name, { layer, inode })
    else this.#addEntry(directory, name, this.#mergedInode(layer, inode), entry)
  }

  /** A name that several layers provide, of which the upper `same.visible` count. */
  #addSame(directory: number, name: string, same: Parts, { path, claim, hider }: { path: string; claim: Claim | undefined; hider: number }): void {
    if (same.visible === 0) {
      this.#reportPath(path, same, hider, 'opaque directory')
      return
    }
    const layer = same.layers[0]
    const entry = same.entries[0]
    const inode = this.#trees[layer].inode[entry]
    const kind = this.#trees[layer].kind[inode]
    if (kind === Kind.whiteout) {
      this.#reportPath(path, same, layer, 'whiteout')
    } else if (kind === Kind.directory) {
      const merged = this.#addDirectory(directory, name, same, path)
      if (claim !== undefined) this.#claims.set(merged, claim)
    } else if (claim?.merger && this.#addShared(directory, name, same, { path, merger: claim.merger })) {
      return
    } else {
      this.#reportPath(path, same, layer, this.#report.all ? this.#replaceReason(same) : 'last layer')
      if (kind === Kind.link) this.#addLink(directory, name, { layer, inode }, same)
      else this.#addEntry(directory, name, this.#mergedInode(layer, inode), entry)
    }
  }

  /** A directory on top, over whatever lies below it. */
  #addDirectory(directory: number, name: string, same: Parts, path: string): number {
    const parts: Parts = { layers: [], entries: [], visible: 0 }
    let why: MergeReason = 'last layer'
    let open = true
    let differs = false
    for (let index = 0; index < same.layers.length; index++) {
      const layer = same.layers[index]
      const tree = this.#trees[layer]
      const inode = tree.inode[same.entries[index]]
      if (index === same.visible) open = false
      if (tree.kind[inode] !== Kind.directory) {
        if (open && tree.kind[inode] !== Kind.whiteout) why = 'replaced by directory'
        break
      }
      if (!open && !this.#report.all) break
      parts.layers.push(layer)
      parts.entries.push(same.entries[index])
      if (!open) {
        why = 'opaque directory'
        continue
      }
      parts.visible++
      differs ||= this.#report.all && !sameMetadata(tree, inode, this.#trees[same.layers[0]], this.#trees[same.layers[0]].inode[same.entries[0]])
      if (tree.opaque[inode] === 1) open = false
    }
    const top = same.layers[0]
    if (differs || why !== 'last layer') this.#reportPath(path, same, top, why)
    const merged = this.#addEntry(directory, name, this.#newInode(top, this.#trees[top].inode[same.entries[0]]), same.entries[0])
    if (parts.layers.length > 1) this.#parts.set(merged, parts)
    return merged
  }

  /** @returns false if there is nothing to join: one version only, or the same content in all */
  #addShared(directory: number, name: string, same: Parts, { path, merger }: { path: string; merger: Merger }): boolean {
    const versions: FileVersion[] = []
    for (let index = 0; index < same.visible; index++) {
      const layer = same.layers[index]
      const source = this.#resolve({ layer, inode: this.#trees[layer].inode[same.entries[index]] })
      if (source === null || this.#trees[source.layer].kind[source.inode] !== Kind.file) break
      versions.unshift({ layer, source })
    }
    if (versions.length < 2) return false
    const top = versions[versions.length - 1].source
    if (versions.every(({ source }) => sameContent(this.#trees[source.layer], source.inode, this.#trees[top.layer], top.inode))) return false
    const inode = this.#newInode(top.layer, top.inode)
    this.#addEntry(directory, name, inode, same.entries[0])
    const reported = this.#report.addPath(path, providers(this.#trees, same), same.layers[0], `merged by ${merger.name}`)
    this.shared.push({ merger, path, inode, versions, reported })
    return true
  }

  /** A link to a path of this layer or those below becomes one more name of the inode there. */
  #addLink(directory: number, name: string, link: LayerInode, same?: Parts): void {
    const source = this.#resolve(link)
    if (source !== null) {
      this.#addEntry(directory, name, this.#mergedInode(source.layer, source.inode), 0)
      return
    }
    const parent = this.#path(directory)
    const path = parent === '' ? name : `${parent}/${name}`
    const target = printPath(linkPath(this.#trees[link.layer], link.inode))
    const conflict = this.#report.addConflict(path, {
      subject: 'link',
      detail: `a hard link to ${target}, which neither its layer nor those below have as a file; the name is left out`,
      layers: [link.layer],
    })
    const reported = this.#report.addPath(path, same === undefined ? [link.layer] : providers(this.#trees, same), link.layer, 'last layer')
    reported.conflicts = [conflict]
  }

  #resolve(at: LayerInode): LayerInode | null {
    return this.#trees[at.layer].kind[at.inode] === Kind.link ? this.#stack.resolveLink(at.layer, at.inode) : at
  }

  #addEntry(parent: number, name: string, inode: number, sourceEntry: number): number {
    if (this.#count === this.#parent.length) this.#growEntries()
    const entry = this.#count++
    this.#parent[entry] = parent
    this.#inode[entry] = inode
    this.#sourceEntry[entry] = sourceEntry
    this.names.push(name)
    return entry
  }

  #mergedInode(layer: number, inode: number): number {
    const known = this.#merged[layer][inode]
    if (known !== 0) return known - 1
    const merged = this.#newInode(layer, inode)
    this.#merged[layer][inode] = merged + 1
    return merged
  }

  #newInode(layer: number, inode: number): number {
    if (this.#inodeCount === this.#inodeLayer.length) {
      this.#inodeLayer = doubled(this.#inodeLayer)
      this.#inodeSource = doubled(this.#inodeSource)
    }
    this.#inodeLayer[this.#inodeCount] = layer
    this.#inodeSource[this.#inodeCount] = inode
    return this.#inodeCount++
  }

  #growEntries(): void {
    this.#parent = doubled(this.#parent)
    this.#inode = doubled(this.#inode)
    this.#firstChild = doubled(this.#firstChild)
    this.#childCount = doubled(this.#childCount)
    this.#sourceEntry = doubled(this.#sourceEntry)
  }

  /** Path of a merged entry, bytes in latin1. */
  #path(entry: number): string {
    const names: string[] = []
    for (let at = entry; at !== 0; at = this.#parent[at]) names.push(this.names[at])
    return names.reverse().join('/')
  }

  #reportPath(path: string, same: Parts, winner: number, why: MergeReason): void {
    if (!this.#report.all) return
    const layers = providers(this.#trees, same)
    if (layers.length > (why === 'whiteout' ? 0 : 1)) this.#report.addPath(path, layers, winner, why)
  }

  /** Why what is not a directory wins over what lies below it. */
  #replaceReason(same: Parts): MergeReason {
    const top = same.layers[0]
    const topInode = this.#trees[top].inode[same.entries[0]]
    if (same.visible === 1) return 'opaque directory'
    let identical = true
    for (let index = 1; index < same.visible; index++) {
      const tree = this.#trees[same.layers[index]]
      const inode = tree.inode[same.entries[index]]
      if (tree.kind[inode] === Kind.directory) return 'replaces directory'
      if (tree.kind[inode] === Kind.whiteout) break
      identical &&= sameContent(tree, inode, this.#trees[top], topInode) && sameMetadata(tree, inode, this.#trees[top], topInode)
    }
    return identical ? 'identical' : 'last layer'
  }
}

/** Layers that have the name as something, not as a whiteout. */
function providers(trees: readonly Tree[], same: Parts): number[] {
  return same.layers.filter((layer, index) => trees[layer].kind[trees[layer].inode[same.entries[index]]] !== Kind.whiteout)
}

function doubled(array: Uint32Array): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(array.length * 2)
  larger.set(array)
  return larger
}

function claimsOf(mergers: readonly Merger[]): Claim {
  const root: Claim = { merger: null, names: new Map() }
  for (const merger of mergers) {
    for (const path of merger.paths) {
      let at = root
      for (const name of path.split('/')) {
        let next = at.names.get(name)
        if (next === undefined) {
          next = { merger: null, names: new Map() }
          at.names.set(name, next)
        }
        at = next
      }
      at.merger = merger
    }
  }
  return root
}
