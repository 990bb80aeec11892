/**
 * A pool of connections: it goes on when connections, or the server, are lost, and says what may have been lost with them.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { NbdPool } from '@varve/blockserver/nbd/pool.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Random, testSeed } from '../../random.ts'
import { uint16, uint32, uint64 } from './raw-peer.ts'
import { exportsOf, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024

/** Between a pool and a server: all of its connections can be cut at any time, without a word to either side. */
class Cutter implements AsyncDisposable {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'varve-pool-'))
  readonly #sockets = new Set<net.Socket>()
  readonly #server: net.Server
  readonly address = `unix:${this.#directory}/cutter.sock`
  accepted = 0
  /** Cuts each connection at its first request. */
  cutsRequests = false

  private constructor(target: string) {
    this.#server = net.createServer((socket) => {
      this.accepted++
      const upstream = net.connect({ path: target.slice('unix:'.length) })
      for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
        this.#sockets.add(one)
        one.on('error', () => undefined)
        one.on('close', () => other.destroy())
        one.pipe(other)
      }
      socket.on('data', (bytes) => { if (this.cutsRequests && bytes.length >= 32 && bytes.readUInt32BE() === 0x21e41c71) socket.destroy() })
    })
  }

  static async before(target: string): Promise<Cutter> {
    const cutter = new Cutter(target)
    cutter.#server.listen(cutter.address.slice('unix:'.length))
    await once(cutter.#server, 'listening')
    return cutter
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
    this.#sockets.clear()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close()
    this.cut()
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

test('a pool uses several connections where the server allows it, and splits what is too long', async () => {
  const disk = new TestDisk(8 * MiB, { delay: () => sleep(1) })
  await using serving = await serve({ disk }, { limits: { requestBytesMax: MiB } })
  await using pool = await NbdPool.connect(serving.unix, { connections: 3 })
  assert.equal(pool.connections, 3)
  assert.equal((await serving.server.metrics()).connectionsOpen, 3)
  const content = new Random(testSeed()).bytes(5 * MiB + 77)
  await pool.write(content, 12_345)
  await pool.flush()
  assert.ok((await pool.read(12_345, content.length)).equals(content))
  assert.ok(disk.durable.subarray(12_345, 12_345 + content.length).equals(content))
  await pool.trim(0, 8 * MiB)
  await pool.writeZeroes(0, 8 * MiB, { noHole: true })
  await pool.cache(0, MiB)
  assert.deepEqual(await pool.blockStatus(0, 8 * MiB), new Map([['base:allocation', [{ length: 8 * MiB, flags: 2 }]]]))
  await assert.rejects(pool.read(8 * MiB, 1), NbdRequestError)
  assert.ok((await serving.server.metrics()).requests > 10)
})

test('a pool keeps to one connection where the server does not say that several see the same', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-pool-'))
  const socket = path.join(directory, 'nbdkit.sock')
  const nbdkit = spawn('nbdkit', ['-f', '-U', socket, '--filter=multi-conn', 'memory', '4M', 'multi-conn-mode=disable'], { stdio: 'ignore' })
  try {
    while (!existsSync(socket)) {
      assert.equal(nbdkit.exitCode, null)
      await sleep(10)
    }
    await using pool = await NbdPool.connect(`unix:${socket}`, { connections: 4 })
    assert.equal(pool.connections, 1)
    await pool.write(Buffer.alloc(100_000, 5), 7)
    await pool.flush()
    assert.deepEqual(await pool.read(7, 100_000), Buffer.alloc(100_000, 5))
  } finally {
    nbdkit.kill()
    await once(nbdkit, 'close')
    rmSync(directory, { recursive: true, force: true })
  }
})

test('fewer connections than wanted are enough', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { limits: { connectionsMax: 2 } })
  await using pool = await NbdPool.connect(serving.unix, { connections: 4 })
  assert.equal(pool.connections, 2)
})

test('requests go on when connections are cut again and again, and nothing is lost or torn', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  const disk = new TestDisk(4 * MiB, { delay: () => random.chance(0.5) ? undefined : sleep(random.below(4)) })
  await using serving = await serve({ disk })
  await using cutter = await Cutter.before(serving.unix)
  await using pool = await NbdPool.connect(cutter.address, { connections: 3 })
  let over = false
  const cutting = (async () => {
    for (let count = 0; count < 12; count++) {
      await sleep(random.between(5, 30))
      const before = pool.reconnections
      cutter.cut()
      while (pool.reconnections === before) await sleep(1)
    }
    over = true
  })()
  // Each lane has sectors of its own, and knows what is in them.
  const lanes = Array.from({ length: 8 }, async (_, lane) => {
    for (let round = 0; !over; round++) {
      const at = (lane * 64 + round % 64) * 8192
      const content = Buffer.alloc(random.between(1, 8192), lane * 31 + round)
      await pool.write(content, at)
      if (round % 7 === 0) await pool.flush()
      assert.ok((await pool.read(at, content.length)).equals(content), `seed ${seed}`)
    }
  })
  await Promise.all([cutting, ...lanes])
  assert.ok(pool.reconnections >= 12, `${pool.reconnections} reconnections`)
  assert.ok(pool.unflushedLosses > 0)
})

test('a server that is stopped and started again is found again; what was in flight is answered by the new one', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-pool-'))
  const address = `unix:${directory}/nbd.sock`
  const disk = new TestDisk(MiB)
  let server = await NbdServer.listen([address], { provider: exportsOf({ disk }) })
  try {
    await using pool = await NbdPool.connect(address, { connections: 2 })
    await pool.write(Buffer.alloc(100, 1), 0)
    await server.close()
    const reads = [0, 1, 2, 3].map(() => pool.read(0, 100))
    const flush = pool.flush()
    await sleep(50)
    server = await NbdServer.listen([address], { provider: exportsOf({ disk }) })
    for (const read of await Promise.all(reads)) assert.deepEqual(read, Buffer.alloc(100, 1))
    await flush
    assert.equal(pool.reconnections > 0, true)
    // It was told that the write may have been lost with the server; that the disk lived on it cannot know.
    assert.ok(pool.unflushedLosses > 0)
  } finally {
    await server.close()
    rmSync(directory, { recursive: true, force: true })
  }
})

test('what was flushed, or written with FUA, is not in doubt when a connection is lost', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  await using cutter = await Cutter.before(serving.unix)
  await using pool = await NbdPool.connect(cutter.address, { connections: 1 })
  await pool.write(Buffer.alloc(10, 1), 0)
  await pool.flush()
  await pool.write(Buffer.alloc(10, 2), 0, { fua: true })
  cutter.cut()
  await pool.read(0, 10)
  assert.deepEqual([pool.reconnections, pool.unflushedLosses], [1, 0])
  await pool.trim(0, 10)
  cutter.cut()
  await pool.flush()
  assert.deepEqual([pool.reconnections, pool.unflushedLosses], [2, 1])
  cutter.cut()
  await pool.read(0, 10)
  assert.deepEqual([pool.reconnections, pool.unflushedLosses], [3, 1])
})

test('a server that stays away, or has another disk in its place, is an error to those who wait, in time', async () => {
  const serving = await serve({ disk: new TestDisk(MiB) })
  await using pool = await NbdPool.connect(serving.unix, { connections: 2, reconnectMsMax: 100 })
  await serving.close()
  const results = await Promise.allSettled([pool.read(0, 10), pool.write(Buffer.alloc(10), 0), pool.flush()])
  for (const result of results) assert.equal(result.status, 'rejected')
  await assert.rejects(pool.read(0, 10))

  const directory = mkdtempSync(path.join(tmpdir(), 'varve-pool-'))
  const address = `unix:${directory}/nbd.sock`
  let server = await NbdServer.listen([address], { provider: exportsOf({ disk: new TestDisk(MiB) }) })
  await using other = await NbdPool.connect(address, { connections: 1 })
  await server.close()
  server = await NbdServer.listen([address], { provider: exportsOf({ disk: new TestDisk(2 * MiB) }) })
  await assert.rejects(other.read(0, 10), (error) => isVarveError(error, 'PROTOCOL_INVALID') && /another one/.test(error.message))
  await server.close()
  rmSync(directory, { recursive: true, force: true })
})

test('a server that hangs up on every request is not asked for ever', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  await using cutter = await Cutter.before(serving.unix)
  await using pool = await NbdPool.connect(cutter.address, { connections: 1, reconnectMsMax: 1500 })
  cutter.cutsRequests = true
  await assert.rejects(pool.read(0, 10), (error) => isVarveError(error, 'CONNECTION_LOST'))
  assert.ok(cutter.accepted > 2)
  cutter.cutsRequests = false
  assert.equal((await pool.read(0, 10)).length, 10)
})

test('closing a pool answers what is in flight, and ends one that looks for its server', async () => {
  const gate = Promise.withResolvers<void>()
  const disk = new TestDisk(MiB, { delay: (request) => request === 'read' ? gate.promise : undefined })
  const serving = await serve({ disk })
  const pool = await NbdPool.connect(serving.unix, { connections: 1 })
  const read = pool.read(0, 10)
  while (disk.running === 0) await sleep(1)
  const closed = pool.close()
  gate.resolve()
  assert.equal((await read).length, 10)
  await closed
  await assert.rejects(pool.read(0, 1), (error) => isVarveError(error, 'CONNECTION_LOST'))
  const orphan = await NbdPool.connect(serving.unix, { connections: 1 })
  await serving.close()
  const waiting = assert.rejects(orphan.read(0, 10))
  await sleep(20)
  await orphan.close()
  await waiting
})

test('our client enters by EXPORT_NAME where the server knows no GO', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-old-'))
  // A server of before 2016: options but EXPORT_NAME are unsupported, replies are simple.
  const server = net.createServer((socket) => {
    let waiting = Buffer.alloc(0)
    let greeted = false
    let entered = false
    socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), uint16(1)]))
    socket.on('data', (bytes) => {
      waiting = Buffer.concat([waiting, bytes])
      for (;;) {
        if (!greeted) {
          if (waiting.length < 4) return
          assert.equal(waiting.readUInt32BE(), 1)
          waiting = waiting.subarray(4)
          greeted = true
        } else if (entered) {
          if (waiting.length < 28) return
          const [type, length] = [waiting.readUInt16BE(6), waiting.readUInt32BE(24)]
          if (type === 2) socket.end()
          else socket.write(Buffer.concat([uint32(0x67446698), uint32(0), waiting.subarray(8, 16), Buffer.alloc(length, 9)]))
          waiting = waiting.subarray(28)
        } else {
          if (waiting.length < 16 || waiting.length < 16 + waiting.readUInt32BE(12)) return
          const type = waiting.readUInt32BE(8)
          const name = waiting.toString('utf8', 16, 16 + waiting.readUInt32BE(12))
          waiting = waiting.subarray(16 + waiting.readUInt32BE(12))
          if (type === 1) {
            assert.equal(name, 'old')
            entered = true
            socket.write(Buffer.concat([uint64(BigInt(MiB)), uint16(1), Buffer.alloc(124)]))
          } else socket.write(Buffer.concat([uint64(0x3e889045565a9n), uint32(type), uint32(0x8000_0001), uint32(0)]))
        }
      }
    })
    socket.on('error', () => undefined)
  }).listen(path.join(directory, 'old.sock'))
  await once(server, 'listening')
  const client = await NbdClient.connect(`unix:${directory}/old.sock`, { exportName: 'old' })
  assert.deepEqual([client.framing, client.sizeBytes, client.contexts, client.blockSizes], ['simple', MiB, [], undefined])
  assert.deepEqual(await client.read(10, 5), Buffer.alloc(5, 9))
  await client.disconnect()
  server.close()
  rmSync(directory, { recursive: true, force: true })
})
