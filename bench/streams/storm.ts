/**
 * A boot storm: many clients of one server replay a boot at once. What the server reads of its disk is counted, from packs that are in no cache.
 */
import { fork } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { DelayLine } from '@varve/tools/wan/delay-line.ts'
import { ScratchDirectory, varve, VarveServer } from '../../test/varve-command.ts'
import { execute } from '../boot/images.ts'
import type { LineSetting } from '../boot/measure.ts'
import { deskName } from './recordings.ts'
import type { Recordings } from './recordings.ts'
import type { ClientBoot, Storm, StormAnswer } from './storm-process.ts'

export interface StormRun {
  boots: ClientBoot[]
  /** What the server's process read of disks while it lasted. */
  originReadBytes: number
}

export interface StormOptions {
  recordings: Recordings
  /** A copy of one of theirs, which it is served from. */
  home: string
  count: number
  /** Of agents; clients are straight on the server. */
  line?: LineSetting
}

export async function measureStorm({ recordings: { rawFile, dayFile }, home, count, line: setting }: StormOptions): Promise<StormRun> {
  using scratch = new ScratchDirectory('storm')
  const desks = Array.from({ length: count }, (_, index) => deskName(index + 1))
  const common = { recordingFile: dayFile, rawFile }
  await using server = await VarveServer.start(home, `unix:${scratch.join('nbd.sock')}`, { args: ['--http', '127.0.0.1:0'] })
  const http = (server.document as { http: string }).http
  if (setting === undefined) return await run({ ...common, kind: 'clients', address: server.addresses[0], exports: desks }, { home, server })
  const { token } = varve(home, ['agent', 'token', '--uses', String(count)]).json as { token: string }
  await using line = await DelayLine.open({ listen: '127.0.0.1:0', target: http, delayMs: setting.roundTripMs / 2, bitsPerSecond: setting.megabitsPerSecond * 1e6 })
  return await run({ ...common, kind: 'agents', serverUrl: `http://${http}`, lineUrl: `http://${line.address}`, token, directory: scratch.path, cvds: desks }, { home, server })
}

async function run(storm: Storm, { home, server }: { home: string; server: VarveServer }): Promise<StormRun> {
  const clients = fork(path.join(import.meta.dirname, 'storm-process.ts'), { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], execArgv: ['--disable-warning=ExperimentalWarning'] })
  try {
    const ready = nextAnswer(clients)
    clients.send(storm)
    await ready
    dropFromCache(path.join(home, 'packs'))
    const before = diskReadBytes(server.process.pid!)
    const booted = nextAnswer(clients)
    clients.send('begin')
    const { boots } = (await booted) as { boots: ClientBoot[] }
    return { boots, originReadBytes: diskReadBytes(server.process.pid!) - before }
  } finally {
    clients.kill('SIGKILL')
  }
}

/** @throws Error if the process fails, or ends */
function nextAnswer(clients: ChildProcess): Promise<StormAnswer> {
  return new Promise((resolve, reject) => {
    clients.once('message', (told: StormAnswer) => {
      if ('error' in told) reject(new Error(told.error))
      else resolve(told)
    })
    clients.once('exit', (status, signal) => reject(new Error(`the clients ended with ${status ?? signal}`)))
  })
}

/** What a storm finds on the disk alone, as after a night in which other things were read. */
function dropFromCache(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true, recursive: true })) {
    if (entry.isFile()) execute('dd', [`if=${path.join(entry.parentPath, entry.name)}`, 'iflag=nocache', 'count=0'])
  }
}

function diskReadBytes(pid: number): number {
  return Number(/^read_bytes: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))![1])
}
