/**
 * Who may do what with which export: rules by themselves, and a server that keeps to them. What is denied looks like what does not exist.
 */
import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test, { after, before } from 'node:test'
import { type AccessRule, AccessRules, type Allowance, type ClientIdentity, matchesGlob } from '@varve/blockserver/nbd/access.ts'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { TlsCredentials } from '@varve/blockserver/nbd/tls-credentials.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Certificates } from './certificates.ts'
import { RawPeer, go, metaContext, option } from './raw-peer.ts'
import { run, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024
const ERR_UNKNOWN = 0x8000_0006
const ERR_TLS_REQD = 0x8000_0005

const directory = mkdtempSync(path.join(tmpdir(), 'varve-access-'))
let certificates: Certificates
before(async () => { certificates = await Certificates.make(directory) })
after(() => rmSync(directory, { recursive: true, force: true }))

const disks = () => ({ desk: new TestDisk(MiB), secret: new TestDisk(MiB), 'layer:base@1': new TestDisk(MiB, { readOnly: true }) })

test('globs fit whole names; many stars take no time', () => {
  for (const [glob, text, fits] of [
    ['*', '', true], ['*', 'x', true], ['', '', true], ['', 'x', false], ['desk', 'desk', true], ['desk', 'desk2', false], ['desk*', 'desk@one', true],
    ['*@*', 'desk@one', true], ['*@*', 'desk', false], ['d?sk', 'disk', true], ['d?sk', 'dsk', false], ['a*b*c', 'axxbxxc', true], ['a*b*c', 'axxbxx', false], ['*.x', '.x.x', true],
    ['a.c', 'abc', false], ['[a]', 'a', false],
  ] as const) assert.equal(matchesGlob(glob, text), fits, `${glob} ${text}`)
  assert.equal(matchesGlob(`${'a*'.repeat(200)}b`, 'a'.repeat(4000)), false)
})

test('the first rule that matches decides, and without a match nothing is allowed', () => {
  const rules = new AccessRules([
    { export: 'secret*', identity: 'admin-*', allow: 'read-write' },
    { export: 'secret*', allow: 'deny' },
    { client: '10.1.0.0/16', allow: 'read-write' },
    { client: '2001:db8::/32', allow: 'read-write' },
    { client: '192.0.2.7', allow: 'read-only' },
    { client: 'uid:1000', export: 'desk', allow: 'read-write' },
    { client: 'unix', allow: 'read-only' },
  ])
  const cases: [string, ClientIdentity, Allowance][] = [
    ['secret', { address: '10.1.2.3' }, 'deny'],
    ['secret@1', { address: '203.0.113.1', name: 'admin-7' }, 'read-write'],
    ['secret', { name: 'nadmin-7', address: '10.1.2.3' }, 'deny'],
    ['desk', { address: '10.1.255.255' }, 'read-write'],
    ['desk', { address: '10.2.0.0' }, 'deny'],
    ['desk', { address: '2001:db8:1::1' }, 'read-write'],
    ['desk', { address: '2001:db9::1' }, 'deny'],
    ['desk', { address: '192.0.2.7' }, 'read-only'],
    ['desk', { address: '192.0.2.70' }, 'deny'],
    ['desk', { uid: 1000 }, 'read-write'],
    ['other', { uid: 1000 }, 'read-only'],
    ['desk', { uid: 0 }, 'read-only'],
    ['desk', {}, 'deny'],
  ]
  for (const [name, client, allowance] of cases) assert.equal(rules.allowance(name, client), allowance, `${name} ${JSON.stringify(client)}`)
  assert.equal(new AccessRules([]).allowance('desk', { uid: 0 }), 'deny')
})

test('rules that say nothing clear are refused', () => {
  for (const rule of [
    { client: 'localhost', allow: 'deny' }, { client: '10.0.0.0/33', allow: 'deny' }, { client: '10.0.0.0/', allow: 'deny' }, { client: '::1/129', allow: 'deny' },
    { client: '10.0.0.1/8/8', allow: 'deny' }, { client: 'uid:x', allow: 'deny' }, { client: '', allow: 'deny' }, { allow: 'all' },
  ]) assert.throws(() => new AccessRules([rule as AccessRule]), (error) => isVarveError(error, 'ACCESS_INVALID'), JSON.stringify(rule))
})

test('a denied export is not listed, and answered byte for byte like one that does not exist', async () => {
  await using serving = await serve(disks(), { access: [{ export: 'secret', allow: 'deny' }, { allow: 'read-write' }] })
  assert.deepEqual((await NbdClient.list(serving.unix)).map(({ name }) => name), ['desk', 'layer:base@1'])
  const { exports } = JSON.parse((await run('nbdinfo', ['--list', '--json', serving.uri('')])).stdout) as { exports: Record<string, string>[] }
  assert.deepEqual(exports.map((entry) => entry['export-name']), ['desk', 'layer:base@1'])
  using peer = await RawPeer.greeted(serving.unix)
  peer.send(option(8))
  await peer.replies()
  for (const ask of [(name: string) => go(name), (name: string) => go(name, [0, 1, 2, 3], 6), (name: string) => metaContext(9, name, []), (name: string) => metaContext(10, name, ['base:allocation'])]) {
    const answers = []
    for (const name of ['secret', 'absent']) {
      peer.send(ask(name))
      answers.push((await peer.replies()).map(({ type, data }) => [type, data.toString().replace(name, 'NAME')]))
    }
    assert.equal(answers[0][0][0], ERR_UNKNOWN)
    assert.deepEqual(answers[0], answers[1])
  }
  using other = await RawPeer.greeted(serving.unix)
  other.send(option(1, Buffer.from('secret')))
  assert.equal((await other.end()).length, 0)
})

test('a denied export is not even opened', async () => {
  const secret = new TestDisk(MiB)
  await using serving = await serve({ desk: new TestDisk(MiB), secret }, { access: [{ export: 'desk', allow: 'read-write' }] })
  await assert.rejects(NbdClient.connect(serving.unix, { exportName: 'secret' }), (error) => isVarveError(error, 'EXPORT_NOT_FOUND'))
  assert.equal(secret.closes, 0)
})

test('who may only read is told so, and held to it, beside one who may write', async () => {
  const desk = new TestDisk(MiB)
  await using serving = await serve({ desk }, { access: [{ client: '127.0.0.1', allow: 'read-only' }, { allow: 'read-write' }] })
  await using writer = await NbdClient.connect(serving.unix)
  await using reader = await NbdClient.connect(serving.tcp)
  assert.deepEqual([writer.readOnly, reader.readOnly], [false, true])
  await writer.write(Buffer.alloc(10, 1), 0)
  for (const change of [reader.write(Buffer.alloc(10, 2), 0), reader.trim(0, 10), reader.writeZeroes(0, 10)]) {
    await assert.rejects(change, (error) => error instanceof NbdRequestError && error.errno === 1)
  }
  assert.deepEqual(await reader.read(0, 10), Buffer.alloc(10, 1))
  assert.match((await run('nbdinfo', [serving.uri('desk', 'tcp')])).stdout, /is_read_only: true/)
})

test('the user of a unix socket is who the kernel says', async () => {
  await using serving = await serve(disks(), { access: [{ client: 'uid:0', allow: 'read-write' }, { client: 'uid:65534', export: 'desk', allow: 'read-only' }] })
  chmodSync(serving.directory, 0o755)
  chmodSync(serving.unix.slice('unix:'.length), 0o777)
  const names = async (...prefix: string[]) => {
    const { stdout } = await run('setpriv', [...prefix, 'nbdinfo', '--list', '--json', serving.uri('')])
    return (JSON.parse(stdout) as { exports: Record<string, unknown>[] }).exports.map((entry) => [entry['export-name'], entry.is_read_only])
  }
  assert.deepEqual(await names('--reuid=0', '--keep-groups'), [['desk', false], ['secret', false], ['layer:base@1', true]])
  assert.deepEqual(await names('--reuid=65534', '--clear-groups'), [['desk', true]])
  assert.deepEqual(await names('--reuid=65533', '--clear-groups'), [])
  assert.equal((await NbdClient.list(serving.tcp)).length, 0)
})

test('rules know clients by certificate and by shared key', async () => {
  const credentials = TlsCredentials.open({
    certificateFile: certificates.file('server', 'cert'), keyFile: certificates.file('server', 'key'), caFile: certificates.file('authority', 'cert'), pskFile: certificates.pskFile('keys'),
  })
  const access: AccessRule[] = [{ identity: 'desk', export: 'desk', allow: 'read-write' }, { identity: 'alice', export: '*', allow: 'read-write' }, { identity: '*', allow: 'read-only' }]
  await using serving = await serve(disks(), { access, tls: { mode: 'optional', credentials } })
  const ca = certificates.read('authority', 'cert')
  const withCertificate = (name: string) => ({ ca, certificate: certificates.read(name, 'cert'), key: certificates.read(name, 'key') })
  for (const [tls, ...readOnly] of [
    [withCertificate('desk'), false, true], [withCertificate('other'), true, true], [{ psk: certificates.psk('keys', 'alice') }, false, false], [{ psk: certificates.psk('keys', 'bob') }, true, true],
  ] as const) {
    for (const [index, exportName] of ['desk', 'secret'].entries()) {
      await using client = await NbdClient.connect(serving.tcp, { exportName, tls })
      assert.equal(client.readOnly, readOnly[index])
    }
  }
  // By TLS, but nobody: and without.
  await assert.rejects(NbdClient.connect(serving.tcp, { exportName: 'desk', tls: { ca } }), (error) => isVarveError(error, 'EXPORT_NOT_FOUND'))
  using peer = await RawPeer.greeted(serving.unix)
  const answers = []
  for (const name of ['desk', 'absent']) {
    peer.send(go(name))
    answers.push((await peer.replies()).map(({ type, data }) => [type, data.toString().replace(name, 'NAME')]))
  }
  assert.equal(answers[0][0][0], ERR_TLS_REQD)
  assert.deepEqual(answers[0], answers[1])
  assert.equal((await NbdClient.list(serving.unix)).length, 0)
})

test('what a client may do without TLS says nothing of what it may do with it', async () => {
  const credentials = TlsCredentials.open({ certificateFile: certificates.file('server', 'cert'), keyFile: certificates.file('server', 'key'), pskFile: certificates.pskFile('keys') })
  await using serving = await serve(disks(), { access: [{ identity: 'alice', allow: 'read-write' }, { export: 'desk', allow: 'read-only' }], tls: { mode: 'optional', credentials } })
  using peer = await RawPeer.greeted(serving.unix)
  peer.send(go('desk', [], 6))
  assert.equal((await peer.replies())[0].data.readUInt16BE(10) & 2, 2)
  peer.send(option(5))
  await peer.replies()
  const { user, key } = certificates.psk('keys', 'alice')
  await peer.startTls({ ca: [], ciphers: 'TLS_AES_128_GCM_SHA256:PSK', pskCallback: () => ({ psk: key, identity: user }), checkServerIdentity: () => undefined })
  peer.send(go('desk', [], 6))
  assert.equal((await peer.replies())[0].data.readUInt16BE(10) & 2, 0)
})

test('the default export is what the server was told, or what the provider says', async () => {
  await using serving = await serve(disks(), { defaultExport: 'secret', access: [{ export: 'secret', client: 'unix', allow: 'read-only' }] })
  assert.match((await run('nbdinfo', [serving.uri('')])).stdout, /is_read_only: true/)
  // Denied by its own name.
  await assert.rejects(NbdClient.connect(serving.tcp), (error) => isVarveError(error, 'EXPORT_NOT_FOUND'))
  serving.server.reconfigure({})
  await using client = await NbdClient.connect(serving.tcp)
  assert.equal(client.readOnly, false)
})

test('new rules count for new connections', async () => {
  await using serving = await serve(disks())
  await using before = await NbdClient.connect(serving.unix, { exportName: 'secret' })
  serving.server.reconfigure({ access: [{ export: 'desk', allow: 'read-only' }] })
  await before.write(Buffer.alloc(1), 0)
  await assert.rejects(NbdClient.connect(serving.unix, { exportName: 'secret' }), (error) => isVarveError(error, 'EXPORT_NOT_FOUND'))
  assert.throws(() => serving.server.reconfigure({ access: [{ client: '?', allow: 'deny' }] }), (error) => isVarveError(error, 'ACCESS_INVALID'))
})
