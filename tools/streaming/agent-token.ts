/**
 * Token: what makes an agent known, once. `varve1.SECRET.FINGERPRINT`: the secret, and the SHA-256 of the server's certificate (DER), or nothing;
 * each base64url. The home keeps the hash of the secret only. docs/decisions/0028-agents.md
 */
import { createHash, randomBytes, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { VarveError } from '@varve/images/errors.ts'

const SECRET_BYTES = 32
const TOKEN = /^varve1\.([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{43})?$/

/** @param certificateFile PEM, that of the server first; an agent that has the token trusts it */
export function makeToken(certificateFile: string | undefined): { token: string; hash: string } {
  const secret = randomBytes(SECRET_BYTES)
  const fingerprint = certificateFile === undefined ? '' : fingerprintOf(certificateFile)
  return { token: `varve1.${secret.toString('base64url')}.${fingerprint}`, hash: hashOf(secret) }
}

/** Hash of the secret in a token. @throws VarveError TOKEN_INVALID */
export function tokenHash(token: string): string {
  const parts = TOKEN.exec(token)
  if (parts === null) throw new VarveError('TOKEN_INVALID', 'this is no token; varve agent token prints one: varve1. and more')
  return hashOf(Buffer.from(parts[1], 'base64url'))
}

function hashOf(secret: Buffer): string {
  return createHash('sha256').update(secret).digest('hex')
}

/** @throws VarveError CREDENTIALS_INVALID */
function fingerprintOf(certificateFile: string): string {
  try {
    return createHash('sha256').update(new X509Certificate(readFileSync(certificateFile)).raw).digest('base64url')
  } catch (cause) {
    throw new VarveError('CREDENTIALS_INVALID', `TLS certificate ${certificateFile} cannot be read: ${(cause as Error).message}`, { cause })
  }
}
