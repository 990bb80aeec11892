/**
 * The streams benchmark: what it replays, and how; and a small storm on a real server.
 * Debian packages: libnbd-bin (nbdcopy).
 */
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { copyOut, CVD } from '../../bench/boot/images.ts'
import { dayOf, INVOCATIONS, zipf } from '../../bench/streams/day.ts'
import { measureFill } from '../../bench/streams/fill.ts'
import type { FillRun } from '../../bench/streams/fill.ts'
import { bootOf, readRecording, TimedReadsDevice, writeRecording } from '../../bench/streams/recording.ts'
import type { Recording } from '../../bench/streams/recording.ts'
import { deskName } from '../../bench/streams/recordings.ts'
import { replay } from '../../bench/streams/replay.ts'
import { measureStorm } from '../../bench/streams/storm.ts'
import { fillFigures, percentile, stormFigures } from '../../bench/streams/stream-figures.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'

const BLOCK = 4096

/** Times, ms; each read is of its own block. */
function readsAt(...times: number[]): Recording['reads'] {
  return times.map((ms, index) => ({ ms, offset: index * BLOCK, length: BLOCK }))
}

test('a read is replayed when all is there whose answers the guest had, and no later for what it asked at the same time', async () => {
  const asked: number[] = []
  const answers = new Map<number, () => void>()
  const replayed = replay(readsAt(0, 0.1, 5, 5.01, 9), {
    read: (_read, index) => new Promise<void>((resolve) => {
      asked.push(index)
      answers.set(index, resolve)
    }),
  })
  const others = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 30))
  await others()
  assert.deepEqual(asked, [0, 1])
  answers.get(1)!()
  await others()
  assert.deepEqual(asked, [0, 1], 'one of two answers that the guest had is not enough')
  answers.get(0)!()
  await others()
  assert.deepEqual(asked, [0, 1, 2, 3])
  for (const index of [2, 3]) answers.get(index)!()
  await others()
  answers.get(4)!()
  assert.equal(await replayed, 5)
})

test('think times are kept, a replay ends when it is told to, and a read that fails ends it', async () => {
  const startMs = performance.now()
  await replay(readsAt(0, 40, 80), { read: async () => {} })
  assert.ok(performance.now() - startMs >= 79)
  const stop = new AbortController()
  assert.equal(await replay(readsAt(0, 1, 1e9), { signal: stop.signal, read: async (_read, index) => { if (index === 1) stop.abort() } }), 2)
  await assert.rejects(replay(readsAt(0, 1, 2), { read: (_read, index) => index === 1 ? Promise.reject(new Error('gone')) : Promise.resolve() }), /gone/)
})

test('reads are recorded with their times, but for those of what the guest wrote itself', async () => {
  using scratch = new ScratchDirectory('recording')
  await using device = new TimedReadsDevice(new MemoryDevice(16 * BLOCK))
  await device.write(Buffer.alloc(2 * BLOCK, 1), 4 * BLOCK)
  const into = Buffer.alloc(2 * BLOCK)
  for (const block of [0, 4, 5, 3]) await device.read(into, block * BLOCK)
  assert.deepEqual(device.reads.map(({ offset, length }) => [offset / BLOCK, length]), [[0, into.length], [5, into.length], [3, into.length]])
  const recording: Recording = { seed: 1, markMs: device.reads[1].ms, actions: [{ ms: 9, command: 'ls' }], reads: device.reads.map((read, index) => ({ ...read, ms: index })) }
  writeRecording(scratch.join('day'), recording)
  assert.deepEqual(readRecording(scratch.join('day')), recording)
  assert.deepEqual(bootOf({ ...recording, markMs: 1 }), recording.reads.slice(0, 2))
})

test('what is common is drawn often, what is rare now and then, and a seed gives its day again', () => {
  const seed = testSeed()
  const random = new Random(seed)
  const counts = new Array<number>(10).fill(0)
  for (let draw = 0; draw < 30_000; draw++) counts[zipf(counts.length, random)]++
  // 1 / H(10) = 0.341 of the draws; a tenth of that.
  assert.ok(counts[0] > 9_500 && counts[0] < 11_000, `seed ${seed}: ${counts.join(' ')}`)
  assert.ok(counts[9] > 800 && counts[9] < 1_300, `seed ${seed}: ${counts.join(' ')}`)
  assert.deepEqual(dayOf(new Random(seed)), dayOf(new Random(seed)))
  for (const { command } of dayOf(random)) assert.ok(INVOCATIONS.includes(command))
})

test('figures of fills and storms carry the goals of streaming', () => {
  const run: FillRun = { missesOfBoot: 1, missesOfDay: 10, readsOfDay: 1000, readsLocal: 990, fillLatencyMs: [1, 1.1], completeLatencyMs: [1, 1], fillMs: 10_000, fillBytes: 24_000_000 }
  const line = { megabitsPerSecond: 20, roundTripMs: 40 }
  const fills = fillFigures({ heat: run, diskOrder: { ...run, missesOfDay: 40, fillBytes: 12_500_000 }, line }).filter(({ goal }) => goal !== null)
  assert.deepEqual(fills.map(({ ours, met }) => [ours.median, met]), [[0.25, false], [1.1, true], [96, true], [50, false]])
  const boot = { ms: 1000, agent: { receivedBytes: 100 << 20, misses: 0 } }
  const storm = { boots: [boot, { ...boot, ms: 2000 }], originReadBytes: 120 << 20 }
  const [slowest] = stormFigures({ name: 'two', single: { boots: [boot], originReadBytes: 0 }, storm, line: { megabitsPerSecond: 1000, roundTripMs: 2 } })
  assert.equal(slowest.met, true, 'two times 100 MiB take 1.7 s of the line')
  assert.equal(stormFigures({ name: 'two', single: { boots: [boot], originReadBytes: 0 }, storm })[0].met, false)
  assert.equal(percentile([4, 1, 3, 2], 50), 2)
  assert.equal(percentile([4, 1, 3, 2], 99), 4)
})

test('a small storm of agents and of clients, and a fill, read what they must from a real server', async () => {
  const seed = testSeed()
  const random = new Random(seed)
  using scratch = new ScratchDirectory('bench-streams')
  const source = scratch.join('source')
  mkdirSync(source)
  for (let file = 0; file < 100; file++) writeFileSync(path.join(source, `file-${file}`), random.bytes(random.between(1, 60_000)))
  const home = scratch.join('home')
  varve(home, ['layer', 'import', 'files', `dir:${source}`, '--kind', 'base'])
  for (const name of [CVD, deskName(1), deskName(2)]) varve(home, ['cvd', 'create', name, '--layer', 'files', '--boot', 'none', '--size', '64M'])
  const rawFile = scratch.join('disk.raw')
  await copyOut(home, rawFile)
  const reads = Array.from({ length: 300 }, (_, index) => ({ ms: index * 3, offset: random.below(8000) * BLOCK, length: random.between(1, 8) * BLOCK }))
  const day: Recording = { seed, markMs: 100, actions: [], reads }
  const dayFile = scratch.join('day.json')
  writeRecording(dayFile, day)
  const recordings = { home, taughtHome: home, rawFile, day, dayFile }
  const line = { megabitsPerSecond: 100, roundTripMs: 4 }

  const agents = await measureStorm({ recordings, home, count: 2, line })
  assert.equal(agents.boots.length, 2)
  for (const { agent } of agents.boots) assert.ok(agent!.receivedBytes > 0)
  const clients = await measureStorm({ recordings, home, count: 2 })
  assert.equal(clients.boots.length, 2)

  const run = await measureFill({ recordings, home, line, again: true })
  assert.ok(run.readsOfDay <= reads.length)
  assert.equal(run.fillLatencyMs.length, run.readsLocal)
  assert.equal(run.completeLatencyMs.length, run.readsLocal)
  assert.ok(run.completeLatencyMs.every((ms) => ms > 0))
  assert.ok(run.fillBytes <= 5 << 20)
})
