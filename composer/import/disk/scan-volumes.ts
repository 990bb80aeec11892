/**
 * Scan of volumes: walks the filesystems of a disk, and builds the one tree that they are when they are mounted in one another.
 * A name that cannot be in a tree, or that leads to what cannot be read, is left out and noted.
 */
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import type { DirectoryEntry, FileExtent, FileNode } from '@varve/images/filesystems/filesystem.ts'
import { DEPTH_MAX, PATH_BYTES_MAX } from '@varve/images/tree/limits.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { printPath } from '../../merge/print-path.ts'
import { IMPLICIT_DIRECTORY } from '../archive-members.ts'
import { breathe } from '../import-context.ts'
import type { ImportContext } from '../import-context.ts'
import { keptXattrs } from '../kept-xattrs.ts'
import { DiskFiles } from './disk-files.ts'
import { KnownFiles } from './known-files.ts'
import { CONTENT_CODES, volumeText } from './open-volumes.ts'
import type { DiskProblem, MountedVolume } from './open-volumes.ts'

/** The walk lets others run after so long. */
const SLICE_MS = 8
/** Columns grow by less, bytes. */
const COLUMN_STEP_BYTES = 8 << 20
/** Problems that are told one by one. */
const PROBLEMS_MAX = 1000

export interface VolumeScan {
  builder: TreeBuilder
  files: DiskFiles
  /** Names that were left out; the first are in the list of problems. */
  leftOut: number
}

interface Pending {
  volume: number
  directory: number
  entry: number
  /** Names from the root of the tree. */
  depth: number
  /** Of the path with a slash at its end. */
  pathBytes: number
}

/** @param space borrowed, the builder's @param known is told of each file that has a place on the disk */
export async function scanVolumes(context: ImportContext, options: { volumes: readonly MountedVolume[]; problems: DiskProblem[]; space: Workspace; known: KnownFiles }): Promise<VolumeScan> {
  const scan = new Scan(context, options)
  await scan.run()
  return { builder: scan.builder, files: scan.files, leftOut: scan.leftOut }
}

class Scan {
  readonly builder: TreeBuilder
  readonly files: DiskFiles
  leftOut = 0
  readonly #context: ImportContext
  readonly #volumes: readonly MountedVolume[]
  readonly #problems: DiskProblem[]
  readonly #known: KnownFiles
  readonly #space: Workspace
  readonly #pending: Pending[] = []
  /** By volume: directories that were found. */
  readonly #directories: Set<number>[]
  /** By volume: inode in the builder of files that have several names. */
  readonly #linked: Map<number, number>[]
  /** Volume by its mount point, until that was found. */
  readonly #mounts: Map<string, number>

  constructor(context: ImportContext, { volumes, problems, space, known }: { volumes: readonly MountedVolume[]; problems: DiskProblem[]; space: Workspace; known: KnownFiles }) {
    this.#context = context
    this.#volumes = volumes
    this.#problems = problems
    this.#known = known
    this.#space = space
    this.builder = new TreeBuilder(IMPLICIT_DIRECTORY, space)
    this.files = new DiskFiles(space)
    this.#directories = volumes.map(() => new Set())
    this.#linked = volumes.map(() => new Map())
    this.#mounts = new Map(volumes.map(({ mountPoint }, number) => [mountPoint, number]))
  }

  async run(): Promise<void> {
    if (this.#volumes.length === 0) return
    await this.#mount(this.#mounts.get('')!, { entry: 0, depth: 0, pathBytes: 0 })
    this.#mounts.delete('')
    await this.#walk()
    for (const [path, volume] of this.#mounts) {
      const entry = await this.#ifReadable(path, () => this.#makeDirectories(path))
      if (entry === undefined) continue
      await this.#mount(volume, { entry, depth: path.split('/').length, pathBytes: path.length + 1 })
      await this.#walk()
    }
  }

  /** Puts the root of a volume in the place of a directory. */
  async #mount(volume: number, { entry, depth, pathBytes }: Pick<Pending, 'entry' | 'depth' | 'pathBytes'>): Promise<void> {
    const { filesystem, name } = this.#volumes[volume]
    await this.#ifReadable(volumeText(name), async () => {
      const node = await filesystem.node(filesystem.root)
      this.builder.replaceInode(this.builder.inodeOf(entry), await this.#init(volume, node))
      this.#enter({ volume, directory: filesystem.root, entry, depth, pathBytes })
    })
  }

  #enter(pending: Pending): void {
    const found = this.#directories[pending.volume]
    if (found.has(pending.directory)) throw new VarveError('FORMAT_INVALID', 'a directory has two names')
    found.add(pending.directory)
    this.#pending.push(pending)
  }

  async #walk(): Promise<void> {
    let sliceMs = performance.now()
    for (let next = this.#pending.pop(); next !== undefined; next = this.#pending.pop()) {
      const { volume, directory, entry } = next
      const { filesystem } = this.#volumes[volume]
      const names = await this.#ifReadable(this.#path(entry), () => filesystem.list(directory))
      for (const name of names ?? []) {
        try {
          if (!this.#addLinked(volume, entry, name)) await this.#add(next, name)
        } catch (error) {
          this.#note(error, this.#path(entry, name.name))
        }
        if (performance.now() - sliceMs < SLICE_MS) continue
        this.#context.pipeline.throwIfFailed()
        this.#context.progress.tell()
        await breathe()
        sliceMs = performance.now()
      }
    }
  }

  /** Adds a further name of what is known. */
  #addLinked(volume: number, parent: number, { name, id }: DirectoryEntry): boolean {
    const inode = this.#linked[volume].get(id)
    if (inode !== undefined) this.builder.addEntry(parent, name, inode)
    return inode !== undefined
  }

  async #add({ volume, entry: parent, depth, pathBytes }: Pending, { name, id }: DirectoryEntry): Promise<void> {
    if (depth >= DEPTH_MAX || pathBytes + name.length > PATH_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the path is of more than ${DEPTH_MAX} names or ${PATH_BYTES_MAX} bytes`)
    const { filesystem } = this.#volumes[volume]
    const answer = filesystem.node(id)
    const node = answer instanceof Promise ? await answer : answer
    const init = await this.#init(volume, node)
    const found = node.kind === Kind.file ? filesystem.extents(id) : []
    const extents = found instanceof Promise ? await found : found
    const mark = this.builder.mark()
    try {
      const inode = this.builder.addInode(init)
      const entry = this.builder.addEntry(parent, name, inode)
      if (node.kind === Kind.directory) await this.#addDirectory({ volume, directory: id, entry, depth: depth + 1, pathBytes: pathBytes + name.length + 1 })
      if (node.kind === Kind.file) this.#addFile(volume, node, inode, extents)
      if (node.links > 1 && node.kind !== Kind.directory) this.#linked[volume].set(id, inode)
    } catch (error) {
      this.builder.rollBack(mark)
      throw error
    }
  }

  async #addDirectory(pending: Pending): Promise<void> {
    const mounted = this.#mounts.size === 0 ? undefined : this.#mounts.get(this.builder.path(pending.entry))
    if (mounted === undefined) {
      this.#enter(pending)
    } else {
      this.#mounts.delete(this.builder.path(pending.entry))
      await this.#mount(mounted, pending)
    }
  }

  #addFile(volume: number, node: FileNode, inode: number, extents: readonly FileExtent[]): void {
    const file = this.files.count
    this.files.add({ number: volume, of: this.#volumes[volume] }, { id: node.id, inode, sizeBytes: node.sizeBytes }, extents)
    this.#known.note(file, volume, node, extents)
    this.#context.progress.now.files++
  }

  async #init(volume: number, node: FileNode): Promise<InodeInit> {
    const { filesystem } = this.#volumes[volume]
    const { kind, mode, uid, gid, modified, deviceMajor, deviceMinor } = node
    const init: InodeInit = { kind, mode, uid, gid, mtimeSeconds: modified.seconds, mtimeNanoseconds: modified.nanoseconds }
    if (kind === Kind.character || kind === Kind.block) Object.assign(init, { deviceMajor, deviceMinor })
    if (kind === Kind.symlink) init.target = await filesystem.target(node.id)
    const xattrs = filesystem.xattrs(node.id)
    init.xattrs = keptXattrs([...(xattrs instanceof Promise ? await xattrs : xattrs)])
    return init
  }

  /** Plain directories where a mount point is missing. @returns the entry of the last @throws VarveError SOURCE_UNSUPPORTED if something else has its name */
  #makeDirectories(path: string): number {
    let parent = 0
    for (const name of path.split('/')) {
      const child = this.#child(parent, name) ?? this.builder.addEntry(parent, name, this.builder.addInode(IMPLICIT_DIRECTORY))
      if (this.builder.kind(this.builder.inodeOf(child)) !== Kind.directory) throw new VarveError('SOURCE_UNSUPPORTED', 'the volume has no place in the tree: there is a file where it would be mounted')
      parent = child
    }
    return parent
  }

  #child(directory: number, name: string): number | undefined {
    for (let entry = 1; entry < this.builder.entryCount; entry++) if (this.builder.parentOf(entry) === directory && this.builder.names.get(entry) === name) return entry
    return undefined
  }

  #path(directory: number, name?: string): string {
    const path = this.builder.path(directory)
    return name === undefined ? path : path === '' ? name : `${path}/${name}`
  }

  async #ifReadable<Result>(where: string, read: () => Result | Promise<Result>): Promise<Result | undefined> {
    try {
      return await read()
    } catch (error) {
      this.#note(error, where)
      return undefined
    }
  }

  #note(error: unknown, where: string): void {
    if (!isVarveError(error, ...CONTENT_CODES)) throw error
    // What there is no memory for is not left out, one after another: the import ends.
    this.#space.take(COLUMN_STEP_BYTES)
    this.#space.take(-COLUMN_STEP_BYTES)
    this.leftOut++
    if (this.#problems.length < PROBLEMS_MAX) this.#problems.push({ where: printPath(where), problem: error.message })
  }
}
