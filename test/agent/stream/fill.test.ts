/**
 * When a target fills: not while the guest boots, but while it works.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { makeAgentKey } from '@varve/agent/stream/enrol.ts'
import { Streaming, beginTarget } from '@varve/agent/stream/streaming.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { Priority } from '@varve/blockserver/stream/frames.ts'
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import { encodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { pino } from 'pino'
import { TemporaryDirectory } from '../../images/device/temporary.ts'
import { Random, testSeed } from '../../random.ts'
import { StreamPeer } from './stream-peer.ts'
import { randomDisk } from './streaming.ts'

const STEP_BYTES = 40_000
const STEP_MS = 300

test('what a guest uses after its boot does not keep the target from filling, however busy it is', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using directory = new TemporaryDirectory()
  const source = randomDisk(random, { sizeBytes: 5_000_000 })
  const { map } = source
  const data = [...map.refs.keys()].filter((index) => map.refs[index] < SPECIAL_MIN)
  const first = data[0]
  const second = data.find((index) => map.refs[index] !== map.refs[first])!
  await using peer = await StreamPeer.start(source, random)
  peer.bootSet = await peer.addObject(encodeChunkList(Buffer.concat([first, second].map((index) => map.chunkDigest(map.refs[index])))))
  const identity = { agent: 'a', privateKey: makeAgentKey() }
  const log = pino({ level: 'silent' })
  const begun = await beginTarget({ cvd: 'desk', path: path.join(directory.path, 'target'), server: { url: peer.url }, identity, overwrite: false, log })
  // The boot set does not come whole before the guest has begun to use it.
  let asked = 0
  peer.misdeed = () => asked++ === 0 ? 'silence' : undefined
  const nbd = `unix:${directory.path}/nbd`
  await using streaming = await Streaming.start({ ...begun, cvd: 'desk', nbd: [nbd], log })
  await using guest = await NbdClient.connect(nbd, { exportName: 'desk' })
  await guest.read(map.starts[second], 1)
  peer.cut()
  await guest.read(map.starts[first], 1)
  const fills = (): boolean => peer.asked.some(({ priority }) => priority === Priority.FILL)
  while (streaming.status().phase === 'boot set') await sleep(10)
  assert.ok(!fills(), `seed ${seed}: the fill gives way to the boot`)
  for (let offset = map.starts[second] + STEP_BYTES; !fills(); offset += STEP_BYTES) {
    assert.ok(offset + STEP_BYTES <= map.sizeBytes, `seed ${seed}: nothing was filled while the guest used what is not of its boot`)
    await guest.read(offset, STEP_BYTES)
    await sleep(STEP_MS)
  }
  const { phase } = await streaming.ended
  assert.equal(phase, 'complete')
})
