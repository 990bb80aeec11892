/**
 * A socket whose calls block, for a client that must cost less than the servers that it measures: Node's own sockets go through an
 * event loop. Connected by the C library; read and written by node:fs on its descriptor.
 */
import { closeSync, readSync, writeSync } from 'node:fs'
import koffi from 'koffi'

const libc = koffi.load('libc.so.6')
const socket = libc.func('int socket(int domain, int type, int protocol)')
const connect = libc.func('int connect(int fd, const void *address, uint32_t bytes)')
const setsockopt = libc.func('int setsockopt(int fd, int level, int name, const void *value, uint32_t bytes)')

const AF_UNIX = 1
const AF_INET = 2
const SOCK_STREAM = 1
const SOCK_CLOEXEC = 0o2000000
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const SOL_SOCKET = 1
const SO_RCVTIMEO = 20
const SO_SNDTIMEO = 21
/** A server that is silent for so long is broken. */
const SILENCE_SECONDS_MAX = 60n
/** sun_path of Linux, with its NUL. */
const SUN_PATH_BYTES = 108

/** @param address `unix:PATH` or `IPV4:PORT` @returns a descriptor, which `closeSync` closes */
export function connectBlocking(address: string): number {
  const { domain, bytes } = socketAddress(address)
  const fd = Number(socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0))
  if (fd < 0) throw new Error(`socket: errno ${koffi.errno()}`)
  const silence = Buffer.alloc(16)
  silence.writeBigInt64LE(SILENCE_SECONDS_MAX)
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, silence, silence.length)
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, silence, silence.length)
  if (domain === AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, Buffer.from([1, 0, 0, 0]), 4)
  if (Number(connect(fd, bytes, bytes.length)) !== 0) {
    const errno = koffi.errno()
    closeSync(fd)
    throw new Error(`connect to ${address}: errno ${errno}`)
  }
  return fd
}

function socketAddress(address: string): { domain: number; bytes: Buffer } {
  if (address.startsWith('unix:')) {
    const path = Buffer.from(address.slice('unix:'.length))
    if (path.length >= SUN_PATH_BYTES) throw new Error(`${address} is too long for a socket`)
    const bytes = Buffer.alloc(2 + SUN_PATH_BYTES)
    bytes.writeUInt16LE(AF_UNIX)
    path.copy(bytes, 2)
    return { domain: AF_UNIX, bytes }
  }
  const [host, port] = address.split(':')
  const bytes = Buffer.alloc(16)
  bytes.writeUInt16LE(AF_INET)
  bytes.writeUInt16BE(Number(port), 2)
  bytes.set(host.split('.').map(Number), 4)
  return { domain: AF_INET, bytes }
}

/** @returns bytes that were there, at least 1 */
export function readSome(fd: number, buffer: Uint8Array, at: number, bytes: number): number {
  const count = readSync(fd, buffer, at, bytes, null)
  if (count === 0) throw new Error('the server closed the connection')
  return count
}

export function readExactly(fd: number, buffer: Uint8Array, at = 0, bytes = buffer.length): void {
  for (let done = 0; done < bytes; ) done += readSome(fd, buffer, at + done, bytes - done)
}

export function writeFully(fd: number, buffer: Uint8Array, at = 0, bytes = buffer.length): void {
  for (let done = 0; done < bytes; ) done += writeSync(fd, buffer, at + done, bytes - done, null)
}
