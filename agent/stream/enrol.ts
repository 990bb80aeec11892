/**
 * Enrolment: an agent makes a key, and has a server know it by a token that is good once.
 */
import { generateKeyPairSync } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { ERROR_CODES, VarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'
import { postJson } from './server-socket.ts'
import type { ServerAddress } from './server-socket.ts'

const TOKEN = /^varve1\.[A-Za-z0-9_-]{43}\.([A-Za-z0-9_-]{43})?$/

/** SHA-256 of the server's certificate, as the token says it, if it does. @throws VarveError TOKEN_INVALID */
export function fingerprintOf(token: string): Buffer | undefined {
  const parts = TOKEN.exec(token)
  if (parts === null) throw new VarveError('TOKEN_INVALID', 'this is no token; varve agent token on the server prints one: varve1. and more')
  return parts[1] === undefined ? undefined : Buffer.from(parts[1], 'base64url')
}

export function makeAgentKey(): KeyObject {
  return generateKeyPairSync('ed25519').privateKey
}

/**
 * @param privateKey Ed25519. Who asks again with the same token and key gets the same answer.
 * @returns the agent's id
 * @throws VarveError as the server says: TOKEN_INVALID, ...; CONNECTION_LOST, CREDENTIALS_INVALID, PROTOCOL_INVALID
 */
export async function enrol(address: ServerAddress, { token, privateKey, name, signal }: { token: string; privateKey: KeyObject; name: string; signal?: AbortSignal }): Promise<string> {
  // Of the key in RFC 8037 form, `x` is the public half.
  const publicKey = Buffer.from(privateKey.export({ format: 'jwk' }).x!, 'base64url').toString('base64')
  const { status, body } = await postJson(address, '/v1/agents', { token, publicKey, name }, signal)
  if (status === 201 && typeof body.agent === 'string') return body.agent
  const { code, message } = (body.error ?? {}) as { code?: unknown; message?: unknown }
  throw new VarveError(ERROR_CODES.includes(code as ErrorCode) ? (code as ErrorCode) : 'PROTOCOL_INVALID', `${address.url.origin} answers ${status}: ${typeof message === 'string' ? message : 'no reason'}`)
}
