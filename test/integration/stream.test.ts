/**
 * `varve serve` and agents, end to end: a token, a key, a whole disk over the stream, the death of the server, TLS.
 * The agent is the test's own; the HTTP client and what the disk is compared with are not ours.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash, generateKeyPairSync, X509Certificate } from 'node:crypto'
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import test from 'node:test'
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { CODECS, decompress } from '@varve/images/chunk/codec.ts'
import { type Digest, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { getObject } from '@varve/images/store/object.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { Priority, ServerFrame } from '@varve/blockserver/stream/frames.ts'
import { parseExposition, valueOf } from '../blockserver/http/exposition.ts'
import { Certificates } from '../blockserver/nbd/certificates.ts'
import type { AgentKey } from '../blockserver/stream/memory-source.ts'
import { RawAgent } from '../blockserver/stream/raw-agent.ts'
import { Random, testSeed } from '../random.ts'
import { varve, VarveServer } from '../varve-command.ts'
import { DeskHome } from './desk-home.ts'

const MiB = 1 << 20
const ANY = Number.MAX_SAFE_INTEGER

function deskHome(): DeskHome {
  const random = new Random(testSeed())
  return new DeskHome({ size: '64M', fill: (directory) => {
    for (let index = 0; index < 40; index++) writeFileSync(path.join(directory, `file${index}`), Buffer.concat([random.bytes(random.between(1, 150_000)), Buffer.alloc(random.below(150_000))]))
  } })
}

/** A key, and how to make it known. */
function newKey() {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519')
  return { privateKey, publicKey: publicKey.export({ type: 'spki', format: 'der' }).subarray(-32).toString('base64') }
}

/** As a person does: with curl. */
function enrol(server: VarveServer, body: object, options: string[] = []): { status: number; answer: any } {
  const url = `${options.length === 0 ? 'http' : 'https'}://${server.document.http.replace('127.0.0.1', 'localhost')}/v1/agents`
  const { stdout, stderr, status } = spawnSync('curl', ['-sS', '-w', '\n%{http_code}', '-H', 'content-type: application/json', '-d', JSON.stringify(body), ...options, url], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  const [answer, code] = stdout.split('\n')
  return { status: Number(code), answer: JSON.parse(answer) }
}

/** Chunks by their digests, as the agent gets them, each verified. */
async function fetchChunks(agent: RawAgent, store: MemoryStore, digests: Digest[], priority: Priority): Promise<void> {
  const wanted = new Set(digests.filter((digest) => !store.has(digest)).map(digestToHex))
  const batch = [...wanted].map((hex) => Buffer.from(hex, 'hex'))
  for (let at = 0; at < batch.length; at += 500) agent.get(priority, batch.slice(at, at + 500))
  await using writer = store.writer()
  while (wanted.size > 0) {
    const { payload } = await agent.next(ServerFrame.CHUNK)
    const content = decompress(CODECS[payload[32]], payload.subarray(37), payload.readUInt32LE(33))
    assert.ok(wanted.delete(digestToHex(digestOf(content))))
    writer.put(content)
  }
  await writer.commit()
}

/** The whole disk that `map` describes, of nothing but what the stream gives. */
async function fetchDisk(agent: RawAgent, store: MemoryStore, map: string): Promise<Buffer> {
  const root = Buffer.from(map, 'hex')
  const streamed = {
    get: async (digest: Digest) => {
      await fetchChunks(agent, store, [digest], Priority.MISS)
      return store.get(digest)
    },
  }
  const blockMap = BlockMap.decode(await getObject(streamed as unknown as MemoryStore, root))
  await fetchChunks(agent, store, Array.from({ length: blockMap.chunkCount }, (_, chunk) => blockMap.chunkDigest(chunk)), Priority.FILL)
  const disk = Buffer.alloc(blockMap.sizeBytes)
  await new MapDevice(blockMap, store, ChunkCache.create({ bytesMax: 16 * MiB })).read(disk, 0)
  return disk
}

function nbdDisk(home: DeskHome, name: string): Buffer {
  const file = home.scratch.join('copy')
  const { status, stderr } = spawnSync('nbdcopy', [home.uri(name), file], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  const bytes = readFileSync(file)
  rmSync(file)
  return bytes
}

async function enrolled(home: DeskHome, server: VarveServer, tokenOptions: string[] = []): Promise<AgentKey> {
  const { privateKey, publicKey } = newKey()
  const { status, answer } = enrol(server, { token: varve(home.path, ['agent', 'token', ...tokenOptions]).json.token, publicKey, name: 'machine' })
  assert.equal(status, 201, JSON.stringify(answer))
  return { id: answer.agent, privateKey }
}

test('a machine with a token gets the whole disk of a CVD over one connection, and then what was written since', async () => {
  using home = deskHome()
  await using server = await VarveServer.start(home.path, `unix:${home.socket()}`, { args: ['--http', '127.0.0.1:0'] })
  const address = server.document.http as string

  const { token, cvds, uses } = varve(home.path, ['agent', 'token', '--cvd', 'desk']).json
  assert.deepEqual([cvds, uses], [['desk'], 1])
  const { privateKey, publicKey } = newKey()
  const body = { token, publicKey, name: 'front-desk' }
  const first = enrol(server, body)
  assert.equal(first.status, 201)
  assert.deepEqual(enrol(server, body), first)
  assert.deepEqual([enrol(server, { ...body, publicKey: newKey().publicKey }).status, enrol(server, { ...body, token: 'varve1' }).answer.error.code], [403, 'TOKEN_INVALID'])
  const key = { id: first.answer.agent as string, privateKey }

  using agent = await RawAgent.open({ address }, key)
  const disk = await agent.openDisk('desk')
  assert.deepEqual([disk.name, disk.sizeBytes, disk.snapshot], ['desk', home.composed.sizeBytes, null])
  agent.window(ANY)
  const store = new MemoryStore()
  assert.ok((await fetchDisk(agent, store, disk.map)).equals(nbdDisk(home, 'desk')))

  // Another machine writes to it, and goes on to have it.
  const client = await NbdClient.connect(`unix:${home.socket()}`, { exportName: 'desk' })
  const random = new Random(testSeed())
  for (let count = 0; count < 10; count++) await client.write(random.bytes(4096), random.below(disk.sizeBytes / 4096) * 4096)
  await client.flush()
  const newer = await agent.openDisk('desk')
  assert.notEqual(newer.map, disk.map)
  const newest = await fetchDisk(agent, store, newer.map)
  for (let at = 0; at < disk.sizeBytes; at += 16 * MiB) assert.ok(newest.subarray(at, at + 16 * MiB).equals(await client.read(at, Math.min(16 * MiB, disk.sizeBytes - at))))
  await client.disconnect()
  assert.ok(newest.equals(nbdDisk(home, newer.snapshot)))

  const [known, ...others] = varve(home.path, ['agent', 'list']).json
  assert.deepEqual([known.agent, known.name, known.cvds, known.revokedAt, others], [key.id, 'front-desk', ['desk'], null, []])
  assert.notEqual(known.seenAt, null)
  assert.equal(varve(home.path, ['cvd', 'show', 'desk']).json.device, key.id)

  const families = parseExposition(await (await fetch(`http://${address}/metrics`)).text())
  assert.equal(valueOf(families, 'varve_stream_connections'), 1)
  assert.ok(valueOf(families, 'varve_stream_sent_bytes_total', { priority: 'fill' }) > MiB)
  assert.ok(valueOf(families, 'varve_stream_miss_wait_seconds_count') >= 2)

  // Who has the home lets it go.
  assert.equal(varve(home.path, ['agent', 'revoke', key.id]).json.agent, key.id)
  assert.equal((await agent.ended())?.code, 'AUTH_FAILED')
  using again = await RawAgent.open({ address }, key)
  assert.equal((await again.ended())?.code, 'AUTH_FAILED')
  assert.equal(await server.stop(), 0)
})

test('a server that is killed leaves nothing that is in the way: the agent goes on with the next one where it was', async () => {
  using home = deskHome()
  const start = (http: string) => VarveServer.start(home.path, `unix:${home.socket()}`, { args: ['--http', http] })
  await using server = await start('127.0.0.1:0')
  const address = server.document.http as string
  const key = await enrolled(home, server)
  const store = new MemoryStore()
  let map: string
  {
    using agent = await RawAgent.open({ address }, key)
    map = (await agent.openDisk('desk')).map
    const blockMap = BlockMap.decode(await getObject({ get: async (digest: Digest) => {
      await fetchChunks(agent, store, [digest], Priority.MISS)
      return store.get(digest)
    } } as unknown as MemoryStore, Buffer.from(map, 'hex')))
    agent.window(500_000)
    agent.get(Priority.FILL, Array.from({ length: blockMap.chunkCount }, (_, chunk) => blockMap.chunkDigest(chunk)))
    await agent.chunks(2)
    await server.stop('SIGKILL')
    assert.equal(await agent.ended(), undefined)
  }
  await using next = await start(address)
  using agent = await RawAgent.open({ address: next.document.http }, key)
  const disk = await agent.openDisk('desk')
  assert.equal(disk.map, map)
  agent.window(ANY)
  assert.ok((await fetchDisk(agent, store, map)).equals(nbdDisk(home, 'desk')))
  // In order: what is connected is told.
  assert.equal(await next.stop(), 0)
  assert.equal((await agent.ended())?.code, 'CONNECTION_LOST')
})

test('with TLS a token names the certificate, nothing plain is answered, and a reload takes another certificate', async () => {
  using home = deskHome()
  const certificates = await Certificates.make(home.scratch.join('made'))
  const file = (name: string) => home.scratch.join(name)
  const use = (name: string) => {
    for (const kind of ['cert', 'key'] as const) cpSync(certificates.file(name, kind), file(`${kind}.pem`))
  }
  use('server')
  writeFileSync(file('varve.toml'), '[http]\nlisten = "127.0.0.1:0"\ntls = "required"\n[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n[log]\nlevel = "info"\n')
  let log = ''
  let logged = (): void => undefined
  await using server = await VarveServer.start(home.path, `unix:${home.socket()}`, { args: ['--config', file('varve.toml')], onLog: (text) => {
    log += text
    logged()
  } })
  const address = server.document.http as string
  const ca = certificates.read('authority', 'cert')

  const { token } = varve(home.path, ['agent', 'token', '--config', file('varve.toml'), '--uses', '2', '--valid', '12h']).json
  const fingerprint = createHash('sha256').update(new X509Certificate(certificates.read('server', 'cert')).raw).digest('base64url')
  assert.equal(token.split('.')[2], fingerprint)
  const { privateKey, publicKey } = newKey()
  const { status, answer } = enrol(server, { token, publicKey, name: 'machine' }, ['--cacert', certificates.file('authority', 'cert')])
  assert.equal(status, 201)
  const key = { id: answer.agent as string, privateKey }

  using agent = await RawAgent.open({ address, ca }, key)
  const disk = await agent.openDisk('desk')
  agent.window(ANY)
  assert.ok((await fetchDisk(agent, new MemoryStore(), disk.map)).equals(nbdDisk(home, 'desk')))
  await assert.rejects(RawAgent.connect({ address }), /socket hang up|ECONNRESET/)

  use('other')
  server.process.kill('SIGHUP')
  while (!log.includes('configuration reloaded')) await new Promise<void>((resolve) => { logged = resolve })
  const shown = spawnSync('openssl', ['s_client', '-connect', address], { input: '', encoding: 'utf8' }).stdout
  assert.match(shown, /subject=O ?= ?Varve, ?CN ?= ?other/)
  // The stream that is there goes on.
  await agent.settled()
  // Bytes that are no TLS end their connection alone.
  const [host, port] = address.split(':')
  const stranger = net.connect({ host, port: Number(port) })
  stranger.on('error', () => undefined)
  stranger.end('GET / HTTP/1.1\r\n\r\n')
  await new Promise((resolve) => stranger.resume().once('close', resolve))
  await agent.settled()
  assert.equal(await server.stop(), 0)
})

test('what is wrong on the command line is said', () => {
  using home = deskHome()
  assert.equal(varve(home.path, ['agent', 'token', '--cvd', 'nothing'], { expect: 1 }).json.error.code, 'NOT_FOUND')
  for (const wrong of [['--uses', '0'], ['--uses', 'x'], ['--valid', '7'], ['--valid', '0s'], ['--valid', '99999d']]) varve(home.path, ['agent', 'token', ...wrong], { expect: 2 })
  assert.equal(varve(home.path, ['agent', 'revoke', 'nobody'], { expect: 1 }).json.error.code, 'NOT_FOUND')
  assert.deepEqual(varve(home.path, ['agent', 'list']).json, [])
})
