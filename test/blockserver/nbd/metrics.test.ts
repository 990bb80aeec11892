/**
 * What the server counts is what real clients did: libnbd, whose requests are known one by one, and nbdcopy.
 */
import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { latencyCount } from '@varve/blockserver/latency-histogram.ts'
import { EXPORTS_RECORDED_MAX } from '@varve/blockserver/nbd/limits.ts'
import { type MetricsSnapshot, NbdMetrics, OTHER_EXPORTS, mergeSnapshots } from '@varve/blockserver/nbd/metrics.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { type BudgetUser, MemoryBudget } from '@varve/blockserver/nbd/memory-budget.ts'
import { RequestRecorder } from '@varve/blockserver/nbd/export-recorder.ts'
import { Random, testSeed } from '../../random.ts'
import { RawPeer, uint32 } from './raw-peer.ts'
import { run, serve } from './serving.ts'
import { TestDisk } from './test-disk.ts'

const MiB = 1024 * 1024

function figuresOf(snapshot: MetricsSnapshot, name: string) {
  const figures = snapshot.exports.find((one) => one.name === name)!
  const counts = Object.fromEntries(figures.commands.map(({ command, latency }) => [command, latencyCount(latency)]))
  const errors = Object.fromEntries(figures.commands.map(({ command, errors }) => [command, errors]))
  return { ...figures, counts, errors }
}

for (const delayed of [false, true]) {
  test(`requests, errors and bytes of libnbd are counted by command, on a disk that is done ${delayed ? 'later' : 'at once'}`, async () => {
    const disk = new TestDisk(8 * MiB, {
      delay: () => delayed ? sleep(1) : undefined,
      fault: (request, offset) => { if (offset === 7 * MiB) throw new Error(`${request} there fails`) },
    })
    await using serving = await serve({ disk })
    await run('/usr/bin/python3', ['-'], { input: `
import nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(${JSON.stringify(serving.uri('disk'))})
for n in range(10): h.pwrite(b'x' * 5000, n * 5000)
h.pwrite(b'y' * 300000, 1 << 20)
for n in range(7): h.pread(1000, n * 1000)
h.pread(1 << 20, 0)
h.flush(); h.flush()
h.trim(4096, 0); h.trim(4096, 4096); h.trim(4096, 8192)
h.zero(8192, 0)
h.cache(65536, 0)
h.block_status(1 << 20, 0, lambda *_: 0)
def fails(call):
    try: call()
    except nbd.Error: return
    assert False
fails(lambda: h.pread(512, ${7 * MiB}))
fails(lambda: h.pwrite(b'z' * 512, ${7 * MiB}))
fails(lambda: h.pwrite(b'z' * 512, ${8 * MiB}))
h.shutdown()
` })
    while ((await serving.server.metrics()).connectionsOpen > 0) await sleep(5)
    const { counts, errors, bytesRead, bytesWritten, requestsInFlight, connections } = figuresOf(await serving.server.metrics(), 'disk')
    assert.deepEqual(counts, { read: 9, write: 13, flush: 2, trim: 3, write_zeroes: 1, cache: 1, block_status: 1 })
    assert.deepEqual(errors, { read: 1, write: 2, flush: 0, trim: 0, write_zeroes: 0, cache: 0, block_status: 0 })
    assert.deepEqual({ bytesRead, bytesWritten, requestsInFlight, connections }, { bytesRead: 7000 + MiB, bytesWritten: 350_000, requestsInFlight: 0, connections: 0 })
  })
}

test('nbdcopy on 4 connections: bytes are those of the disk, nothing stays in flight', async () => {
  const disk = new TestDisk(24 * MiB)
  await using serving = await serve({ disk })
  const image = path.join(serving.directory, 'image')
  writeFileSync(image, Buffer.alloc(disk.sizeBytes, 1))
  await run('nbdcopy', ['--connections=4', '--flush', image, serving.uri('disk')])
  await run('nbdcopy', ['--connections=4', serving.uri('disk'), path.join(serving.directory, 'back')])
  while ((await serving.server.metrics()).connectionsOpen > 0) await sleep(5)
  const { bytesRead, bytesWritten, requestsInFlight, counts } = figuresOf(await serving.server.metrics(), 'disk')
  assert.deepEqual({ bytesRead, bytesWritten, requestsInFlight }, { bytesRead: disk.sizeBytes, bytesWritten: disk.sizeBytes, requestsInFlight: 0 })
  assert.ok(counts.flush >= 1)
})

test('requests in flight are those that are not answered; what ends with its connection is not in flight', async () => {
  let open!: () => void
  const gate = new Promise<void>((resolve) => { open = resolve })
  await using serving = await serve({ disk: new TestDisk(MiB, { delay: () => gate }) })
  const peer = await RawPeer.greeted(serving.unix)
  peer.send(Buffer.from('IHAVEOPT'), uint32(1), uint32(4), Buffer.from('disk'))
  await peer.read(10)
  const request = (type: number, length: number) => Buffer.concat([uint32(0x25609513), Buffer.from([0, 0, 0, type]), Buffer.alloc(16), uint32(length)])
  // Three reads, and a write of which a part comes.
  peer.send(request(0, 512), request(0, 512), request(0, 512), request(1, 1000), Buffer.alloc(10))
  const inFlight = async () => figuresOf(await serving.server.metrics(), 'disk').requestsInFlight
  while ((await serving.server.metrics()).requests < 4) await sleep(5)
  assert.equal(await inFlight(), 4)
  assert.equal(figuresOf(await serving.server.metrics(), 'disk').connections, 1)
  peer.socket.destroy()
  while (await inFlight() === 4) await sleep(5)
  assert.equal(await inFlight(), 3)
  open()
  while (await inFlight() > 0) await sleep(5)
  assert.deepEqual(figuresOf(await serving.server.metrics(), 'disk').counts, { read: 3 })
})

test('snapshots of several threads, sent as messages, merge to what one would have counted', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const threads = [new NbdMetrics(), new NbdMetrics(), new NbdMetrics()]
  const all = new NbdMetrics()
  for (let count = 0; count < 2000; count++) {
    const name = `disk${random.below(5)}`
    const command = random.pick([0, 1, 3, 4, 5, 6, 7, 99])
    const bytes = random.below(10_000)
    const failed = random.chance(0.1)
    const field = random.below(2)
    for (const metrics of [random.pick(threads), all]) {
      metrics[(['handshakesFailed', 'connectionsCut'] as const)[field]]++
      metrics.eventLoopDelay.record(count)
      const ofExport = metrics.acquire(name)
      const recorder = new RequestRecorder(ofExport)
      recorder.taken()
      recorder.begin(performance.now() - count)
      recorder.started(command)
      if (failed) recorder.failed(command)
      ofExport.bytesRead += bytes
      ofExport.bytesWritten += bytes
      recorder.repliesOut(performance.now())
    }
  }
  const sum = comparable(mergeSnapshots(threads.map((metrics) => structuredClone(metrics.snapshot()))))
  assert.deepEqual(sum, comparable(all.snapshot()), `seed ${seed}`)
  assert.equal(sum.exports.reduce((total, { commands }) => total + commands.reduce((count, command) => count + command.count, 0), 0), 2000)
})

/** Without the order of exports and what the clock decides. */
function comparable(snapshot: MetricsSnapshot) {
  const exports = snapshot.exports.map((one) => ({
    ...one, commands: one.commands.map(({ command, errors, latency }) => ({ command, errors, count: latencyCount(latency) })).sort((a, b) => a.command < b.command ? -1 : 1),
  }))
  return { ...snapshot, exports: exports.sort((a, b) => a.name < b.name ? -1 : 1) }
}

test('of exports without end the longest unused are counted together, and nothing is lost', () => {
  const metrics = new NbdMetrics()
  const busy = metrics.acquire('busy')
  for (let count = 0; count < EXPORTS_RECORDED_MAX + 500; count++) {
    const ofExport = metrics.acquire(`disk${count}`)
    const recorder = new RequestRecorder(ofExport)
    recorder.taken()
    recorder.started(0)
    recorder.repliesOut(performance.now())
    ofExport.bytesRead += 512
    metrics.release(ofExport)
  }
  busy.bytesRead += 512
  const { exports } = metrics.snapshot()
  assert.equal(exports.length, EXPORTS_RECORDED_MAX + 1)
  assert.ok(exports.some(({ name }) => name === 'busy'))
  assert.equal(exports.find(({ name }) => name === OTHER_EXPORTS)!.bytesRead, 501 * 512)
  assert.equal(exports.reduce((sum, { bytesRead }) => sum + bytesRead, 0), (EXPORTS_RECORDED_MAX + 501) * 512)
})

test('limits set anew are those of connections that come; those that are there keep theirs', async () => {
  await using serving = await serve({ disk: new TestDisk(4 * MiB) })
  const most = async () => JSON.parse((await run('nbdinfo', ['--json', serving.uri('disk')])).stdout).exports[0].block_size_maximum as number
  await using early = await NbdClient.connect(serving.unix)
  assert.equal(await most(), 32 * MiB)
  serving.server.reconfigure({ limits: { requestBytesMax: MiB, sharedBytesMax: MiB } })
  assert.equal(await most(), MiB)
  assert.equal((await early.read(0, 2 * MiB)).length, 2 * MiB)
  await run('nbdcopy', ['--connections=4', serving.uri('disk'), path.join(serving.directory, 'copy')])
  assert.throws(() => serving.server.reconfigure({ limits: { requestBytesMax: 1000 } }), RangeError)
  assert.equal(await most(), MiB)
})

test('a budget that shrinks below what is in use gives nothing until enough came back', () => {
  const budget = new MemoryBudget(1000, 60_000)
  const user = (): BudgetUser => ({ sharedBytes: 0, movedAtMs: 0, memoryFreed: () => undefined, cut: () => undefined })
  const [first, second] = [user(), user()]
  assert.ok(budget.take(first, 800))
  budget.resize(500, 60_000)
  assert.ok(!budget.take(second, 1))
  budget.give(400)
  assert.ok(!budget.take(second, 101))
  assert.ok(budget.take(second, 100))
  budget.close()
})
