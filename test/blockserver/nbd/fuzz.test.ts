/**
 * Hostile peers: thousands of mutated handshakes and requests against the real server, while an honest client works on another connection;
 * and a lying server against our client.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Duplex, PassThrough } from 'node:stream'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import tls from 'node:tls'
import { VarveError } from '@varve/images/errors.ts'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { TlsCredentials } from '@varve/blockserver/nbd/tls-credentials.ts'
import { Random, testSeed } from '../../random.ts'
import { Certificates } from './certificates.ts'
import { attack, CONTEXT, hostileSession, mutated } from './hostile-peer.ts'
import { option, RawPeer } from './raw-peer.ts'
import { serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024
const FRAMES = 20_000
const SESSIONS_AT_ONCE = 8
const MEMORY_BYTES_MAX = 256 * MiB

test('hostile peers neither stop the server nor its honest clients, and memory stays bounded', async (context) => {
  const seed = testSeed()
  const random = new Random(seed)
  const victim = new TestDisk(4 * MiB, {
    delay: () => random.chance(0.5) ? undefined : sleep(random.below(3)),
    fault: () => { if (random.chance(0.02)) throw new Error('broken on purpose') },
  })
  const honest = new TestDisk(4 * MiB)
  await using serving = await serve({ victim, honest }, { contexts: [{ name: CONTEXT, extents: (_offset, length) => [{ length, flags: 1 }] }] })
  const socketPath = serving.unix.slice('unix:'.length)
  const client = await NbdClient.connect(serving.unix, { exportName: 'honest' })
  let framesLeft = FRAMES
  let rounds = 0
  let memoryBytesMost = 0
  const attackers = Array.from({ length: SESSIONS_AT_ONCE }, async () => {
    while (framesLeft > 0) {
      const own = new Random(random.uint32())
      const frames = hostileSession(own, 'victim')
      framesLeft -= frames.length
      await attack(own, socketPath, frames)
      memoryBytesMost = Math.max(memoryBytesMost, process.memoryUsage().arrayBuffers)
    }
  })
  const work = async () => {
    while (framesLeft > 0) {
      const bytes = Buffer.alloc(30_000, rounds)
      await client.write(bytes, (rounds * 7919) % (3 * MiB))
      assert.deepEqual(await client.read((rounds * 7919) % (3 * MiB), bytes.length), bytes, `seed ${seed}`)
      rounds++
    }
  }
  try {
    await Promise.all([work(), ...attackers])
    await client.disconnect()
    while ((await serving.server.metrics()).connectionsOpen > 0) await sleep(5)
  } catch (error) {
    throw new Error(`seed ${seed}`, { cause: error })
  }
  const { requests, errors, handshakesFailed, connectionsCut } = await serving.server.metrics()
  context.diagnostic(`seed ${seed}: ${requests} requests, ${errors} errors, ${handshakesFailed} handshakes failed, ${connectionsCut} cut, ${rounds} honest rounds, ${Math.round(memoryBytesMost / MiB)} MiB at most`)
  assert.ok(requests > 1000 && errors > 100 && handshakesFailed > 50 && connectionsCut > 5, `the attack is one; seed ${seed}`)
  assert.ok(rounds > 10, `seed ${seed}`)
  assert.ok(memoryBytesMost < MEMORY_BYTES_MAX, `${memoryBytesMost} bytes in memory; seed ${seed}`)
  assert.equal(victim.running, 0)
})

test('a server that lies to our client gets an error from it, never a crash or wrong lengths', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const disk = new TestDisk(MiB)
  await disk.write(Buffer.alloc(100_000, 1), 50_000)
  await using serving = await serve({ disk }, { contexts: [{ name: CONTEXT, extents: (_offset, length) => [{ length, flags: 1 }] }] })
  const proxyPath = path.join(serving.directory, 'proxy')
  // Forwards to the real server; what comes back is damaged at one place and cut at another.
  const proxy = net.createServer((socket) => {
    const upstream = net.connect({ path: serving.unix.slice('unix:'.length) })
    const damageAt = random.below(random.pick([40, 400, 4000, 200_000]))
    const cutAt = damageAt + random.below(random.pick([10, 1000, 100_000]))
    let at = 0
    upstream.on('data', (bytes) => {
      if (damageAt >= at && damageAt < at + bytes.length) bytes[damageAt - at] ^= 1 << random.below(8)
      socket.write(bytes.subarray(0, Math.max(0, cutAt - at)))
      at += bytes.length
      if (at >= cutAt) socket.end()
    })
    socket.on('data', (bytes) => upstream.write(bytes))
    for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
      one.on('error', () => undefined)
      one.on('close', () => other.destroy())
    }
  }).listen(proxyPath)
  await once(proxy, 'listening')
  const fine = (error: unknown) => {
    if (error instanceof VarveError || error instanceof NbdRequestError || (error as NodeJS.ErrnoException).code === 'ECONNRESET' || (error as NodeJS.ErrnoException).code === 'EPIPE') return
    throw new Error(`seed ${seed}`, { cause: error })
  }
  const talk = async () => {
    const client = await NbdClient.connect(`unix:${proxyPath}`, { exportName: 'disk', framing: random.pick(['simple', 'structured', 'extended'] as const), contexts: ['base:allocation', CONTEXT], connectMsMax: 50 })
    const timer = setTimeout(() => client.destroy(), 50)
    const requests = [client.read(0, 1000), client.read(40_000, 150_000), client.contexts.length > 0 ? client.blockStatus(0, MiB, { contexts: random.pick([[CONTEXT], client.contexts]), one: random.chance(0.5) }) : client.flush(), client.write(Buffer.alloc(10), 5), client.read(MiB, 1)]
    const results = await Promise.allSettled(requests)
    clearTimeout(timer)
    for (const result of results) if (result.status === 'rejected') fine(result.reason)
    if (results[0].status === 'fulfilled') assert.equal((results[0].value as Buffer).length, 1000)
    client.destroy()
  }
  await Promise.all(Array.from({ length: SESSIONS_AT_ONCE }, async () => {
    for (let round = 0; round < 150; round++) await talk().catch(fine)
  }))
  proxy.close()
})

test('hostile bytes behind STARTTLS end in a closed connection, and honest clients go on', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-fuzz-'))
  const certificates = await Certificates.make(directory)
  const credentials = TlsCredentials.open({
    certificateFile: certificates.file('server', 'cert'), keyFile: certificates.file('server', 'key'), caFile: certificates.file('authority', 'cert'), pskFile: certificates.pskFile('keys'),
  })
  await using serving = await serve({ victim: new TestDisk(MiB) }, { tls: { mode: 'optional', credentials }, limits: { handshakeMsMax: 5000 } })
  const hello = await clientHello(certificates.psk('keys', 'alice'))
  await using client = await NbdClient.connect(serving.unix, { tls: { psk: certificates.psk('keys', 'bob') } })
  for (let round = 0; round < 300; round++) {
    using peer = await RawPeer.greeted(serving.unix)
    peer.send(option(5))
    await peer.replies()
    peer.send(random.chance(0.7) ? mutated(random, hello) : random.bytes(random.below(3000)), random.bytes(random.below(100)))
    if (random.chance(0.5)) peer.socket.end()
    await Promise.race([peer.end(), sleep(20)])
    if (round % 20 === 0) assert.equal((await client.read(0, 1000)).length, 1000, `seed ${seed}`)
  }
  while ((await serving.server.metrics()).connectionsOpen > 1) await sleep(5)
  assert.ok((await serving.server.metrics()).handshakesFailed >= 300, `seed ${seed}`)
  rmSync(directory, { recursive: true, force: true })
})

/** The first bytes of a client that has a shared key. */
async function clientHello({ user, key }: { user: string; key: Buffer }): Promise<Buffer> {
  const near = new PassThrough()
  const far = new PassThrough()
  const secured = tls.connect({ socket: Duplex.from({ readable: far, writable: near }), ciphers: 'TLS_AES_128_GCM_SHA256', pskCallback: () => ({ psk: key, identity: user }), checkServerIdentity: () => undefined })
  secured.on('error', () => undefined)
  const [bytes] = await once(near, 'data') as [Buffer]
  secured.destroy()
  return bytes
}
