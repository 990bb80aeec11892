/**
 * Calls for FUSE that Node does not have: reading /dev/fuse without waiting, gathered writes, mount(2), and a descriptor that another process passes.
 * Called through koffi (docs/decisions/0002-native-calls.md).
 */
import koffi from 'koffi'
import { VarveError } from '@varve/images/errors.ts'

const libc = load()
const readCall = libc.func('int64_t read(int fd, _Out_ void *bytes, size_t length)')
const writevCall = libc.func('int64_t writev(int fd, const void *parts, int count)')
const openCall = libc.func('int open(const char *path, int flags)')
const mountCall = libc.func('int mount(const char *source, const void *target, const char *type, unsigned long flags, const char *data)')
const umountCall = libc.func('int umount2(const void *target, int flags)')
const fcntlCall = libc.func('int fcntl(int fd, int command, int argument)')
const recvmsgCall = libc.func('int64_t recvmsg(int fd, _Inout_ void *message, int flags)')
const { EAGAIN, EINTR, ENODEV, ENOENT, ECONNABORTED } = koffi.os.errno

const O_RDWR = 2
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
export const MountFlag = { readOnly: 1, noSuid: 2, noDevices: 4 } as const
const F_GETFL = 3
const F_SETFL = 4
const MNT_DETACH = 2
const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_CMSG_CLOEXEC = 0x40000000

function load() {
  try {
    return koffi.load('libc.so.6')
  } catch (cause) {
    throw new VarveError('LIBRARY_MISSING', 'the C library libc.so.6 cannot be loaded; Varve needs Linux with glibc', { cause })
  }
}

/** Name of the error that the last call left: `EBUSY`. */
function errorName(): string {
  const errno = koffi.errno()
  return Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
}

function systemError(call: string, what: string): Error {
  const code = errorName()
  return Object.assign(new Error(`${code}: ${call} '${what}'`), { code, syscall: call })
}

/** Opens /dev/fuse for a new mount; reads of it do not wait. @throws Error as of node:fs */
export function openFuseDevice(): number {
  const fd = Number(openCall('/dev/fuse', O_RDWR | O_NONBLOCK | O_CLOEXEC))
  if (fd < 0) throw systemError('open', '/dev/fuse')
  return fd
}

/** Makes reads of a descriptor not wait, which another process has opened otherwise. */
export function dontWait(fd: number): void {
  if (Number(fcntlCall(fd, F_SETFL, Number(fcntlCall(fd, F_GETFL, 0)) | O_NONBLOCK)) < 0) throw systemError('fcntl', '/dev/fuse')
}

export const NOTHING_YET = -1
export const UNMOUNTED = -2

/** The next request, into `bytes`. @returns its length; NOTHING_YET; UNMOUNTED if there will be none any more @throws Error as of node:fs */
export function readRequest(fd: number, bytes: Uint8Array): number {
  const length = Number(readCall(fd, bytes, bytes.length))
  if (length > 0) return length
  const errno = length === 0 ? ENODEV : koffi.errno()
  // ENOENT: the request was withdrawn in the moment in which it was read.
  if (errno === EAGAIN || errno === EINTR || errno === ENOENT) return NOTHING_YET
  if (errno === ENODEV || errno === ECONNABORTED) return UNMOUNTED
  throw systemError('read', '/dev/fuse')
}

/** Parts that one call takes: IOV_MAX of Linux. */
export const PARTS_MAX = 1024
/** struct iovec: address and length, 64 bits each. */
const vector = new Float64Array(2 * PARTS_MAX)
const vectorWords = new Uint32Array(vector.buffer)

/** Writes one answer. @returns false if nobody waits for it any more @throws Error as of node:fs for an answer that the kernel does not understand */
export function writeAnswer(fd: number, parts: readonly Uint8Array[]): boolean {
  if (parts.length > PARTS_MAX) throw new RangeError(`an answer in ${parts.length} parts`)
  parts.forEach((part, index) => {
    const address = Number(koffi.address(part))
    vectorWords[4 * index] = address
    vectorWords[4 * index + 1] = address / 0x1_0000_0000
    vectorWords[4 * index + 2] = part.length
    vectorWords[4 * index + 3] = 0
  })
  if (Number(writevCall(fd, vector, parts.length)) >= 0) return true
  const errno = koffi.errno()
  if (errno === ENOENT || errno === ENODEV || errno === ECONNABORTED) return false
  throw systemError('writev', '/dev/fuse')
}

/** @throws Error as of node:fs */
export function mount(options: { source: string; target: string; type: string; flags: number; data: string }): void {
  if (mountCall(options.source, Buffer.from(`${options.target}\0`), options.type, options.flags, options.data) !== 0) throw systemError('mount', options.target)
}

/** @param options.detach also while it is in use: it is gone for everybody who does not have it open @throws Error as of node:fs */
export function unmount(target: string, { detach = false } = {}): void {
  if (umountCall(Buffer.from(`${target}\0`), detach ? MNT_DETACH : 0) !== 0) throw systemError('umount', target)
}

/** A descriptor that the other end of a unix socket passes (unix(7), SCM_RIGHTS). @returns undefined if none has come */
export function receiveDescriptor(socket: number): number | undefined {
  const byte = Buffer.alloc(1)
  // struct cmsghdr, and one descriptor after it.
  const control = Buffer.alloc(24)
  const part = new BigUint64Array([BigInt(koffi.address(byte)), 1n])
  const message = Buffer.alloc(56)
  message.writeBigUInt64LE(BigInt(koffi.address(part)), 16)
  message.writeBigUInt64LE(1n, 24)
  message.writeBigUInt64LE(BigInt(koffi.address(control)), 32)
  message.writeBigUInt64LE(BigInt(control.length), 40)
  if (Number(recvmsgCall(socket, message, MSG_CMSG_CLOEXEC)) < 0) return undefined
  const isDescriptor = message.readBigUInt64LE(40) >= 20n && control.readInt32LE(8) === SOL_SOCKET && control.readInt32LE(12) === SCM_RIGHTS
  return isDescriptor ? control.readInt32LE(16) : undefined
}
