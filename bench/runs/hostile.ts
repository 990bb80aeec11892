/**
 * What an honest client of `varve serve` gets while hostile ones attack it, beside what it gets in peace. fio verifies nothing here: test/blockserver/nbd/soak.test.ts does.
 * Debian packages: fio. VARVE_BENCH_SECONDS: of one measurement, 5 unless set.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { DeskHome } from '../../test/integration/desk-home.ts'
import { run as runProgram } from '../../test/blockserver/nbd/serving.ts'
import { testSeed } from '../../test/random.ts'
import { varve } from '../../test/varve-command.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult } from '../figures.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 5)
const SECONDS = Number(process.env.VARVE_BENCH_SECONDS ?? 5)
const HOSTILE_CLIENTS = 24
const LOADS = ['randread', 'randwrite'] as const

/** Hostile clients in a process of their own, until they are told to stop. */
class Attack {
  readonly #child
  readonly #ended
  #output = ''

  private constructor(socketPath: string, seed: number) {
    this.#child = spawn(process.execPath, [path.join(import.meta.dirname, '../hostile-process.ts'), socketPath, 'desk', String(seed), String(HOSTILE_CLIENTS)], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#child.stdout.on('data', (bytes: Buffer) => (this.#output += bytes.toString()))
    this.#ended = once(this.#child, 'close')
  }

  static async begin(socketPath: string, seed: number): Promise<Attack> {
    const attack = new Attack(socketPath, seed)
    await once(attack.#child.stdout, 'data')
    return attack
  }

  /** @returns how often each act was done */
  async stop(): Promise<Record<string, number>> {
    this.#child.stdin.end()
    await this.#ended
    if (this.#child.exitCode !== 0) throw new Error(`the attackers ended with ${this.#child.exitCode ?? this.#child.signalCode}`)
    return JSON.parse(this.#output.slice(this.#output.indexOf('\n'))) as Record<string, number>
  }
}

/** Requests per second. @throws Error if one fails */
async function measure(uri: string, load: string, directory: string): Promise<number> {
  const { stdout } = await runProgram('fio', ['--name=honest', '--ioengine=nbd', `--uri=${uri}`, `--rw=${load}`, '--bs=4k', '--size=32m', '--iodepth=16', '--time_based', `--runtime=${SECONDS}`, '--randseed=1', `--aux-path=${directory}`, '--output-format=json'])
  const [job] = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs
  if (job.error !== 0) throw new Error(`fio ended with error ${job.error}`)
  return job[load === 'randread' ? 'read' : 'write'].iops
}

export async function run(): Promise<BenchResult> {
  const seed = testSeed()
  using home = new DeskHome({ size: '32M' })
  varve(home.path, ['cvd', 'create', 'honest', '--layer', 'files', '--boot', 'none', '--size', '32M'])
  await using server = await home.serve()
  const peace: Record<string, number[]> = { randread: [], randwrite: [] }
  const attacked: Record<string, number[]> = { randread: [], randwrite: [] }
  const acts: Record<string, number> = {}
  // So that what is measured does not depend on what is written for the first time.
  for (const load of LOADS) await measure(home.uri('honest'), load, home.scratch.path)
  for (let round = 0; round < ROUNDS; round++) {
    for (const load of LOADS) peace[load].push(await measure(home.uri('honest'), load, home.scratch.path))
    const attack = await Attack.begin(home.socket(), seed + round)
    for (const load of LOADS) attacked[load].push(await measure(home.uri('honest'), load, home.scratch.path))
    for (const [name, count] of Object.entries(await attack.stop())) acts[name] = (acts[name] ?? 0) + count
  }
  const status = await server.stop('SIGTERM')
  if (status !== 0) throw new Error(`varve serve ended with ${status}`)
  return {
    bench: 'hostile',
    machine: machine(),
    versions: { node: process.version, fio: version('fio', '--version') },
    seed,
    figures: LOADS.map((load) => figure({ name: `${load} of 4 KiB, depth 16, under attack`, unit: '1/s', ours: attacked[load], peers: { 'in peace': peace[load] }, moreIsBetter: true, ratioMin: 0.9 })),
    notes: [
      `${ROUNDS} rounds of ${SECONDS} s each in turns; ${HOSTILE_CLIENTS} hostile clients at once, another export; acts: ${Object.entries(acts).map(([name, count]) => `${name} ${count}`).join(', ')}`,
      'the attackers run at the lowest priority, but take processor time of the same machine all the same: run it where nothing else runs',
      'randwrite goes to blocks that were written before',
    ],
  }
}
