/**
 * 1,000 connections that are idle beside 100 that work: no error, and what an idle one costs. A server of a disk in memory, in a process of its own.
 * VARVE_BENCH_SECONDS: how long they work, 30 unless set; a full run takes 300.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { Random, testSeed } from '../../test/random.ts'
import { ScratchDirectory } from '../../test/varve-command.ts'
import { figure, machine } from '../figures.ts'
import type { BenchResult } from '../figures.ts'

const SECONDS = Number(process.env.VARVE_BENCH_SECONDS ?? 30)
const IDLE = 1000
const ACTIVE = 100
/** Each active connection has a part of the disk of its own. */
const PART_BYTES = 1 << 20
const ROUNDS = 3
const WARM_UP = 50

/** Not all at once: a unix socket refuses what its backlog does not hold. */
async function connect(address: string, count: number): Promise<NbdClient[]> {
  const clients: NbdClient[] = []
  while (clients.length < count) clients.push(...await Promise.all(Array.from({ length: Math.min(100, count - clients.length) }, () => NbdClient.connect(address))))
  return clients
}

async function disconnect(clients: readonly NbdClient[]): Promise<void> {
  await Promise.all(clients.map((client) => client.disconnect()))
}

/** Writes and reads back until the time is over. @returns requests */
async function work(client: NbdClient, part: number, random: Random, endMs: number): Promise<number> {
  let requests = 0
  for (; performance.now() < endMs; requests += 2) {
    const bytes = Buffer.alloc(random.pick([512, 4096, 4096, 65_536]), random.uint32())
    const at = part * PART_BYTES + random.below(PART_BYTES - bytes.length)
    await client.write(bytes, at)
    if (!(await client.read(at, bytes.length)).equals(bytes)) throw new Error(`connection ${part} did not read what it wrote at ${at}`)
  }
  return requests
}

/** serve-memory.ts in a process of its own. */
class MemoryServer implements AsyncDisposable {
  readonly address: string
  readonly #child
  readonly #ended

  private constructor(socket: string) {
    this.address = `unix:${socket}`
    this.#child = spawn(process.execPath, [path.join(import.meta.dirname, '../serve-memory.ts'), socket, String(ACTIVE * PART_BYTES), String(IDLE + ACTIVE + 10)], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#ended = once(this.#child, 'close')
  }

  static async start(socket: string): Promise<MemoryServer> {
    const server = new MemoryServer(socket)
    await once(server.#child.stdout, 'data')
    return server
  }

  get residentKiB(): number {
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.#child.pid}/status`, 'utf8'))![1])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end()
    await this.#ended
    if (this.#child.exitCode !== 0) throw new Error(`the server ended with ${this.#child.exitCode ?? this.#child.signalCode}`)
  }
}

/** Clients that do nothing. @returns them, and by how much each made the server grow */
async function connectIdle(server: MemoryServer): Promise<{ idle: NbdClient[]; growthKiB: number }> {
  // What is allocated once for all, and code that is compiled, is not what a connection costs.
  await disconnect(await connect(server.address, WARM_UP))
  const before = server.residentKiB
  const idle = await connect(server.address, IDLE)
  return { idle, growthKiB: (server.residentKiB - before) / IDLE }
}

export async function run(): Promise<BenchResult> {
  const seed = testSeed()
  const random = new Random(seed)
  using scratch = new ScratchDirectory('idle')
  const growthsKiB: number[] = []
  for (let round = 1; round < ROUNDS; round++) {
    await using server = await MemoryServer.start(scratch.join(`${round}`))
    const { idle, growthKiB } = await connectIdle(server)
    growthsKiB.push(growthKiB)
    await disconnect(idle)
  }
  await using server = await MemoryServer.start(scratch.join('last'))
  const { idle, growthKiB } = await connectIdle(server)
  growthsKiB.push(growthKiB)
  const active = await connect(server.address, ACTIVE)
  const startedMs = performance.now()
  const requests = await Promise.all(active.map((client, part) => work(client, part, new Random(random.uint32()), startedMs + SECONDS * 1000)))
  const seconds = (performance.now() - startedMs) / 1000
  const residentMiB = server.residentKiB / 1024
  // The idle ones are still there, each of them.
  for (const client of idle) await client.read(0, 512)
  await disconnect([...idle, ...active])
  return {
    bench: 'idle',
    machine: machine(),
    versions: { node: process.version },
    seed,
    figures: [
      figure({ name: 'memory per idle connection', unit: 'KiB', ours: growthsKiB, moreIsBetter: false, oursMax: 64 }),
      figure({ name: `requests of ${ACTIVE} active connections beside ${IDLE} idle ones`, unit: '1/s', ours: [requests.reduce((sum, count) => sum + count, 0) / seconds], moreIsBetter: true }),
      figure({ name: 'requests of the slowest active connection', unit: '1/s', ours: [Math.min(...requests) / seconds], moreIsBetter: true }),
      figure({ name: 'memory of the server at the end', unit: 'MiB', ours: [residentMiB], moreIsBetter: false }),
    ],
    notes: [
      `${SECONDS} s, all reads checked, no error; each active connection writes and reads 512 bytes to 64 KiB in turns, one request at a time`,
      `memory is the growth of the resident set when ${IDLE} clients have connected, after ${WARM_UP} had come and gone, each time in a new process; it includes garbage that is not collected yet`,
      `the server's process also holds the disk, ${(ACTIVE * PART_BYTES) >> 20} MiB at most; the clients take processor time of the same machine`,
    ],
  }
}
