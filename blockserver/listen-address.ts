/**
 * Addresses that a server listens on or a client connects to: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
 */
import { chmodSync, lstatSync, unlinkSync } from 'node:fs'
import net from 'node:net'
import { VarveError } from '@varve/images/errors.ts'

export type ListenAddress = { host: string; port: number } | { path: string }

export interface ListenOptions {
  mode?: number
  backlog?: number
}

/** Bytes of a socket's path: sun_path of Linux without its terminator. */
const SOCKET_PATH_BYTES_MAX = 107
const STALE_CHECK_MS_MAX = 2000

/** @throws VarveError ADDRESS_INVALID */
export function parseAddress(text: string): ListenAddress {
  if (text.startsWith('unix:')) return { path: checkPath(text, text.slice('unix:'.length)) }
  const parts = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text)
  const port = Number(parts?.[3])
  if (parts === null || port > 65535 || (parts[1] !== undefined && !net.isIPv6(parts[1]))) {
    throw new VarveError('ADDRESS_INVALID', `'${text}' is not an address; give HOST:PORT, [IPV6]:PORT or unix:PATH`)
  }
  return { host: parts[1] ?? parts[2], port }
}

export function formatAddress(address: ListenAddress): string {
  if ('path' in address) return `unix:${address.path}`
  return net.isIPv6(address.host) ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`
}

/**
 * Makes `server` listen. A socket file that a dead server left behind is replaced; one on which somebody listens, or a file of another kind, is not.
 * @param options.mode permissions of a unix socket, in force before anybody is accepted
 * @returns the address with the port that was bound
 * @throws VarveError ADDRESS_INVALID
 */
export async function listenOn(server: net.Server, address: ListenAddress, options: ListenOptions = {}): Promise<ListenAddress> {
  try {
    await listenOnce(server, address, options)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE' || !('path' in address)) throw addressError(address, error)
    await removeStaleSocket(address.path)
    await listenOnce(server, address, options).catch((cause: unknown) => { throw addressError(address, cause) })
  }
  const bound = server.address()
  if (bound === null || typeof bound === 'string' || 'path' in address) return address
  return { host: address.host, port: bound.port }
}

function checkPath(text: string, path: string): string {
  const bytes = Buffer.byteLength(path)
  if (bytes === 0 || bytes > SOCKET_PATH_BYTES_MAX || path.includes('\0')) {
    throw new VarveError('ADDRESS_INVALID', `'${text}': the path of a socket has 1 to ${SOCKET_PATH_BYTES_MAX} bytes`)
  }
  return path
}

function listenOnce(server: net.Server, address: ListenAddress, { mode, backlog }: ListenOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen({ ...address, backlog }, () => {
      server.off('error', reject)
      resolve()
    })
    // A unix socket is bound within listen(). The mask of the process, which would give it the mode at once, is not for a thread to change.
    if (mode !== undefined && 'path' in address && server.listening) chmodSync(address.path, mode)
  })
}

async function removeStaleSocket(path: string): Promise<void> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) {
    throw new VarveError('ADDRESS_INVALID', `unix:${path}: a file is in the way that is not a socket; remove it or give another path`)
  }
  if (await answers(path)) throw new VarveError('ADDRESS_INVALID', `unix:${path}: another process listens there; stop it or give another path`)
  unlinkSync(path)
}

/** True unless the kernel says that nobody listens. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ path })
    const done = (result: boolean) => {
      socket.destroy()
      resolve(result)
    }
    socket.setTimeout(STALE_CHECK_MS_MAX, () => done(true))
    socket.once('connect', () => done(true))
    socket.once('error', (error: NodeJS.ErrnoException) => done(error.code !== 'ECONNREFUSED'))
  })
}

function addressError(address: ListenAddress, cause: unknown): VarveError {
  const code = (cause as NodeJS.ErrnoException).code ?? String(cause)
  const reason = code === 'EADDRINUSE' ? 'the address is taken' : code === 'EACCES' ? 'permission denied' : code
  return new VarveError('ADDRESS_INVALID', `cannot listen on ${formatAddress(address)}: ${reason}`, { cause })
}
