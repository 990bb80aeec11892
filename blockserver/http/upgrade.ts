/**
 * How a connection leaves HTTP and becomes a stream.
 */
import type http from 'node:http'
import type { Socket } from 'node:net'
import { STREAM_PATH, STREAM_PROTOCOL } from '../stream/frames.ts'
import type { StreamServer } from '../stream/server.ts'

/** Any other upgrade that a client offers is not taken, and its request answered as it is. */
export function isStreamUpgrade({ method, url, headers }: http.IncomingMessage): boolean {
  return method === 'GET' && url?.split('?', 1)[0] === STREAM_PATH && headers.upgrade?.toLowerCase() === STREAM_PROTOCOL
}

const ACCEPTED = `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${STREAM_PROTOCOL}\r\n\r\n`
const REFUSAL = JSON.stringify({ error: { message: 'there are too many connections, or the server ends; come again later' } })
const REFUSED = `HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: ${REFUSAL.length}\r\n\r\n${REFUSAL}`

export function upgradeTo(server: http.Server, streams: StreamServer): void {
  server.on('upgrade', (_request, socket: Socket, head) => {
    if (streams.admits()) {
      socket.write(ACCEPTED)
      streams.accept(socket, head)
    } else {
      socket.on('error', () => undefined)
      socket.write(REFUSED)
      socket.destroySoon()
    }
  })
}
