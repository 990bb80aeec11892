/**
 * CopyOut: files of a Filesystem into a directory of this machine, as `cp -a` does. Whatever the files say, nothing outside of the target is touched:
 * each name is made in a directory that is held open, and must be new there, so that nothing is written through a symlink.
 */
import { chmodSync, closeSync, constants, ftruncateSync, lchownSync, linkSync, lstatSync, mkdirSync, openSync, symlinkSync, unlinkSync, writeSync } from 'node:fs'
import { dataPieces } from '@varve/images/filesystems/file-content.ts'
import type { FileNode, Filesystem } from '@varve/images/filesystems/filesystem.ts'
import { sortedEntries } from '@varve/images/filesystems/file-paths.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { makeNode, setTimes, setXattr } from '@varve/images/native/file-attributes.ts'
import { printPath } from '@varve/composer/merge/print-path.ts'
import { TYPE_BITS } from '@varve/blockserver/fuse/protocol.ts'
import { DEPTH_MAX } from '@varve/images/tree/limits.ts'
import { Kind } from '@varve/images/tree/tree.ts'

export interface CopyFigures {
  files: number
  /** Content that was written. */
  bytes: number
  /** Paths that could not be copied, and why. */
  leftOut: { path: string; why: string }[]
  /** Files some of whose attributes this user or that filesystem cannot have. */
  attributesLost: number
}

/** Paths that are told. */
const LEFT_OUT_MAX = 1000
/** Of Linux; Node does not name it. */
const O_PATH = 0o10000000
const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_WRONLY } = constants

export class CopyOut {
  readonly figures: CopyFigures = { files: 0, bytes: 0, leftOut: [], attributesLost: 0 }
  readonly #files: Filesystem
  readonly #target: number
  readonly #signal: AbortSignal
  /** By id, of files with several names: where the first one is below the target, and its inode there. */
  readonly #linked = new Map<number, { path: string; inode: bigint }>()
  readonly #directories = new Set<number>()
  readonly #isRoot = process.geteuid!() === 0

  /** @param target descriptor of the directory, borrowed */
  constructor(files: Filesystem, target: number, signal: AbortSignal) {
    this.#files = files
    this.#target = target
    this.#signal = signal
  }

  /** Copies a node, and all below it, as `name` of the target. @throws VarveError ALREADY_EXISTS; as Filesystem.node; Error as of node:fs */
  copy(node: FileNode, name: string): Promise<void> {
    return this.#copy(node, { directory: this.#target, name, path: name, depth: 0 })
  }

  /** Copies what a directory holds, and its attributes onto the target. @throws as `copy` */
  async copyInside(directory: FileNode): Promise<void> {
    this.#directories.add(directory.id)
    await this.#copyEntries(directory, { directory: this.#target, path: '', depth: 0 })
    await this.#finish(directory, pathIn(this.#target, '.'))
  }

  async #copyEntries(node: FileNode, { directory, path, depth }: { directory: number; path: string; depth: number }): Promise<void> {
    for (const { name, id } of await sortedEntries(this.#files, node.id, path)) {
      const below = path === '' ? name : `${path}/${name}`
      await this.#copy(await this.#files.node(id), { directory, name, path: below, depth: depth + 1 })
    }
  }

  async #copy(node: FileNode, at: Place): Promise<void> {
    this.#signal.throwIfAborted()
    // Filesystems give no such names; what would be written elsewhere by one is not left to that.
    if (at.name === '' || at.name === '.' || at.name === '..' || /[/\0]/.test(at.name)) throw new VarveError('FORMAT_INVALID', `${JSON.stringify(at.name)} is no name of a file`)
    if (at.depth > DEPTH_MAX) throw new VarveError('LIMIT_EXCEEDED', `directories nested more than ${DEPTH_MAX} deep are not copied: ${printPath(at.path).slice(0, 200)}`)
    const path = pathIn(at.directory, at.name)
    try {
      if (node.links > 1 && node.kind !== Kind.directory && this.#link(node, path)) return
      await this.#make(node, path, at)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'EEXIST') throw new VarveError('ALREADY_EXISTS', `${printPath(at.path)} is there already; copy into an empty directory`, { cause })
      if (!isVarveError(cause, 'CHUNK_CORRUPT', 'CHUNK_MISSING', 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'SOURCE_UNSUPPORTED') || node.kind === Kind.directory) throw cause
      this.#leaveOut(at.path, cause.message)
      return
    }
    this.figures.files++
    if (node.links > 1 && node.kind !== Kind.directory) this.#linked.set(node.id, { path: at.path, inode: lstatSync(path, { bigint: true }).ino })
  }

  async #make(node: FileNode, path: Buffer, at: Place): Promise<void> {
    switch (node.kind) {
      case Kind.file: return this.#makeFile(node, path)
      case Kind.directory: return this.#makeDirectory(node, path, at)
      case Kind.symlink:
        symlinkSync(Buffer.from(await this.#files.target(node.id)), path)
        return this.#finish(node, path)
      case Kind.fifo:
      case Kind.socket:
        makeNode(path, TYPE_BITS[node.kind] | 0o600, { major: 0, minor: 0 })
        return this.#finish(node, path)
      case Kind.character:
      case Kind.block:
      case Kind.whiteout:
        if (!this.#isRoot) throw new VarveError('SOURCE_UNSUPPORTED', 'only root can make device nodes')
        makeNode(path, TYPE_BITS[node.kind] | 0o600, { major: node.deviceMajor, minor: node.deviceMinor })
        return this.#finish(node, path)
      case Kind.link:
        throw new VarveError('SOURCE_UNSUPPORTED', 'a hard link to a file of another layer')
    }
  }

  async #makeFile(node: FileNode, path: Buffer): Promise<void> {
    const fd = openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
    try {
      for await (const { offset, bytes } of dataPieces(this.#files, node)) {
        this.#signal.throwIfAborted()
        for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, offset + done)
        this.figures.bytes += bytes.length
      }
      ftruncateSync(fd, node.sizeBytes)
    } catch (error) {
      // Half a file is none.
      unlinkSync(path)
      throw error
    } finally {
      closeSync(fd)
    }
    await this.#finish(node, path)
  }

  async #makeDirectory(node: FileNode, path: Buffer, at: Place): Promise<void> {
    if (this.#directories.has(node.id)) throw new VarveError('FORMAT_INVALID', `the directory ${printPath(at.path)} has another name, too`)
    this.#directories.add(node.id)
    mkdirSync(path, 0o700)
    const fd = openSync(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
    try {
      await this.#copyEntries(node, { directory: fd, path: at.path, depth: at.depth })
    } finally {
      closeSync(fd)
    }
    await this.#finish(node, path)
  }

  /** Another name of a file that was copied. @returns false if it was not yet */
  #link({ id }: FileNode, path: Buffer): boolean {
    const first = this.#linked.get(id)
    if (first === undefined) return false
    linkSync(pathIn(this.#target, first.path), path)
    if (lstatSync(path, { bigint: true }).ino === first.inode) return true
    // Somebody else is at work in the target.
    unlinkSync(path)
    throw new VarveError('SOURCE_CHANGED', `${printPath(first.path)} was replaced while files were copied`)
  }

  /** Owner, permissions, attributes, times; in this order, since each may change what was before. */
  async #finish(node: FileNode, path: Buffer): Promise<void> {
    let lost = false
    const attempt = (change: () => void): void => {
      try {
        change()
      } catch (error) {
        if (!['EPERM', 'EACCES', 'ENOTSUP', 'EOPNOTSUPP', 'EINVAL', 'ENOSPC', 'E2BIG', 'ERANGE'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
        lost = true
      }
    }
    if (this.#isRoot) attempt(() => lchownSync(path, node.uid, node.gid))
    else if (node.uid !== process.geteuid!() || node.gid !== process.getegid!()) lost = true
    // What another user's files may do by their owner's rights is not given to this one's.
    const mode = this.#isRoot || !lost ? node.mode : node.mode & 0o1777
    if (node.kind !== Kind.symlink) attempt(() => changeMode(path, mode))
    for (const { name, value } of await this.#files.xattrs(node.id)) attempt(() => setXattr(path, name, value))
    attempt(() => setTimes(path, node))
    if (lost) this.figures.attributesLost++
  }

  #leaveOut(path: string, why: string): void {
    if (this.figures.leftOut.length < LEFT_OUT_MAX) this.figures.leftOut.push({ path: printPath(path), why })
  }
}

interface Place {
  /** Descriptor. */
  directory: number
  name: string
  /** Below the target, bytes in latin1. */
  path: string
  depth: number
}

function pathIn(directory: number, name: string): Buffer {
  return Buffer.from(`/proc/self/fd/${directory}/${name}`, 'latin1')
}

/** By way of a descriptor of the very file, which opens nothing: special files may wait, or do something. */
function changeMode(path: Buffer, mode: number): void {
  const fd = openSync(path, O_PATH | O_NOFOLLOW)
  try {
    chmodSync(`/proc/self/fd/${fd}`, mode)
  } finally {
    closeSync(fd)
  }
}
