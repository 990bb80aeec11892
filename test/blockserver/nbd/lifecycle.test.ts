/**
 * Addresses, sharing of devices, order of flushes and replies, limits, and the ways a connection or the server ends.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { isVarveError } from '@varve/images/errors.ts'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { SharedExports } from '@varve/blockserver/nbd/export.ts'
import { NBD_EIO, NBD_EPERM, NBD_ESHUTDOWN, NBD_STATE_HOLE, NBD_STATE_ZERO } from '@varve/blockserver/nbd/protocol.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { exportsOf, run, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const KiB = 1024
const MiB = 1024 * KiB

function refuses(errno: number) {
  return (error: unknown) => error instanceof NbdRequestError && error.errno === errno
}

function temporary(): { path: string } & Disposable {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-nbd-'))
  return { path: directory, [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }) }
}

test('one server listens on several addresses, IPv6 among them', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { addresses: ['[::1]:0', 'localhost:0'] })
  assert.equal(serving.server.addresses.length, 4)
  for (const address of serving.server.addresses) {
    await using client = await NbdClient.connect(address, { exportName: 'disk' })
    assert.equal(client.sizeBytes, MiB)
  }
})

test('addresses that cannot be listened on are ADDRESS_INVALID', async () => {
  using directory = temporary()
  const provider = exportsOf({ disk: new TestDisk(MiB) })
  const file = path.join(directory.path, 'file')
  writeFileSync(file, 'not a socket')
  await using serving = await serve({ disk: new TestDisk(MiB) })
  for (const address of ['', 'nonsense', '127.0.0.1', '127.0.0.1:70000', '::1:10809', '[127.0.0.1]:1', 'unix:', `unix:/${'x'.repeat(108)}`, `unix:${file}`, `unix:${directory.path}/no/where`,
    serving.unix, serving.tcp, '203.0.113.1:10809']) {
    await assert.rejects(NbdServer.listen([address], { provider }), (error) => isVarveError(error, 'ADDRESS_INVALID'), address)
  }
  assert.ok(existsSync(file))
  const spare = path.join(directory.path, 'spare')
  await assert.rejects(NbdServer.listen([`unix:${spare}`, serving.tcp], { provider }), (error) => isVarveError(error, 'ADDRESS_INVALID'))
  assert.ok(!existsSync(spare), 'an address that was bound before the one that failed is let go')
})

test('a socket file that a killed server left behind is replaced', async () => {
  using directory = temporary()
  const socket = path.join(directory.path, 's')
  await run(process.execPath, ['-e', `require('net').createServer().listen(${JSON.stringify(socket)}, () => process.kill(process.pid, 'SIGKILL'))`], { expect: null })
  assert.ok(existsSync(socket))
  const server = await NbdServer.listen([`unix:${socket}`], { provider: exportsOf({ disk: new TestDisk(MiB) }) })
  await (await NbdClient.connect(`unix:${socket}`)).disconnect()
  await server.close()
  assert.ok(!existsSync(socket))
})

test('an export that does not exist is refused by name', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) })
  await assert.rejects(NbdClient.connect(serving.unix, { exportName: 'other' }), (error) => isVarveError(error, 'EXPORT_NOT_FOUND') && /'other'/.test(error.message))
  assert.deepEqual(await NbdClient.list(serving.tcp), [{ name: 'disk', description: 'the disk disk' }])
})

test('a device is opened once for all its connections, and closed with the last', async () => {
  const disk = new TestDisk(MiB)
  await using serving = await serve({ disk })
  const clients = await Promise.all([1, 2, 3].map(() => NbdClient.connect(serving.unix, { exportName: 'disk' })))
  await clients[0].disconnect()
  clients[1].destroy()
  await clients[2].read(0, 1)
  await sleep(20)
  assert.equal(disk.closes, 0)
  await clients[2].disconnect()
  while (disk.closes === 0) await sleep(5)
  await (await NbdClient.connect(serving.unix)).disconnect()
  while (disk.closes === 1) await sleep(5)
})

test('two connections see each other\'s writes, and a flush on one covers what the other completed', async () => {
  const disk = new TestDisk(MiB)
  await using serving = await serve({ disk })
  await using one = await NbdClient.connect(serving.unix)
  await using other = await NbdClient.connect(serving.tcp)
  for (let round = 0; round < 50; round++) {
    const bytes = Buffer.alloc(5000, round + 1)
    await one.write(bytes, round * 5000)
    assert.deepEqual(await other.read(round * 5000, 5000), bytes)
  }
  assert.ok(disk.durable.every((byte) => byte === 0))
  await other.flush()
  assert.deepEqual(disk.durable, disk.bytes)
})

test('a write with FUA is durable when it is answered, others are not held up', async () => {
  const disk = new TestDisk(MiB)
  await using serving = await serve({ disk })
  await using client = await NbdClient.connect(serving.unix)
  await client.write(Buffer.alloc(100, 1), 0)
  await client.write(Buffer.alloc(100, 2), 1000, { fua: true })
  await client.writeZeroes(1000, 50, { fua: true })
  assert.equal(disk.durable[0], 0)
  assert.deepEqual([disk.durable[1049], disk.durable[1050]], [0, 2])
})

test('a slow request does not hold up a fast one on the same connection', async () => {
  const gate = Promise.withResolvers<void>()
  const disk = new TestDisk(MiB, { delay: (request) => request === 'flush' ? gate.promise : undefined })
  await using serving = await serve({ disk })
  await using client = await NbdClient.connect(serving.unix)
  let flushed = false
  const flush = client.flush().then(() => { flushed = true })
  await client.write(Buffer.alloc(10, 3), 5)
  assert.equal((await client.read(5, 10))[9], 3)
  assert.equal(flushed, false)
  gate.resolve()
  await flush
})

test('zeroes come as holes, and block status and client agree', async () => {
  const disk = new TestDisk(4 * MiB)
  await using serving = await serve({ disk })
  await using client = await NbdClient.connect(serving.unix)
  await client.write(Buffer.alloc(4096, 9), MiB)
  assert.deepEqual(await client.read(0, 4 * MiB), disk.bytes)
  assert.deepEqual(await client.read(MiB - 1, 100_000, { whole: true }), disk.bytes.subarray(MiB - 1, MiB - 1 + 100_000))
  assert.deepEqual(await client.allocation(0, 4 * MiB), [
    { length: MiB, flags: NBD_STATE_HOLE | NBD_STATE_ZERO }, { length: 4096, flags: 0 }, { length: 3 * MiB - 4096, flags: NBD_STATE_HOLE | NBD_STATE_ZERO },
  ])
})

test('a part of a long sparse read that fails fails the read alone', async () => {
  for (const delay of [undefined, () => sleep(1)]) {
    let faulty = true
    const disk = new TestDisk(MiB, { delay, fault: (_, offset) => { if (faulty && offset === 768 * KiB) throw new Error('broken on purpose') } })
    for (const at of [0, 256, 768]) disk.bytes.fill(1, at * KiB, (at + 64) * KiB)
    await using serving = await serve({ disk })
    await using client = await NbdClient.connect(serving.unix)
    faulty = false
    for (const at of [0, 256, 768]) await client.write(Buffer.alloc(64 * KiB, 1), at * KiB)
    faulty = true
    await assert.rejects(client.read(0, MiB), refuses(NBD_EIO))
    faulty = false
    assert.deepEqual(await client.read(0, MiB), disk.bytes)
  }
})

test('the client gives up on a server that is not one', async () => {
  const server = net.createServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')).listen(0, '127.0.0.1')
  await once(server, 'listening')
  await assert.rejects(NbdClient.connect(`127.0.0.1:${(server.address() as net.AddressInfo).port}`), (error) => isVarveError(error, 'PROTOCOL_INVALID'))
  server.close()
})

test('writes to a read-only export are refused, whatever their size, and cost no memory', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB, { readOnly: true }) })
  await using client = await NbdClient.connect(serving.unix)
  assert.ok(client.readOnly)
  const before = process.memoryUsage().arrayBuffers
  const payload = Buffer.alloc(16 * MiB)
  for (let count = 0; count < 8; count++) await assert.rejects(client.write(payload, 0), refuses(NBD_EPERM))
  assert.ok(process.memoryUsage().arrayBuffers - before < 48 * MiB)
  assert.equal((await client.read(0, 10)).length, 10)
})

test('closing answers what is in flight, refuses what comes after, and then hangs up', async () => {
  const gate = Promise.withResolvers<void>()
  const disk = new TestDisk(MiB, { delay: (request) => request === 'write' ? gate.promise : undefined })
  const serving = await serve({ disk })
  const client = await NbdClient.connect(serving.unix)
  const idle = await NbdClient.connect(serving.tcp)
  const write = client.write(Buffer.alloc(1000, 5), 0)
  while (disk.running === 0) await sleep(1)
  const closed = serving.server.close({ drainMs: 20_000 })
  await assert.rejects(idle.read(0, 1).then(() => idle.read(0, 1)), (error) => isVarveError(error, 'CONNECTION_LOST') || refuses(NBD_ESHUTDOWN)(error))
  await assert.rejects(client.read(0, 10), refuses(NBD_ESHUTDOWN))
  await assert.rejects(NbdClient.connect(serving.tcp), { code: 'ECONNREFUSED' })
  gate.resolve()
  await write
  await closed
  assert.equal(disk.durable[999], 5)
  assert.equal(disk.closes, 1)
  await assert.rejects(client.read(0, 1), (error) => isVarveError(error, 'CONNECTION_LOST'))
  assert.equal((await serving.server.metrics()).connectionsOpen, 0)
  await serving.close()
})

test('closing cuts a connection whose device or peer does not move, when its time is up', async () => {
  const gate = Promise.withResolvers<void>()
  const disk = new TestDisk(MiB, { delay: () => gate.promise })
  const serving = await serve({ disk })
  const client = await NbdClient.connect(serving.unix)
  const read = assert.rejects(client.read(0, 10), (error) => isVarveError(error, 'CONNECTION_LOST'))
  while (disk.running === 0) await sleep(1)
  const closed = serving.server.close({ drainMs: 50 })
  await read
  gate.resolve()
  await closed
  assert.equal(disk.closes, 1)
  await serving.close()
})

test('a handshake that takes too long is ended', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { limits: { handshakeMsMax: 100 } })
  const socket = net.connect({ path: serving.unix.slice('unix:'.length) })
  socket.write(Buffer.from([0, 0, 0, 3]))
  socket.resume()
  await once(socket, 'close')
  assert.equal((await serving.server.metrics()).handshakesFailed, 1)
})

test('the time in which an export is opened is not the client\'s', async () => {
  const disk = new TestDisk(MiB)
  const provider = new SharedExports({
    list: async () => [],
    canonicalName: (name) => name,
    open: async (name) => {
      await sleep(300)
      return { name, description: 'slow', device: disk }
    },
  })
  using directory = temporary()
  await using server = await NbdServer.listen([`unix:${directory.path}/socket`], { provider, limits: { handshakeMsMax: 100 } })
  const client = await NbdClient.connect(server.addresses[0], { exportName: 'slow' })
  assert.equal((await client.read(0, 10)).length, 10)
  await client.disconnect()
})

test('a connection over the limit is closed at once, and a place that is freed is given again', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { limits: { connectionsMax: 2 } })
  const clients = [await NbdClient.connect(serving.unix), await NbdClient.connect(serving.unix)]
  await assert.rejects(NbdClient.connect(serving.unix))
  assert.equal((await serving.server.metrics()).connectionsRefused, 1)
  await clients[0].disconnect()
  while ((await serving.server.metrics()).connectionsOpen > 1) await sleep(5)
  await (await NbdClient.connect(serving.unix)).disconnect()
  await clients[1].disconnect()
})

test('one address has a limit of its own, which clients of unix sockets do not count in', async () => {
  await using serving = await serve({ disk: new TestDisk(MiB) }, { limits: { connectionsPerPeerMax: 2 } })
  const clients = [await NbdClient.connect(serving.tcp), await NbdClient.connect(serving.tcp), await NbdClient.connect(serving.unix), await NbdClient.connect(serving.unix)]
  await assert.rejects(NbdClient.connect(serving.tcp))
  clients.push(await NbdClient.connect(serving.unix))
  assert.equal((await serving.server.metrics()).connectionsRefused, 1)
  await clients[0].disconnect()
  while ((await serving.server.metrics()).connectionsOpen > 4) await sleep(5)
  clients[0] = await NbdClient.connect(serving.tcp)
  await Promise.all(clients.map((client) => client.disconnect()))
})

test('a client that asks for nothing is closed after its time, and one that waits for the disk is not', async () => {
  let release!: () => void
  const blocked = new Promise<void>((resolve) => { release = resolve })
  await using serving = await serve({ slow: new TestDisk(MiB, { delay: () => blocked }), disk: new TestDisk(MiB) }, { limits: { idleMsMax: 100 } })
  const waiting = await NbdClient.connect(serving.unix, { exportName: 'slow' })
  const answer = waiting.read(0, 512)
  const idle = await NbdClient.connect(serving.unix, { exportName: 'disk' })
  await idle.read(0, 512)
  while ((await serving.server.metrics()).connectionsOpen > 1) await sleep(20)
  await assert.rejects(idle.read(0, 512))
  release()
  assert.equal((await answer).length, 512)
  assert.equal((await serving.server.metrics()).connectionsCut, 1)
  await waiting.disconnect()
})

test('a client that does not read its replies is held back, and gets all of them when it reads', async () => {
  const disk = new TestDisk(16 * MiB)
  disk.bytes.fill(0x77)
  await disk.writeZeroes(0, 0)
  await using serving = await serve({ disk })
  const socket = net.connect({ path: serving.unix.slice('unix:'.length) })
  const name = Buffer.from('disk')
  const go = Buffer.alloc(16 + 4 + name.length + 2)
  go.write('IHAVEOPT')
  go.writeUInt32BE(7, 8)
  go.writeUInt32BE(go.length - 16, 12)
  go.writeUInt32BE(name.length, 16)
  name.copy(go, 20)
  const reads = 64
  const request = Buffer.alloc(28)
  request.writeUInt32BE(0x25609513)
  request.writeUInt32BE(16 * MiB, 24)
  const before = process.memoryUsage().arrayBuffers
  socket.pause()
  socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), go]))
  for (let count = 0; count < reads; count++) socket.write(request)
  await sleep(300)
  assert.ok(process.memoryUsage().arrayBuffers - before < 100 * MiB, 'a gigabyte is asked for, little of it is in memory')
  let received = 0
  const wanted = 18 + 20 + 12 + 20 + reads * (16 + 16 * MiB)
  socket.on('data', (bytes) => {
    received += bytes.length
    if (received === wanted) socket.end()
  })
  socket.resume()
  await once(socket, 'close')
  assert.equal(received, wanted)
})

test('a client that hoards shared memory and does not move is cut when another one needs it', async () => {
  const disk = new TestDisk(16 * MiB)
  await using serving = await serve({ disk }, { limits: { sharedBytesMax: 32 * MiB, stalledMsMax: 200 } })
  // Two writes that never arrive hold all that is shared.
  const hoarders = await Promise.all([0, 1].map(async () => {
    const client = await NbdClient.connect(serving.unix, { framing: 'simple' })
    void client.read(0, 1)
    return client
  }))
  const sockets = hoarders.map(() => net.connect({ path: serving.unix.slice('unix:'.length) }))
  for (const socket of sockets) {
    const go = Buffer.alloc(16 + 6)
    go.write('IHAVEOPT')
    go.writeUInt32BE(7, 8)
    go.writeUInt32BE(6, 12)
    const write = Buffer.alloc(28)
    write.writeUInt32BE(0x25609513)
    write.writeUInt16BE(1, 6)
    write.writeUInt32BE(16 * MiB, 24)
    socket.resume()
    socket.on('error', () => undefined)
    socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), go, write]))
  }
  while ((await serving.server.metrics()).requests < 4) await sleep(5)
  await using honest = await NbdClient.connect(serving.unix)
  await honest.write(Buffer.alloc(100, 1), 0)
  await honest.write(Buffer.alloc(16 * MiB, 2), 0)
  assert.equal(disk.bytes[100], 2)
  assert.ok((await serving.server.metrics()).connectionsCut >= 1)
  for (const socket of sockets) socket.destroy()
  for (const client of hoarders) await client.disconnect()
})

test('a peer that ends its side still gets its answers', async () => {
  const disk = new TestDisk(MiB, { delay: () => sleep(20) })
  await using serving = await serve({ disk })
  const client = await run('/usr/bin/python3', ['-'], { input: `
import socket, struct
s = socket.socket(socket.AF_UNIX); s.connect('${serving.unix.slice(5)}')
def get(n):
    data = b''
    while len(data) < n:
        part = s.recv(n - len(data))
        assert part
        data += part
    return data
get(18); s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 4) + b'disk'); get(10)
for cookie in range(300): s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 0, cookie, 0, 4096))
s.shutdown(socket.SHUT_WR)
seen = set()
for _ in range(300):
    magic, error, cookie = struct.unpack('>IIQ', get(16)); assert magic == 0x67446698 and error == 0
    get(4096); seen.add(cookie)
assert seen == set(range(300)) and s.recv(1) == b''
` })
  assert.equal(client.status, 0)
})
