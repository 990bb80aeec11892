/**
 * DirectoryFilesystem: the files of a directory of this machine. It does not change what it reads, and does not notice when others do meanwhile.
 */
import { closeSync, constants, lstatSync, openSync, readSync, readdirSync, readlinkSync } from 'node:fs'
import type { BigIntStats } from 'node:fs'
import { VarveError, isVarveError } from '../errors.ts'
import { dataParts, readXattrs } from '../native/libc.ts'
import { NAME_BYTES_MAX } from '../tree/limits.ts'
import { Kind } from '../tree/tree.ts'
import type { Xattr } from '../tree/tree.ts'
import type { DirectoryEntry, FileExtent, FileNode, Filesystem, Timestamp } from './filesystem.ts'
import { isPossibleName } from './utf16-names.ts'

const KIND_OF_TYPE = new Map<number, Kind>([
  [0o100000, Kind.file], [0o040000, Kind.directory], [0o120000, Kind.symlink], [0o020000, Kind.character], [0o060000, Kind.block], [0o010000, Kind.fifo], [0o140000, Kind.socket],
])
/** PATH_MAX of Linux, without room for its NUL. */
const PATH_BYTES_MAX = 4095
const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants

export class DirectoryFilesystem implements Filesystem {
  readonly type = 'directory'
  readonly blockBytes = 4096
  readonly sizeBytes = 0
  readonly root = 1
  /** By id, from 1 on; bytes in latin1. The first path of a file stands for it. */
  readonly #paths: string[]
  /** Device and inode to id. */
  readonly #ids = new Map<string, number>()

  /** @throws VarveError SOURCE_INVALID */
  constructor(directory: string) {
    this.#paths = ['', Buffer.from(directory).toString('latin1').replace(/(?<=.)\/+$/, '')]
    const stats = this.#stats(this.root)
    if (!stats.isDirectory()) throw new VarveError('SOURCE_INVALID', `${directory} is not a directory`)
    this.#ids.set(`${stats.dev}:${stats.ino}`, this.root)
  }

  node(id: number): FileNode {
    const stats = this.#stats(id)
    const kind = KIND_OF_TYPE.get(Number(stats.mode) & 0o170000)!
    const isDevice = kind === Kind.character || kind === Kind.block
    return {
      id,
      kind,
      mode: Number(stats.mode) & 0o7777,
      uid: Number(stats.uid),
      gid: Number(stats.gid),
      sizeBytes: kind === Kind.file || kind === Kind.symlink ? Number(stats.size) : 0,
      links: kind === Kind.directory ? 1 : Number(stats.nlink),
      modified: timestamp(stats.mtimeNs),
      accessed: timestamp(stats.atimeNs),
      changed: timestamp(stats.ctimeNs),
      deviceMajor: isDevice ? Number((stats.rdev >> 8n) & 0xfffn) : 0,
      deviceMinor: isDevice ? Number((stats.rdev & 0xffn) | ((stats.rdev >> 12n) & 0xfff00n)) : 0,
    }
  }

  list(directory: number): DirectoryEntry[] {
    const path = this.#path(directory)
    return reading(path, (place) => readdirSync(place, { encoding: 'latin1' as BufferEncoding })).map((name) => ({ name, id: this.#id(`${path}/${name}`) }))
  }

  child(directory: number, name: string): number | undefined {
    const path = this.#path(directory)
    if (!isPossibleName(name) || name.length > NAME_BYTES_MAX) return undefined
    try {
      return this.#id(`${path}/${name}`)
    } catch (error) {
      if (!isVarveError(error, 'SOURCE_CHANGED')) throw error
      return undefined
    }
  }

  target(symlink: number): Uint8Array {
    const path = this.#path(symlink)
    return reading(path, (place) => readlinkSync(place, { encoding: 'buffer' }))
  }

  xattrs(id: number): Xattr[] {
    const path = this.#path(id)
    return reading(path, readXattrs)
  }

  extents(file: number): FileExtent[] {
    return this.#opened(file, (fd) => dataParts(fd, this.node(file).sizeBytes)).map(({ offset, length }) => ({ fileOffset: offset, length }))
  }

  read(file: number, into: Uint8Array, offset: number): void {
    this.#opened(file, (fd) => {
      for (let done = 0; done < into.length; ) {
        const bytes = readSync(fd, into, done, into.length - done, offset + done)
        if (bytes === 0) throw new VarveError('SOURCE_CHANGED', `${this.#printed(file)} was shortened while it was read`)
        done += bytes
      }
    })
  }

  #opened<Result>(file: number, use: (fd: number) => Result): Result {
    const path = this.#path(file)
    return reading(path, (place) => {
      const fd = openSync(place, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
      try {
        return use(fd)
      } finally {
        closeSync(fd)
      }
    })
  }

  #id(path: string): number {
    const { dev, ino } = reading(path, (place) => lstatSync(place, { bigint: true }))
    const key = `${dev}:${ino}`
    const known = this.#ids.get(key)
    if (known !== undefined) return known
    this.#ids.set(key, this.#paths.length)
    return this.#paths.push(path) - 1
  }

  #stats(id: number): BigIntStats {
    const path = this.#path(id)
    return reading(path, (place) => lstatSync(place, { bigint: true }))
  }

  #path(id: number): string {
    const path = Number.isInteger(id) && id > 0 ? this.#paths.at(id) : undefined
    if (path === undefined) throw new RangeError(`no file has the id ${id}`)
    return path
  }

  #printed(id: number): string {
    return bytesOf(this.#path(id)).toString()
  }
}

function bytesOf(path: string): Buffer {
  return Buffer.from(path === '' ? '/' : path, 'latin1')
}

/** @throws VarveError SOURCE_CHANGED, SOURCE_INVALID */
function reading<Result>(path: string, read: (place: Buffer) => Result): Result {
  try {
    return reaching(bytesOf(path), read)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === undefined || cause instanceof VarveError) throw cause
    throw new VarveError(code === 'ENOENT' ? 'SOURCE_CHANGED' : 'SOURCE_INVALID', `${bytesOf(path).toString().slice(0, 1000)} cannot be read: ${code}`, { cause })
  }
}

/** A path longer than a call takes is reached by way of directories that are held open. */
function reaching<Result>(path: Buffer, read: (place: Buffer) => Result): Result {
  if (path.length < PATH_BYTES_MAX) return read(path)
  const cut = path.lastIndexOf(0x2f, PATH_BYTES_MAX - 1)
  const fd = openSync(path.subarray(0, cut), O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
  try {
    return reaching(Buffer.concat([Buffer.from(`/proc/self/fd/${fd}`), path.subarray(cut)]), read)
  } finally {
    closeSync(fd)
  }
}

function timestamp(nanoseconds: bigint): Timestamp {
  const seconds = nanoseconds / 1_000_000_000n - (nanoseconds % 1_000_000_000n < 0n ? 1n : 0n)
  return { seconds: Number(seconds), nanoseconds: Number(nanoseconds - seconds * 1_000_000_000n) }
}
