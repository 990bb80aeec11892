/**
 * A day of use on a target that fills: `varve agent stream` at the near end of a line, a recorded boot and the day after it replayed on its disk until that
 * is complete; then the same reads of that day once more, when nothing fills any more.
 */
import { closeSync, openSync, readdirSync, readSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { StreamStatus } from '@varve/agent/stream/streaming.ts'
import { controlRequest } from '@varve/blockserver/control/client.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { DelayLine } from '@varve/tools/wan/delay-line.ts'
import { ScratchDirectory, varve, VarveServer } from '../../test/varve-command.ts'
import { CVD, execute } from '../boot/images.ts'
import type { LineSetting } from '../boot/measure.ts'
import { RequestCounter } from '../boot/requests.ts'
import { VarveProcess } from '../boot/varve-process.ts'
import type { RecordedRead } from './recording.ts'
import type { Recordings } from './recordings.ts'
import { replay } from './replay.ts'

const RESIDENT = 'varve:resident'
const LOOK_EACH_MS = 250
/** Far above what filling takes. */
const FILL_MS_MAX = 60 * 60_000

export interface FillRun {
  /** Chunks that were waited for: until the mark, and after it. */
  missesOfBoot: number
  missesOfDay: number
  /** Reads after the mark until the disk was complete, and those of them that found all there. */
  readsOfDay: number
  readsLocal: number
  /** Of the latter while the disk filled, and, if they were made again, of the same when it was complete, ms. */
  fillLatencyMs: number[]
  completeLatencyMs: number[]
  /** From the mark until all had come. */
  fillMs: number
  /** Bytes down the line meanwhile. */
  fillBytes: number
}

export interface FillOptions {
  recordings: Recordings
  /** Is copied: it learns. */
  home: string
  line: LineSetting
  /** Whether to read once more from the complete disk. */
  again: boolean
}

export async function measureFill({ recordings: { day, rawFile }, home: from, line: setting, again }: FillOptions): Promise<FillRun> {
  using scratch = new ScratchDirectory('fill')
  const home = scratch.join('home')
  execute('cp', ['-a', from, home])
  await using server = await VarveServer.start(home, `unix:${scratch.join('far.sock')}`, { args: ['--http', '127.0.0.1:0'] })
  const { token } = varve(home, ['agent', 'token']).json as { token: string }
  const counter = new RequestCounter('stream')
  await using line = await DelayLine.open({
    listen: '127.0.0.1:0',
    target: (server.document as { http: string }).http,
    delayMs: setting.roundTripMs / 2,
    bitsPerSecond: setting.megabitsPerSecond * 1e6,
    onSent: (connection, bytes) => counter.sent(connection, bytes),
    onReceived: (connection, bytes) => counter.received(connection, bytes),
  })
  const socket = scratch.join('near.sock')
  await using agent = new VarveProcess([
    'agent', 'stream', CVD, '--to', scratch.join('target.raw'), '--nbd', `unix:${socket}`, '--from', `http://${line.address}`, '--token', token, '--identity', scratch.join('identity.json'),
  ], { XDG_RUNTIME_DIR: scratch.path })
  await agent.document()
  using guest = new GuestReads(await NbdClient.connect(`unix:${socket}`, { exportName: CVD, contexts: [RESIDENT] }), rawFile)

  await replay(day.reads.filter(({ ms }) => ms <= day.markMs), { read: (read) => guest.read(read) })
  const missesOfBoot = counter.counts.misses
  const bytesBefore = line.figures.down.bytes
  const startMs = performance.now()
  const reads = day.reads.filter(({ ms }) => ms > day.markMs).map((read) => ({ ...read, ms: read.ms - day.markMs }))
  const local: number[] = []
  const fillLatencyMs: number[] = []
  const filled = new AbortController()
  const whenFilled = until(scratch.join('varve-agent'), ['verify', 'complete']).then(() => {
    const fillMs = performance.now() - startMs
    filled.abort()
    return { fillMs, fillBytes: line.figures.down.bytes - bytesBefore }
  })
  const readsOfDay = await replay(reads, {
    signal: filled.signal,
    read: async (read, index) => {
      const isLocal = await guest.isLocal(read)
      const ms = await guest.read(read)
      if (!isLocal) return
      local.push(index)
      fillLatencyMs.push(ms)
    },
  })
  const missesOfDay = counter.counts.misses - missesOfBoot
  const { fillMs, fillBytes } = await whenFilled
  const readWhenComplete = async (): Promise<number[]> => {
    await until(scratch.join('varve-agent'), ['complete'])
    const latencies: number[] = []
    await replay(reads.slice(0, readsOfDay), {
      read: async (read, index) => {
        await guest.isLocal(read)
        latencies[index] = await guest.read(read)
      },
    })
    return local.map((index) => latencies[index])
  }
  const completeLatencyMs = again ? await readWhenComplete() : []
  return { missesOfBoot, missesOfDay, readsOfDay, readsLocal: local.length, fillLatencyMs, completeLatencyMs, fillMs, fillBytes }
}

/** Reads as a guest, of an agent; each is compared with the disk. */
class GuestReads implements Disposable {
  readonly #client: NbdClient
  readonly #fd: number

  constructor(client: NbdClient, rawFile: string) {
    this.#client = client
    this.#fd = openSync(rawFile, 'r')
  }

  /** @returns how long it took, ms */
  async read({ offset, length }: RecordedRead): Promise<number> {
    const startMs = performance.now()
    const bytes = await this.#client.read(offset, length)
    const ms = performance.now() - startMs
    const expected = Buffer.allocUnsafe(length)
    readSync(this.#fd, expected, 0, length, offset)
    if (!bytes.equals(expected)) throw new Error(`${length} bytes at ${offset} are not those of the disk`)
    return ms
  }

  async isLocal({ offset, length }: RecordedRead): Promise<boolean> {
    const [run] = (await this.#client.blockStatus(offset, length, { one: true, contexts: [RESIDENT] })).get(RESIDENT)!
    return run.flags === 1 && run.length >= length
  }

  [Symbol.dispose](): void {
    this.#client.destroy()
    closeSync(this.#fd)
  }
}

/** Resolves when the agent is in one of the phases. @param directory where its control socket is */
async function until(directory: string, phases: readonly StreamStatus['phase'][]): Promise<void> {
  const [socket] = readdirSync(directory)
  for (const endMs = performance.now() + FILL_MS_MAX; performance.now() < endMs;) {
    const { phase, error } = (await controlRequest(path.join(directory, socket), 'status', {})) as unknown as StreamStatus
    if (phases.includes(phase)) return
    if (error !== null) throw new Error(`the agent says: ${error}`)
    await sleep(LOOK_EACH_MS)
  }
  throw new Error(`the target did not fill within ${FILL_MS_MAX} ms`)
}
