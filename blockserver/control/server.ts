/**
 * Control server: answers other `varve` processes of the same user, on a unix socket that only its owner can open.
 */
import http from 'node:http'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { type Logger, pino } from 'pino'
import { listenOn, parseAddress } from '../listen-address.ts'
import { CONTROL_NAME_BYTES_MAX, CONTROL_REQUEST_BYTES_MAX, type ControlErrorAnswer, type ControlHandler } from './protocol.ts'

const SOCKET_MODE = 0o600
const CONNECTIONS_MAX = 64
const REQUEST_MS_MAX = 10_000

export interface ControlServerOptions {
  handler: ControlHandler
  log?: Logger
}

export class ControlServer implements AsyncDisposable {
  readonly #server: http.Server
  readonly #running = new Set<Promise<void>>()
  #closing: Promise<void> | undefined

  /** @param socketPath file that is made, and removed when the server closes @throws VarveError ADDRESS_INVALID */
  static async listen(socketPath: string, { handler, log = pino({ level: 'silent' }) }: ControlServerOptions): Promise<ControlServer> {
    const control = new ControlServer(handler, log)
    await listenOn(control.#server, parseAddress(`unix:${socketPath}`), { mode: SOCKET_MODE })
    return control
  }

  private constructor(handler: ControlHandler, log: Logger) {
    this.#server = http.createServer({ requestTimeout: REQUEST_MS_MAX, headersTimeout: REQUEST_MS_MAX }, (request, response) => {
      const running = answer(handler, log, request, response)
      this.#running.add(running)
      void running.finally(() => this.#running.delete(running))
    })
    this.#server.maxConnections = CONNECTIONS_MAX
  }

  /** Accepts no more, and completes when what was asked is answered. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()))
    await Promise.all(this.#running)
    this.#server.closeAllConnections()
    await closed
  }
}

/** The request cannot be understood. */
class BadRequest extends Error {
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

async function answer(handler: ControlHandler, log: Logger, request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
  try {
    const params = await readParams(request)
    send(response, 200, await call(handler, request.url ?? '', params))
  } catch (error) {
    if (error instanceof BadRequest) sendError(response, error.status, { error: { message: error.message } })
    else if (error instanceof VarveError) sendError(response, isVarveError(error, 'NOT_FOUND') ? 404 : 409, { error: { code: error.code, message: error.message } })
    else {
      log.error({ err: error, method: request.url }, 'a control request failed')
      sendError(response, 500, { error: { message: error instanceof Error ? error.message : String(error) } })
    }
  }
}

async function call(handler: ControlHandler, url: string, params: Record<string, unknown>): Promise<unknown> {
  switch (url) {
    case '/snapshot': return handler.snapshot(nameOf(params, 'cvd'), params.name === undefined ? undefined : nameOf(params, 'name'))
    case '/status': return handler.status()
    default: throw new BadRequest(404, `no such method: ${url.slice(0, 100)}`)
  }
}

function nameOf(params: Record<string, unknown>, field: string): string {
  const value = params[field]
  if (typeof value !== 'string' || value === '' || Buffer.byteLength(value) > CONTROL_NAME_BYTES_MAX) {
    throw new BadRequest(400, `'${field}' is a string of 1 to ${CONTROL_NAME_BYTES_MAX} bytes`)
  }
  return value
}

async function readParams(request: http.IncomingMessage): Promise<Record<string, unknown>> {
  if (request.method !== 'POST') throw new BadRequest(405, 'methods are called by POST')
  const parts: Buffer[] = []
  let bytes = 0
  for await (const part of request as AsyncIterable<Buffer>) {
    bytes += part.length
    if (bytes > CONTROL_REQUEST_BYTES_MAX) throw new BadRequest(413, `a request has at most ${CONTROL_REQUEST_BYTES_MAX} bytes`)
    parts.push(part)
  }
  const params = parse(Buffer.concat(parts).toString())
  if (typeof params !== 'object' || params === null || Array.isArray(params)) throw new BadRequest(400, 'parameters are a JSON object')
  return params as Record<string, unknown>
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new BadRequest(400, 'the request is not JSON')
  }
}

function sendError(response: http.ServerResponse, status: number, body: ControlErrorAnswer): void {
  response.setHeader('connection', 'close')
  send(response, status, body)
}

function send(response: http.ServerResponse, status: number, body: unknown): void {
  if (response.destroyed) return
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}
