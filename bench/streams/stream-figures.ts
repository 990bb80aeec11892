/**
 * What is said of fills and storms, against the goals of streaming.
 */
import { figure } from '../figures.ts'
import type { Figure } from '../figures.ts'
import type { LineSetting } from '../boot/measure.ts'
import type { FillRun } from './fill.ts'
import type { StormRun } from './storm.ts'

export interface FillRuns {
  /** The server knows from other days what is used. */
  heat: FillRun
  /** It does not. */
  diskOrder: FillRun
  line: LineSetting
}

export function fillFigures({ heat, diskOrder, line }: FillRuns): Figure[] {
  const share = (run: FillRun): number => (run.fillBytes * 8) / (line.megabitsPerSecond * 1e3 * run.fillMs) * 100
  const one = (name: string, unit: string, value: number, goals: { oursMax?: number; oursMin?: number } = {}): Figure => figure({ name, unit, ours: [value], moreIsBetter: goals.oursMin !== undefined, ...goals })
  return [
    one('misses after the mark by heat, over those in disk order', 'x', heat.missesOfDay / diskOrder.missesOfDay, { oursMax: 0.2 }),
    one('misses after the mark, by heat', '', heat.missesOfDay),
    one('misses after the mark, in disk order', '', diskOrder.missesOfDay),
    one('reads after the mark that waited, by heat', '', heat.readsOfDay - heat.readsLocal),
    one('reads after the mark that waited, in disk order', '', diskOrder.readsOfDay - diskOrder.readsLocal),
    one('misses before the mark', '', heat.missesOfBoot),
    one('local reads while it fills, p99 over that of the same when it is complete', 'x', percentile(heat.fillLatencyMs, 99) / percentile(heat.completeLatencyMs, 99), { oursMax: 1.2 }),
    ...([50, 99] as const).flatMap((percent) => [
      one(`local reads while it fills, p${percent}`, 'ms', percentile(heat.fillLatencyMs, percent)),
      one(`the same when it is complete, p${percent}`, 'ms', percentile(heat.completeLatencyMs, percent)),
    ]),
    one('share of the line that is used from the mark until all has come, by heat', '%', share(heat), { oursMin: 95 }),
    one('share of the line that is used from the mark until all has come, in disk order', '%', share(diskOrder), { oursMin: 95 }),
    one('from the mark until all has come, by heat', 's', heat.fillMs / 1000),
  ]
}

/** @param percent 1 .. 100 */
export function percentile(values: readonly number[], percent: number): number {
  if (values.length === 0) throw new RangeError('a percentile needs values')
  return [...values].sort((a, b) => a - b)[Math.ceil((values.length * percent) / 100) - 1]
}

export interface StormRuns {
  name: string
  single: StormRun
  storm: StormRun
  /** Undefined: none. */
  line?: LineSetting
}

export function stormFigures({ name, single, storm, line }: StormRuns): Figure[] {
  const slowestMs = Math.max(...storm.boots.map(({ ms }) => ms))
  const bytes = storm.boots.reduce((sum, { agent }) => sum + (agent?.receivedBytes ?? 0), 0)
  const lineMs = line === undefined ? 0 : (bytes * 8) / (line.megabitsPerSecond * 1e3)
  const singleMs = single.boots[0].ms
  const one = (what: string, unit: string, value: number, oursMax?: number): Figure => figure({ name: `${name}: ${what}`, unit, ours: [value], moreIsBetter: false, oursMax })
  return [
    one('the slowest over the floor, which is a single one or the line', 'x', slowestMs / Math.max(singleMs, lineMs), 1.3),
    one('the slowest', 's', slowestMs / 1000),
    one('a single one', 's', singleMs / 1000),
    ...(line === undefined ? [] : [
      one('bytes of all over the rate of the line', 's', lineMs / 1000),
      // Each chunk comes to an agent once: the one that has the most of them has all that were stored.
      one('read from the disk of the server, over what is stored of what came', 'x', storm.originReadBytes / Math.max(...storm.boots.map(({ agent }) => agent!.receivedBytes)), 1.1),
      one('misses of the slowest', '', storm.boots.reduce((a, b) => (a.ms > b.ms ? a : b)).agent!.misses),
    ]),
    one('read from the disk of the server, over what is read for a single one', 'x', storm.originReadBytes / single.originReadBytes),
    one('read from the disk of the server', 'MiB', storm.originReadBytes / 2 ** 20),
  ]
}
