/**
 * Hostile peers: thousands of mutated handshakes and requests against the real server, while an honest client works on another connection;
 * and a lying server against our client.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import net from 'node:net'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { VarveError } from '@varve/images/errors.ts'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { Random, testSeed } from '../../random.ts'
import { attack, hostileSession } from './hostile-peer.ts'
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
  await using serving = await serve({ victim, honest })
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
  await using serving = await serve({ disk })
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
    const client = await NbdClient.connect(`unix:${proxyPath}`, { exportName: 'disk', structured: random.chance(0.7), connectMsMax: 50 })
    const timer = setTimeout(() => client.destroy(), 50)
    const requests = [client.read(0, 1000), client.read(40_000, 150_000), client.allocation ? client.blockStatus(0, MiB) : client.flush(), client.write(Buffer.alloc(10), 5), client.read(MiB, 1)]
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
