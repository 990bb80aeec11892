/**
 * Calls of the C library that give a file what Node cannot: extended attributes, times to the nanosecond, device nodes, permissions of symlinks' owners.
 * Called through koffi (docs/decisions/0002-native-calls.md). Paths are raw bytes; symlinks are never followed.
 */
import koffi from 'koffi'
import { VarveError } from '../errors.ts'

const libc = load()
const lsetxattr = libc.func('int lsetxattr(const void *path, const void *name, const void *value, size_t size, int flags)')
const utimensat = libc.func('int utimensat(int directory, const void *path, const void *times, int flags)')
const mknod = libc.func('int mknod(const void *path, unsigned int mode, uint64_t device)')

const AT_FDCWD = -100
const AT_SYMLINK_NOFOLLOW = 0x100

function load() {
  try {
    return koffi.load('libc.so.6')
  } catch (cause) {
    throw new VarveError('LIBRARY_MISSING', 'the C library libc.so.6 cannot be loaded; Varve needs Linux with glibc', { cause })
  }
}

function failed(call: string, path: Uint8Array): Error {
  const errno = koffi.errno()
  const code = Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
  return Object.assign(new Error(`${code}: ${call} '${Buffer.from(path).toString()}'`), { code, syscall: call })
}

function terminated(bytes: Uint8Array): Buffer {
  return Buffer.concat([bytes, new Uint8Array(1)])
}

/** @param name bytes in latin1 @throws Error as of node:fs */
export function setXattr(path: Uint8Array, name: string, value: Uint8Array): void {
  if (lsetxattr(terminated(path), Buffer.from(`${name}\0`, 'latin1'), value, value.length, 0) !== 0) throw failed('lsetxattr', path)
}

/** @throws Error as of node:fs */
export function setTimes(path: Uint8Array, { accessed, modified }: Record<'accessed' | 'modified', { seconds: number; nanoseconds: number }>): void {
  // struct timespec, twice.
  const times = new BigInt64Array([accessed, modified].flatMap(({ seconds, nanoseconds }) => [BigInt(seconds), BigInt(nanoseconds)]))
  if (utimensat(AT_FDCWD, terminated(path), times, AT_SYMLINK_NOFOLLOW) !== 0) throw failed('utimensat', path)
}

/** Makes a special file. @param mode type and permissions @throws Error as of node:fs */
export function makeNode(path: Uint8Array, mode: number, { major, minor }: { major: number; minor: number }): void {
  // As gnu_dev_makedev(3).
  const device = (BigInt(major & 0xfffff000) << 32n) | (BigInt(major & 0xfff) << 8n) | (BigInt(minor & 0xffffff00) << 12n) | BigInt(minor & 0xff)
  if (mknod(terminated(path), mode, device) !== 0) throw failed('mknod', path)
}
