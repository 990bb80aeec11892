/**
 * A boot storm: many guests replay a boot at once, each on an agent of its own or straight on the server. What the server reads of its disk is
 * counted, from packs that are in no cache.
 */
import { fork } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { DelayLine } from '@varve/tools/wan/delay-line.ts'
import { ScratchDirectory, varve, VarveServer } from '../../test/varve-command.ts'
import { execute } from '../boot/images.ts'
import type { LineSetting } from '../boot/measure.ts'
import type { AgentFigures, AgentInit } from './agent-process.ts'
import type { GuestMark, GuestsInit } from './guests-process.ts'
import { deskName } from './recordings.ts'
import type { Recordings } from './recordings.ts'

export interface StormBoot {
  /** From when all begin to its mark. */
  ms: number
  /** Of its agent, if it has one, at its mark. */
  agent?: AgentFigures
}

export interface StormRun {
  boots: StormBoot[]
  /** What the server's process read of disks while it lasted. */
  originReadBytes: number
}

export interface StormOptions {
  recordings: Recordings
  /** A copy of one of theirs, which is served. */
  home: string
  count: number
  /** Of agents; without it there are none, and guests are straight on the server. */
  line?: LineSetting
}

/** What was loaded and compiled comes to rest. */
const REST_MS = 2000

export async function measureStorm({ recordings: { rawFile, dayFile }, home, count, line: setting }: StormOptions): Promise<StormRun> {
  using scratch = new ScratchDirectory('storm')
  const desks = Array.from({ length: count }, (_, index) => deskName(index + 1))
  await using server = await VarveServer.start(home, `unix:${scratch.join('nbd.sock')}`, { args: ['--http', '127.0.0.1:0'] })
  using processes = new Processes()
  const agents: ChildProcess[] = []
  await using line = setting === undefined ? undefined : await openLine(server, setting)
  if (line !== undefined) {
    const { token } = varve(home, ['agent', 'token', '--uses', String(count)]).json as { token: string }
    for (const cvd of desks) {
      agents.push(await processes.start('agent-process.ts', { cvd, target: scratch.join(cvd), socket: scratch.join(`${cvd}.sock`), serverUrl: `http://${httpOf(server)}`, lineUrl: `http://${line.address}`, token } satisfies AgentInit))
    }
  }
  const exports = desks.map((name) => ({ name, address: line === undefined ? server.addresses[0] : `unix:${scratch.join(`${name}.sock`)}` }))
  const guests = await processes.start('guests-process.ts', { recordingFile: dayFile, rawFile, exports } satisfies GuestsInit)
  await sleep(REST_MS)
  dropFromCache(path.join(home, 'packs'))
  const before = diskReadBytes(server)
  const booted = bootsOf(guests, { agents, count })
  for (const child of [...agents, guests]) child.send('begin')
  const boots = await Promise.race([booted, processes.failed])
  return { boots, originReadBytes: diskReadBytes(server) - before }
}

/** Resolves when all guests have booted. */
function bootsOf(guests: ChildProcess, { agents, count }: { agents: readonly ChildProcess[]; count: number }): Promise<StormBoot[]> {
  return new Promise((resolve) => {
    const boots: Promise<StormBoot>[] = []
    guests.on('message', ({ guest, ms }: GuestMark) => {
      boots.push(figuresOf(agents.at(guest)).then((agent) => ({ ms, agent })))
      if (boots.length === count) resolve(Promise.all(boots))
    })
  })
}

function openLine(server: VarveServer, { roundTripMs, megabitsPerSecond }: LineSetting): Promise<DelayLine> {
  return DelayLine.open({ listen: '127.0.0.1:0', target: httpOf(server), delayMs: roundTripMs / 2, bitsPerSecond: megabitsPerSecond * 1e6 })
}

function httpOf(server: VarveServer): string {
  return (server.document as { http: string }).http
}

async function figuresOf(agent: ChildProcess | undefined): Promise<AgentFigures | undefined> {
  if (agent === undefined) return undefined
  const answered = new Promise<AgentFigures>((resolve) => agent.once('message', resolve))
  agent.send('figures')
  return answered
}

/** Processes of a storm; their targets are thrown away, so that none is waited for. */
class Processes implements Disposable {
  readonly #children: ChildProcess[] = []
  readonly #failure = Promise.withResolvers<never>()

  constructor() {
    this.#failure.promise.catch(() => undefined)
  }

  /** Rejected when one of them ends. */
  get failed(): Promise<never> {
    return this.#failure.promise
  }

  /** Resolves when it is ready. */
  async start(file: string, init: AgentInit | GuestsInit): Promise<ChildProcess> {
    const child = fork(path.join(import.meta.dirname, file), { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], execArgv: ['--disable-warning=ExperimentalWarning'] })
    this.#children.push(child)
    child.once('exit', (status, signal) => this.#failure.reject(new Error(`${file} ended with ${status ?? signal}`)))
    const ready = new Promise((resolve) => child.once('message', resolve))
    child.send(init)
    await Promise.race([ready, this.failed])
    return child
  }

  [Symbol.dispose](): void {
    for (const child of this.#children) child.kill('SIGKILL')
  }
}

/** What a storm finds on the disk alone, as after a night in which other things were read. */
function dropFromCache(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile()) continue
    const file = path.join(entry.parentPath, entry.name)
    // What is not on the disk yet stays in the cache.
    execute('sync', [file])
    execute('dd', [`if=${file}`, 'iflag=nocache', 'count=0'])
  }
}

function diskReadBytes(server: VarveServer): number {
  return Number(/^read_bytes: (\d+)$/m.exec(readFileSync(`/proc/${server.process.pid}/io`, 'utf8'))![1])
}
