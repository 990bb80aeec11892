/**
 * How an agent proves who it is: by its Ed25519 key, which signs the challenge of the connection.
 */
import { createPublicKey, verify } from 'node:crypto'
import { signedChallenge } from './frames.ts'

export const SIGNATURE_BYTES = 64

/** @param publicKey raw */
export function isSignedBy(publicKey: Uint8Array, challenge: Uint8Array, signature: Uint8Array): boolean {
  if (signature.length !== SIGNATURE_BYTES) return false
  try {
    const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: Buffer.from(publicKey).toString('base64url') }, format: 'jwk' })
    return verify(null, signedChallenge(challenge), key, signature)
  } catch {
    // Bytes that are no point of the curve sign nothing.
    return false
  }
}
