/**
 * TLS: qemu, libnbd and our own client with certificates and shared keys, taken and refused; and the upgrade byte by byte.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test, { after, before } from 'node:test'
import type tls from 'node:tls'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { TlsCredentials, type TlsFiles } from '@varve/blockserver/nbd/tls-credentials.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'
import { Certificates } from './certificates.ts'
import { RawPeer, go, metaContext, option, request } from './raw-peer.ts'
import { type ServeOptions, type Serving, run, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024
const ACK = 1
const ERR_UNSUP = 0x8000_0001
const ERR_POLICY = 0x8000_0002
const ERR_INVALID = 0x8000_0003
const ERR_TLS_REQD = 0x8000_0005
const ERR_UNKNOWN = 0x8000_0006
const STARTTLS = option(5)

const directory = mkdtempSync(path.join(tmpdir(), 'varve-tls-'))
let certificates: Certificates
before(async () => { certificates = await Certificates.make(directory) })
after(() => rmSync(directory, { recursive: true, force: true }))

function credentials(extra: TlsFiles = {}): TlsCredentials {
  return TlsCredentials.open({ certificateFile: certificates.file('server', 'cert'), keyFile: certificates.file('server', 'key'), ...extra })
}

/** A server that has a certificate, asks for none, and knows the shared keys, unless `files` says otherwise. */
function serveTls(options: { mode?: 'optional' | 'required'; files?: TlsFiles } & ServeOptions = {}): Promise<Serving> {
  const { mode = 'required', files = { pskFile: certificates.pskFile('keys') }, ...rest } = options
  return serve({ disk: new TestDisk(16 * MiB), second: new TestDisk(MiB) }, { ...rest, tls: { mode, credentials: credentials(files) } })
}

const withCa = () => ({ caFile: certificates.file('authority', 'cert') })
const clientTls = (name: string) => ({ ca: certificates.read('authority', 'cert'), certificate: certificates.read(name, 'cert'), key: certificates.read(name, 'key') })
const peerTls = () => ({ ca: certificates.read('authority', 'cert') })

// ---- qemu and libnbd

/** As qemu and libnbd say which client they are. */
interface ProgramClient {
  qemu: string[]
  /** Of the URI. */
  user: string
  query: string
}

function withCertificate(client: Parameters<Certificates['clientDirectory']>[0]): ProgramClient {
  const at = certificates.clientDirectory(client)
  return { qemu: ['--object', `tls-creds-x509,id=tls,endpoint=client,dir=${at}`], user: '', query: `tls-certificates=${at}` }
}

function withKey(which: 'keys' | 'wrong', user: string): ProgramClient {
  return { qemu: ['--object', `tls-creds-psk,id=tls,endpoint=client,dir=${certificates.pskDirectory(which)},username=${user}`], user: `${user}@`, query: `tls-psk-file=${certificates.pskFile(which)}` }
}

function qemuTarget(serving: Serving, over: 'tcp' | 'unix'): string {
  const [host, port] = serving.tcp.split(':')
  return over === 'tcp' ? `driver=nbd,host=${host},port=${port},export=disk,tls-creds=tls` : `driver=nbd,path=${serving.unix.slice(5)},export=disk,tls-creds=tls,tls-hostname=localhost`
}

function tlsUri(serving: Serving, client: ProgramClient, over: 'tcp' | 'unix'): string {
  return over === 'tcp' ? `nbds://${client.user}${serving.tcp}/disk?${client.query}` : `nbds+unix://${client.user}/disk?socket=${serving.unix.slice(5)}&${client.query}`
}

async function programsAreTaken(serving: Serving, client: ProgramClient, over: 'tcp' | 'unix'): Promise<void> {
  await run('qemu-io', [...client.qemu, '--image-opts', '-c', 'write -P 0x5a 1M 3M', '-c', 'read -P 0x5a 1M 3M', '-c', 'flush', qemuTarget(serving, over)])
  assert.equal(JSON.parse((await run('qemu-img', ['info', '--output=json', ...client.qemu, '--image-opts', qemuTarget(serving, over)])).stdout)['virtual-size'], 16 * MiB)
  assert.equal((await run('nbdinfo', ['--size', tlsUri(serving, client, over)])).stdout.trim(), String(16 * MiB))
}

async function programsAreRefused(serving: Serving, client: ProgramClient, over: 'tcp' | 'unix'): Promise<void> {
  const { handshakesFailed } = await serving.server.metrics()
  assert.equal((await serving.server.metrics()).requests, 0)
  await run('qemu-io', [...client.qemu, '--image-opts', '-c', 'read 0 512', qemuTarget(serving, over)], { expect: 1 })
  await run('nbdinfo', ['--size', tlsUri(serving, client, over)], { expect: 1 })
  while ((await serving.server.metrics()).handshakesFailed < handshakesFailed + 2) await sleep(5)
  assert.equal((await serving.server.metrics()).requests, 0)
}

for (const over of ['tcp', 'unix'] as const) {
  test(`qemu and libnbd use TLS with the server's certificate, over ${over}`, async () => {
    await using serving = await serveTls({ files: {} })
    await programsAreTaken(serving, withCertificate('anonymous'), over)
  })

  test(`qemu and libnbd use TLS with certificates of their own, over ${over}`, async () => {
    await using serving = await serveTls({ files: { ...withCa(), verifyPeer: true } })
    await programsAreTaken(serving, withCertificate('desk'), over)
  })

  test(`qemu and libnbd use TLS with a shared key, over ${over}`, async () => {
    await using serving = await serveTls()
    await programsAreTaken(serving, withKey('keys', 'alice'), over)
    // A server with nothing but keys does the same.
    await using keysOnly = await serve({ disk: new TestDisk(16 * MiB) }, { tls: { mode: 'required', credentials: TlsCredentials.open({ pskFile: certificates.pskFile('keys') }) } })
    await programsAreTaken(keysOnly, withKey('keys', 'bob'), over)
  })
}

test('clients without the certificate that is required are refused', async () => {
  await using serving = await serveTls({ files: { ...withCa(), verifyPeer: true } })
  await programsAreRefused(serving, withCertificate('anonymous'), 'tcp')
  await programsAreRefused(serving, withCertificate('anonymous'), 'unix')
})

test('where certificates are asked for and not required, none is taken, and one of a stranger is refused', async () => {
  await using serving = await serveTls({ files: withCa() })
  await programsAreTaken(serving, withCertificate('anonymous'), 'unix')
  // GnuTLS, in qemu and libnbd, does not send a certificate that the server did not ask for; OpenSSL, in our client, does.
  const { requests } = await serving.server.metrics()
  await assert.rejects(NbdClient.connect(serving.unix, { tls: clientTls('foreign') }), (error) => isVarveError(error, 'CREDENTIALS_INVALID', 'CONNECTION_LOST'))
  assert.equal((await serving.server.metrics()).requests, requests)
  await using _client = await NbdClient.connect(serving.unix, { tls: clientTls('desk') })
})

test('a wrong shared key and an unknown user are refused', async () => {
  await using serving = await serveTls()
  await programsAreRefused(serving, withKey('wrong', 'alice'), 'tcp')
  await programsAreRefused(serving, withKey('wrong', 'mallory'), 'unix')
})

test('a shared key serves where certificates are required', async () => {
  await using serving = await serveTls({ files: { ...withCa(), verifyPeer: true, pskFile: certificates.pskFile('keys') } })
  await programsAreTaken(serving, withKey('keys', 'alice'), 'tcp')
  await programsAreTaken(serving, withCertificate('desk'), 'tcp')
})

test('clients that do not trust the server go away', async () => {
  await using serving = await serveTls()
  await programsAreRefused(serving, withCertificate('trusts-stranger'), 'tcp')
})

test('plain clients are told that TLS is required', async () => {
  await using serving = await serveTls()
  assert.match((await run('nbdinfo', ['--size', serving.uri('disk')], { expect: 1 })).stderr, /TLS/i)
  assert.match((await run('qemu-img', ['info', serving.uri('disk')], { expect: 1 })).stderr, /TLS/i)
  assert.match((await run('qemu-nbd', ['--list', '-k', serving.unix.slice(5)], { expect: 1 })).stderr, /TLS/i)
})

test('where TLS is optional, plain clients are served beside those with TLS', async () => {
  await using serving = await serveTls({ mode: 'optional' })
  await run('nbdinfo', [serving.uri('disk')])
  await programsAreTaken(serving, withKey('keys', 'alice'), 'unix')
})

test('libnbd copies on 4 connections by TLS, and its Python binding carries out every command', async () => {
  const seed = testSeed()
  const disk = new TestDisk(24 * MiB)
  await using serving = await serve({ disk }, { fastZeroes: true, tls: { mode: 'required', credentials: credentials({ pskFile: certificates.pskFile('keys') }) } })
  const content = new Random(seed).bytes(disk.sizeBytes)
  const image = path.join(serving.directory, 'image')
  writeFileSync(image, content)
  const uri = tlsUri(serving, withKey('keys', 'bob'), 'tcp')
  await run('nbdcopy', ['--connections=4', '--flush', image, uri])
  assert.ok(disk.durable.equals(content), `seed ${seed}`)
  await run('nbdcopy', ['--connections=4', uri, path.join(serving.directory, 'back')])
  assert.ok(readFileSync(path.join(serving.directory, 'back')).equals(content), `seed ${seed}`)
  await run('/usr/bin/python3', ['-'], { input: `
import nbd, os
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.set_uri_allow_local_file(True)
h.connect_uri('${tlsUri(serving, withCertificate('anonymous'), 'unix')}')
assert h.get_tls_negotiated()
data = os.urandom(3 << 20)
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(3 << 20, 12345) == data
h.zero(1 << 20, 4096, nbd.CMD_FLAG_FAST_ZERO); h.trim(1 << 20, 8 << 20); h.cache(1 << 20, 0); h.flush()
assert h.pread(1 << 20, 4096) == bytes(1 << 20)
found = []
h.block_status(24 << 20, 0, lambda context, at, entries, error: found.append(context))
assert found == ['base:allocation']
h.shutdown()
` })
  assert.equal((await serving.server.metrics()).errors, 0)
})

// ---- our own client

test('our client uses both kinds of TLS, and refuses a server that it does not trust or that has not its key', async () => {
  await using serving = await serveTls({ files: { ...withCa(), verifyPeer: true, pskFile: certificates.pskFile('keys') } })
  const { certificate, key } = clientTls('desk')
  const own = { certificate, key }
  for (const address of [serving.tcp, serving.unix]) {
    for (const tls of [clientTls('desk'), { psk: certificates.psk('keys', 'alice') }]) {
      await using client = await NbdClient.connect(address, { tls })
      await client.write(Buffer.alloc(200_000, 9), 77)
      assert.deepEqual(await client.read(77, 200_000), Buffer.alloc(200_000, 9))
      assert.deepEqual((await NbdClient.list(address, { tls })).map(({ name }) => name), ['disk', 'second'])
    }
    const refused = [
      {},
      own,
      { ca: certificates.read('stranger', 'cert'), ...own },
      { ca: certificates.read('authority', 'cert') },
      { ca: certificates.read('authority', 'cert'), ...own, serverName: 'elsewhere.example' },
      clientTls('foreign'),
      { psk: certificates.psk('wrong', 'alice') },
      { psk: certificates.psk('wrong', 'mallory') },
    ]
    // Node's TLS hangs up on a stranger's certificate without a word.
    for (const tls of refused) await assert.rejects(NbdClient.connect(address, { tls }), (error) => isVarveError(error, 'CREDENTIALS_INVALID', 'CONNECTION_LOST'), JSON.stringify(Object.keys(tls)))
    await assert.rejects(NbdClient.connect(address), (error) => isVarveError(error, 'CREDENTIALS_INVALID') && /TLS/.test(error.message))
  }
})

test('our client asks for TLS and takes nothing less', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  await assert.rejects(NbdClient.connect(serving.unix, { tls: { ca: certificates.read('authority', 'cert') } }), (error) => isVarveError(error, 'CREDENTIALS_INVALID'))
})

for (const server of ['x509', 'psk'] as const) {
  test(`our client works with qemu-nbd by TLS, ${server}`, async () => {
    const image = path.join(directory, `image-${server}`)
    writeFileSync(image, Buffer.alloc(MiB, 3))
    const at = server === 'psk' ? certificates.pskDirectory('keys') : path.join(directory, 'qemu-server')
    if (server === 'x509') await run('sh', ['-c', `mkdir ${at} && cp ${certificates.file('authority', 'cert')} ${at}/ca-cert.pem && cp ${certificates.file('server', 'cert')} ${at}/server-cert.pem && cp ${certificates.file('server', 'key')} ${at}/server-key.pem`])
    const socket = path.join(directory, `qemu-${server}.sock`)
    const pidFile = path.join(directory, `qemu-${server}.pid`)
    await run('qemu-nbd', ['--fork', `--pid-file=${pidFile}`, '--persistent', '--object', `tls-creds-${server},id=tls,endpoint=server,dir=${at}${server === 'x509' ? ',verify-peer=on' : ''}`,
      '--tls-creds', 'tls', '-x', 'disk', '-f', 'raw', '-k', socket, image])
    try {
      const tls = server === 'psk' ? { psk: certificates.psk('keys', 'alice') } : clientTls('desk')
      await using client = await NbdClient.connect(`unix:${socket}`, { exportName: 'disk', tls })
      await client.write(Buffer.alloc(100_000, 4), 11)
      await client.flush()
      assert.deepEqual(await client.read(0, 12), Buffer.from([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]))
    } finally {
      process.kill(Number(readFileSync(pidFile, 'utf8')))
    }
  })
}

// ---- byte by byte

async function types(peer: RawPeer, ...parts: Buffer[]): Promise<number[]> {
  peer.send(...parts)
  return (await peer.replies()).map(({ type }) => type)
}

test('before TLS that is required every option but STARTTLS and ABORT is TLS_REQD', async () => {
  await using serving = await serveTls()
  using peer = await RawPeer.greeted(serving.unix)
  for (const type of [3, 4, 6, 7, 8, 9, 10, 11, 12, 0xffff_ffff]) assert.deepEqual(await types(peer, option(type, Buffer.alloc(type % 100))), [ERR_TLS_REQD], `option ${type}`)
  assert.deepEqual(await types(peer, option(99, Buffer.alloc(70_000))), [ERR_TLS_REQD])
  assert.deepEqual(await types(peer, go('disk')), [ERR_TLS_REQD])
  assert.deepEqual(await types(peer, option(2)), [ACK])
  await peer.end()
  using other = await RawPeer.greeted(serving.unix)
  other.send(option(1, Buffer.from('disk')))
  assert.equal((await other.end()).length, 0)
  using old = await RawPeer.greeted(serving.unix, 0)
  assert.equal((await old.end()).length, 0)
})

test('STARTTLS is refused where there is no TLS, with data, and a second time; by TLS nothing is TLS_REQD', async () => {
  await using plain = await serve({ disk: new TestDisk(MiB) })
  using stranger = await RawPeer.greeted(plain.unix)
  assert.deepEqual(await types(stranger, STARTTLS), [ERR_POLICY])
  assert.deepEqual(await types(stranger, go('disk')), [3, ACK])
  await using serving = await serveTls()
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, option(5, Buffer.from('x'))), [ERR_INVALID])
  assert.deepEqual(await types(peer, STARTTLS), [ACK])
  await peer.startTls(peerTls())
  assert.deepEqual(await types(peer, STARTTLS), [ERR_INVALID])
  assert.deepEqual(await types(peer, option(77)), [ERR_UNSUP])
  assert.deepEqual(await types(peer, option(3)), [2, 2, ACK])
  assert.deepEqual(await types(peer, go('missing')), [ERR_UNKNOWN])
  assert.deepEqual(await types(peer, go('disk')), [3, ACK])
})

test('what was agreed on before STARTTLS is forgotten', async () => {
  await using serving = await serveTls({ mode: 'optional' })
  for (const framing of [8, 11]) {
    using peer = await RawPeer.greeted(serving.unix)
    assert.deepEqual(await types(peer, option(framing)), [ACK])
    assert.deepEqual(await types(peer, metaContext(10, 'disk', ['base:allocation'])), [4, ACK])
    assert.deepEqual(await types(peer, STARTTLS), [ACK])
    await peer.startTls(peerTls())
    assert.deepEqual(await types(peer, metaContext(10, 'disk', ['base:allocation'])), [ERR_INVALID])
    peer.send(go('disk'))
    assert.equal((await peer.replies())[0].data.readUInt16BE(10) & (1 << 7), 0, 'DF is not offered')
    peer.send(request({ type: 7, length: 512 }))
    assert.deepEqual((await peer.read(16)).subarray(0, 8), Buffer.from('6744669800000016', 'hex'), 'block status is EINVAL, in a simple reply')
  }
})

test('what is sent behind STARTTLS in the clear is never taken as if it had come by TLS', async () => {
  await using serving = await serveTls({ mode: 'optional' })
  using together = await RawPeer.greeted(serving.unix)
  together.send(STARTTLS, option(3))
  const answer = await together.end()
  assert.ok(answer.length === 0, `${answer.length} bytes of an answer`)
  using later = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(later, STARTTLS), [ACK])
  later.send(option(3), go('disk'), request({ type: 0, length: 512 }))
  // An alert of TLS (record type 21) may come, and nothing else.
  const rest = await later.end()
  assert.ok(rest.length === 0 || rest[0] === 21, rest.toString('hex'))
  assert.equal((await serving.server.metrics()).requests, 0)
  while ((await serving.server.metrics()).connectionsOpen > 0) await sleep(5)
  assert.equal((await serving.server.metrics()).handshakesFailed, 2)
})

test('TLS 1.2 is spoken, with certificates and shared keys; older versions are not', async () => {
  await using serving = await serveTls()
  const { user, key } = certificates.psk('keys', 'alice')
  const ways: tls.ConnectionOptions[] = [
    { ...peerTls(), maxVersion: 'TLSv1.2' },
    { ca: [], maxVersion: 'TLSv1.2', ciphers: 'ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES128-CBC-SHA256', pskCallback: () => ({ psk: key, identity: user }), checkServerIdentity: () => undefined },
  ]
  for (const way of ways) {
    using peer = await RawPeer.greeted(serving.unix)
    assert.deepEqual(await types(peer, STARTTLS), [ACK])
    const secured = await peer.startTls(way)
    assert.equal(secured.getProtocol(), 'TLSv1.2')
    assert.deepEqual(await types(peer, go('disk')), [3, ACK])
  }
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, STARTTLS), [ACK])
  await assert.rejects(peer.startTls({ ...peerTls(), minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' }))
})

test('who is silent after STARTTLS is let go when the time of the handshake is up', async () => {
  await using serving = await serveTls({ limits: { handshakeMsMax: 1500 } })
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, STARTTLS), [ACK])
  await peer.end()
  while ((await serving.server.metrics()).connectionsOpen > 0) await sleep(5)
  assert.equal((await serving.server.metrics()).handshakesFailed, 1)
})

test('the server closes while clients are within their TLS handshake', async () => {
  const serving = await serveTls()
  using peer = await RawPeer.greeted(serving.unix)
  assert.deepEqual(await types(peer, STARTTLS), [ACK])
  await serving.server.close({ drainMs: 50 })
  await peer.end()
  await serving.close()
})

test('requests cut at any record, and many in flight, come through', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const disk = new TestDisk(8 * MiB, { delay: () => random.chance(0.5) ? undefined : sleep(random.below(3)) })
  await using serving = await serve({ disk }, { tls: { mode: 'required', credentials: credentials() } })
  await using client = await NbdClient.connect(serving.tcp, { tls: { ca: certificates.read('authority', 'cert') } })
  const content = random.bytes(disk.sizeBytes)
  const pieces: { at: number; length: number }[] = []
  for (let at = 0; at < content.length;) {
    const length = Math.min(random.pick([1, 511, 4096, 65_536, 1_000_000]), content.length - at)
    pieces.push({ at, length })
    at += length
  }
  await Promise.all(pieces.map(({ at, length }) => client.write(content.subarray(at, at + length), at)))
  assert.ok(disk.bytes.equals(content), `seed ${seed}`)
  const read = await Promise.all(pieces.map(({ at, length }) => client.read(at, length)))
  assert.ok(Buffer.concat(read).equals(content), `seed ${seed}`)
})

// ---- credentials

test('a shared key that is named and not proven names nobody', async () => {
  await using serving = await serveTls({ access: [{ identity: 'alice', allow: 'read-write' }, { export: 'second', allow: 'read-only' }] })
  const see = async (options: object) => {
    using peer = await RawPeer.greeted(serving.unix)
    assert.deepEqual(await types(peer, STARTTLS), [ACK])
    await peer.startTls({ ...peerTls(), ...options })
    peer.send(option(3))
    return (await peer.replies()).length - 1
  }
  assert.equal(await see({ pskCallback: () => ({ psk: certificates.psk('keys', 'alice').key, identity: 'alice' }), checkServerIdentity: () => undefined }), 2)
  assert.equal(await see({}), 1)
  // A suite that the key cannot go with: the server goes on with its certificate, and the key was named only.
  assert.equal(await see({ ciphers: 'TLS_AES_256_GCM_SHA384', pskCallback: () => ({ psk: certificates.psk('wrong', 'alice').key, identity: 'alice' }) }), 1)
})

test('new credentials count for new connections', async () => {
  await using serving = await serveTls({ files: { ...withCa(), verifyPeer: true } })
  await using before = await NbdClient.connect(serving.unix, { tls: clientTls('desk') })
  serving.server.reconfigure({ tls: { mode: 'required', credentials: credentials({ pskFile: certificates.pskFile('keys') }) } })
  assert.equal((await before.read(0, 10)).length, 10)
  await using _keyed = await NbdClient.connect(serving.unix, { tls: { psk: certificates.psk('keys', 'bob') } })
})

test('credentials that are missing or do not fit are refused with what to mend', () => {
  const cert = certificates.file('server', 'cert')
  const key = certificates.file('server', 'key')
  let files = 0
  const psk = (text: string) => {
    const file = path.join(directory, `odd-${files++}.psk`)
    writeFileSync(file, text)
    return file
  }
  for (const [files, message] of [
    [{}, /certificate.*or.*shared keys/],
    [{ certificateFile: cert }, /go together/],
    [{ certificateFile: cert, keyFile: path.join(directory, 'missing') }, /missing cannot be read: ENOENT/],
    [{ certificateFile: cert, keyFile: certificates.file('desk', 'key') }, /desk-key\.pem/],
    [{ certificateFile: key, keyFile: key }, /server-key\.pem/],
    [{ certificateFile: cert, keyFile: key, verifyPeer: true }, /CA/],
    [{ pskFile: psk('') }, /no shared key/],
    [{ pskFile: psk('alice:xyz\n') }, /line 1: not USER:HEX/],
    [{ pskFile: psk(`alice:${'00'.repeat(8)}\n`) }, /line 1.*16 to 64 bytes/],
    [{ pskFile: psk(`alice:${'00'.repeat(32)}\nalice:${'11'.repeat(32)}\n`) }, /line 2.*already/],
  ] as [TlsFiles, RegExp][]) {
    assert.throws(() => TlsCredentials.open(files), (error) => isVarveError(error, 'CREDENTIALS_INVALID') && message.test(error.message), String(message))
  }
})
