/**
 * Directory source: the tree of a directory, or of an overlayfs upper directory, with everything that its filesystem tells of it.
 * Mount points are not crossed: an empty directory stands for each. What is read of files and what is not: docs/formats/import.md#dir
 */
import { realpathSync } from 'node:fs'
import { VarveError } from '@varve/images/errors.ts'
import { readXattrs } from '@varve/images/native/libc.ts'
import { FILE_KEY_WORDS, FileStatus, IDENTITY_WORDS, closeDescriptor, errnoName, filesystemOf, forEachName, openDirectory, readTarget } from '@varve/images/native/scan.ts'
import { putTree } from '@varve/images/store/stored-tree.ts'
import type { StoredTree } from '@varve/images/store/stored-tree.ts'
import { Column, ScratchColumn } from '@varve/images/tree/column.ts'
import { KeyTable } from '@varve/images/tree/key-table.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { BuilderMark, InodeInit } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { printPath } from '../merge/print-path.ts'
import { FileCache, fileCachePath, writeFileCache } from './file-cache.ts'
import { FileReading, ScannedFileTable, changed } from './file-reading.ts'
import { breathe, workspace } from './import-context.ts'
import type { ImportContext } from './import-context.ts'
import { keptXattrs } from './kept-xattrs.ts'
import { overlayMarks } from './overlay-marks.ts'

const S_IFMT = 0o170000
const KIND_BY_TYPE = new Map<number, Kind>([
  [0o100000, Kind.file],
  [0o040000, Kind.directory],
  [0o120000, Kind.symlink],
  [0o020000, Kind.character],
  [0o060000, Kind.block],
  [0o010000, Kind.fifo],
  [0o140000, Kind.socket],
])

/** Attributes up to this size, with their names, lie in the inode (a label does); larger ones may take blocks that count as the file's. Bytes. */
const XATTRS_IN_INODE_BYTES = 80
const XATTR_HEADER_BYTES = 16
/** Paths from here on are too long for a single call of the kernel, bytes. */
const PATH_BYTES_MAX = 4095
/** How often a directory is listed again that changes while it is listed. */
const LISTINGS_MAX = 5
/** The scan lets others run after so long. */
const SCAN_SLICE_MS = 8

/** How far the scan is: what a directory added that changed meanwhile is taken back. */
interface ScanMark {
  builder: BuilderMark
  files: number
  toRead: number
  linked: number
  pending: number
  counts: Counts
}

interface Counts {
  bytes: number
  unchanged: number
  /** Files that need not be read, and their bytes. */
  done: number
  doneBytes: number
}

/** The directory at hand. */
interface Directory {
  entry: number
  /** In latin1, with a slash at its end. */
  path: string
}

interface DirectoryResult {
  tree: StoredTree
  /** Files that were known to be unchanged and were not read. */
  filesUnchanged: number
}

/**
 * @param path of the directory
 * @param kind `overlay`: marks of overlayfs are read as what they mean
 * @throws VarveError SOURCE_INVALID, SOURCE_CHANGED, SOURCE_UNSUPPORTED
 */
export async function importDirectory(context: ImportContext, path: string, kind: 'dir' | 'overlay'): Promise<DirectoryResult> {
  using space = workspace(context)
  return await new DirectoryImport(context, space, path, kind).run()
}

class DirectoryImport {
  readonly #context: ImportContext
  readonly #space: Workspace
  readonly #kind: 'dir' | 'overlay'
  readonly #startMs = Date.now()
  /** Real path, raw bytes, and the same in latin1 with a slash at its end. */
  readonly #root: Buffer
  readonly #rootPath: string
  readonly #status = new FileStatus()
  readonly #builder: TreeBuilder
  readonly #files: ScannedFileTable
  readonly #reading: FileReading
  readonly #cacheFile: string | undefined
  readonly #device: string
  /** Directories to be scanned: their entries, and their identities as they were when their names were found. */
  readonly #pending: Column<Uint32Array>
  readonly #pendingIdentities: ScratchColumn<Uint32Array>
  /** Of the directory at hand. */
  readonly #identity = new Uint32Array(IDENTITY_WORDS)
  readonly #fileIdentity = new Uint32Array(IDENTITY_WORDS)
  /** Files with several names, by device and inode; and their inodes in the builder. */
  readonly #linked: KeyTable
  readonly #linkedInodes: Column<Uint32Array>
  readonly #fileKey = new Uint32Array(FILE_KEY_WORDS)
  #counts: Counts = { bytes: 0, unchanged: 0, done: 0, doneBytes: 0 }

  constructor(context: ImportContext, space: Workspace, path: string, kind: 'dir' | 'overlay') {
    this.#context = context
    this.#space = space
    this.#kind = kind
    this.#root = realPath(path)
    this.#rootPath = withSlash(this.#root.toString('latin1'))
    const errno = this.#status.ofPath(terminated(this.#root))
    if (errno !== 0) throw unreadable(this.#rootPath, errnoName(errno))
    if ((this.#status.mode & S_IFMT) !== 0o040000) throw new VarveError('SOURCE_INVALID', `${path} is not a directory`)
    this.#device = this.#status.deviceKey
    this.#pending = new Column(space, new Uint32Array())
    this.#pendingIdentities = new ScratchColumn(space, new Uint32Array())
    this.#linked = new KeyTable(space, FILE_KEY_WORDS)
    this.#linkedInodes = new Column(space, new Uint32Array())
    this.#builder = new TreeBuilder(this.#init(Kind.directory, this.#rootPath, undefined), space)
    this.#addPending(0)
    this.#files = new ScannedFileTable(space)
    this.#reading = new FileReading(context, { files: this.#files, builder: this.#builder, space, pathOf: (file) => terminated(Buffer.from(this.#pathOf(file), 'latin1')) })
    const { cacheDirectory } = context
    this.#cacheFile = cacheDirectory === undefined ? undefined : fileCachePath(cacheDirectory, { kind, path: this.#root, device: this.#device, filesystem: filesystemOf(terminated(this.#root)) })
  }

  async run(): Promise<DirectoryResult> {
    const cachedFiles = await this.#scan()
    const { progress, pipeline, writer } = this.#context
    progress.now.filesTotal = this.#files.count
    progress.now.bytesTotal = this.#counts.bytes
    await this.#reading.drain()
    await this.#readChangedAgain()
    // Before the cache says that they are there.
    await pipeline.commit()
    this.#writeCache(cachedFiles)
    this.#files.clear()
    this.#reading.clear()
    return { tree: putTree(writer, this.#builder), filesUnchanged: this.#counts.unchanged }
  }

  /** @returns files that the cache knew */
  async #scan(): Promise<number> {
    const { pipeline, progress, writer } = this.#context
    using cache = new FileCache(this.#cacheFile, this.#builder, this.#space, (digests) => writer.hasCommitted(digests))
    let sliceMs = performance.now()
    for (let at = this.#pending.length - 1; at >= 0; at = this.#pending.length - 1) {
      const entry = this.#pending.values[at]
      this.#pendingIdentities.read(at * IDENTITY_WORDS, this.#identity)
      this.#truncatePending(at)
      this.#scanDirectory({ entry, path: withSlash(this.#rootPath + this.#builder.path(entry)) }, cache)
      if (performance.now() - sliceMs < SCAN_SLICE_MS) continue
      pipeline.throwIfFailed()
      this.#reading.dispatch(false)
      progress.tell()
      await breathe()
      sliceMs = performance.now()
    }
    this.#linked.close()
    this.#linkedInodes.clear()
    return cache.fileCount
  }

  /** Adds what a directory holds, all of it from one state of the directory. */
  #scanDirectory(directory: Directory, cache: FileCache): void {
    const mark = this.#mark()
    for (let listing = 0; listing < LISTINGS_MAX; listing++) {
      if (this.#list(directory, cache)) {
        this.#context.progress.add(this.#counts.done - mark.counts.done, this.#counts.doneBytes - mark.counts.doneBytes)
        return
      }
      this.#rollBack(mark)
    }
    throw changed(printPath(directory.path))
  }

  #mark(): ScanMark {
    return {
      builder: this.#builder.mark(),
      files: this.#files.count,
      toRead: this.#reading.added,
      linked: this.#linked.count,
      pending: this.#pending.length,
      counts: { ...this.#counts },
    }
  }

  #rollBack({ builder, files, toRead, linked, pending, counts }: ScanMark): void {
    this.#reading.truncate(toRead)
    this.#files.truncate(files)
    this.#linked.truncate(linked)
    this.#linkedInodes.truncate(linked)
    this.#truncatePending(pending)
    this.#builder.rollBack(builder)
    this.#counts = { ...counts }
  }

  #addPending(entry: number): void {
    this.#pending.push(entry)
    this.#status.copyIdentity(this.#fileIdentity, 0)
    this.#pendingIdentities.append(this.#fileIdentity)
  }

  #truncatePending(count: number): void {
    this.#pending.truncate(count)
    this.#pendingIdentities.truncate(count * IDENTITY_WORDS)
  }

  /** @returns false if the directory changed meanwhile */
  #list(directory: Directory, cache: FileCache): boolean {
    const fd = openDirectory(terminated(Buffer.from(directory.path === '/' ? '/' : directory.path.slice(0, -1), 'latin1')))
    if (fd < 0) throw unreadable(directory.path, errnoName(-fd))
    try {
      this.#statusOfOpen(fd, directory.path)
      if (!this.#status.hasIdentity(this.#identity, 0)) {
        this.#status.copyIdentity(this.#identity, 0)
        this.#builder.replaceInode(this.#builder.inodeOf(directory.entry), this.#init(Kind.directory, directory.path, undefined))
      }
      let vanished = false
      const errno = forEachName(fd, (name, bytes) => {
        if (!vanished) vanished = !this.#add(fd, directory, { name, bytes }, cache)
      })
      if (errno !== 0) throw unreadable(directory.path, errnoName(errno))
      this.#statusOfOpen(fd, directory.path)
      return !vanished && this.#status.hasIdentity(this.#identity, 0)
    } finally {
      closeDescriptor(fd)
    }
  }

  #statusOfOpen(fd: number, path: string): void {
    const errno = this.#status.ofDescriptor(fd)
    if (errno !== 0) throw unreadable(path, errnoName(errno))
  }

  /** @returns false if the name has gone */
  #add(directoryFd: number, directory: Directory, { name, bytes }: { name: string; bytes: Uint8Array }, cache: FileCache): boolean {
    const status = this.#status
    const path = directory.path + name
    const errno = status.ofName(directoryFd, bytes)
    if (errno !== 0) {
      if (errnoName(errno) === 'ENOENT') return false
      throw unreadable(path, errnoName(errno))
    }
    const kind = KIND_BY_TYPE.get(status.mode & S_IFMT)
    if (kind === undefined) throw new VarveError('SOURCE_UNSUPPORTED', `${printPath(path)} is of a type that Varve does not know (mode ${status.mode.toString(8)})`)
    if (kind === Kind.directory && (status.isMountPoint ?? status.deviceKey !== this.#device)) {
      this.#builder.addEntry(directory.entry, name, this.#builder.addInode(this.#metadata(kind)))
      return true
    }
    const linked = kind !== Kind.directory && status.linkCount > 1
    if (linked) {
      status.copyFileKey(this.#fileKey)
      const known = this.#linked.find(this.#fileKey)
      if (known >= 0) {
        this.#builder.addEntry(directory.entry, name, this.#linkedInodes.values[known])
        return true
      }
    }
    const cached = kind === Kind.file ? cache.find(status) : undefined
    const init = this.#initIfThere(kind, path, directoryFd, bytes, cached?.xattrs)
    if (init === undefined) return false
    const inode = this.#builder.addInode(init)
    const entry = this.#builder.addEntry(directory.entry, name, inode)
    if (linked && init.kind !== Kind.whiteout) {
      this.#linked.add(this.#fileKey)
      this.#linkedInodes.push(inode)
    }
    if (kind === Kind.directory) this.#addPending(entry)
    if (init.kind !== Kind.file) return true
    if (cached !== undefined) cache.writeContent(cached, this.#builder.contentWriter(inode))
    this.#addFile(entry, init, cached !== undefined)
    return true
  }

  #initIfThere(kind: Kind, path: string, directoryFd: number, name: Uint8Array, xattrs: readonly Xattr[] | undefined): InodeInit | undefined {
    try {
      return this.#init(kind, path, directoryFd, name, xattrs)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
  }

  /** Metadata of the inode whose status is at hand. @param xattrs if they are known */
  #init(kind: Kind, path: string, directoryFd: number | undefined, name?: Uint8Array, xattrs?: readonly Xattr[]): InodeInit {
    const init = this.#metadata(kind)
    if (kind === Kind.symlink) init.target = this.#target(path, directoryFd!, name!)
    init.xattrs = xattrs ?? this.#xattrs(path, directoryFd)
    if (this.#kind === 'overlay' && xattrs === undefined) this.#readMarks(init, path)
    return init
  }

  #metadata(kind: Kind): InodeInit {
    const status = this.#status
    const { uid, gid, mtimeSeconds, mtimeNanoseconds } = status
    const init: InodeInit = { kind, mode: status.mode & 0o7777, uid, gid, mtimeSeconds, mtimeNanoseconds }
    if (kind === Kind.character || kind === Kind.block) {
      init.deviceMajor = status.specialMajor
      init.deviceMinor = status.specialMinor
    }
    return init
  }

  /** What overlayfs means by it. */
  #readMarks(init: InodeInit, path: string): void {
    const marks = overlayMarks(init.xattrs!, path)
    init.xattrs = marks.xattrs
    if (init.kind === Kind.directory && marks.opaque) init.opaque = true
    const isDevice = init.kind === Kind.character && init.deviceMajor === 0 && init.deviceMinor === 0
    if (isDevice || (init.kind === Kind.file && marks.whiteout && this.#status.sizeBytes === 0)) {
      Object.assign(init, { kind: Kind.whiteout, mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, xattrs: [] })
    }
  }

  #target(path: string, directoryFd: number, name: Uint8Array): Uint8Array {
    const target = readTarget(directoryFd, name)
    if (typeof target !== 'number') return target
    throw unreadable(path, errnoName(target))
  }

  #xattrs(path: string, directoryFd: number | undefined): Xattr[] {
    const long = path.length > PATH_BYTES_MAX && directoryFd !== undefined
    const reached = long ? `/proc/self/fd/${directoryFd}/${path.slice(path.lastIndexOf('/') + 1)}` : path
    try {
      return keptXattrs(readXattrs(Buffer.from(reached, 'latin1')))
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === undefined || code === 'ENOENT') throw error
      throw unreadable(path, code, error)
    }
  }

  #addFile(entry: number, init: InodeInit, isUnchanged: boolean): void {
    const { sizeBytes } = this.#status
    const file = this.#files.entries.push(entry)
    this.#status.copyIdentity(this.#fileIdentity, 0)
    this.#files.identities.append(this.#fileIdentity)
    this.#files.sizes.push(sizeBytes)
    this.#files.sparse.push(mayHaveHoles(this.#status, init.xattrs!) ? 1 : 0)
    this.#counts.bytes += sizeBytes
    if (isUnchanged) this.#counts.unchanged++
    if (!isUnchanged && sizeBytes > 0) {
      this.#reading.add(file)
      return
    }
    this.#counts.done++
    this.#counts.doneBytes += sizeBytes
  }

  #pathOf(file: number): string {
    return this.#rootPath + this.#builder.path(this.#files.entries.values[file])
  }

  /** Files that changed between scan and reading are looked at once more. */
  async #readChangedAgain(): Promise<void> {
    const files = [...this.#reading.changed]
    this.#reading.changed.clear()
    for (const file of files) {
      const path = this.#pathOf(file)
      const errno = this.#status.ofPath(terminated(Buffer.from(path, 'latin1')))
      if (errno !== 0 || (this.#status.mode & S_IFMT) !== 0o100000) throw changed(printPath(path))
      const init = this.#init(Kind.file, path, undefined)
      if (init.kind !== Kind.file) throw changed(printPath(path))
      this.#builder.replaceInode(this.#builder.inodeOf(this.#files.entries.values[file]), init)
      this.#status.copyIdentity(this.#fileIdentity, 0)
      this.#fileIdentity.forEach((word, index) => this.#files.identities.set(file * IDENTITY_WORDS + index, word))
      this.#files.sizes.set(file, this.#status.sizeBytes)
      this.#files.sparse.set(file, mayHaveHoles(this.#status, init.xattrs!) ? 1 : 0)
      if (this.#status.sizeBytes > 0) this.#reading.add(file)
    }
    await this.#reading.drain()
    for (const file of this.#reading.changed) throw changed(printPath(this.#pathOf(file)))
  }

  /** The next import can do without, so that failing to write it is no failure. */
  #writeCache(cachedFiles: number): void {
    if (this.#cacheFile === undefined) return
    if (this.#counts.unchanged === this.#files.count && this.#counts.unchanged === cachedFiles) return
    try {
      writeFileCache(this.#cacheFile, { files: this.#files, builder: this.#builder, space: this.#space, scanStartMs: this.#startMs })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === undefined) throw error
    }
  }
}

function realPath(path: string): Buffer {
  try {
    return realpathSync.native(path, { encoding: 'buffer' })
  } catch (cause) {
    throw unreadable(Buffer.from(path).toString('latin1'), (cause as NodeJS.ErrnoException).code ?? 'error', cause)
  }
}

/** Whether a file is to be asked for its holes: it takes less than its size, or attributes take blocks that hide that. */
function mayHaveHoles(status: FileStatus, xattrs: readonly Xattr[]): boolean {
  if (status.allocatedBytes < status.sizeBytes) return true
  return xattrs.reduce((sum, { name, value }) => sum + XATTR_HEADER_BYTES + name.length + value.length, 0) > XATTRS_IN_INODE_BYTES
}

function withSlash(path: string): string {
  return path.endsWith('/') ? path : `${path}/`
}

function terminated(path: Uint8Array): Buffer {
  const result = Buffer.alloc(path.length + 1)
  result.set(path)
  return result
}

/** @param path in latin1 */
function unreadable(path: string, errno: string, cause?: unknown): VarveError {
  return new VarveError('SOURCE_INVALID', `${printPath(path)} cannot be read: ${errno}`, { cause })
}
