/**
 * The load generator of `npm run bench -- nbd`: asks for what it says, and notices what is wrong.
 */
import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { LoadGenerator } from '../../bench/nbd/load-generator.ts'
import type { Load } from '../../bench/nbd/load.ts'
import { Random, testSeed } from '../random.ts'
import { serve } from '../blockserver/nbd/serving.ts'
import { TestDisk } from '../blockserver/nbd/test-disk.ts'

const KiB = 1024
const DISK_BYTES = 8 << 20
const EXTENTS = [64 * KiB, 1 << 20, 2 << 20, 3 << 20, 6 << 20, 4 * KiB]
const seed = testSeed()
const content = new Random(seed).bytes(DISK_BYTES)

interface Request {
  command: string
  offset: number
  length: number
}

/** Serves a disk over both transports and runs loads on it. */
async function withLoads(disk: TestDisk, use: (run: (change: Partial<Load>) => Promise<{ sent: number; p50Us: number; p99Us: number; requestsPerSecond: number }>, tcp: string) => Promise<void>): Promise<void> {
  await using serving = await serve({ disk })
  const rawFile = path.join(serving.directory, 'raw')
  const manifest = path.join(serving.directory, 'disks.json')
  writeFileSync(rawFile, content)
  writeFileSync(manifest, JSON.stringify({ byLayers: { 5: { rawFile, sizeBytes: DISK_BYTES, extents: EXTENTS } } }))
  using generator = new LoadGenerator(manifest)
  await use((change) => generator.run({
    address: serving.unix, exportName: 'disk', layers: 5, span: { offset: 0, length: DISK_BYTES }, dataOnly: true, command: 'read', fua: false, order: 'random',
    requestBytes: 4 * KiB, everyBytes: 0, depth: 8, connections: 2, leadMs: 0, timedMs: 60_000, once: true, seed, ...change,
  }), serving.tcp)
}

function recordingDisk(): { disk: TestDisk; requests: Request[] } {
  const requests: Request[] = []
  const disk = new TestDisk(DISK_BYTES, { fault: (command, offset, length) => void requests.push({ command, offset, length }) })
  content.copy(disk.bytes)
  return { disk, requests }
}

function isData({ offset, length }: Request): boolean {
  return EXTENTS.some((at, index) => index % 2 === 0 && offset >= at && offset + length <= at + EXTENTS[index + 1])
}

test(`a load asks once for each block of data, over any number of connections (seed ${seed})`, async () => {
  const { disk, requests } = recordingDisk()
  await withLoads(disk, async (run, tcp) => {
    for (const change of [{}, { connections: 1, depth: 64 }, { address: tcp, order: 'sequential' as const }]) {
      requests.length = 0
      const { sent, requestsPerSecond, p50Us, p99Us } = await run(change)
      // An odd number of blocks leaves one over.
      const connections = 'connections' in change ? 1 : 2
      assert.equal(sent, Math.floor(((4 << 20) + 4 * KiB) / (4 * KiB) / connections) * connections)
      assert.ok(requests.every(isData))
      assert.equal(new Set(requests.map(({ offset }) => offset)).size, sent)
      assert.ok(requestsPerSecond > 0 && p50Us > 0 && p99Us >= p50Us)
    }
  })
})

test('payloads longer than the receive buffer, and requests further apart than they are long', async () => {
  const { disk, requests } = recordingDisk()
  await withLoads(disk, async (run) => {
    assert.equal((await run({ requestBytes: 1 << 20, depth: 3, connections: 1 })).sent, 4)
    requests.length = 0
    await run({ everyBytes: 64 * KiB, connections: 1 })
    assert.ok(requests.every(({ offset }) => offset % (64 * KiB) === 0))
    requests.length = 0
    assert.equal((await run({ dataOnly: false, requestBytes: 1 << 20, depth: 3, connections: 1, order: 'sequential' })).sent, 8)
  })
})

test('a load of writes writes what it says, durably if it says so', async () => {
  const { disk } = recordingDisk()
  await withLoads(disk, async (run) => {
    await run({ command: 'write', fua: true, connections: 1 })
    assert.notDeepEqual(disk.bytes, content)
    for (const range of [[64 * KiB, 1 << 20], [2 << 20, 3 << 20]]) assert.deepEqual(disk.durable.subarray(range[0], range[0] + range[1]), disk.bytes.subarray(range[0], range[0] + range[1]))
  })
})

test('wrong bytes, lost writes and failed requests are errors', async () => {
  const damaged = recordingDisk().disk
  damaged.bytes.fill(0)
  await withLoads(damaged, (run) => assert.rejects(run({}), /are not what they must be/))
  class LosingDisk extends TestDisk {
    override write(): void {}
  }
  await withLoads(new LosingDisk(DISK_BYTES), (run) => assert.rejects(run({ command: 'write', connections: 1 }), /are not what they must be/))
  const failing = new TestDisk(DISK_BYTES, { fault: (_, offset) => {
    if (offset === 3 << 20) throw new Error('a bad sector')
  } })
  await withLoads(failing, (run) => assert.rejects(run({ connections: 1 }), /a request failed with 5/))
  await withLoads(failing, (run) => assert.rejects(run({ connections: 1, exportName: 'other' }), /is refused/))
})
