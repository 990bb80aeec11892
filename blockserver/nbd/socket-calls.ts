/**
 * Calls on sockets that Node does not have: receive and send at once, without a turn of the event loop, another descriptor of the same socket,
 * and pairs of sockets.
 * Called through koffi (docs/decisions/0002-native-calls.md). A descriptor belongs to the process, so that any of its threads may use it.
 */
import koffi from 'koffi'
import { VarveError } from '@varve/images/errors.ts'

const libc = load()
const recv = libc.func('int64_t recv(int fd, _Out_ void *bytes, size_t length, int flags)')
const send = libc.func('int64_t send(int fd, const void *bytes, size_t length, int flags)')
const sendmsg = libc.func('int64_t sendmsg(int fd, const void *message, int flags)')
const poll = libc.func('int poll(void *descriptors, unsigned long count, int timeoutMs)')
const fcntl = libc.func('int fcntl(int fd, int command, int argument)')
const setsockopt = libc.func('int setsockopt(int fd, int level, int name, const int *value, uint32_t length)')
const socketpair = libc.func('int socketpair(int domain, int type, int protocol, _Out_ int *fds)')
const { EAGAIN, EINTR } = koffi.os.errno

const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
const F_DUPFD_CLOEXEC = 1030
const AF_UNIX = 1
const SOL_SOCKET = 1
const SO_SNDBUF = 7
const SO_SNDBUFFORCE = 32
const SOCK_STREAM = 1
const SOCK_NONBLOCK = 0x800
const SOCK_CLOEXEC = 0x80000

/** Events of poll(2). */
export const POLLIN = 1
export const POLLOUT = 4

/** Parts that one call takes; IOV_MAX of Linux is 1024. */
const PARTS_MAX = 256
/** struct iovec: address and length, 64 bits each, as pairs of 32 bits. Little-endian, as all machines that Varve runs on. */
const vector = new Uint32Array(4 * PARTS_MAX)
/** struct msghdr of 64-bit machines: at 16 the address of the vector, at 24 the number of its parts. */
const message = new Uint32Array(14)
setAddress(message, 4, vector)

function load() {
  try {
    return koffi.load('libc.so.6')
  } catch (cause) {
    throw new VarveError('LIBRARY_MISSING', 'the C library libc.so.6 cannot be loaded; Varve needs Linux with glibc', { cause })
  }
}

/** What is there of a socket's bytes, at most `into.length`. @returns bytes; 0 if the peer has ended or the connection failed; -1 if nothing is there now */
export function receiveNow(fd: number, into: Uint8Array): number {
  const bytes = Number(recv(fd, into, into.length, MSG_DONTWAIT))
  return bytes >= 0 ? bytes : isLater() ? -1 : 0
}

/** Sends what the kernel takes now, of `parts` in order. @returns bytes; -1 if the connection failed, which a stream will find again */
export function sendNow(fd: number, parts: readonly Uint8Array[]): number {
  const bytes = Number(parts.length === 1 ? send(fd, parts[0], parts[0].length, MSG_DONTWAIT | MSG_NOSIGNAL) : sendParts(fd, parts))
  return bytes >= 0 ? bytes : isLater() ? 0 : -1
}

function sendParts(fd: number, parts: readonly Uint8Array[]): number | bigint {
  const count = Math.min(parts.length, PARTS_MAX)
  for (let index = 0; index < count; index++) {
    setAddress(vector, 4 * index, parts[index])
    vector[4 * index + 2] = parts[index].length
  }
  message[6] = count
  return sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL) as number | bigint
}

function setAddress(words: Uint32Array, at: number, bytes: NodeJS.TypedArray): void {
  const address = Number(koffi.address(bytes))
  words[at] = address
  words[at + 1] = address / 0x1_0000_0000
}

function isLater(): boolean {
  const errno = koffi.errno()
  return errno === EAGAIN || errno === EINTR
}

/** Another descriptor of the same socket, which is open as long as one of them is. Undefined if the process may have no more. */
export function duplicate(fd: number): number | undefined {
  const other = Number(fcntl(fd, F_DUPFD_CLOEXEC, 0))
  return other < 0 ? undefined : other
}

/** What the kernel takes of a unix socket before its peer has read it: more than the kernel's default, which is less than a few large replies. */
const SEND_BUFFER_BYTES = 512 * 1024

/** As far as the process may: without privileges the system sets a limit. */
export function widenSendBuffer(fd: number): void {
  const value = [SEND_BUFFER_BYTES]
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, value, 4) !== 0) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, 4)
}

/** Two sockets that are connected to each other. Undefined if the process may have no more. */
export function socketPair(): [number, number] | undefined {
  const fds = [0, 0]
  return Number(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds)) === 0 ? [fds[0], fds[1]] : undefined
}

/** Sockets that are waited for together: struct pollfd of poll(2), one after another. */
export class PollSet {
  /** Descriptor; events asked for (low 16 bits) and seen (high 16 bits). */
  readonly #entries: Int32Array
  #count = 0

  constructor(socketsMax: number) {
    this.#entries = new Int32Array(2 * socketsMax)
  }

  /** Adds a socket as the last one. @param events POLLIN, POLLOUT */
  add(fd: number, events: number): void {
    this.#entries[2 * this.#count] = fd
    this.#entries[2 * this.#count + 1] = events
    this.#count++
  }

  /** Other events are waited for from now on. */
  change(index: number, events: number): void {
    this.#entries[2 * index + 1] = events
  }

  /** Takes one out; the last one takes its place. */
  remove(index: number): void {
    this.#count--
    this.#entries[2 * index] = this.#entries[2 * this.#count]
    this.#entries[2 * index + 1] = this.#entries[2 * this.#count + 1]
  }

  clear(): void {
    this.#count = 0
  }

  /** Waits until something happened that was asked for, an end or failure of a connection counted. @returns on how many sockets; 0 when the time is up */
  wait(timeoutMs: number): number {
    return Math.max(0, Number(poll(this.#entries, this.#count, timeoutMs)))
  }

  /** What the last `wait` saw of a socket. Other than POLLIN and POLLOUT: an end or failure. */
  seen(index: number): number {
    return this.#entries[2 * index + 1] >>> 16
  }
}
