/**
 * Servers that send what they should not: nothing wrong reaches a guest, and what came wrong comes again.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { makeAgentKey } from '@varve/agent/stream/enrol.ts'
import { Streaming, beginTarget } from '@varve/agent/stream/streaming.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { pino } from 'pino'
import { TemporaryDirectory } from '../../images/device/temporary.ts'
import { Random, testSeed } from '../../random.ts'
import { MISDEEDS, StreamPeer } from './stream-peer.ts'
import { randomDisk } from './streaming.ts'

const seed = testSeed()
const log = pino({ level: 'silent' })

test(`nothing that a server sends wrong reaches a guest, and the disk is complete when it has come right (seed ${seed})`, async () => {
  const random = new Random(seed)
  for (let round = 0; round < 6; round++) {
    using directory = new TemporaryDirectory()
    const source = randomDisk(random, { sizeBytes: random.between(100_000, 1_500_000) })
    await using peer = await StreamPeer.start(source, random)
    const target = path.join(directory.path, 'target')
    const identity = { agent: 'a', privateKey: makeAgentKey() }
    const begun = await beginTarget({ cvd: 'desk', path: target, server: { url: peer.url }, identity, overwrite: false, log })
    peer.misdeed = (dice) => (dice.chance(0.15) ? dice.pick(MISDEEDS) : undefined)
    const nbd = `unix:${directory.path}/nbd`
    {
      await using streaming = await Streaming.start({ ...begun, cvd: 'desk', nbd: [nbd], missMsMax: 60_000, log })
      const client = await NbdClient.connect(nbd, { exportName: 'desk' })
      let wrong = 0
      for (let read = 0; read < 60; read++) {
        const offset = random.below(source.content.length)
        const length = random.between(1, Math.min(50_000, source.content.length - offset))
        try {
          assert.ok((await client.read(offset, length)).equals(source.content.subarray(offset, offset + length)))
        } catch (error) {
          assert.ok(!(error instanceof assert.AssertionError), 'a guest was shown what is not on the disk')
          wrong++
        }
      }
      assert.ok(wrong < 60)
      await client.disconnect()
      peer.misdeed = () => undefined
      const { phase, error } = await streaming.ended
      assert.equal(phase, 'complete', String(error))
    }
    assert.ok(readFileSync(target).equals(source.content))
  }
})

test('a read fails after its time when the server is silent, local data is served on, and a read that is late is served when the server comes back', async () => {
  const random = new Random(seed + 1)
  using directory = new TemporaryDirectory()
  const source = randomDisk(random, { sizeBytes: 1_000_000 })
  await using peer = await StreamPeer.start(source, random)
  const identity = { agent: 'a', privateKey: makeAgentKey() }
  const begun = await beginTarget({ cvd: 'desk', path: path.join(directory.path, 'target'), server: { url: peer.url }, identity, overwrite: false, log })
  peer.misdeed = () => 'silence'
  const nbd = `unix:${directory.path}/nbd`
  await using streaming = await Streaming.start({ ...begun, cvd: 'desk', nbd: [nbd], missMsMax: 1500, log })
  const client = await NbdClient.connect(nbd, { exportName: 'desk' })
  const written = random.bytes(8192)
  await client.write(written, 4096)
  await assert.rejects(client.read(0, source.content.length), (error: unknown) => isVarveError(error) || error instanceof Error)
  assert.ok((await client.read(4096, 8192)).equals(written))
  const late = client.read(0, source.content.length)
  peer.misdeed = () => undefined
  peer.cut()
  written.copy(source.content, 4096)
  assert.ok((await late).equals(source.content))
  assert.equal((await streaming.ended).phase, 'complete')
  await client.disconnect()
})

test('no chunk comes twice', async () => {
  const random = new Random(seed + 2)
  using directory = new TemporaryDirectory()
  const source = randomDisk(random, { sizeBytes: 3_000_000 })
  await using peer = await StreamPeer.start(source, random)
  const identity = { agent: 'a', privateKey: makeAgentKey() }
  const begun = await beginTarget({ cvd: 'desk', path: path.join(directory.path, 'target'), server: { url: peer.url }, identity, overwrite: false, log })
  await using streaming = await Streaming.start({ ...begun, cvd: 'desk', nbd: [`unix:${directory.path}/nbd`], log })
  const { phase, server } = await streaming.ended
  assert.equal(phase, 'complete')
  assert.equal(server.misses, server.chunks - source.chunks.length, 'nothing was fetched twice')
  const background = peer.asked.filter(({ priority }) => priority > 0).map(({ digest }) => digest)
  assert.equal(new Set(background).size, background.length)
})
