/**
 * A server with threads: connections are spread, those to one writable disk meet in one thread, and a thread that dies takes only its own with it.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import type { NbdLimits } from '@varve/blockserver/nbd/limits.ts'
import type { PolicyOptions } from '@varve/blockserver/nbd/policy.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { TlsCredentials } from '@varve/blockserver/nbd/tls-credentials.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'
import { Certificates } from './certificates.ts'
import { RawPeer, go, metaContext, option, request } from './raw-peer.ts'
import { run } from './serving.ts'

const MiB = 1024 * 1024
const THREADS = 3
const seed = testSeed()

class Threads implements AsyncDisposable {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'varve-nbd-threads-'))
  readonly address = `unix:${this.directory}/nbd.sock`
  server!: NbdServer

  static async start(limits: Partial<NbdLimits> = {}, policy: (directory: string) => Promise<PolicyOptions> = async () => ({})): Promise<Threads> {
    const started = new Threads()
    for (const name of ['disk', 'other', 'more']) {
      writeFileSync(path.join(started.directory, name), '')
      truncateSync(path.join(started.directory, name), 8 * MiB)
    }
    started.server = await NbdServer.listen([started.address, '127.0.0.1:0'], { threads: THREADS, exports: { module: import.meta.resolve('./thread-exports.ts'), data: { directory: started.directory } }, limits, ...(await policy(started.directory)) })
    return started
  }

  connect(exportName: string): Promise<NbdClient> {
    return NbdClient.connect(this.address, { exportName })
  }

  /** What was opened so far: names and threads. */
  get opened(): string[] {
    return readFileSync(path.join(this.directory, 'opened'), 'utf8').trim().split('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

test(`connections to one writable disk meet in one thread, and see each other's writes (seed ${seed})`, async () => {
  await using threads = await Threads.start()
  const random = new Random(seed)
  const clients = await Promise.all(Array.from({ length: 9 }, () => threads.connect('disk')))
  assert.deepEqual(threads.opened.length, 1)
  const content = Buffer.alloc(8 * MiB)
  for (let round = 0; round < 300; round++) {
    const bytes = random.bytes(random.between(1, 100_000))
    const offset = random.below(8 * MiB - bytes.length)
    await clients[random.below(9)].write(bytes, offset)
    bytes.copy(content, offset)
    const from = random.below(8 * MiB - 70_000)
    const length = random.between(1, 70_000)
    assert.ok((await clients[random.below(9)].read(from, length)).equals(content.subarray(from, from + length)), `round ${round}, VARVE_TEST_SEED=${seed}`)
  }
  await Promise.all(clients.map((client) => client.disconnect()))
  while ((await threads.server.metrics()).connectionsOpen > 0) await sleep(5)
  await using again = await threads.connect('disk')
  assert.ok((await again.read(0, 8 * MiB)).equals(content))
})

test('a disk that is only read is opened in every thread that has connections to it', async () => {
  await using threads = await Threads.start()
  const clients = await Promise.all(Array.from({ length: 2 * THREADS }, () => threads.connect('read')))
  assert.equal(new Set(threads.opened).size, THREADS)
  assert.equal(threads.opened.length, THREADS)
  for (const client of clients) {
    assert.equal(client.readOnly, true)
    assert.equal((await client.read(MiB, 5000)).length, 5000)
    await client.disconnect()
  }
})

test('negotiation goes on in the thread that has the disk, with all that was sent ahead', async () => {
  await using threads = await Threads.start()
  // One owner for each disk, in a thread each; so most of what follows has to move, and some twice.
  const owners = await Promise.all(['disk', 'other', 'more'].map((name) => threads.connect(name)))
  await owners[1].write(Buffer.from('content'), 4096)
  for (let round = 0; round < 2 * THREADS; round++) {
    using peer = await RawPeer.greeted(threads.address)
    // Everything at once: structured replies, questions about each disk, context and GO, and a first request behind it.
    peer.send(option(8), go('disk', [], 6), go('more', [], 6), metaContext(10, 'other', ['base:allocation']), go('other'), request({ type: 0, cookie: 7n, offset: 4096n, length: 7 }))
    for (const expected of [8, 6, 6, 10, 7]) {
      const replies = await peer.replies()
      assert.deepEqual([replies.at(-1)!.option, replies.at(-1)!.type], [expected, 1], `round ${round}`)
    }
    const reply = await peer.read(28 + 7)
    assert.equal(reply.readBigUInt64BE(8), 7n)
    assert.equal(reply.subarray(28).toString(), 'content')
    peer.send(request({ type: 7, cookie: 8n, length: MiB }))
    assert.equal((await peer.read(20)).readUInt16BE(6), 5)
  }
  await Promise.all(owners.map((client) => client.disconnect()))
})

test('a thread that dies takes only its own connections with it, and clients can come again', async () => {
  await using threads = await Threads.start()
  const owners = await Promise.all(['disk', 'other', 'more'].map((name) => threads.connect(name)))
  await Promise.all(owners.map((client, index) => client.write(Buffer.alloc(4096, index + 1), 0, { fua: true })))
  const names = ['disk', 'other', 'more']
  const threadOf = (name: string) => Number(threads.opened.find((line) => line.startsWith(`${name} `))!.split(' ')[1])
  assert.equal(new Set(names.map(threadOf)).size, THREADS)
  const [victim] = threads.server.pool!.workers
  const lost = names.findIndex((name) => threadOf(name) === victim.threadId)
  const exited = once(victim, 'exit')
  void victim.terminate()
  await exited
  for (const [index, client] of owners.entries()) {
    if (index === lost) await assert.rejects(client.read(0, 4096))
    else assert.equal((await client.read(0, 4096))[0], index + 1)
  }
  // Also while there is no thread in its place yet.
  for (;;) {
    const client = await threads.connect(names[lost]).catch(() => undefined)
    if (client === undefined) {
      await sleep(20)
      continue
    }
    assert.equal((await client.read(0, 4096))[0], lost + 1)
    await client.disconnect()
    break
  }
  for (const [index, client] of owners.entries()) if (index !== lost) await client.disconnect()
})

test('when the thread that negotiates dies, those that are served notice nothing, and clients come again', async () => {
  await using threads = await Threads.start()
  const client = await threads.connect('disk')
  using stranger = await RawPeer.greeted(threads.address)
  const negotiator = threads.server.pool!.workers.at(-1)!
  const exited = once(negotiator, 'exit')
  void negotiator.terminate()
  await exited
  await assert.rejects(stranger.read(1))
  assert.equal((await client.read(0, 4096)).length, 4096)
  for (;;) {
    const later = await threads.connect('other').catch(() => undefined)
    if (later === undefined) {
      await sleep(20)
      continue
    }
    assert.equal((await later.read(0, 4096)).length, 4096)
    await later.disconnect()
    break
  }
  await client.disconnect()
})

test('counters of a thread stay when it dies, gauges go; limits set anew reach every thread, and those that come', async () => {
  await using threads = await Threads.start()
  const clients = await Promise.all(Array.from({ length: THREADS }, () => threads.connect('read')))
  for (const client of clients) await client.read(0, 1000)
  const read = async () => (await threads.server.metrics()).exports.find(({ name }) => name === 'read')!
  assert.deepEqual([(await read()).bytesRead, (await read()).connections], [THREADS * 1000, THREADS])
  const [victim] = threads.server.pool!.workers
  const exited = once(victim, 'exit')
  void victim.terminate()
  await exited
  assert.deepEqual([(await read()).bytesRead, (await read()).connections], [THREADS * 1000, THREADS - 1])
  threads.server.reconfigure({ limits: { requestBytesMax: MiB, sharedBytesMax: MiB } })
  while (threads.server.pool!.workers[0] === victim) await sleep(20)
  const uri = `nbd+unix:///read?socket=${threads.directory}/nbd.sock`
  const later = await Promise.all(Array.from({ length: 2 * THREADS }, async () => JSON.parse((await run('nbdinfo', ['--json', uri])).stdout).exports[0].block_size_maximum as number))
  assert.deepEqual(new Set(later), new Set([MiB]))
  for (const client of clients) client.destroy()
})

test('a server that stops answers what is in flight in every thread, and closes every disk', async () => {
  await using threads = await Threads.start()
  const clients = await Promise.all(['disk', 'other', 'more', 'read'].map((name) => threads.connect(name)))
  const writes = clients.slice(0, 3).map((client, index) => client.write(Buffer.alloc(MiB, index + 1), MiB))
  await Promise.all(writes)
  await threads.server.close()
  assert.equal(threads.opened.filter((line) => line.startsWith('ended')).length, THREADS)
  for (const [index, name] of ['disk', 'other', 'more'].entries()) assert.equal(readFileSync(path.join(threads.directory, name))[2 * MiB - 1], index + 1)
  for (const client of clients) client.destroy()
})

test('many connections of real programs over all threads', async () => {
  await using threads = await Threads.start()
  const uri = `nbd+unix:///disk?socket=${threads.directory}/nbd.sock`
  const source = path.join(threads.directory, 'source')
  writeFileSync(source, new Random(seed).bytes(8 * MiB))
  await run('nbdcopy', ['--connections=4', source, uri])
  await run('nbdcopy', ['--connections=4', uri, path.join(threads.directory, 'copy')])
  await run('nbdcopy', ['--connections=4', uri.replace('disk', 'read'), path.join(threads.directory, 'other-copy')])
  for (const copy of ['copy', 'other-copy']) assert.ok(readFileSync(path.join(threads.directory, copy)).equals(readFileSync(source)), copy)
})

test('connections over the limit are refused, whichever thread has room', async () => {
  await using threads = await Threads.start({ connectionsMax: 4 })
  const clients = await Promise.all(Array.from({ length: 4 }, () => threads.connect('read')))
  await assert.rejects(threads.connect('read'))
  assert.equal((await threads.server.metrics()).connectionsRefused, 1)
  await clients[0].disconnect()
  while ((await threads.server.metrics()).connectionsOpen === 4) await sleep(5)
  await (await threads.connect('read')).disconnect()
  await Promise.all(clients.slice(1).map((client) => client.disconnect()))
})

test(`clients with TLS reach a disk in whichever thread it is, as who they are (seed ${seed})`, async () => {
  let certificates!: Certificates
  await using threads = await Threads.start({}, async (directory) => {
    certificates = await Certificates.make(path.join(directory, 'certificates'))
    const credentials = TlsCredentials.open({
      certificateFile: certificates.file('server', 'cert'), keyFile: certificates.file('server', 'key'), caFile: certificates.file('authority', 'cert'), pskFile: certificates.pskFile('keys'),
    })
    return { tls: { mode: 'required', credentials }, access: [{ identity: 'alice', allow: 'read-write' }, { identity: 'desk', export: 'disk', allow: 'read-only' }], defaultExport: 'disk' }
  })
  const alice = { psk: certificates.psk('keys', 'alice') }
  const desk = { ca: certificates.read('authority', 'cert'), certificate: certificates.read('desk', 'cert'), key: certificates.read('desk', 'key') }
  const random = new Random(seed)
  // The first opens the disk in its thread; of the others some are there too, and some are not.
  const clients = await Promise.all(Array.from({ length: 2 * THREADS }, () => NbdClient.connect(threads.address, { tls: alice })))
  assert.equal(threads.opened.length, 1)
  const content = Buffer.alloc(8 * MiB)
  for (let round = 0; round < 100; round++) {
    const bytes = random.bytes(random.pick([1, 4096, 100_000, 3 * MiB]))
    const offset = random.below(8 * MiB - bytes.length)
    await clients[random.below(clients.length)].write(bytes, offset)
    bytes.copy(content, offset)
    assert.ok((await clients[random.below(clients.length)].read(offset, bytes.length)).equals(bytes), `round ${round}, VARVE_TEST_SEED=${seed}`)
  }
  // Pipelined, so that both ways of every relay are full at once.
  await Promise.all(clients.map(async (client) => {
    const reads = await Promise.all(Array.from({ length: 16 }, (_, index) => client.read(index * MiB / 2, MiB / 2)))
    assert.ok(Buffer.concat(reads).equals(content), `VARVE_TEST_SEED=${seed}`)
  }))
  for (let count = 0; count < THREADS; count++) {
    await using reader = await NbdClient.connect(threads.address, { exportName: 'disk', tls: desk })
    assert.equal(reader.readOnly, true)
    await assert.rejects(NbdClient.connect(threads.address, { exportName: 'other', tls: desk }), (error) => isVarveError(error, 'EXPORT_NOT_FOUND'))
  }
  // A policy reaches all threads.
  threads.server.reconfigure({ access: [{ client: 'uid:0', allow: 'read-only' }] })
  const plain = await Promise.all(Array.from({ length: THREADS }, () => NbdClient.connect(threads.address, { exportName: 'disk' })))
  assert.ok(plain.every((client) => client.readOnly))
  await Promise.all([...clients, ...plain].map((client) => client.disconnect()))
  while ((await threads.server.metrics()).connectionsOpen > 0) await sleep(5)
})

test('a server that stops ends the relays of clients with TLS, those that do not read too', async () => {
  let certificates!: Certificates
  await using threads = await Threads.start({}, async (directory) => {
    certificates = await Certificates.make(path.join(directory, 'certificates'))
    return { tls: { mode: 'optional', credentials: TlsCredentials.open({ pskFile: certificates.pskFile('keys') }) } }
  })
  const clients = await Promise.all(Array.from({ length: 2 * THREADS }, () => NbdClient.connect(threads.address, { exportName: 'disk', tls: { psk: certificates.psk('keys', 'bob') } })))
  const { user, key } = certificates.psk('keys', 'bob')
  const stalled = await Promise.all(clients.map(async () => {
    const peer = await RawPeer.greeted(threads.address)
    peer.send(option(5))
    await peer.replies()
    await peer.startTls({ ca: [], ciphers: 'TLS_AES_128_GCM_SHA256:PSK', pskCallback: () => ({ psk: key, identity: user }), checkServerIdentity: () => undefined })
    peer.send(go('disk'))
    await peer.replies()
    peer.socket.pause()
    peer.send(...Array.from({ length: 20 }, () => request({ type: 0, length: 8 * MiB })))
    return peer
  }))
  await Promise.all(clients.map((client) => client.read(0, 8 * MiB)))
  await threads.server.close({ drainMs: 200 })
  for (const client of clients) await assert.rejects(client.read(0, 1))
  for (const peer of stalled) peer[Symbol.dispose]()
})
