/**
 * Digest: the name of a chunk, BLAKE3-256 of its bytes.
 * In memory 32 raw bytes; hexadecimal as a map key and for people.
 */
import { Blake3Hasher, blake3 } from '@napi-rs/blake-hash'

export const DIGEST_BYTES = 32

/** 32 bytes. */
export type Digest = Uint8Array

/** Digest of `bytes`. */
export function digestOf(bytes: Uint8Array): Digest {
  // Any bytes will do; the package's type asks for more than its code.
  return blake3(bytes as Buffer)
}

/** Digest of bytes that come in pieces. */
export class DigestStream {
  readonly #hasher = new Blake3Hasher()

  update(bytes: Uint8Array): void {
    this.#hasher.update(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
  }

  end(): Digest {
    return this.#hasher.digestBuffer()
  }
}

/** 64 hexadecimal digits, lower case. */
export function digestToHex(digest: Digest): string {
  return Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString('hex')
}
