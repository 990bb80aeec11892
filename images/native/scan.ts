/**
 * What a scan of a file tree asks of the kernel, without a JavaScript object for every file: the names of a directory,
 * and statx into one buffer that is used again and again. Linux only; names and paths are raw bytes, ended by NUL.
 * Extended attributes and holes are in libc.ts.
 */
import koffi from 'koffi'
import { endianness } from 'node:os'
import { VarveError } from '../errors.ts'

const libc = load()
const statx = libc.func('int statx(int directory, const void *path, int flags, unsigned int mask, _Out_ void *status)')
const openat = libc.func('int openat(int directory, const void *path, int flags)')
const close = libc.func('int close(int fd)')
const getdents64 = libc.func('long getdents64(int fd, _Out_ void *entries, size_t size)')
const statfs = libc.func('int statfs(const void *path, _Out_ void *status)')
const readlinkat = libc.func('long readlinkat(int directory, const void *path, _Out_ void *target, size_t size)')
const { EPERM } = koffi.os.errno

const AT_FDCWD = -100
const AT_SYMLINK_NOFOLLOW = 0x100
const AT_NO_AUTOMOUNT = 0x800
const AT_EMPTY_PATH = 0x1000
const STATX_BASIC_STATS = 0x7ff
const STATX_ATTR_MOUNT_ROOT = 0x2000
const O_NONBLOCK = 0o4000
const O_DIRECTORY = 0o200000
const O_NOFOLLOW = 0o400000
const O_NOATIME = 0o1000000
const O_CLOEXEC = 0o2000000
const O_PATH = 0o10000000
const EMPTY_PATH = new Uint8Array(1)
/** PATH_MAX: longest path that a call takes, its NUL included, and longest symlink target, bytes. */
const PATH_BYTES_MAX = 4096

function load() {
  if (endianness() !== 'LE') throw new VarveError('LIBRARY_MISSING', 'scanning directories needs a little-endian machine')
  try {
    return koffi.load('libc.so.6')
  } catch (cause) {
    throw new VarveError('LIBRARY_MISSING', 'the C library libc.so.6 cannot be loaded; Varve needs Linux with glibc', { cause })
  }
}

/** Errno of a call as the name that people know (`ENOENT`). @param errno positive */
export function errnoName(errno: number): string {
  return Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
}

export interface Filesystem {
  /** f_type of statfs(2): the magic number of its kind. */
  type: number
  /** f_fsid, hexadecimal; of many filesystems their UUID, or a part of it. */
  id: string
}

/** Bytes of struct statfs, and where f_fsid stands in it, on 64-bit machines. */
const STATFS_BYTES = 120
const FSID_OFFSET = 56

/** The filesystem that a path lies on. @param path ended by NUL @returns undefined if the kernel does not say */
export function filesystemOf(path: Uint8Array): Filesystem | undefined {
  const status = Buffer.alloc(STATFS_BYTES)
  if (statfs(path, status) !== 0) return undefined
  return { type: status.readUInt32LE(0), id: status.toString('hex', FSID_OFFSET, FSID_OFFSET + 8) }
}

/** 32-bit words of a file's key, see FileStatus.copyFileKey. */
export const FILE_KEY_WORDS = 4
/** 32-bit words of an identity, see FileStatus.copyIdentity. */
export const IDENTITY_WORDS = 10

/** Status of a file, overwritten by every call of `ofName` and `ofDescriptor`: struct statx of statx(2). */
export class FileStatus {
  readonly #words = new Uint32Array(64)
  readonly #signed = new Int32Array(this.#words.buffer)

  /**
   * Status of a name in an open directory, a symlink's own if it is one.
   * @param name ended by NUL @returns 0, or the positive errno
   */
  ofName(directoryFd: number, name: Uint8Array): number {
    return statx(directoryFd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, this.#words) === 0 ? 0 : koffi.errno()
  }

  /** Status of a path from the working directory or the root. @param path ended by NUL @returns 0, or the positive errno */
  ofPath(path: Uint8Array): number {
    return this.ofName(AT_FDCWD, path)
  }

  /** Status of an open file. @returns 0, or the positive errno */
  ofDescriptor(fd: number): number {
    return statx(fd, EMPTY_PATH, AT_EMPTY_PATH, STATX_BASIC_STATS, this.#words) === 0 ? 0 : koffi.errno()
  }

  /** Type and permissions, st_mode. */
  get mode(): number {
    return this.#words[7] & 0xffff
  }

  get linkCount(): number {
    return this.#words[4]
  }

  get uid(): number {
    return this.#words[5]
  }

  get gid(): number {
    return this.#words[6]
  }

  get sizeBytes(): number {
    return this.#words[11] * 0x1_0000_0000 + this.#words[10]
  }

  /** Bytes that the filesystem has allocated. */
  get allocatedBytes(): number {
    return (this.#words[13] * 0x1_0000_0000 + this.#words[12]) * 512
  }

  get mtimeSeconds(): number {
    return this.#signed[29] * 0x1_0000_0000 + this.#words[28]
  }

  get mtimeNanoseconds(): number {
    return this.#words[30]
  }

  get ctimeSeconds(): number {
    return this.#signed[25] * 0x1_0000_0000 + this.#words[24]
  }

  get specialMajor(): number {
    return this.#words[32]
  }

  get specialMinor(): number {
    return this.#words[33]
  }

  /** Low 32 bits of the inode number; for hashing. */
  get inodeLow(): number {
    return this.#words[8]
  }

  /** Device and inode: FILE_KEY_WORDS words, the same for all names of a file. */
  copyFileKey(into: Uint32Array): void {
    into[0] = this.#words[8]
    into[1] = this.#words[9]
    into[2] = this.#words[34]
    into[3] = this.#words[35]
  }

  /** Device, as a map key. */
  get deviceKey(): string {
    return `${this.#words[34]}:${this.#words[35]}`
  }

  /** True if something is mounted on it. Kernels before 5.8 do not tell: undefined. */
  get isMountPoint(): boolean | undefined {
    if ((this.#words[14] & STATX_ATTR_MOUNT_ROOT) === 0) return undefined
    return (this.#words[2] & STATX_ATTR_MOUNT_ROOT) !== 0
  }

  /** Copies what tells a changed file from an unchanged one: inode, size, ctime, mtime (IDENTITY_WORDS words). */
  copyIdentity(into: Uint32Array, at: number): void {
    const words = this.#words
    into[at] = words[8]
    into[at + 1] = words[9]
    into[at + 2] = words[10]
    into[at + 3] = words[11]
    into[at + 4] = words[24]
    into[at + 5] = words[25]
    into[at + 6] = words[26]
    into[at + 7] = words[28]
    into[at + 8] = words[29]
    into[at + 9] = words[30]
  }

  /** True if the identity at `at` is the one of this status. */
  hasIdentity(identities: Uint32Array, at: number): boolean {
    const words = this.#words
    return (
      identities[at] === words[8] &&
      identities[at + 1] === words[9] &&
      identities[at + 2] === words[10] &&
      identities[at + 3] === words[11] &&
      identities[at + 4] === words[24] &&
      identities[at + 5] === words[25] &&
      identities[at + 6] === words[26] &&
      identities[at + 7] === words[28] &&
      identities[at + 8] === words[29] &&
      identities[at + 9] === words[30]
    )
  }
}

/** Opens a directory to list it, not following a symlink. @param path ended by NUL @returns descriptor, or the negative errno */
export function openDirectory(path: Uint8Array): number {
  return openKeepingAtime(path, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
}

/**
 * Opens a file to read it: does not follow a symlink, does not wait for the other end of a fifo, leaves the access time alone where it may.
 * @param path ended by NUL @returns descriptor, or the negative errno
 */
export function openToRead(path: Uint8Array): number {
  return openKeepingAtime(path, O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)
}

function openKeepingAtime(path: Uint8Array, flags: number): number {
  let fd: number = openAnyLength(path, flags | O_NOATIME)
  if (fd === -EPERM) fd = openAnyLength(path, flags)
  return fd
}

/** The kernel takes paths below PATH_MAX only; a longer one is opened directory by directory. */
function openAnyLength(path: Uint8Array, flags: number): number {
  let directoryFd = AT_FDCWD
  let rest = path
  while (rest.length > PATH_BYTES_MAX) {
    const slash = rest.lastIndexOf(0x2f, PATH_BYTES_MAX - 1)
    if (slash <= 0) break
    const head = Buffer.alloc(slash + 1)
    head.set(rest.subarray(0, slash))
    const next = openAt(directoryFd, head, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    if (directoryFd !== AT_FDCWD) closeDescriptor(directoryFd)
    if (next < 0) return next
    directoryFd = next
    rest = rest.subarray(slash + 1)
  }
  const fd = openAt(directoryFd, rest, flags)
  if (directoryFd !== AT_FDCWD) closeDescriptor(directoryFd)
  return fd
}

function openAt(directoryFd: number, path: Uint8Array, flags: number): number {
  const fd: number = openat(directoryFd, path, flags)
  return fd < 0 ? -koffi.errno() : fd
}

const targetBuffer = Buffer.alloc(PATH_BYTES_MAX)

/** Closes what openDirectory or openToRead has opened. Node's own closeSync takes a worker's descriptors for its own, and warns. */
export function closeDescriptor(fd: number): void {
  close(fd)
}

/** Target of a symlink. @param path ended by NUL @returns raw bytes, or the positive errno */
export function readTarget(directoryFd: number, path: Uint8Array): Uint8Array | number {
  const length = Number(readlinkat(directoryFd, path, targetBuffer, PATH_BYTES_MAX))
  return length < 0 ? koffi.errno() : Uint8Array.prototype.slice.call(targetBuffer, 0, length)
}

const entriesBuffer = Buffer.alloc(256 << 10)

/**
 * Calls `visit` for each name of an open directory but `.` and `..`, in the directory's own order.
 * @param visit gets the name in latin1, and as bytes ended by NUL, which are valid during the call
 * @returns 0, or the positive errno
 */
export function forEachName(directoryFd: number, visit: (name: string, bytes: Uint8Array) => void): number {
  // One buffer for all: `visit` must not list another directory.
  for (;;) {
    const length = Number(getdents64(directoryFd, entriesBuffer, entriesBuffer.length))
    if (length < 0) return koffi.errno()
    if (length === 0) return 0
    for (let at = 0; at < length; ) {
      // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name
      const next = at + (entriesBuffer[at + 16] | (entriesBuffer[at + 17] << 8))
      let end = at + 19
      while (entriesBuffer[end] !== 0) end++
      const name = entriesBuffer.toString('latin1', at + 19, end)
      if (name !== '.' && name !== '..') visit(name, entriesBuffer.subarray(at + 19, end + 1))
      at = next
    }
  }
}
