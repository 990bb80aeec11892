/**
 * The stream server against an agent that speaks the frames itself: order, window, limits, refusals.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import test from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { AgentFrame, CHUNK_HEADER_BYTES, frame, FRAME_BYTES_MAX, GET_DIGESTS_MAX, jsonFrame, Priority, ServerFrame, WAITING_DIGESTS_MAX } from '@varve/blockserver/stream/frames.ts'
import { DISKS_MAX, REPORTS_MAX, UNSENT_BYTES_MAX } from '@varve/blockserver/stream/limits.ts'
import { Random, testSeed } from '../../random.ts'
import { hexOf, RawAgent } from './raw-agent.ts'
import { serveStreams } from './serve-streams.ts'

const KiB = 1024
const ANY = Number.MAX_SAFE_INTEGER

test('an agent opens a disk and gets chunks as they are stored, in the order asked', async () => {
  await using serving = await serveStreams()
  const digests = serving.source.addChunks(50, 10_000)
  using agent = await serving.open()
  assert.deepEqual(await agent.openDisk('desk'), {
    name: 'desk', sizeBytes: 1 << 20, map: hexOf([digestOf(Buffer.from('desk'))])[0], bootSet: null, order: hexOf([digestOf(Buffer.from('order'))])[0], snapshot: null,
  })
  agent.window(ANY)
  agent.get(Priority.FILL, digests)
  for (const digest of hexOf(digests)) {
    const { payload } = await agent.next(ServerFrame.CHUNK)
    assert.equal(payload.toString('hex', 0, 32), digest)
    assert.deepEqual([payload[32], payload.readUInt32LE(33)], [0, 10_000])
    assert.ok(payload.subarray(37).equals(serving.source.chunks.get(digest)!))
  }
  agent.socket.end()
  await agent.ended()
  while (serving.source.disksOpen > 0) await new Promise(setImmediate)
})

test('everything may be sent with the first packet, behind AUTH', async () => {
  await using serving = await serveStreams()
  const [digest] = serving.source.addChunks(1, 100)
  using agent = await serving.connect()
  const { payload } = await agent.next(ServerFrame.HELLO)
  agent.socket.cork()
  agent.auth(serving.key, payload)
  const disk = agent.openDisk('desk')
  agent.get(Priority.MISS, [digest])
  agent.socket.uncork()
  assert.equal((await disk).name, 'desk')
  assert.ok(serving.streams.figures().chunksSent[0] === 1)
})

test('a miss that is asked while thousands wait is the next chunk behind those that are written already', async () => {
  await using serving = await serveStreams()
  const fill = serving.source.addChunks(5000, 8 * KiB)
  const [boot, ...misses] = serving.source.addChunks(4, 8 * KiB)
  using agent = await serving.open()
  const windowBytes = 100 * (8 * KiB + CHUNK_HEADER_BYTES)
  agent.window(windowBytes)
  agent.get(Priority.FILL, fill)
  // All that the window lets go is with us: what comes now is not written yet.
  assert.deepEqual(await agent.chunks(100), hexOf(fill.slice(0, 100)))
  agent.get(Priority.BOOT, [boot])
  agent.get(Priority.MISS, misses)
  assert.deepEqual(await agent.chunks(3), hexOf(misses))
  agent.window(ANY)
  assert.deepEqual(await agent.chunks(4901), hexOf([boot, ...fill.slice(100)]))
})

test('a chunk that waits is promoted by being asked with more urgency, to the end of that queue, and is sent once', async () => {
  await using serving = await serveStreams()
  const fill = serving.source.addChunks(100, 1000)
  const [first, last] = serving.source.addChunks(2, 1000)
  using agent = await serving.open()
  agent.get(Priority.FILL, fill)
  agent.get(Priority.BOOT, [fill[3], fill[70]])
  agent.get(Priority.BOOT, [fill[3]])
  agent.get(Priority.FILL, [fill[70]])
  await agent.settled()
  const { promise, resolve: release } = Promise.withResolvers<void>()
  serving.source.hold = promise
  agent.get(Priority.MISS, [first, fill[50], last])
  agent.get(Priority.MISS, [fill[3], fill[3]])
  await agent.settled()
  release()
  assert.deepEqual(await agent.chunks(4), hexOf([first, fill[50], last, fill[3]]))
  agent.window(ANY)
  const others = fill.filter((_, index) => index !== 3 && index !== 50 && index !== 70)
  assert.deepEqual(await agent.chunks(98), hexOf([fill[70], ...others]))
  await agent.settled()
  assert.deepEqual(agent.frames, [])
  assert.deepEqual(serving.streams.figures().chunksSent, [4, 1, 97])
})

test('background is begun as long as the window is not used up, to the byte, and misses count but do not wait', async () => {
  await using serving = await serveStreams()
  const digests = serving.source.addChunks(6, 1000)
  const frameBytes = 1000 + CHUNK_HEADER_BYTES
  using agent = await serving.open()
  agent.get(Priority.BOOT, digests.slice(0, 3))
  agent.get(Priority.FILL, digests.slice(3, 5))
  const sent = async () => {
    await agent.settled()
    // What was read meanwhile is sent before the second answer.
    await agent.settled()
    return agent.chunkBytes / frameBytes
  }
  assert.equal(await sent(), 0)
  agent.window(1)
  while (await sent() < 1);
  agent.window(frameBytes)
  assert.equal(await sent(), 1)
  agent.window(frameBytes + 1)
  while (await sent() < 2);
  agent.window(frameBytes)
  agent.window(2 * frameBytes)
  assert.equal(await sent(), 2)
  agent.get(Priority.MISS, digests.slice(5))
  while (await sent() < 3);
  agent.window(3 * frameBytes)
  assert.equal(await sent(), 3)
  agent.window(6 * frameBytes)
  assert.deepEqual(await agent.chunks(6), hexOf([digests[0], digests[1], digests[5], digests[2], digests[3], digests[4]]))
})

test('what is cancelled is not sent, and can be asked for again', async () => {
  await using serving = await serveStreams()
  const digests = serving.source.addChunks(20, 1000)
  using agent = await serving.open()
  agent.get(Priority.FILL, digests)
  await agent.settled()
  agent.send(AgentFrame.CANCEL, digests[0], digests[7], digestOf(Buffer.from('nobody asked')))
  agent.get(Priority.FILL, [digests[0]])
  await agent.settled()
  agent.window(ANY)
  assert.deepEqual(await agent.chunks(19), hexOf([...digests.filter((_, index) => index !== 0 && index !== 7), digests[0]]))
})

test('without digests everything but misses is cancelled', async () => {
  await using serving = await serveStreams()
  const digests = serving.source.addChunks(30, 1000)
  using agent = await serving.open()
  const { promise, resolve: release } = Promise.withResolvers<void>()
  serving.source.hold = promise
  agent.get(Priority.FILL, digests.slice(0, 10))
  agent.get(Priority.BOOT, digests.slice(10, 20))
  agent.get(Priority.MISS, digests.slice(20, 29))
  agent.send(AgentFrame.CANCEL)
  agent.window(ANY)
  await agent.settled()
  release()
  assert.deepEqual(await agent.chunks(9), hexOf(digests.slice(20, 29)))
  agent.get(Priority.FILL, digests.slice(29))
  assert.deepEqual(await agent.chunks(1), hexOf(digests.slice(29)))
})

test('a chunk that cannot be given is an error of that chunk alone, which names no file of the server', async () => {
  await using serving = await serveStreams()
  const digests = serving.source.addChunks(3, 1000)
  const missing = digestOf(Buffer.from('missing'))
  using agent = await serving.open()
  agent.get(Priority.MISS, [digests[0], missing, digests[1]])
  const answers = [await agent.next(), await agent.next(), await agent.next()]
  assert.deepEqual(answers.map(({ type, payload }) => [type, payload.toString('hex', 0, 32)]), [
    [ServerFrame.CHUNK, hexOf([digests[0]])[0]], [ServerFrame.CHUNK_ERROR, hexOf([missing])[0]], [ServerFrame.CHUNK, hexOf([digests[1]])[0]],
  ])
  assert.equal(answers[1].payload.toString('utf8', 32), 'CHUNK_MISSING')
  // It was answered: asked again, it is answered again.
  agent.get(Priority.MISS, [missing])
  assert.equal((await agent.next()).type, ServerFrame.CHUNK_ERROR)
})

test('a disk that does not exist is an error, and the connection goes on', async () => {
  await using serving = await serveStreams()
  using agent = await serving.open()
  const refused = agent.json(ServerFrame.ERROR)
  agent.socket.write(jsonFrame(AgentFrame.OPEN, { name: 'other' }))
  assert.deepEqual(await refused, { code: 'NOT_FOUND', message: 'there is no CVD other' })
  assert.equal((await agent.openDisk('desk')).name, 'desk')
})

test('who does not prove a key that is known is refused', async () => {
  await using serving = await serveStreams()
  const other = serving.source.addAgent()
  const refused = async (prove: (agent: RawAgent, challenge: Buffer) => void) => {
    using agent = await serving.connect()
    prove(agent, (await agent.next(ServerFrame.HELLO)).payload)
    // What comes behind it is not looked at.
    agent.get(Priority.MISS, [digestOf(Buffer.from('x'))])
    return await agent.ended()
  }
  const answers = [
    await refused((agent, challenge) => agent.auth({ id: serving.key.id, privateKey: other.privateKey }, challenge)),
    await refused((agent) => agent.auth(serving.key, Buffer.alloc(32))),
    await refused((agent, challenge) => agent.auth({ ...serving.key, id: 'nobody' }, challenge)),
    await refused((agent) => agent.socket.write(jsonFrame(AgentFrame.AUTH, { agent: serving.key.id, signature: 'short' }))),
  ]
  for (const answer of answers) assert.deepEqual(answer, { code: 'AUTH_FAILED', message: 'the agent is not known here, was revoked, or has another key' })
  serving.source.agents.delete(serving.key.id)
  assert.equal((await refused((agent, challenge) => agent.auth(serving.key, challenge)))?.code, 'AUTH_FAILED')
  assert.equal(serving.streams.figures().authFailures, 5)
})

test('an agent that is revoked while it is connected is let go', async () => {
  await using serving = await serveStreams()
  using agent = await serving.open()
  using other = await serving.open(serving.source.addAgent())
  await agent.settled()
  await other.settled()
  serving.source.agents.delete(serving.key.id)
  await serving.streams.recheck()
  assert.deepEqual(await agent.ended(), { code: 'AUTH_FAILED', message: 'the agent was revoked' })
  await other.settled()
})

test('frames that break the protocol, or a limit, end their connection with the reason, and nobody else\'s', async () => {
  await using serving = await serveStreams()
  using bystander = await serving.open()
  const digest = digestOf(Buffer.from('x'))
  const breaks: [code: string, message: RegExp, bytes: (agent: RawAgent) => Uint8Array[]][] = [
    ['PROTOCOL_INVALID', /a frame of type 77/, () => [frame(77)]],
    ['PROTOCOL_INVALID', /a frame of type 1/, () => [jsonFrame(AgentFrame.AUTH, {})]],
    ['PROTOCOL_INVALID', /a frame of 1048641 bytes/, () => [Buffer.from([...new Uint8Array(new Uint32Array([FRAME_BYTES_MAX + 1]).buffer), 3])]],
    ['PROTOCOL_INVALID', /no JSON object/, () => [frame(AgentFrame.OPEN, Buffer.from('{'))]],
    ['PROTOCOL_INVALID', /no JSON object/, () => [frame(AgentFrame.OPEN, Buffer.from('null'))]],
    ['PROTOCOL_INVALID', /no JSON object of at most/, () => [frame(AgentFrame.OPEN, Buffer.from(`{"name": "${'x'.repeat(5000)}"}`))]],
    ['PROTOCOL_INVALID', /without a name/, () => [jsonFrame(AgentFrame.OPEN, { name: 1 })]],
    ['PROTOCOL_INVALID', /a map that is no digest/, () => [jsonFrame(AgentFrame.OPEN, { name: 'desk', map: 'AB' })]],
    ['PROTOCOL_INVALID', /a map that is no digest/, () => [jsonFrame(AgentFrame.OPEN, { name: 'desk', map: null })]],
    ['PROTOCOL_INVALID', /GET of 0 chunks/, () => [frame(AgentFrame.GET, Buffer.from([0]))]],
    ['PROTOCOL_INVALID', /GET of 0 chunks/, () => [frame(AgentFrame.GET)]],
    ['PROTOCOL_INVALID', /with priority 3/, () => [frame(AgentFrame.GET, Buffer.from([3]), digest)]],
    ['PROTOCOL_INVALID', /GET with 31 bytes/, () => [frame(AgentFrame.GET, Buffer.from([0]), digest.subarray(1))]],
    ['PROTOCOL_INVALID', /GET of 32769 chunks/, () => [frame(AgentFrame.GET, Buffer.from([0]), Buffer.alloc(32 * (GET_DIGESTS_MAX + 1)))]],
    ['PROTOCOL_INVALID', /CANCEL with 33 bytes/, () => [frame(AgentFrame.CANCEL, Buffer.alloc(33))]],
    ['PROTOCOL_INVALID', /7 bytes where 8/, () => [frame(AgentFrame.WINDOW, Buffer.alloc(7))]],
    ['PROTOCOL_INVALID', /9 bytes where 8/, () => [frame(AgentFrame.PING, Buffer.alloc(9))]],
    ['PROTOCOL_INVALID', /a report of 31 bytes/, () => [frame(AgentFrame.HEAT, Buffer.alloc(31))]],
    ['LIMIT_EXCEEDED', /17 disks/, () => Array.from({ length: DISKS_MAX + 1 }, () => jsonFrame(AgentFrame.OPEN, { name: 'desk' }))],
    ['LIMIT_EXCEEDED', /65537 chunks wait/, () => {
      const digests = Array.from({ length: WAITING_DIGESTS_MAX + 1 }, (_, index) => Buffer.alloc(32, new Uint8Array(new Uint32Array([index, 1]).buffer)))
      return [0, 1, 2].map((part) => frame(AgentFrame.GET, Buffer.from([2]), ...digests.slice(part * GET_DIGESTS_MAX, (part + 1) * GET_DIGESTS_MAX)))
    }],
  ]
  for (const [code, message, bytes] of breaks) {
    using agent = await serving.open()
    await agent.settled()
    for (const part of bytes(agent)) agent.socket.write(part)
    const error = await agent.ended()
    assert.equal(error?.code, code, String(message))
    assert.match(error.message, message)
  }
  using early = await serving.connect()
  early.get(Priority.MISS, [digest])
  assert.equal((await early.ended())?.code, 'PROTOCOL_INVALID')
  using large = await serving.connect()
  large.socket.write(frame(AgentFrame.AUTH, Buffer.alloc(5000)).subarray(0, 100))
  assert.match((await large.ended())!.message, /a frame of 5000 bytes; at most 4096/)
  await bystander.settled()
  assert.equal(serving.streams.figures().cut, breaks.length + 2)
})

test('reports about the disk that was opened are taken, of another are ignored, and wrong ones end the connection', async () => {
  await using serving = await serveStreams()
  const map = digestOf(Buffer.from('desk'))
  using agent = await serving.open()
  agent.send(AgentFrame.BOOT, map, Buffer.from([1]))
  await agent.openDisk('desk')
  agent.send(AgentFrame.BOOT, map, Buffer.from([5, 3, 0xe7, 0x07, 0]))
  agent.send(AgentFrame.HEAT, map, Buffer.from([2, 3, 0x80, 0x02]))
  agent.send(AgentFrame.HEAT, digestOf(Buffer.from('other')), Buffer.from([2]))
  agent.send(AgentFrame.HEAT, map)
  await agent.settled()
  assert.deepEqual(serving.source.boots, [[5, 3, 999, 0]])
  assert.deepEqual(serving.source.heat, [[2, 5, 261], []])
  for (const [type, bytes] of [
    [AgentFrame.BOOT, [0xe8, 0x07]], [AgentFrame.BOOT, [1, 2, 1]], [AgentFrame.BOOT, [0x80]], [AgentFrame.BOOT, [0x80, 0]], [AgentFrame.BOOT, [0xff, 0xff, 0xff, 0xff, 0xff, 1]],
    [AgentFrame.HEAT, [1, 0]], [AgentFrame.HEAT, [0xe7, 0x07, 1]], [AgentFrame.HEAT, [1, 0x80]], [AgentFrame.HEAT, [1, 0xff, 0xff, 0xff, 0xff, 0x1f]],
  ] as const) {
    using wrong = await serving.open()
    await wrong.openDisk('desk')
    wrong.send(type, map, Buffer.from(bytes))
    assert.equal((await wrong.ended())?.code, 'PROTOCOL_INVALID', String(bytes))
  }
})

test('reports are recorded one after another, and no more of a connection wait than a few', async () => {
  await using serving = await serveStreams()
  const map = digestOf(Buffer.from('desk'))
  const { promise, resolve: release } = Promise.withResolvers<void>()
  serving.source.holdReports = promise
  using agent = await serving.open()
  using other = await serving.open(serving.source.addAgent())
  await agent.openDisk('desk')
  await other.openDisk('desk')
  for (let count = 0; count < REPORTS_MAX; count++) agent.send(AgentFrame.BOOT, map, Buffer.from([count]))
  await agent.settled()
  other.send(AgentFrame.BOOT, map, Buffer.from([99]))
  await other.settled()
  assert.equal(serving.source.reportsMost, 1)
  agent.send(AgentFrame.HEAT, map)
  assert.equal((await agent.ended())?.code, 'LIMIT_EXCEEDED')
  release()
  while (serving.source.boots.length < REPORTS_MAX + 1) await new Promise(setImmediate)
  assert.deepEqual(serving.source.boots.flat(), [...Array(REPORTS_MAX).keys(), 99])
  assert.equal(serving.source.reportsMost, 1)
})

test('an agent that does not read holds no more than little of the server, and can go on', async () => {
  await using serving = await serveStreams()
  const bytes = 256 * KiB
  const digests = serving.source.addChunks(200, bytes)
  using agent = await serving.open()
  await agent.settled()
  agent.socket.pause()
  agent.window(ANY)
  agent.get(Priority.FILL, digests)
  // Until nothing moves any more: the kernel's buffers are full.
  for (let sent = -1, still = 0; still < 20; await new Promise((resolve) => setTimeout(resolve, 10))) {
    const [, , now] = serving.streams.figures().bytesSent
    still = now === sent && now > 0 ? still + 1 : 0
    sent = now
  }
  const { bytesSent } = serving.streams.figures()
  // What is read and not sent: little.
  assert.ok(serving.source.read.length * bytes - bytesSent[2] <= 5 * bytes + UNSENT_BYTES_MAX, `${serving.source.read.length} read, ${bytesSent[2]} bytes sent`)
  assert.ok(bytesSent[2] < 100 * bytes, `${bytesSent[2]} bytes sent to nobody`)
  // Who does not read cannot make answers pile up either.
  let taken = true
  for (let count = 0; count < 1000 && taken; count++) taken = agent.socket.write(Buffer.concat(Array<Buffer>(10_000).fill(frame(AgentFrame.PING, Buffer.alloc(8)))))
  assert.equal(taken, false, 'the server takes no more')
  agent.socket.resume()
  assert.deepEqual(await agent.chunks(200), hexOf(digests))
})

test('the oldest connection of an agent ends when it has too many; other agents have theirs', async () => {
  await using serving = await serveStreams({ limits: { connectionsPerAgentMax: 2 } })
  using other = await serving.open(serving.source.addAgent())
  await other.settled()
  using first = await serving.open()
  await first.settled()
  using second = await serving.open()
  await second.settled()
  using third = await serving.open()
  assert.equal((await first.ended())?.code, 'LIMIT_EXCEEDED')
  for (const agent of [second, third, other]) await agent.settled()
})

test('connections above the limit are refused with 503, and are not counted any more when they have ended', async () => {
  await using serving = await serveStreams({ limits: { connectionsMax: 2 } })
  using first = await serving.open()
  using second = await serving.open()
  await second.settled()
  await assert.rejects(serving.connect(), /the server answers 503/)
  assert.deepEqual([serving.streams.figures().connections, serving.streams.figures().refused], [2, 1])
  first.socket.destroy()
  while (serving.streams.figures().connections > 1) await new Promise(setImmediate)
  using third = await serving.open()
  await third.settled()
})

test('who does not prove itself in time, and a connection on which nothing moves, are closed', async () => {
  await using serving = await serveStreams({ limits: { handshakeMsMax: 100 } })
  using silent = await serving.connect()
  assert.equal((await silent.ended())?.code, 'AUTH_FAILED')
  await using idling = await serveStreams({ limits: { idleMsMax: 100 } })
  using idle = await idling.open()
  assert.equal(await idle.ended(), undefined)
})

test('the server ends connections when it ends, and says so', async () => {
  const serving = await serveStreams()
  using agent = await serving.open()
  await agent.openDisk('desk')
  using silent = await serving.connect()
  await serving[Symbol.asyncDispose]()
  assert.equal((await agent.ended())?.code, 'CONNECTION_LOST')
  await silent.ended()
  assert.equal(serving.source.disksOpen, 0)
})

test('frames of any bytes, cut anywhere, are answered or end their connection; the server goes on', async () => {
  await using serving = await serveStreams()
  const seed = testSeed()
  const random = new Random(seed)
  const digests = serving.source.addChunks(20, 500)
  const map = digestOf(Buffer.from('desk'))
  const good: (() => Buffer)[] = [
    () => jsonFrame(AgentFrame.OPEN, { name: 'desk' }),
    () => frame(AgentFrame.GET, Buffer.from([random.below(3)]), ...digests.slice(random.below(20))),
    () => frame(AgentFrame.CANCEL, ...digests.slice(random.below(21))),
    () => frame(AgentFrame.WINDOW, Buffer.from([...random.bytes(3), 0, 0, 0, 0, 0])),
    () => frame(AgentFrame.PING, random.bytes(8)),
    () => frame(AgentFrame.HEAT, map, random.bytes(random.below(50))),
    () => frame(AgentFrame.BOOT, map, random.bytes(random.below(50))),
    () => frame(random.below(256), random.bytes(random.below(100))),
  ]
  for (let round = 0; round < 150; round++) {
    using agent = random.chance(0.8) ? await serving.open() : await serving.connect()
    const bytes = Buffer.concat(Array.from({ length: random.between(1, 30) }, () => random.pick(good)()))
    for (let flips = random.below(4); flips > 0; flips--) bytes[random.below(bytes.length)] = random.below(256)
    for (let at = 0; at < bytes.length;) {
      const end = random.chance(0.5) ? bytes.length : at + random.between(1, 100)
      if (!agent.socket.destroyed) agent.socket.write(bytes.subarray(at, end))
      at = end
      if (random.chance(0.3)) await new Promise(setImmediate)
    }
    agent.socket.end()
    if (!agent.socket.destroyed) await once(agent.socket, 'close')
    const { frames } = agent
    for (const { type } of frames) assert.ok(type >= 1 && type <= 6, `seed ${seed}, round ${round}: type ${type}`)
  }
  using agent = await serving.open()
  agent.get(Priority.MISS, digests)
  assert.deepEqual(await agent.chunks(20), hexOf(digests))
  while (serving.streams.figures().connections > 1) await new Promise(setImmediate)
})
