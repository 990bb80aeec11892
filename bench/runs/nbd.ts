/**
 * Our NBD server beside nbdkit, qemu-nbd and nbd-server: the same disk, the same client, in turns.
 * Debian packages: nbdkit, qemu-utils, nbd-server, libnbd-bin, fio.
 *
 * VARVE_BENCH_ROUNDS, VARVE_BENCH_MS (of one measurement), VARVE_BENCH_ROWS and VARVE_BENCH_PEERS (regular expressions), VARVE_BENCH_MIB
 * (content), VARVE_BENCH_WARM_MIB (span of warm reads), VARVE_BENCH_DISKS (a directory in which the disks are kept for later runs),
 * VARVE_BENCH_SERVE (arguments of `varve serve`), VARVE_TEST_SEED.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { loadavg, tmpdir } from 'node:os'
import path from 'node:path'
import { testSeed } from '../../test/random.ts'
import { figure, machine, spread, version } from '../figures.ts'
import type { BenchResult, Figure } from '../figures.ts'
import { manifestFile, prepareDisks } from '../nbd/disks.ts'
import type { Disks } from '../nbd/disks.ts'
import { LineUp, OURS } from '../nbd/line-up.ts'
import type { Contender } from '../nbd/line-up.ts'
import { LoadGenerator } from '../nbd/load-generator.ts'
import { dataSpan, measure, totalBytes, touch, unitOf } from '../nbd/measure.ts'
import type { Measured, MeasureOptions } from '../nbd/measure.ts'
import { ROWS } from '../nbd/rows.ts'
import type { Row } from '../nbd/rows.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 3)
const TIMED_MS = Number(process.env.VARVE_BENCH_MS ?? 500)
const LEAD_MS = 100
const CONTENT_MIB = Number(process.env.VARVE_BENCH_MIB ?? 1024)
/** Less than `varve serve` keeps in memory. */
const WARM_MIB = Number(process.env.VARVE_BENCH_WARM_MIB ?? 192)
const WRITTEN_BYTES = 128 << 20
/** Latency with 64 layers over that with 1. */
const DEPTH_RATIO_MAX = 1.05

/** What was measured of a row, by contender. */
type Results = Map<Row, Map<string, Measured[]>>

export async function run(): Promise<BenchResult> {
  const seed = testSeed()
  const rowFilter = new RegExp(process.env.VARVE_BENCH_ROWS ?? '')
  const peers = new RegExp(process.env.VARVE_BENCH_PEERS ?? '')
  const rows = ROWS.filter(({ name }) => rowFilter.test(name))
  if (rows.length === 0) throw new Error(`VARVE_BENCH_ROWS matches none of\n${ROWS.map(({ name }) => `  ${name}`).join('\n')}`)
  const scratch = mkdtempSync(path.join(tmpdir(), 'varve-bench-'))
  const kept = process.env.VARVE_BENCH_DISKS
  const directory = path.resolve(kept ?? path.join(scratch, 'disks'))
  const results: Results = new Map(rows.map((row) => [row, new Map()]))
  const loadBefore = loadavg()[0]
  // An interrupted run ends its servers, of which one has left the process group, and removes what it made.
  const interrupted = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)))
  try {
    mkdirSync(directory, { recursive: true })
    const disks = await prepareDisks(directory, { contentBytes: CONTENT_MIB * 2 ** 20, seed })
    const warm = dataSpan(disks, 5, WARM_MIB * 2 ** 20)
    using generator = new LoadGenerator(manifestFile(directory))
    const options: MeasureOptions = { disks, generator, warm, written: dataSpan(disks, 5, WRITTEN_BYTES), timedMs: TIMED_MS, leadMs: LEAD_MS, seed }
    for (const transport of ['unix', 'tcp'] as const) {
      const mine = rows.filter((row) => row.transport === transport)
      if (mine.length === 0) continue
      await using lineUp = await LineUp.start(disks, mine, { transport, scratch, peers })
      await measureRows(lineUp, mine, { ...options, signal: interrupted.signal }, results)
    }
    return {
      bench: 'nbd',
      machine: machine(),
      versions: { node: process.version, nbdkit: version('nbdkit', '--version'), 'qemu-nbd': version('qemu-nbd', '--version'), 'nbd-server': version('nbd-server', '-V'), nbdcopy: version('nbdcopy', '--version'), fio: version('fio', '--version') },
      seed,
      figures: rows.map((row) => rateFigure(row, results.get(row)!)).concat(rows.flatMap((row) => besideFigures(row, results.get(row)!))),
      notes: notes(disks, loadBefore, results),
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

async function measureRows(lineUp: LineUp, rows: readonly Row[], options: MeasureOptions & { signal: AbortSignal }, results: Results): Promise<void> {
  const add = (row: Row, name: string, measured: Measured): void => {
    const of = results.get(row)!
    of.set(name, [...(of.get(name) ?? []), measured])
  }
  for (let round = 0; round < ROUNDS; round++) {
    console.error(`Round ${round + 1} of ${ROUNDS}, ${rows[0].transport}`)
    const seeded = { ...options, seed: (options.seed + round) >>> 0 }
    await touchAll(lineUp, rows, round, seeded)
    for (const [index, row] of rows.entries()) {
      options.signal.throwIfAborted()
      if (row.kind === 'cold') {
        for (const name of rotated(lineUp.freshNames(row), round + index)) {
          const contender = await lineUp.fresh(name)
          await using _server = contender.server
          add(row, name, await measure(contender, row, seeded))
        }
      } else {
        for (const contender of rotated(lineUp.contenders(row), round + index)) add(row, contender.name, await measure(contender, row, seeded))
      }
    }
  }
}

/** Whatever is read is read once before, in the first round all of it; and what is written is written. */
async function touchAll(lineUp: LineUp, rows: readonly Row[], round: number, options: MeasureOptions): Promise<void> {
  const all = { offset: 0, length: options.disks.byLayers[5].sizeBytes }
  const reading = new Map<Contender, Row>()
  const writing = new Map<Contender, Row>()
  for (const row of rows) {
    if (row.kind === 'cold' || row.kind === 'depth') continue
    for (const contender of lineUp.contenders(row)) (row.kind === 'write' ? writing : reading).set(contender, row)
  }
  for (const [contender, row] of reading) {
    if (round === 0) await touch(contender, row, { ...options, span: all })
    await touch(contender, row, { ...options, span: options.warm })
  }
  if (round === 0) for (const [contender, row] of writing) await touch(contender, row, { ...options, span: options.written })
}

function rotated<Item>(items: readonly Item[], by: number): Item[] {
  const start = by % items.length
  return [...items.slice(start), ...items.slice(0, start)]
}

/** A measured property of all contenders, as `figure` takes it. */
function valuesOf(results: Map<string, Measured[]>, property: keyof Measured): { ours: number[]; peers: Record<string, number[]> } {
  const { [OURS]: ours, ...peers } = Object.fromEntries([...results].map(([name, measured]) => [name, measured.map((one) => one[property]!)]))
  return { ours, peers }
}

function rateFigure(row: Row, results: Map<string, Measured[]>): Figure {
  const common = { name: row.name, unit: unitOf(row), ...valuesOf(results, 'rate') }
  return row.kind === 'depth' ? figure({ ...common, moreIsBetter: false, oursMax: DEPTH_RATIO_MAX }) : figure({ ...common, moreIsBetter: true, ratioMinTo: row.goals })
}

/** What else was measured of a row. */
function besideFigures(row: Row, results: Map<string, Measured[]>): Figure[] {
  const properties = [['p50Us', 'p50', 'µs'], ['p99Us', 'p99', 'µs'], ['serverCpuUs', 'server CPU', row.kind === 'copy' ? 'µs/MiB' : 'µs/request']] as const
  return properties
    .filter(([property]) => results.get(OURS)![0][property] !== undefined)
    .map(([property, name, unit]) => figure({ name: `${row.name}: ${name}`, unit, ...valuesOf(results, property), moreIsBetter: false }))
}

function notes(disks: Disks, loadBefore: number, results: Results): string[] {
  const { sizeBytes, extents } = disks.byLayers[5]
  const cpu = [...results].flatMap(([row, of]) => {
    const shares = [...of].filter(([, measured]) => measured[0].clientCpu !== undefined).map(([name, measured]) => `${name} ${spread(measured.map(({ clientCpu }) => clientCpu!)).median.toFixed(2)}`)
    return shares.length === 0 ? [] : [`client CPU, cores, ${row.name}: ${shares.join(', ')}`]
  })
  return [
    `disk: ${disks.files} files of /usr, ${(totalBytes(extents) / 2 ** 20).toFixed(0)} MiB of data in ${(sizeBytes / 2 ** 20).toFixed(0)} MiB; in a chain each cluster of 64 KiB lies in a random image; warm reads within ${WARM_MIB} MiB of data`,
    `${ROUNDS} rounds in turns, ${TIMED_MS} ms each after a lead of ${LEAD_MS} ms, cold ones four times as long; reads by simple replies, nothing negotiated; after each load of ours a sample of what was read or written is read again and compared`,
    'page cache warm for all, compressed files too; a cold server is a process just started, and compiles its own code while it is measured',
    'nbdcopy passes over holes, which nbd-server does not tell; all of a disk may be more than our cache holds, and is never more than the page cache does',
    'a write without FUA reaches the page cache, or memory; nbdkit memory has nothing to make durable',
    `client and servers share ${machine().cores} cores: the client's part is below; load average ${loadBefore.toFixed(1)} before, ${loadavg()[0].toFixed(1)} after`,
    ...cpu,
  ]
}
