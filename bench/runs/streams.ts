/**
 * Recorded reads of a real guest, replayed with its think times: a day of use while a target fills, by heat and in disk order, and boot storms.
 * Guests that run meanwhile would measure the processor. Parameters are in bench/README.md. Debian packages: qemu-system-x86, mmdebstrap, libnbd-bin.
 */
import { mkdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { ScratchDirectory } from '../../test/varve-command.ts'
import { execute } from '../boot/images.ts'
import type { LineSetting } from '../boot/measure.ts'
import { machine, version } from '../figures.ts'
import type { BenchResult, Figure } from '../figures.ts'
import { measureFill } from '../streams/fill.ts'
import { INVOCATIONS } from '../streams/day.ts'
import { DESKS, prepareRecordings, SEED, TEACHING_DAYS } from '../streams/recordings.ts'
import type { Recordings } from '../streams/recordings.ts'
import { measureStorm } from '../streams/storm.ts'
import { fillFigures, stormFigures } from '../streams/stream-figures.ts'

const PARTS = new RegExp(process.env.VARVE_BENCH_PARTS ?? '')
const DIRECTORY = process.env.VARVE_BENCH_IMAGES ?? path.join(tmpdir(), 'varve-bench-boot')
const THIN: LineSetting = { megabitsPerSecond: 20, roundTripMs: 40 }
const SITE: LineSetting = { megabitsPerSecond: 1000, roundTripMs: 2 }
const AGENTS = 20

async function fills(recordings: Recordings): Promise<Figure[]> {
  const [heat, diskOrder] = [await measureFill({ recordings, home: recordings.taughtHome, line: THIN, again: true }), await measureFill({ recordings, home: recordings.home, line: THIN, again: false })]
  return fillFigures({ heat, diskOrder, line: THIN })
}

async function storms(recordings: Recordings, kind: 'agents' | 'clients'): Promise<Figure[]> {
  using scratch = new ScratchDirectory('storm-home')
  const home = scratch.join('home')
  execute('cp', ['-a', recordings.home, home])
  const setting = { recordings, home, line: kind === 'agents' ? SITE : undefined }
  const count = kind === 'agents' ? AGENTS : DESKS
  const [single, storm] = [await measureStorm({ ...setting, count: 1 }), await measureStorm({ ...setting, count })]
  return stormFigures({ name: `${count} ${kind === 'agents' ? 'agents of one site' : 'NBD clients'}`, single, storm, line: setting.line })
}

export async function run(): Promise<BenchResult> {
  mkdirSync(DIRECTORY, { recursive: true })
  const recordings = await prepareRecordings(path.resolve(DIRECTORY))
  const { day } = recordings
  const parts: Record<string, () => Promise<Figure[]>> = {
    fill: () => fills(recordings),
    agents: () => storms(recordings, 'agents'),
    clients: () => storms(recordings, 'clients'),
  }
  const figures: Figure[] = []
  for (const [name, measure] of Object.entries(parts)) {
    if (!PARTS.test(name)) continue
    console.error(`measuring ${name}`)
    figures.push(...await measure())
  }
  const bootReads = day.reads.filter(({ ms }) => ms <= day.markMs).length
  return {
    bench: 'streams',
    machine: machine(),
    versions: { node: process.version, qemu: version('qemu-system-x86_64', '--version') },
    seed: SEED,
    figures,
    notes: [
      `recorded: a boot of ${(day.markMs / 1000).toFixed(1)} s with ${bootReads} reads, then a day of ${day.actions.length} actions in ${((day.reads.at(-1)!.ms - day.markMs) / 1000).toFixed(0)} s with ${day.reads.length - bootReads} reads; actions are drawn from ${INVOCATIONS.length} (Zipf), ${TEACHING_DAYS} other days taught the heat`,
      'the guest was emulated when it was recorded, several times slower than a real one: its think times are long, and a line matters less, than on hardware',
      `the fill has a line of ${THIN.megabitsPerSecond} Mbit/s and ${THIN.roundTripMs} ms there and back, agents of a site share one of ${SITE.megabitsPerSecond} Mbit/s and ${SITE.roundTripMs} ms; lines are a process's, lose nothing and have no slow start`,
      'a read is replayed after all whose answers the guest had when it asked for it: where two programs read at once, one may wait for the other that did not then',
      'guests, agents, server and line share the processors and the disk of this machine',
    ],
  }
}
