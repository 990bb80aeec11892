/**
 * The HTTP server, with a real NBD server behind it and the clients that people have: fetch and curl-like sockets.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { VarveError } from '@varve/images/errors.ts'
import { HttpServer } from '@varve/blockserver/http/server.ts'
import { HTTP_BODY_BYTES_MAX, HTTP_HEADER_BYTES_MAX } from '@varve/blockserver/http/limits.ts'
import type { ServiceView } from '@varve/blockserver/http/service-view.ts'
import { StreamServer } from '@varve/blockserver/stream/server.ts'
import { run, serve, type Serving } from '../nbd/serving.ts'
import { TestDisk } from '../nbd/test-disk.ts'
import { ScratchDirectory } from '../../varve-command.ts'
import { MemorySource } from '../stream/memory-source.ts'
import { parseExposition, valueOf } from './exposition.ts'

const MiB = 1024 * 1024
/** Every character that a label has to escape. */
const STRANGE = 'a "strange"\\name\nof two lines, x="y"} 1'

async function serveHttp(view: Partial<ServiceView> = {}, options: { recovery?: string } = {}) {
  const nbd = await serve({ disk: new TestDisk(8 * MiB), [STRANGE]: new TestDisk(MiB) })
  const streams = new StreamServer({ source: new MemorySource() })
  const server = await HttpServer.listen('127.0.0.1:0', {
    view: {
      exports: async () => [{ name: 'disk', description: 'the disk' }, { name: STRANGE, description: '' }],
      figures: async () => ({ nbd: await nbd.server.metrics(), cache: { hits: 1, misses: 2, bytesMax: 3 }, stream: streams.figures() }),
      enrol: async ({ name }) => `id of ${name}`,
      stopping: () => false,
      ...view,
    },
    streams,
    ...options,
  })
  return {
    nbd,
    server,
    get: (resource: string, init?: RequestInit) => fetch(`http://${server.address}${resource}`, init),
    async [Symbol.asyncDispose]() {
      await streams[Symbol.asyncDispose]()
      await server[Symbol.asyncDispose]()
      await nbd.close()
    },
  }
}

test('metrics are valid, before and after requests, and say what clients did', async () => {
  await using serving = await serveHttp()
  const scrape = async () => {
    const answer = await serving.get('/metrics')
    assert.equal(answer.headers.get('content-type'), 'text/plain; version=0.0.4; charset=utf-8')
    return parseExposition(await answer.text())
  }
  assert.equal(valueOf(await scrape(), 'varve_nbd_connections_accepted_total'), 0)
  await run('qemu-io', ['-f', 'raw', '-c', 'write 0 1M', '-c', 'read 0 64k', serving.nbd.uri('disk')])
  await run('nbdcopy', [serving.nbd.uri(encodeURIComponent(STRANGE)), 'null:'])
  const families = await scrape()
  assert.equal(valueOf(families, 'varve_nbd_written_bytes_total', { export: 'disk' }), MiB)
  assert.equal(valueOf(families, 'varve_nbd_request_duration_seconds_count', { export: 'disk', command: 'write' }), 1)
  assert.equal(valueOf(families, 'varve_nbd_request_errors_total', { export: 'disk', command: 'read' }), 0)
  assert.equal(valueOf(families, 'varve_nbd_export_connections', { export: STRANGE }) >= 0, true)
  assert.ok(valueOf(families, 'varve_nbd_connections_accepted_total') >= 2)
  assert.equal(valueOf(families, 'varve_chunk_cache_misses_total'), 2)
  assert.ok(valueOf(families, 'process_resident_memory_bytes') > MiB)
  assert.ok(valueOf(families, 'process_cpu_seconds_total') > 0)
  assert.ok(valueOf(families, 'varve_event_loop_delay_seconds_count') >= 0)
})

test('an image is let go of once it was read, half read, or not read at all', async () => {
  const opened = Promise.withResolvers<void>()
  const mayOpen = Promise.withResolvers<void>()
  let held = 0
  let opens = 0
  await using serving = await serveHttp({
    image: async () => {
      const device = new TestDisk(64 * MiB)
      if (++opens === 1) {
        opened.resolve()
        await mayOpen.promise
      }
      held++
      let isHeld = true
      return { device, etag: '"e"', release: async () => { if (isHeld) { isHeld = false; held-- } } }
    },
  })
  const nobodyHolds = async (what: string): Promise<void> => {
    for (let tries = 0; tries < 100 && held > 0; tries++) await sleep(20)
    assert.equal(held, 0, what)
  }
  const gone = new AbortController()
  const early = serving.get('/images/desk@1.raw', { signal: gone.signal })
  await opened.promise
  gone.abort()
  await assert.rejects(early, { name: 'AbortError' })
  await sleep(50)
  mayOpen.resolve()
  await sleep(50)
  await nobodyHolds('the client went while the image was opened')
  const half = await serving.get('/images/desk@1.raw')
  const reader = half.body!.getReader()
  await reader.read()
  assert.equal(held, 1)
  await reader.cancel()
  await nobodyHolds('the client went while it read')
  assert.equal((await (await serving.get('/images/desk@1.raw')).arrayBuffer()).byteLength, 64 * MiB)
  for (const init of [{ method: 'HEAD' }, { headers: { 'if-none-match': '"e"' } }, { headers: { range: 'bytes=99999999999-' } }]) await (await serving.get('/images/desk@1.raw', init)).arrayBuffer()
  assert.equal(opens, 6)
  await nobodyHolds('all of it was read, or nothing asked for')
})

test('exports are listed with how they are used', async () => {
  await using serving = await serveHttp()
  await run('qemu-io', ['-f', 'raw', '-c', 'write 0 1M', serving.nbd.uri('disk')])
  const { exports } = await (await serving.get('/v1/exports')).json() as { exports: Record<string, unknown>[] }
  assert.deepEqual(exports.map(({ name }) => name), ['disk', STRANGE])
  assert.equal(exports[0].bytesWritten, MiB)
  assert.deepEqual(exports[1], { name: STRANGE, description: '', connections: 0, requestsInFlight: 0, bytesRead: 0, bytesWritten: 0 })
})

test('health is 200 while clients may come, 503 when the server ends', async () => {
  let stopping = false
  await using serving = await serveHttp({ stopping: () => stopping })
  assert.deepEqual([(await serving.get('/healthz')).status, await (await serving.get('/healthz')).json()], [200, { status: 'ok' }])
  stopping = true
  assert.deepEqual([(await serving.get('/healthz')).status, await (await serving.get('/healthz')).json()], [503, { status: 'stopping' }])
})

test('the OpenAPI document describes every route, with each status that it answers', async () => {
  await using serving = await serveHttp()
  const document = await (await serving.get('/openapi.json')).json() as { openapi: string; paths: Record<string, Record<string, { summary: string; responses: Record<string, { description: string }> }>> }
  assert.match(document.openapi, /^3\.1\./)
  assert.deepEqual(Object.keys(document.paths).sort(), ['/healthz', '/metrics', '/v1/agents', '/v1/exports', '/v1/stream'])
  for (const [route, methods] of Object.entries(document.paths)) {
    for (const [method, { summary, responses }] of Object.entries(methods)) {
      assert.ok(summary.length > 0, route)
      for (const { description } of Object.values(responses)) assert.notEqual(description, 'Default Response', route)
      const { status } = await serving.get(route, { method: method.toUpperCase() })
      assert.ok(String(status) in responses, `${method} ${route} answers ${status}`)
    }
  }
})

test('an agent is enrolled with a key that is one, and told why not', async () => {
  let failure: Error | undefined
  await using serving = await serveHttp({ enrol: async ({ token, publicKey, name }) => {
    if (failure !== undefined) throw failure
    assert.deepEqual([token, [...publicKey]], ['varve1.x.', [...Buffer.alloc(32, 9)]])
    return `id of ${name}`
  } })
  const good = { token: 'varve1.x.', publicKey: Buffer.alloc(32, 9).toString('base64'), name: 'front-desk' }
  const enrol = async (body: object) => {
    const answer = await serving.get('/v1/agents', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
    return [answer.status, await answer.json()]
  }
  assert.deepEqual(await enrol(good), [201, { agent: 'id of front-desk' }])
  for (const wrong of [{}, { ...good, token: undefined }, { ...good, publicKey: Buffer.alloc(31).toString('base64') }, { ...good, publicKey: `${'A'.repeat(42)}B=` }, { ...good, name: '../x' }, { ...good, name: 'x'.repeat(101) }]) {
    assert.equal((await enrol(wrong))[0], 400, JSON.stringify(wrong))
  }
  for (const [code, status] of [['TOKEN_INVALID', 403], ['NAME_INVALID', 400], ['ALREADY_EXISTS', 409], ['STORE_LOCKED', 500]] as const) {
    failure = new VarveError(code, 'no')
    assert.deepEqual(await enrol(good), [status, { error: { code, message: 'no' } }])
  }
})

test('who offers an upgrade that is not ours is answered as if it had not, and the stream is for nobody who does not ask for it', async () => {
  await using serving = await serveHttp()
  const [host, port] = serving.server.address.split(':')
  const status = (resource: string, upgrade: string) => new Promise((resolve, reject) => {
    const request = http.get({ host, port, path: resource, agent: false, headers: { connection: 'Upgrade', upgrade } }, (response) => resolve(response.resume().statusCode))
    request.once('upgrade', (_response, socket) => {
      socket.destroy()
      resolve(101)
    })
    request.once('error', reject)
  })
  assert.deepEqual([await status('/healthz', 'h2c'), await status('/healthz', 'varve-stream/1'), await status('/v1/stream', 'websocket'), await status('/v1/stream', 'varve-stream/1')], [200, 200, 426, 101])
  const plain = await serving.get('/v1/stream')
  assert.deepEqual([plain.status, plain.headers.get('upgrade')], [426, 'varve-stream/1'])
})

test('errors are JSON with a message; those of Varve keep their code, others are not shown', async () => {
  let failure: Error = new VarveError('STORE_LOCKED', 'it is locked')
  await using serving = await serveHttp({ exports: async () => { throw failure } })
  const answer = async (resource: string, init?: RequestInit) => {
    const response = await serving.get(resource, init)
    return [response.status, await response.json()]
  }
  assert.deepEqual(await answer('/v1/exports'), [500, { error: { code: 'STORE_LOCKED', message: 'it is locked' } }])
  failure = new VarveError('NOT_FOUND', 'it is gone')
  assert.deepEqual(await answer('/v1/exports'), [404, { error: { code: 'NOT_FOUND', message: 'it is gone' } }])
  failure = new Error('secret')
  assert.deepEqual(await answer('/v1/exports'), [500, { error: { message: 'the server failed; its log says why' } }])
  assert.deepEqual(await answer('/nothing'), [404, { error: { message: 'no such resource: GET /nothing' } }])
  assert.equal((await answer('/healthz', { method: 'POST', body: 'x'.repeat(HTTP_BODY_BYTES_MAX + 1) }))[0], 413)
  assert.equal((await serving.get('/healthz', { headers: { long: 'x'.repeat(HTTP_HEADER_BYTES_MAX) } })).status, 431)
})

test('bytes that are no HTTP end their connection, and nobody else\'s', async () => {
  await using serving = await serveHttp()
  const [host, port] = serving.server.address.split(':')
  for (const bytes of ['\0'.repeat(1000), 'GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n', 'GET /%ff%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', 'IHAVEOPT']) {
    const socket = net.connect({ host, port: Number(port) })
    socket.on('error', () => undefined)
    socket.end(bytes, 'latin1')
    await new Promise((resolve) => socket.resume().once('close', resolve))
  }
  assert.equal((await serving.get('/healthz')).status, 200)
})

/** Its list of exports is more than the kernel holds for a peer that does not read. */
async function serveLong(nbd: Serving) {
  const exports = Array.from({ length: 20_000 }, (_, index) => ({ name: `disk${index}`, description: 'x'.repeat(100) }))
  const streams = new StreamServer({ source: new MemorySource() })
  return HttpServer.listen(`unix:${path.join(nbd.directory, 'http.sock')}`, {
    view: {
      exports: async () => exports,
      figures: async () => ({ nbd: await nbd.server.metrics(), cache: { hits: 0, misses: 0, bytesMax: 0 }, stream: streams.figures() }),
      enrol: async () => '',
      stopping: () => false,
    },
    streams,
  })
}

test('a unix socket serves too, and connections at rest do not hold up the end', async () => {
  await using nbd = await serve({ disk: new TestDisk(MiB) })
  const server = await serveLong(nbd)
  const socketPath = path.join(nbd.directory, 'http.sock')
  assert.equal(server.address, `unix:${socketPath}`)
  const agent = new http.Agent({ keepAlive: true })
  const status = await new Promise((resolve, reject) => {
    http.get({ socketPath, path: '/healthz', agent }, (response) => response.resume().once('end', () => resolve(response.statusCode))).once('error', reject)
  })
  assert.equal(status, 200)
  const silent = net.connect({ path: socketPath })
  await once(silent, 'connect')
  await server[Symbol.asyncDispose]()
  agent.destroy()
  silent.destroy()
})

test('the end waits for an answer that is being read, and not for one that nobody reads', async () => {
  await using nbd = await serve({ disk: new TestDisk(MiB) })
  for (const reads of [true, false]) {
    const server = await serveLong(nbd)
    const socket = net.connect({ path: path.join(nbd.directory, 'http.sock') })
    socket.on('error', () => undefined)
    socket.write('GET /v1/exports HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
    await once(socket, 'readable')
    const closed = server[Symbol.asyncDispose]()
    if (reads) assert.match(Buffer.concat(await socket.toArray()).subarray(-100).toString(), /"bytesWritten":0}\]}/)
    await closed
    socket.destroy()
  }
})

test('an address that is taken, or none, is refused', async () => {
  await using serving = await serveHttp()
  await assert.rejects(HttpServer.listen(serving.server.address, { view: {} as ServiceView, streams: new StreamServer({ source: new MemorySource() }) }), { code: 'ADDRESS_INVALID' })
  await assert.rejects(HttpServer.listen('nonsense', { view: {} as ServiceView, streams: new StreamServer({ source: new MemorySource() }) }), { code: 'ADDRESS_INVALID' })
})

test('the recovery medium is offered to machines that boot from the network, with a script that says where it came from', async () => {
  using scratch = new ScratchDirectory('boot-files')
  writeFileSync(scratch.join('vmlinuz'), 'a kernel')
  await using serving = await serveHttp({}, { recovery: scratch.path })
  const kernel = await serving.get('/boot/vmlinuz')
  assert.equal(kernel.headers.get('content-length'), '8')
  assert.equal(await kernel.text(), 'a kernel')
  assert.equal((await serving.get('/boot/initrd.img')).status, 404)
  const script = await serving.get('/boot/boot.ipxe?cvd=desk&target=/dev/sda')
  assert.equal(await script.text(), `#!ipxe\nkernel vmlinuz initrd=initrd.img console=ttyS0,115200 console=tty0 varve.server=http://${serving.server.address} varve.cvd=desk varve.target=/dev/sda\ninitrd initrd.img\nboot\n`)
  for (const bad of ['cvd=a%20b', 'cvd=a%0Aboot', 'server=%24%7Bnet0%2Fmac%7D', 'cvd=', `cvd=${'a'.repeat(201)}`]) assert.equal((await serving.get(`/boot/boot.ipxe?${bad}`)).status, 400, bad)
  await using without = await serveHttp()
  assert.equal((await without.get('/boot/vmlinuz')).status, 404)
})
