/**
 * Notifier: tells the service manager how we are, by datagrams to the socket that `$NOTIFY_SOCKET` names (sd_notify(3)).
 * Node has no unix datagrams: libc is called (docs/decisions/0002-native-calls.md). Without that variable nothing is sent.
 */
import { closeSync } from 'node:fs'
import koffi from 'koffi'
import type { Logger } from 'pino'
import { VarveError } from '@varve/images/errors.ts'

const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_NOSIGNAL = 0x4000
/** sun_path. */
const PATH_BYTES_MAX = 108

export class Notifier implements Disposable {
  readonly #fd: number | undefined
  readonly #address: Buffer
  readonly #send: SendTo | undefined
  readonly #log: Logger
  readonly #watchdog: NodeJS.Timeout | undefined

  /** A manager that cannot be told is logged, and does not keep the service from running. */
  constructor(log: Logger, environment: NodeJS.ProcessEnv = process.env) {
    this.#log = log
    const socket = environment.NOTIFY_SOCKET ?? ''
    this.#address = Buffer.alloc(0)
    if (socket === '') return
    try {
      this.#address = socketAddress(socket)
      const libc = koffi.load('libc.so.6')
      this.#send = libc.func('int64_t sendto(int fd, const void *bytes, size_t length, int flags, const void *address, uint32_t addressLength)')
      this.#fd = (libc.func('int socket(int domain, int type, int protocol)') as unknown as (...args: number[]) => number)(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
      if (this.#fd < 0) throw new Error(`socket: ${errorName()}`)
    } catch (error) {
      this.#fd = undefined
      log.warn({ err: error, socket }, 'the service manager cannot be told')
      return
    }
    const intervalMs = watchdogIntervalMs(environment)
    if (intervalMs !== undefined) this.#watchdog = setInterval(() => this.#notify({ WATCHDOG: 1 }), intervalMs).unref()
  }

  /** Started, or done with a reload. @param status for people, one line */
  ready(status: string): void {
    this.#notify({ READY: 1, STATUS: status })
  }

  /** `ready` follows. */
  reloading(): void {
    this.#notify({ RELOADING: 1, MONOTONIC_USEC: process.hrtime.bigint() / 1000n })
  }

  stopping(status: string): void {
    this.#notify({ STOPPING: 1, STATUS: status })
  }

  [Symbol.dispose](): void {
    clearInterval(this.#watchdog)
    if (this.#fd !== undefined) closeSync(this.#fd)
  }

  #notify(state: Record<string, string | number | bigint>): void {
    if (this.#fd === undefined || this.#send === undefined) return
    const bytes = Buffer.from(Object.entries(state).map(([name, value]) => `${name}=${value}`).join('\n'))
    const sent = Number(this.#send(this.#fd, bytes, bytes.length, MSG_NOSIGNAL, this.#address, this.#address.length))
    if (sent < 0) this.#log.warn({ reason: errorName() }, 'the service manager was not told')
  }
}

type SendTo = (fd: number, bytes: Buffer, length: number, flags: number, address: Buffer, addressLength: number) => number | bigint

/** sockaddr_un. `@NAME` is in the abstract namespace: its first byte is 0, and it ends where the address ends. */
function socketAddress(socket: string): Buffer {
  const abstract = socket.startsWith('@')
  const name = Buffer.from(abstract ? `\0${socket.slice(1)}` : `${socket}\0`)
  if ((!abstract && !socket.startsWith('/')) || name.length > PATH_BYTES_MAX) throw new VarveError('ADDRESS_INVALID', `NOTIFY_SOCKET is '${socket}'; it is an absolute path or @NAME, of ${PATH_BYTES_MAX} bytes at most`)
  return Buffer.concat([Buffer.from(new Uint16Array([AF_UNIX]).buffer), name])
}

/** Twice as often as the manager expects it, if it expects it of this process. */
function watchdogIntervalMs({ WATCHDOG_USEC: usec, WATCHDOG_PID: pid }: NodeJS.ProcessEnv): number | undefined {
  const milliseconds = Number(usec) / 1000
  if (!(milliseconds > 0) || (pid !== undefined && Number(pid) !== process.pid)) return undefined
  return milliseconds / 2
}

function errorName(): string {
  const errno = koffi.errno()
  return Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
}
