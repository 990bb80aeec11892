/**
 * Sockets to a server, over TLS where its URL says so, whose certificate has been checked before anything is sent.
 */
import http from 'node:http'
import net from 'node:net'
import tls from 'node:tls'
import { VarveError } from '@varve/images/errors.ts'

const CONNECT_MS_MAX = 15_000
const ANSWER_BYTES_MAX = 64 << 10

export interface ServerAddress {
  /** `http://HOST:PORT` or `https://HOST:PORT`. */
  url: URL
  /** PEM: authorities that sign the server's certificate; the system's unless given. */
  ca?: string
  /** SHA-256 of the server's certificate (DER), which is then believed whoever signed it. */
  fingerprint?: Buffer
}

/** @throws VarveError ADDRESS_INVALID */
export function parseServerUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || !['http:', 'https:'].includes(url.protocol) || url.pathname !== '/' || url.search !== '' || url.hash !== '') {
    throw new VarveError('ADDRESS_INVALID', `${text} is not the address of a server; give http://HOST:PORT or https://HOST:PORT`)
  }
  return url
}

/** Sends a request, and hands over what answers it. The socket belongs to the request. @throws VarveError CONNECTION_LOST, CREDENTIALS_INVALID */
export async function requestTo(address: ServerAddress, path: string, options: http.RequestOptions, signal?: AbortSignal): Promise<http.ClientRequest> {
  const { url } = address
  const socket = await connect(address, signal)
  return http.request({ ...options, path, host: url.hostname, port: portOf(url), createConnection: () => socket, signal, timeout: CONNECT_MS_MAX })
}

/** POSTs JSON. @returns status and body of the answer @throws VarveError CONNECTION_LOST, CREDENTIALS_INVALID, PROTOCOL_INVALID */
export async function postJson(address: ServerAddress, path: string, body: object, signal?: AbortSignal): Promise<{ status: number; body: Record<string, unknown> }> {
  const text = JSON.stringify(body)
  const request = await requestTo(address, path, { method: 'POST', headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), connection: 'close' } }, signal)
  const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
    request.once('response', resolve)
    request.once('timeout', () => request.destroy(new Error(`no answer within ${CONNECT_MS_MAX} ms`)))
    request.once('error', (cause) => reject(lost(address.url, cause)))
    request.end(text)
  })
  const parts: Buffer[] = []
  let bytes = 0
  for await (const part of response as AsyncIterable<Buffer>) {
    bytes += part.length
    if (bytes > ANSWER_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${address.url.origin}: an answer of more than ${ANSWER_BYTES_MAX} bytes`)
    parts.push(part)
  }
  try {
    return { status: response.statusCode ?? 0, body: JSON.parse(Buffer.concat(parts).toString()) as Record<string, unknown> }
  } catch (cause) {
    throw new VarveError('PROTOCOL_INVALID', `${address.url.origin} answers ${response.statusCode}, and no JSON; is it a Varve server?`, { cause })
  }
}

function connect({ url, ca, fingerprint }: ServerAddress, signal: AbortSignal | undefined): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const isSecure = url.protocol === 'https:'
    const target = { host: url.hostname.replace(/^\[|\]$/g, ''), port: portOf(url) }
    const servername = net.isIP(target.host) === 0 ? target.host : undefined
    const socket = isSecure ? tls.connect({ ...target, ca, servername, rejectUnauthorized: fingerprint === undefined }) : net.connect(target)
    const fail = (cause: Error): void => {
      socket.destroy()
      reject(cause instanceof VarveError ? cause : lost(url, cause))
    }
    const abort = (): void => fail(signal!.reason as Error)
    const timer = setTimeout(() => fail(new Error(`no answer within ${CONNECT_MS_MAX} ms`)), CONNECT_MS_MAX)
    signal?.addEventListener('abort', abort, { once: true })
    socket.once('error', fail)
    socket.once('close', () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
    })
    socket.once(isSecure ? 'secureConnect' : 'connect', () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
      if (fingerprint !== undefined && isSecure && !certificateIs(socket as tls.TLSSocket, fingerprint)) {
        return fail(new VarveError('CREDENTIALS_INVALID', `${url.origin} has another certificate than the one that it was said to have`))
      }
      socket.off('error', fail)
      resolve(socket)
    })
  })
}

function certificateIs(socket: tls.TLSSocket, fingerprint: Buffer): boolean {
  const { fingerprint256 } = socket.getPeerCertificate()
  return typeof fingerprint256 === 'string' && Buffer.from(fingerprint256.replaceAll(':', ''), 'hex').equals(fingerprint)
}

function portOf(url: URL): number {
  return url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
}

export function lost(url: URL, cause: Error): VarveError {
  return new VarveError('CONNECTION_LOST', `${url.origin} cannot be reached: ${cause.message}`, { cause })
}
