/**
 * Certificates and shared keys for a test, made by OpenSSL and GnuTLS in a directory, laid out as qemu and libnbd want them.
 */
import { copyFileSync, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { run } from './serving.ts'

export class Certificates {
  readonly #directory: string

  /** @param directory empty or missing */
  static async make(directory: string): Promise<Certificates> {
    mkdirSync(directory, { recursive: true })
    const certificates = new Certificates(directory)
    for (const authority of ['authority', 'stranger']) {
      await openssl(directory, authority, ['-subj', `/CN=${authority}`, '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign'])
    }
    await certificates.#sign('server', 'authority', '/CN=server', ['subjectAltName=DNS:localhost,IP:127.0.0.1', 'extendedKeyUsage=serverAuth'])
    for (const [name, authority] of [['desk', 'authority'], ['other', 'authority'], ['foreign', 'stranger']]) {
      await certificates.#sign(name, authority, `/O=Varve/CN=${name}`, ['extendedKeyUsage=clientAuth'])
    }
    certificates.#layOut('client-desk', 'authority', 'desk')
    certificates.#layOut('client-other', 'authority', 'other')
    certificates.#layOut('client-foreign', 'authority', 'foreign')
    certificates.#layOut('client-anonymous', 'authority')
    certificates.#layOut('client-trusts-stranger', 'stranger')
    for (const [file, user] of [['keys', 'alice'], ['keys', 'bob'], ['wrong', 'alice'], ['wrong', 'mallory']]) {
      mkdirSync(path.join(directory, `psk-${file}`), { recursive: true })
      await run('psktool', ['-u', user, '-p', path.join(directory, `psk-${file}`, 'keys.psk')])
    }
    return certificates
  }

  private constructor(directory: string) {
    this.#directory = directory
  }

  /** Of `server`, `authority`, `desk`, `other`, `foreign`, ...: the PEM file. */
  file(name: string, kind: 'cert' | 'key'): string {
    return path.join(this.#directory, `${name}-${kind}.pem`)
  }

  read(name: string, kind: 'cert' | 'key'): Buffer {
    return readFileSync(this.file(name, kind))
  }

  /** `ca-cert.pem`, and for a client that has one `client-cert.pem` and `client-key.pem`. */
  clientDirectory(client: 'desk' | 'other' | 'foreign' | 'anonymous' | 'trusts-stranger'): string {
    return path.join(this.#directory, `client-${client}`)
  }

  /** A directory with `keys.psk`: `keys` has alice and bob, `wrong` another key for alice, and mallory. */
  pskDirectory(which: 'keys' | 'wrong'): string {
    return path.join(this.#directory, `psk-${which}`)
  }

  pskFile(which: 'keys' | 'wrong'): string {
    return path.join(this.pskDirectory(which), 'keys.psk')
  }

  psk(which: 'keys' | 'wrong', user: string): { user: string; key: Buffer } {
    const line = readFileSync(this.pskFile(which), 'utf8').split('\n').find((text) => text.startsWith(`${user}:`))!
    return { user, key: Buffer.from(line.slice(user.length + 1), 'hex') }
  }

  #sign(name: string, authority: string, subject: string, extensions: string[]): Promise<unknown> {
    return openssl(this.#directory, name, ['-subj', subject, '-CA', this.file(authority, 'cert'), '-CAkey', this.file(authority, 'key'),
      '-addext', 'basicConstraints=critical,CA:FALSE', ...extensions.flatMap((extension) => ['-addext', extension])])
  }

  #layOut(directory: string, authority: string, client?: string): void {
    const target = path.join(this.#directory, directory)
    mkdirSync(target)
    copyFileSync(this.file(authority, 'cert'), path.join(target, 'ca-cert.pem'))
    for (const kind of client === undefined ? [] : ['cert', 'key'] as const) copyFileSync(this.file(client!, kind), path.join(target, `client-${kind}.pem`))
  }
}

function openssl(directory: string, name: string, args: string[]): Promise<unknown> {
  return run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '3',
    '-keyout', path.join(directory, `${name}-key.pem`), '-out', path.join(directory, `${name}-cert.pem`), ...args])
}
