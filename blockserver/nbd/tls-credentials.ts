/**
 * What a server proves by TLS who it is, and how it knows its clients: certificate and key, certificates of those who sign clients', shared keys.
 * Files are read once; who wants them read again opens new credentials, for new connections.
 */
import { constants } from 'node:crypto'
import { readFileSync } from 'node:fs'
import tls from 'node:tls'
import { VarveError } from '@varve/images/errors.ts'

export interface TlsFiles {
  /** PEM: the server's certificate, and those between it and the root. */
  certificateFile?: string
  /** PEM: the key of the certificate. */
  keyFile?: string
  /** PEM: certificates that sign clients' certificates. With it clients are asked for theirs; one that does not verify is refused. */
  caFile?: string
  /** Refuses clients without a certificate; those with a shared key need none. Needs `caFile`. */
  verifyPeer?: boolean
  /** Lines `USER:HEX`, as psktool of GnuTLS writes them. */
  pskFile?: string
}

/**
 * In the server's order. Suites with SHA-256 first: a shared key of TLS 1.3 goes with no other. Below 1.3 only with forward secrecy.
 * OpenSSL has no PSK suite of TLS 1.2 with both that and AES-GCM.
 */
const CIPHERS = [
  'TLS_AES_128_GCM_SHA256', 'TLS_CHACHA20_POLY1305_SHA256', 'TLS_AES_256_GCM_SHA384',
  'ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-RSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-CHACHA20-POLY1305', 'ECDHE-RSA-CHACHA20-POLY1305',
  'ECDHE-ECDSA-AES256-GCM-SHA384', 'ECDHE-RSA-AES256-GCM-SHA384',
]
const PSK_CIPHERS = ['ECDHE-PSK-CHACHA20-POLY1305', 'ECDHE-PSK-AES256-CBC-SHA384', 'ECDHE-PSK-AES128-CBC-SHA256']

/** Bytes of a shared key. */
const PSK_BYTES_MIN = 16
const PSK_BYTES_MAX = 64

/** What is in the files. A value that threads can send. */
export interface TlsMaterial {
  files: TlsFiles
  certificate: Uint8Array | undefined
  privateKey: Uint8Array | undefined
  ca: Uint8Array | undefined
  /** By user. */
  sharedKeys: ReadonlyMap<string, Uint8Array>
}

export class TlsCredentials {
  readonly material: TlsMaterial
  /** What `context` is made of. */
  readonly contextOptions: tls.SecureContextOptions
  readonly context: tls.SecureContext

  /** @throws VarveError CREDENTIALS_INVALID */
  static open(files: TlsFiles): TlsCredentials {
    const { certificateFile, keyFile, caFile, verifyPeer, pskFile } = files
    if ((certificateFile === undefined) !== (keyFile === undefined)) throw invalid('a TLS certificate and its key go together; give both')
    if (certificateFile === undefined && pskFile === undefined) throw invalid('TLS needs a certificate and its key, or a file of shared keys')
    if (verifyPeer === true && caFile === undefined) throw invalid('to verify clients, give the certificates that sign theirs (CA)')
    return new TlsCredentials({
      files,
      certificate: read(certificateFile),
      privateKey: read(keyFile),
      ca: read(caFile),
      sharedKeys: pskFile === undefined ? new Map() : parsePsk(pskFile, read(pskFile).toString('utf8')),
    })
  }

  /** @throws VarveError CREDENTIALS_INVALID */
  constructor(material: TlsMaterial) {
    const { files, certificate, privateKey, ca, sharedKeys } = material
    this.material = material
    this.contextOptions = {
      cert: asBuffer(certificate),
      key: asBuffer(privateKey),
      ca: asBuffer(ca),
      ciphers: [...CIPHERS, ...sharedKeys.size === 0 ? [] : PSK_CIPHERS].join(':'),
      honorCipherOrder: true,
      minVersion: 'TLSv1.2',
      // Without a name OpenSSL takes no key where it asks for certificates.
      sessionIdContext: 'varve',
      // No session is resumed: that one was would look like a shared key that was proven.
      secureOptions: constants.SSL_OP_NO_TICKET,
    }
    try {
      this.context = tls.createSecureContext(this.contextOptions)
    } catch (cause) {
      throw invalid(`TLS certificate ${files.certificateFile ?? '-'}, key ${files.keyFile ?? '-'}, CA ${files.caFile ?? '-'}: ${(cause as Error).message}`, cause)
    }
  }

  /** Clients are asked for a certificate. */
  get asksCertificate(): boolean {
    return this.material.ca !== undefined
  }

  /** Clients without one are refused. */
  get requiresCertificate(): boolean {
    return this.material.files.verifyPeer === true
  }

  /** The shared key of a user. */
  sharedKey(user: string): Uint8Array | undefined {
    return this.material.sharedKeys.get(user)
  }
}

/** A view of the same bytes: what comes from another thread is no Buffer any more. */
function asBuffer(bytes: Uint8Array | undefined): Buffer | undefined {
  return bytes === undefined ? undefined : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function read(file: string): Buffer
function read(file: string | undefined): Buffer | undefined
function read(file: string | undefined): Buffer | undefined {
  if (file === undefined) return undefined
  try {
    return readFileSync(file)
  } catch (cause) {
    throw invalid(`TLS file ${file} cannot be read: ${(cause as NodeJS.ErrnoException).code ?? String(cause)}`, cause)
  }
}

/** Keys are not quoted in messages. */
function parsePsk(file: string, text: string): Map<string, Buffer> {
  const keys = new Map<string, Buffer>()
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line === '') continue
    const parts = /^([^:]+):((?:[0-9a-fA-F]{2})+)$/.exec(line)
    if (parts === null) throw invalid(`${file}, line ${index + 1}: not USER:HEX`)
    const key = Buffer.from(parts[2], 'hex')
    if (key.length < PSK_BYTES_MIN || key.length > PSK_BYTES_MAX) throw invalid(`${file}, line ${index + 1}: a shared key has ${PSK_BYTES_MIN} to ${PSK_BYTES_MAX} bytes`)
    if (keys.has(parts[1])) throw invalid(`${file}, line ${index + 1}: user ${parts[1]} has a key already`)
    keys.set(parts[1], key)
  }
  if (keys.size === 0) throw invalid(`${file}: no shared key is in it`)
  return keys
}

function invalid(message: string, cause?: unknown): VarveError {
  return new VarveError('CREDENTIALS_INVALID', message, { cause })
}
