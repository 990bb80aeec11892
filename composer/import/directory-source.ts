/**
 * Directory source: the tree of a directory, or of an overlayfs upper directory, with everything that its filesystem tells of it.
 * Mount points are not crossed: an empty directory stands for each. What is read of files and what is not: docs/formats/import.md#dir
 */
import { realpathSync } from 'node:fs'
import { VarveError } from '@varve/images/errors.ts'
import { readXattrs } from '@varve/images/native/libc.ts'
import { FileStatus, IDENTITY_WORDS, closeDescriptor, errnoName, filesystemOf, forEachName, openDirectory, readTarget } from '@varve/images/native/scan.ts'
import { Column } from '@varve/images/tree/column.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Tree, Xattr } from '@varve/images/tree/tree.ts'
import { printPath } from '../merge/print-path.ts'
import { FileCache, fileCachePath, writeFileCache } from './file-cache.ts'
import type { CachedFile } from './file-cache.ts'
import { FileReading, ScannedFileTable, changed } from './file-reading.ts'
import { breathe } from './import-context.ts'
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

interface PendingDirectory {
  entry: number
  inode: number
  /** In latin1, with a slash at its end. */
  path: string
  /** As it was when its own name was found. */
  identity: Uint32Array
}

/** A name that was found, until its directory is known not to have changed meanwhile. */
interface FoundName {
  name: string
  init: InodeInit
  /** Of an inode with several names. */
  linkKey?: string
  /** Of a directory that is to be scanned. */
  identity?: Uint32Array
  file?: FoundFile
}

interface FoundFile {
  identity: Uint32Array
  sizeBytes: number
  sparse: boolean
  cached?: CachedFile
}

interface DirectoryResult {
  tree: Tree
  /** Files that were known to be unchanged and were not read. */
  filesUnchanged: number
}

/**
 * @param path of the directory
 * @param kind `overlay`: marks of overlayfs are read as what they mean
 * @throws VarveError SOURCE_INVALID, SOURCE_CHANGED, SOURCE_UNSUPPORTED
 */
export async function importDirectory(context: ImportContext, path: string, kind: 'dir' | 'overlay'): Promise<DirectoryResult> {
  return new DirectoryImport(context, path, kind).run()
}

class DirectoryImport {
  readonly #context: ImportContext
  readonly #kind: 'dir' | 'overlay'
  readonly #startMs = Date.now()
  /** Real path, raw bytes, and the same in latin1 with a slash at its end. */
  readonly #root: Buffer
  readonly #rootPath: string
  readonly #status = new FileStatus()
  readonly #builder: TreeBuilder
  readonly #files = new ScannedFileTable()
  /** By file: number of its directory's path, and its name. */
  readonly #fileDirectory = new Column(new Uint32Array())
  readonly #fileName: string[] = []
  readonly #directoryPaths: string[] = []
  readonly #reading: FileReading
  readonly #cache: FileCache
  readonly #cacheFile: string | undefined
  readonly #device: string
  readonly #rootIdentity: Uint32Array
  /** Inodes in the builder of files with several names, by device and inode. */
  readonly #linked = new Map<string, number>()
  #bytes = 0
  #unchanged = 0

  constructor(context: ImportContext, path: string, kind: 'dir' | 'overlay') {
    this.#context = context
    this.#kind = kind
    this.#root = realPath(path)
    this.#rootPath = withSlash(this.#root.toString('latin1'))
    const errno = this.#status.ofPath(terminated(this.#root))
    if (errno !== 0) throw unreadable(this.#rootPath, errnoName(errno))
    if ((this.#status.mode & S_IFMT) !== 0o040000) throw new VarveError('SOURCE_INVALID', `${path} is not a directory`)
    this.#device = this.#status.deviceKey
    this.#rootIdentity = this.#identity()
    this.#builder = new TreeBuilder(this.#init(Kind.directory, this.#rootPath, undefined))
    this.#reading = new FileReading(context, this.#files, this.#builder, (file) => terminated(Buffer.from(this.#pathOf(file), 'latin1')))
    const { cacheDirectory, writer } = context
    this.#cacheFile = cacheDirectory === undefined ? undefined : fileCachePath(cacheDirectory, { kind, path: this.#root, device: this.#device, filesystem: filesystemOf(terminated(this.#root)) })
    this.#cache = new FileCache(this.#cacheFile, this.#builder, (digests) => writer.hasCommitted(digests))
  }

  async run(): Promise<DirectoryResult> {
    await this.#scan()
    const { progress, pipeline } = this.#context
    progress.now.filesTotal = this.#files.count
    progress.now.bytesTotal = this.#bytes
    await this.#reading.drain()
    await this.#readChangedAgain()
    // Before the cache says that they are there.
    await pipeline.commit()
    this.#writeCache()
    return { tree: this.#builder.build(), filesUnchanged: this.#unchanged }
  }

  async #scan(): Promise<void> {
    const pending: PendingDirectory[] = [{ entry: 0, inode: 0, path: this.#rootPath, identity: this.#rootIdentity }]
    let sliceMs = performance.now()
    for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
      this.#scanDirectory(directory, pending)
      if (performance.now() - sliceMs < SCAN_SLICE_MS) continue
      this.#context.pipeline.throwIfFailed()
      this.#reading.dispatch(false)
      this.#context.progress.tell()
      await breathe()
      sliceMs = performance.now()
    }
  }

  /** Adds what a directory holds, all of it from one state of the directory. */
  #scanDirectory(directory: PendingDirectory, pending: PendingDirectory[]): void {
    for (let listing = 0; listing < LISTINGS_MAX; listing++) {
      const found = this.#list(directory)
      if (found === undefined) continue
      const number = found.some(({ file }) => file !== undefined) ? this.#directoryPaths.push(directory.path) - 1 : 0
      for (const name of found) this.#add(name, directory, number, pending)
      return
    }
    throw changed(printPath(directory.path))
  }

  /** @returns undefined if the directory changed meanwhile */
  #list(directory: PendingDirectory): FoundName[] | undefined {
    const fd = openDirectory(terminated(Buffer.from(directory.path === '/' ? '/' : directory.path.slice(0, -1), 'latin1')))
    if (fd < 0) throw unreadable(directory.path, errnoName(-fd))
    try {
      this.#statusOfOpen(fd, directory.path)
      if (!this.#status.hasIdentity(directory.identity, 0)) {
        directory.identity = this.#identity()
        this.#builder.replaceInode(directory.inode, this.#init(Kind.directory, directory.path, undefined))
      }
      const found: FoundName[] = []
      let vanished = false
      const errno = forEachName(fd, (name, bytes) => {
        const one = this.#find(fd, directory.path, name, bytes)
        if (one === undefined) vanished = true
        else found.push(one)
      })
      if (errno !== 0) throw unreadable(directory.path, errnoName(errno))
      this.#statusOfOpen(fd, directory.path)
      return vanished || !this.#status.hasIdentity(directory.identity, 0) ? undefined : found
    } finally {
      closeDescriptor(fd)
    }
  }

  #statusOfOpen(fd: number, path: string): void {
    const errno = this.#status.ofDescriptor(fd)
    if (errno !== 0) throw unreadable(path, errnoName(errno))
  }

  /** @returns undefined if the name has gone */
  #find(directoryFd: number, directoryPath: string, name: string, bytes: Uint8Array): FoundName | undefined {
    const status = this.#status
    const errno = status.ofName(directoryFd, bytes)
    if (errno !== 0) {
      if (errnoName(errno) === 'ENOENT') return undefined
      throw unreadable(directoryPath + name, errnoName(errno))
    }
    const path = directoryPath + name
    const kind = KIND_BY_TYPE.get(status.mode & S_IFMT)
    if (kind === undefined) throw new VarveError('SOURCE_UNSUPPORTED', `${printPath(path)} is of a type that Varve does not know (mode ${status.mode.toString(8)})`)
    const found: FoundName = { name, init: NO_INODE }
    if (kind !== Kind.directory && status.linkCount > 1) found.linkKey = status.fileKey
    if (kind === Kind.directory && (status.isMountPoint ?? status.deviceKey !== this.#device)) {
      found.init = this.#metadata(kind)
      return found
    }
    if (kind === Kind.directory) found.identity = this.#identity()
    try {
      if (kind === Kind.file) {
        const file: FoundFile = { identity: this.#identity(), sizeBytes: status.sizeBytes, sparse: false }
        file.cached = this.#cache.find(status)
        found.file = file
      }
      found.init = this.#init(kind, path, directoryFd, bytes, found.file?.cached?.xattrs)
      if (found.file !== undefined) found.file.sparse = mayHaveHoles(status, found.init.xattrs!)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
    if (found.init.kind !== Kind.file) found.file = undefined
    return found
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

  #add(found: FoundName, directory: PendingDirectory, number: number, pending: PendingDirectory[]): void {
    const { name, init, linkKey, file } = found
    const known = linkKey === undefined ? undefined : this.#linked.get(linkKey)
    const inode = known ?? this.#builder.addInode(init)
    const entry = this.#builder.addEntry(directory.entry, name, inode)
    if (known !== undefined) return
    if (linkKey !== undefined && init.kind !== Kind.whiteout) this.#linked.set(linkKey, inode)
    if (found.identity !== undefined) pending.push({ entry, inode, path: `${directory.path}${name}/`, identity: found.identity })
    if (file !== undefined) this.#addFile(file, inode, name, number)
  }

  #addFile(file: FoundFile, inode: number, name: string, directory: number): void {
    const row = this.#files.inodes.push(inode)
    this.#files.identities.append(file.identity)
    this.#files.sizes.push(file.sizeBytes)
    this.#files.sparse.push(file.sparse ? 1 : 0)
    this.#fileDirectory.push(directory)
    this.#fileName.push(name)
    this.#bytes += file.sizeBytes
    if (file.cached !== undefined) {
      this.#unchanged++
      this.#builder.setContent(inode, file.cached.chunks, file.cached.bytes)
    }
    if (file.cached !== undefined || file.sizeBytes === 0) this.#context.progress.add(1, file.sizeBytes)
    else this.#reading.add(row)
  }

  #identity(): Uint32Array {
    const identity = new Uint32Array(IDENTITY_WORDS)
    this.#status.copyIdentity(identity, 0)
    return identity
  }

  #pathOf(file: number): string {
    return this.#directoryPaths[this.#fileDirectory.values[file]] + this.#fileName[file]
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
      this.#builder.replaceInode(this.#files.inodes.values[file], init)
      this.#status.copyIdentity(this.#files.identities.values, file * IDENTITY_WORDS)
      this.#files.sizes.values[file] = this.#status.sizeBytes
      this.#files.sparse.values[file] = mayHaveHoles(this.#status, init.xattrs!) ? 1 : 0
      if (this.#status.sizeBytes > 0) this.#reading.add(file)
    }
    await this.#reading.drain()
    for (const file of this.#reading.changed) throw changed(printPath(this.#pathOf(file)))
  }

  /** The next import can do without, so that failing to write it is no failure. */
  #writeCache(): void {
    if (this.#cacheFile === undefined) return
    if (this.#unchanged === this.#files.count && this.#unchanged === this.#cache.fileCount) return
    const { count, identities, inodes } = this.#files
    try {
      writeFileCache(this.#cacheFile, { count, identities: identities.values, inodes: inodes.values }, this.#builder, this.#startMs)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === undefined) throw error
    }
  }
}

/** Stands for an inode until it is read. */
const NO_INODE: InodeInit = { kind: Kind.file, mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 }

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
