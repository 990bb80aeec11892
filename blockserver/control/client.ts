/**
 * Control client: asks the process that listens on a control socket.
 */
import http from 'node:http'
import { type ErrorCode, ERROR_CODES, VarveError } from '@varve/images/errors.ts'
import { CONTROL_ANSWER_BYTES_MAX, type ControlErrorAnswer, type ControlMethod, type ControlMethods } from './protocol.ts'

/** A snapshot waits for writes in flight and for a flush; the owner answers within this, or is stuck. */
const ANSWER_MS_MAX = 120_000

/**
 * Calls a method of the process that listens on `socketPath`.
 * @returns undefined if nobody listens there: then no process owns what it would be asked about
 * @throws VarveError with the code that the other process threw, or PROTOCOL_INVALID; Error for what has no code
 */
export async function controlRequest<M extends ControlMethod>(
  socketPath: string, method: M, params: ControlMethods[M]['params'], options: { signal?: AbortSignal } = {},
): Promise<ControlMethods[M]['result'] | undefined> {
  let answer: { status: number; body: string }
  try {
    answer = await post(socketPath, `/${method}`, JSON.stringify(params), options.signal)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined
    throw error
  }
  const body = parse(socketPath, answer.body)
  if (answer.status !== 200) throw thrownThere(socketPath, body)
  return body as ControlMethods[M]['result']
}

function post(socketPath: string, path: string, body: string, signal: AbortSignal | undefined): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath, path, method: 'POST', agent: false, timeout: ANSWER_MS_MAX, signal, headers: { 'content-length': Buffer.byteLength(body) } })
    request.once('error', reject)
    request.once('timeout', () => request.destroy(new VarveError('PROTOCOL_INVALID', `${socketPath}: no answer within ${ANSWER_MS_MAX} ms`)))
    request.once('response', (response) => {
      collect(socketPath, response).then((text) => resolve({ status: response.statusCode ?? 0, body: text }), (error: Error) => {
        request.destroy()
        reject(error)
      })
    })
    request.end(body)
  })
}

async function collect(socketPath: string, response: http.IncomingMessage): Promise<string> {
  const parts: Buffer[] = []
  let bytes = 0
  for await (const part of response as AsyncIterable<Buffer>) {
    bytes += part.length
    if (bytes > CONTROL_ANSWER_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${socketPath}: an answer has at most ${CONTROL_ANSWER_BYTES_MAX} bytes`)
    parts.push(part)
  }
  return Buffer.concat(parts).toString()
}

function parse(socketPath: string, text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new VarveError('PROTOCOL_INVALID', `${socketPath}: the answer is not JSON; is it a control socket?`, { cause })
  }
}

function thrownThere(socketPath: string, body: unknown): Error {
  const { code, message } = (body as Partial<ControlErrorAnswer> | null)?.error ?? {}
  if (typeof message !== 'string') return new VarveError('PROTOCOL_INVALID', `${socketPath}: an error without a message; is it a control socket?`)
  return ERROR_CODES.includes(code as ErrorCode) ? new VarveError(code as ErrorCode, message) : new Error(message)
}
