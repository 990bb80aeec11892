/** What comes after a miss, before the fill. */
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ChunkPlaces } from '@varve/agent/stream/chunk-places.ts'
import { makeAgentKey } from '@varve/agent/stream/enrol.ts'
import { Neighbours } from '@varve/agent/stream/neighbours.ts'
import { Streaming, beginTarget } from '@varve/agent/stream/streaming.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { Priority } from '@varve/blockserver/stream/frames.ts'
import { SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import { encodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { pino } from 'pino'
import { TemporaryDirectory } from '../../images/device/temporary.ts'
import { Random, testSeed } from '../../random.ts'
import { StreamPeer } from './stream-peer.ts'
import { randomDisk } from './streaming.ts'

const seed = testSeed()

test(`neighbours are near on the disk, each once, and behind the next few only those that are known (seed ${seed})`, () => {
  const random = new Random(seed)
  const { map } = randomDisk(random, { sizeBytes: 5_000_000 })
  const places = new ChunkPlaces(map)
  const neighbours = new Neighbours(map, places)
  for (let chunk = 0; chunk < map.chunkCount; chunk++) {
    const [at] = places.extentsOf(chunk)
    neighbours.known = new Set()
    const following = neighbours.of(chunk)
    neighbours.known = new Set(Array.from({ length: map.chunkCount }, (_, number) => number).filter(() => random.chance(0.3)))
    const all = neighbours.of(chunk)
    assert.equal(new Set(all).size, all.length)
    assert.ok(!all.includes(chunk))
    assert.ok(following.length <= 8)
    assert.deepEqual(all.slice(0, following.length), following)
    for (const near of all.slice(following.length)) assert.ok(neighbours.known.has(near))
    for (const near of all) assert.ok([...places.extentsOf(near)].some((index) => Math.abs(index - at) <= 64))
    const next = [...map.refs.subarray(at + 1)].find((ref) => ref < SPECIAL_MIN && ref !== chunk)
    if (next !== undefined && following.length > 0) assert.equal(following[0], next)
  }
})

test(`what lies behind a chunk that was missed comes before the fill (seed ${seed})`, async () => {
  const random = new Random(seed)
  using directory = new TemporaryDirectory()
  const source = randomDisk(random, { sizeBytes: 5_000_000 })
  const { map } = source
  await using peer = await StreamPeer.start(source, random)
  const [first, last] = [map.refs.find((ref) => ref < SPECIAL_MIN)!, map.refs.findLast((ref) => ref < SPECIAL_MIN)!]
  const hexOf = (chunk: number): string => digestToHex(map.chunkDigest(chunk))
  // While the boot set does not come, nothing is filled.
  peer.bootSet = await peer.addObject(encodeChunkList(map.chunkDigest(last)))
  let asked = 0
  peer.misdeed = () => asked++ === 0 ? 'silence' : undefined
  const askedOf = (priority: Priority): Set<string> => new Set(peer.asked.filter((one) => one.priority === priority).map(({ digest }) => digest))
  const identity = { agent: 'a', privateKey: makeAgentKey() }
  const log = pino({ level: 'silent' })
  const begun = await beginTarget({ cvd: 'desk', path: path.join(directory.path, 'target'), server: { url: peer.url }, identity, overwrite: false, log })
  const nbd = `unix:${directory.path}/nbd`
  await using streaming = await Streaming.start({ ...begun, cvd: 'desk', nbd: [nbd], log })
  await using guest = await NbdClient.connect(nbd, { exportName: 'desk' })
  while (!askedOf(Priority.BOOT).has(hexOf(last))) await sleep(5)
  await guest.read(map.starts[map.refs.indexOf(first)], 1)
  const expected = new Neighbours(map, new ChunkPlaces(map)).of(first).filter((chunk) => chunk !== last)
  assert.ok(expected.length > 0)
  while (!expected.every((chunk) => askedOf(Priority.BOOT).has(hexOf(chunk)))) await sleep(5)
  assert.equal(askedOf(Priority.FILL).size, 0)
  peer.cut()
  assert.equal((await streaming.ended).phase, 'complete')
})
