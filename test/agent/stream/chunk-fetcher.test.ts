/**
 * What is asked of a server, and how that is given up.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { makeAgentKey } from '@varve/agent/stream/enrol.ts'
import { ChunkFetcher } from '@varve/agent/stream/chunk-fetcher.ts'
import { beginTarget } from '@varve/agent/stream/streaming.ts'
import { Priority, WAITING_DIGESTS_MAX } from '@varve/blockserver/stream/frames.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { pino } from 'pino'
import { TemporaryDirectory } from '../../images/device/temporary.ts'
import { Random, testSeed } from '../../random.ts'
import { StreamPeer } from './stream-peer.ts'
import { randomDisk } from './streaming.ts'

const seed = testSeed()
const log = pino({ level: 'silent' })

test('an agent can be stopped while the server makes up its mind about the disk', { timeout: 15_000 }, async () => {
  const random = new Random(seed)
  using directory = new TemporaryDirectory()
  await using peer = await StreamPeer.start(randomDisk(random, { sizeBytes: 100_000 }), random)
  peer.opens = false
  const stop = new AbortController()
  const begun = beginTarget({ cvd: 'desk', path: path.join(directory.path, 'target'), server: { url: peer.url }, identity: { agent: 'a', privateKey: makeAgentKey() }, overwrite: false, log, signal: stop.signal })
  const reason = new Error('enough')
  setTimeout(() => stop.abort(reason), 100)
  await assert.rejects(begun, reason)
})

test('more chunks than may wait on a connection are asked for as others come, and what nobody waits for any more is not asked for again', { timeout: 60_000 }, async () => {
  const random = new Random(seed)
  await using peer = await StreamPeer.start(randomDisk(random, { sizeBytes: 100_000 }), random)
  const chunks = Array.from({ length: WAITING_DIGESTS_MAX + 3000 }, (_, index) => Buffer.from(`chunk ${index}`))
  const digests = chunks.map((chunk) => Buffer.from(digestOf(chunk)))
  for (const chunk of chunks) peer.addChunk(chunk)
  await using fetcher = new ChunkFetcher({ address: { url: peer.url }, identity: { agent: 'a', privateKey: makeAgentKey() }, disk: 'desk', log })
  await fetcher.first
  peer.misdeed = () => 'silence'
  // As a guest does whose reads fail while the server is away.
  for (const part of [digests.slice(0, 40_000), digests.slice(30_000)]) {
    await assert.rejects(fetcher.want(part, () => {}, { priority: Priority.MISS, msMax: 1500 }), (error) => isVarveError(error, 'CONNECTION_LOST'))
  }
  assert.equal(fetcher.figures.waiting, 0)
  peer.asked.length = 0
  let came = 0
  const all = fetcher.want(digests, () => { came++ }, { priority: Priority.FILL })
  await sleep(1000)
  assert.equal(peer.asked.length, WAITING_DIGESTS_MAX)
  peer.misdeed = () => undefined
  peer.cut()
  await all
  assert.equal(came, digests.length)
  assert.equal(peer.asked.length, WAITING_DIGESTS_MAX + digests.length)
  assert.equal(fetcher.figures.connections, 2)
})
