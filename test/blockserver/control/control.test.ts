/**
 * The control socket: who may open it, what comes across, and what is refused.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import { controlRequest } from '@varve/blockserver/control/client.ts'
import type { ControlHandler } from '@varve/blockserver/control/protocol.ts'
import { ControlServer } from '@varve/blockserver/control/server.ts'
import { Random, testSeed } from '../../random.ts'

const handler: ControlHandler = {
  async snapshot(cvd, name = 'chosen') {
    if (cvd === 'missing') throw new VarveError('NOT_FOUND', `no CVD '${cvd}'`)
    if (cvd === 'broken') throw new TypeError('a bug')
    if (cvd === 'slow') await sleep(100)
    return { cvd, name }
  },
  status: async () => ({ pid: process.pid, exports: ['desk'] }),
}

async function served(action: (socketPath: string, server: ControlServer) => Promise<void>, how: ControlHandler = handler): Promise<void> {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-control-'))
  const socketPath = path.join(directory, 'control')
  const server = await ControlServer.listen(socketPath, { handler: how })
  try {
    await action(socketPath, server)
  } finally {
    await server.close()
    rmSync(directory, { recursive: true, force: true })
  }
}

function post(socketPath: string, options: { url?: string; method?: string; body?: string | Buffer }): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath, path: options.url ?? '/status', method: options.method ?? 'POST', agent: false })
    request.once('error', reject)
    request.once('response', (response) => {
      let body = ''
      response.setEncoding('utf8').on('data', (text: string) => { body += text }).once('end', () => resolve({ status: response.statusCode!, body }))
    })
    request.end(options.body)
  })
}

test('answers come across, for the owner of the socket only', () => served(async (socketPath, server) => {
  assert.equal(statSync(socketPath).mode & 0o777, 0o600)
  assert.deepEqual(await controlRequest(socketPath, 'snapshot', { cvd: 'desk' }), { cvd: 'desk', name: 'chosen' })
  assert.deepEqual(await controlRequest(socketPath, 'snapshot', { cvd: 'désk', name: 'x' }), { cvd: 'désk', name: 'x' })
  assert.deepEqual(await controlRequest(socketPath, 'status', {}), { pid: process.pid, exports: ['desk'] })
  await server.close()
  assert.ok(!existsSync(socketPath))
}))

test('errors come across with their code; what has none is an Error', () => served(async (socketPath) => {
  await assert.rejects(controlRequest(socketPath, 'snapshot', { cvd: 'missing' }), (error) => isVarveError(error, 'NOT_FOUND') && error.message === "no CVD 'missing'")
  await assert.rejects(controlRequest(socketPath, 'snapshot', { cvd: 'broken' }), (error) => !isVarveError(error) && (error as Error).message === 'a bug')
}))

test('where nobody listens there is no answer', async () => {
  assert.equal(await controlRequest('/nonexistent/socket', 'status', {}), undefined)
})

test('two servers do not share a socket; a dead one\'s is replaced', () => served(async (socketPath, server) => {
  await assert.rejects(ControlServer.listen(socketPath, { handler }), (error) => isVarveError(error, 'ADDRESS_INVALID'))
  assert.ok(await controlRequest(socketPath, 'status', {}))
  await server.close()
}))

test('closing answers what was asked', () => served(async (socketPath, server) => {
  const answer = controlRequest(socketPath, 'snapshot', { cvd: 'slow' })
  await sleep(30)
  await server.close()
  assert.deepEqual(await answer, { cvd: 'slow', name: 'chosen' })
}))

test('malformed and oversized requests are refused, and the next one is answered', () => served(async (socketPath) => {
  for (const [status, options] of [
    [404, { url: '/nothing', body: '{}' }], [405, { method: 'GET' }], [400, { body: '{' }], [400, { body: '[]' }], [400, { body: 'null' }], [400, { body: '' }],
    [400, { url: '/snapshot', body: '{}' }], [400, { url: '/snapshot', body: '{"cvd":7}' }], [400, { url: '/snapshot', body: '{"cvd":"desk","name":""}' }],
    [400, { url: '/snapshot', body: JSON.stringify({ cvd: 'x'.repeat(256) }) }], [413, { body: ' '.repeat(64 * 1024 + 1) }],
  ] as const) {
    const answer = await post(socketPath, options)
    assert.equal(answer.status, status, JSON.stringify(options).slice(0, 100))
    assert.equal(typeof JSON.parse(answer.body).error.message, 'string')
  }
  assert.ok(await controlRequest(socketPath, 'status', {}))
}))

test('a server that lies about errors, or answers without end, is PROTOCOL_INVALID or LIMIT_EXCEEDED', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-control-'))
  const socketPath = path.join(directory, 'liar')
  let body = ''
  const server = http.createServer((_, response) => response.writeHead(body === 'ok' ? 200 : 500).end(body)).listen(socketPath)
  await once(server, 'listening')
  for (const [answer, code] of [['', 'PROTOCOL_INVALID'], ['{}', 'PROTOCOL_INVALID'], ['null', 'PROTOCOL_INVALID'], ['ok', 'PROTOCOL_INVALID'], ['x'.repeat(5_000_000), 'LIMIT_EXCEEDED']] as const) {
    body = answer
    await assert.rejects(controlRequest(socketPath, 'status', {}), (error) => isVarveError(error, code), answer.slice(0, 10))
  }
  server.close()
  rmSync(directory, { recursive: true, force: true })
})

test('random bytes on the socket do no harm', () => served(async (socketPath) => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let count = 0; count < 1000; count++) {
    const text = Buffer.from('POST /snapshot HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{"cvd":"desk"}')
    for (let changes = random.below(4); changes > 0; changes--) text[random.below(text.length)] = random.below(256)
    const socket = net.connect({ path: socketPath })
    socket.on('error', () => undefined)
    socket.end(random.chance(0.5) ? text : random.chance(0.5) ? text.subarray(0, random.below(text.length)) : random.bytes(random.below(200)))
    if (random.chance(0.5)) socket.destroy()
    else socket.resume()
    await once(socket, 'close')
  }
  assert.ok(await controlRequest(socketPath, 'status', {}), `seed ${seed}`)
}))
