/**
 * Writes of 4 KiB to an overlay behind the NBD server, plain and with FUA, beside qemu-nbd and nbdkit on a file of the same filesystem; what a write of
 * 512 bytes writes, and how many calls share a sync. Debian packages: qemu-utils, nbdkit.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { OverlayDevice } from '@varve/images/device/overlay-device.ts'
import { localFiles } from '@varve/images/device/overlay-files.ts'
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import { Random, testSeed } from '../../test/random.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult } from '../figures.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 7)
const RUN_MS = 400
const DISK_BYTES = 256 << 20
const WRITE_BYTES = 4096
const SERVE_OVERLAY = path.join(import.meta.dirname, '../../test/blockserver/nbd/serve-overlay.ts')

interface Server {
  process: ChildProcess
  client: NbdClient
}

async function start(name: string, directory: string): Promise<Server> {
  const socket = path.join(directory, `${name}.sock`)
  const file = path.join(directory, `${name}.img`)
  if (name !== 'varve') {
    writeFileSync(file, '')
    truncateSync(file, DISK_BYTES)
  }
  const commands: Record<string, string[]> = {
    varve: [process.execPath, SERVE_OVERLAY, path.join(directory, 'overlay'), socket, String(DISK_BYTES)],
    'qemu-nbd': ['qemu-nbd', '-f', 'raw', '-t', '--shared=16', '-k', socket, file],
    'nbdkit-file': ['nbdkit', '-f', '-U', socket, 'file', file],
  }
  const [command, ...args] = commands[name]
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  while (!existsSync(socket)) await delay(50)
  return { process: child, client: await NbdClient.connect(`unix:${socket}`) }
}

/** Writes at random places for some time, `depth` at a time. @returns writes per second */
async function writesPerSecond(client: NbdClient, depth: number, fua: boolean, random: Random): Promise<number> {
  const bytes = Buffer.alloc(WRITE_BYTES, 1 + random.below(255))
  const started = performance.now()
  let count = 0
  let lastOffset = 0
  const writeOn = async (): Promise<void> => {
    while (performance.now() - started < RUN_MS) {
      lastOffset = random.below(DISK_BYTES / WRITE_BYTES) * WRITE_BYTES
      await client.write(bytes, lastOffset, { fua })
      count++
    }
  }
  await Promise.all(Array.from({ length: depth }, writeOn))
  const perSecond = (count * 1000) / (performance.now() - started)
  if (!(await client.read(lastOffset, WRITE_BYTES)).equals(bytes)) throw new Error('a server does not give back what was written')
  // What was written plainly goes to the disk before others are measured.
  await client.flush()
  return perSecond
}

interface Costs {
  plainBytes: number
  forcedBytes: number
  callsPerSync: number
}

/** What calls cost below the overlay, counted where it calls the system. */
async function costs(directory: string): Promise<Costs> {
  let writtenBytes = 0
  let syncs = 0
  const files: OverlayFiles = {
    ...localFiles,
    write: (fd, bytes, offset) => { writtenBytes += bytes.length; localFiles.write(fd, bytes, offset) },
    sync: (fd) => { syncs++; return localFiles.sync(fd) },
  }
  const lowerDigest = new Uint8Array(32)
  await OverlayDevice.create({ directory, sizeBytes: DISK_BYTES, lowerDigest })
  await using overlay = await OverlayDevice.open({ directory, lower: new MemoryDevice(DISK_BYTES, { readOnly: true }), lowerDigest, files })
  let at = 0
  const each = async (count: number, fua: boolean): Promise<number> => {
    const before = writtenBytes
    for (let index = 0; index < count; index++) await overlay.write(Buffer.alloc(512, 1), at++ * 8192, { fua })
    return (writtenBytes - before) / count
  }
  const plainBytes = await each(1000, false)
  await overlay.flush()
  // What the log grows by at first is written once.
  await each(2000, true)
  const forcedBytes = await each(1000, true)
  const syncsBefore = syncs
  const writeOn = async (_: unknown, lane: number): Promise<void> => {
    for (let index = 0; index < 50; index++) await overlay.write(Buffer.alloc(WRITE_BYTES, 1), DISK_BYTES / 2 + (lane * 50 + index) * WRITE_BYTES, { fua: true })
  }
  await Promise.all(Array.from({ length: 64 }, writeOn))
  return { plainBytes, forcedBytes, callsPerSync: 3200 / (syncs - syncsBefore) }
}

export async function run(): Promise<BenchResult> {
  const seed = testSeed()
  const random = new Random(seed)
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-bench-'))
  const servers = new Map<string, Server>()
  const measured = new Map<string, Map<string, number[]>>()
  const rows = [true, false].flatMap((fua) => [1, 16, 64].map((depth) => ({ fua, depth, name: `4 KiB writes${fua ? ' with FUA' : ''}, depth ${depth}` })))
  const counted: Costs[] = []
  try {
    for (const name of ['varve', 'qemu-nbd', 'nbdkit-file']) servers.set(name, await start(name, directory))
    for (const { name, depth, fua } of rows) {
      const row = new Map([...servers.keys()].map((server) => [server, [] as number[]]))
      measured.set(name, row)
      for (let round = 0; round < ROUNDS; round++) {
        const order = [...servers].map((_, index, all) => all[(index + round) % all.length])
        for (const [server, { client }] of order) row.get(server)!.push(await writesPerSecond(client, depth, fua, random))
      }
    }
    for (let round = 0; round < 3; round++) counted.push(await costs(path.join(directory, `costs${round}`)))
  } finally {
    for (const { process: child, client } of servers.values()) {
      await client.disconnect().catch(() => {})
      const ended = once(child, 'close')
      child.kill('SIGTERM')
      await ended
    }
    rmSync(directory, { recursive: true, force: true })
  }
  const figures = rows.map(({ name }) => {
    const { varve, ...peers } = Object.fromEntries(measured.get(name)!)
    return figure({ name, unit: 'per second', ours: varve, peers, moreIsBetter: true, ratioMin: 1 })
  })
  return {
    bench: 'overlay',
    machine: machine(),
    versions: { node: process.version, 'qemu-nbd': version('qemu-nbd', '--version'), nbdkit: version('nbdkit', '--version') },
    seed,
    figures: [
      ...figures,
      figure({ name: 'bytes written for a write of 512 bytes', unit: 'bytes', ours: counted.map((cost) => cost.plainBytes), moreIsBetter: false, oursMax: 528 }),
      figure({ name: 'the same with FUA', unit: 'bytes', ours: counted.map((cost) => cost.forcedBytes), moreIsBetter: false, oursMax: 2616 }),
      figure({ name: 'writes with FUA that share a sync, depth 64', unit: 'calls', ours: counted.map((cost) => cost.callsPerSync), moreIsBetter: true }),
    ],
    notes: [
      `Files of ${DISK_BYTES >> 20} MiB that begin sparse, on the filesystem of the temporary directory; one connection each, over a unix socket; the client is ours, and shares the machine.`,
      'A sync waits for whatever else the disk and the journal of the filesystem are doing: the medians of a busy machine say little, and their ratios a little more.',
      'Bytes are those handed to the system, and include the record of what the sectors are (16), and what the log grows by until it has its 16 MiB (1024 of the bytes with FUA); file systems write whole blocks.',
    ],
  }
}
