/**
 * Calls of the C library that Node does not have: extended attributes, holes of sparse files, reads that wait for no disk, locks that die with their process, peers of unix sockets.
 * Called through koffi (docs/decisions/0002-native-calls.md). Linux only; paths are raw bytes, since names need not be UTF-8.
 */
import koffi from 'koffi'
import type { Xattr } from '../tree/tree.ts'
import { VarveError } from '../errors.ts'

const libc = load()
const llistxattr = libc.func('long llistxattr(const void *path, _Out_ void *list, size_t size)')
const lgetxattr = libc.func('long lgetxattr(const void *path, const void *name, _Out_ void *value, size_t size)')
const lseek = libc.func('int64_t lseek(int fd, int64_t offset, int whence)')
const flock = libc.func('int flock(int fd, int operation)')
const madvise = libc.func('int madvise(uintptr_t start, size_t length, int advice)')
const fallocate = libc.func('int fallocate(int fd, int mode, int64_t offset, int64_t length)')
const preadv2 = libc.func('int64_t preadv2(int fd, const void *parts, int count, int64_t offset, int flags)')
const getsockopt = libc.func('int getsockopt(int fd, int level, int name, _Out_ void *value, _Inout_ uint32_t *length)')

const SEEK_DATA = 3
const SEEK_HOLE = 4
const MADV_HUGEPAGE = 14
const PAGE_BYTES = 4096
const LOCK_SH = 1
const LOCK_EX = 2
const LOCK_NB = 4
const FALLOC_FL_KEEP_SIZE = 1
const FALLOC_FL_PUNCH_HOLE = 2
const RWF_NOWAIT = 8
const SOL_SOCKET = 1
const SO_PEERCRED = 17
/** struct ucred: process, user, group, 32 bits each. */
const UCRED_BYTES = 12
/** (uid_t) -1 */
const UID_UNKNOWN = 0xffff_ffff
const { ENXIO, EWOULDBLOCK, EOPNOTSUPP, ENODATA, ERANGE } = koffi.os.errno

/** XATTR_LIST_MAX and XATTR_SIZE_MAX of Linux, bytes. */
const XATTR_BYTES_MAX = 65536
const listBuffer = Buffer.alloc(XATTR_BYTES_MAX)
const valueBuffer = Buffer.alloc(XATTR_BYTES_MAX)

function load() {
  try {
    return koffi.load('libc.so.6')
  } catch (cause) {
    throw new VarveError('LIBRARY_MISSING', 'the C library libc.so.6 cannot be loaded; Varve needs Linux with glibc', { cause })
  }
}

function failed(call: string, path: Uint8Array | string): Error {
  const errno = koffi.errno()
  const code = Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
  return Object.assign(new Error(`${code}: ${call} '${Buffer.from(path as Uint8Array).toString()}'`), { code, errno: -errno, syscall: call })
}

/**
 * Extended attributes of a path, a symlink's own if it is one; sorted by name.
 * @param path raw bytes, without a terminating NUL
 */
export function readXattrs(path: Uint8Array): Xattr[] {
  const terminated = Buffer.allocUnsafe(path.length + 1)
  terminated.set(path)
  terminated[path.length] = 0
  const listBytes = Number(llistxattr(terminated, listBuffer, XATTR_BYTES_MAX))
  if (listBytes === 0) return []
  if (listBytes < 0) {
    if (koffi.errno() === EOPNOTSUPP) return []
    throw failed('llistxattr', path)
  }
  const names = listBuffer.toString('latin1', 0, listBytes - 1).split('\0')
  const xattrs: Xattr[] = []
  for (const name of names.sort()) {
    const length = Number(lgetxattr(terminated, Buffer.from(`${name}\0`, 'latin1'), valueBuffer, XATTR_BYTES_MAX))
    if (length < 0) {
      const errno = koffi.errno()
      if (errno === ENODATA || errno === EOPNOTSUPP || errno === ERANGE) continue
      throw failed('lgetxattr', path)
    }
    xattrs.push({ name, value: Uint8Array.prototype.slice.call(valueBuffer, 0, length) })
  }
  return xattrs
}

/**
 * Parts of a file that hold data, in order; what lies between them is holes.
 * A filesystem without holes gives one part. @param sizeBytes length of the file
 * @param options `from`: bytes before it are left out; `partsMax`: so many at most
 */
export function dataParts(fd: number, sizeBytes: number, { from = 0, partsMax = Infinity } = {}): { offset: number; length: number }[] {
  const parts: { offset: number; length: number }[] = []
  let at = from
  while (at < sizeBytes && parts.length < partsMax) {
    const data = Number(lseek(fd, at, SEEK_DATA))
    if (data < 0) {
      if (koffi.errno() === ENXIO) break
      throw failed('lseek', `file descriptor ${fd}`)
    }
    if (data >= sizeBytes) break
    const hole = Number(lseek(fd, data, SEEK_HOLE))
    if (hole < 0) throw failed('lseek', `file descriptor ${fd}`)
    parts.push({ offset: data, length: Math.min(hole, sizeBytes) - data })
    at = hole
  }
  return parts
}

/** struct iovec: address and length. */
const cachedPart = new BigUint64Array(2)

/**
 * Reads what is in the page cache: never waits for a disk.
 * @returns bytes read from the start of `target`; 0 if none could be, for whatever reason: who reads them in the usual way learns it
 */
export function readCached(fd: number, target: Uint8Array, position: number): number {
  cachedPart[0] = BigInt(koffi.address(target))
  cachedPart[1] = BigInt(target.length)
  return Math.max(0, Number(preadv2(fd, cachedPart, 1, position, RWF_NOWAIT)))
}

/** First byte of data at or after `offset`, or -1 if there is none. */
export function seekData(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_DATA)
}

/** First byte of a hole at or after `offset`, the end of the file counted as one; -1 at or after the end. */
export function seekHole(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_HOLE)
}

function seek(fd: number, offset: number, whence: number): number {
  const at = Number(lseek(fd, offset, whence))
  if (at < 0 && koffi.errno() !== ENXIO) throw failed('lseek', `file descriptor ${fd}`)
  return at
}

/**
 * Takes a lock on an open file without waiting; it goes when the descriptor is closed or the process dies.
 * @returns false if another open file description holds it
 */
export function tryLock(fd: number, mode: 'shared' | 'exclusive' = 'exclusive'): boolean {
  if (flock(fd, (mode === 'shared' ? LOCK_SH : LOCK_EX) | LOCK_NB) === 0) return true
  if (koffi.errno() === EWOULDBLOCK) return false
  throw failed('flock', `file descriptor ${fd}`)
}

/**
 * Asks the kernel for large pages for memory that is used at random: fewer faults, and half the time to reach a place that was not reached lately.
 * A kernel that has none does without. @param bytes much larger than a large page
 */
export function preferHugePages(bytes: Uint8Array): void {
  const start = Math.ceil(Number(koffi.address(bytes)) / PAGE_BYTES) * PAGE_BYTES
  madvise(start, bytes.length - PAGE_BYTES, MADV_HUGEPAGE)
}

/** Frees the space of a range of a file, which reads as zeroes afterwards. @returns false where the filesystem cannot */
export function punchHole(fd: number, offset: number, length: number): boolean {
  if (fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length) === 0) return true
  if (koffi.errno() === EOPNOTSUPP) return false
  throw failed('fallocate', `file descriptor ${fd}`)
}

/** Takes space for a range of a file, so that writing there cannot fail for want of it; content stays. @returns false where the filesystem cannot */
export function allocate(fd: number, offset: number, length: number): boolean {
  if (fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length) === 0) return true
  if (koffi.errno() === EOPNOTSUPP) return false
  throw failed('fallocate', `file descriptor ${fd}`)
}

/** User of the process that connected to a unix socket, as it was then; undefined if the descriptor is of no such socket. */
export function peerUid(fd: number): number | undefined {
  const credentials = Buffer.alloc(UCRED_BYTES)
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, [UCRED_BYTES]) !== 0) return undefined
  const uid = credentials.readUInt32LE(4)
  return uid === UID_UNKNOWN ? undefined : uid
}
