/**
 * Figures of a benchmark: medians of interleaved runs, beside the peers' of the same run, against goals.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'

export interface Spread {
  median: number
  min: number
  max: number
}

export interface Figure {
  name: string
  unit: string
  ours: Spread
  peers: Record<string, Spread>
  /** Against the best peer; above 1 is better for us. Null without peers. */
  ratio: number | null
  /** What `judge` compares with the goal: the ratio, or without peers our own median. */
  goal: string | null
  met: boolean | null
}

export interface BenchResult {
  bench: string
  machine: { cpu: string; cores: number; memoryMiB: number; kernel: string }
  versions: Record<string, string>
  seed: number | null
  figures: Figure[]
  /** What confounds the figures. */
  notes: string[]
}

/** Median, smallest and largest of measured values. */
export function spread(values: readonly number[]): Spread {
  if (values.length === 0) throw new RangeError('a figure needs a run')
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return { median: sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2, min: sorted[0], max: sorted.at(-1)! }
}

export interface FigureInit {
  name: string
  unit: string
  ours: readonly number[]
  peers?: Record<string, readonly number[]>
  /** True where more is better (throughput), false where less is (time, bytes). */
  moreIsBetter: boolean
  /** Least ratio against the best peer. */
  ratioMin?: number
  /** Largest value of our own median. */
  oursMax?: number
}

export function figure(init: FigureInit): Figure {
  const ours = spread(init.ours)
  const peers = Object.fromEntries(Object.entries(init.peers ?? {}).map(([name, values]) => [name, spread(values)]))
  const medians = Object.values(peers).map(({ median }) => median)
  const best = init.moreIsBetter ? Math.max(...medians) : Math.min(...medians)
  const ratio = medians.length === 0 ? null : init.moreIsBetter ? ours.median / best : best / ours.median
  const goals: string[] = []
  const met: boolean[] = []
  if (init.ratioMin !== undefined && ratio !== null) {
    goals.push(`ratio >= ${Number(init.ratioMin.toFixed(3))}`)
    met.push(ratio >= init.ratioMin)
  }
  if (init.oursMax !== undefined) {
    goals.push(`<= ${init.oursMax} ${init.unit}`)
    met.push(ours.median <= init.oursMax)
  }
  return { name: init.name, unit: init.unit, ours, peers, ratio, goal: goals.length === 0 ? null : goals.join(', '), met: met.length === 0 ? null : met.every(Boolean) }
}

export function machine(): BenchResult['machine'] {
  return { cpu: cpus()[0].model, cores: cpus().length, memoryMiB: Math.round(totalmem() / 2 ** 20), kernel: readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim() }
}

/** First line of what a program says of its version. */
export function version(command: string, ...args: string[]): string {
  return execFileSync('sh', ['-c', '"$@" 2>&1', 'sh', command, ...args], { encoding: 'utf8' }).split('\n')[0].trim()
}

function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(2) : value.toPrecision(3)
}

/** For people. */
export function printResult(result: BenchResult): string {
  const lines = [`${result.bench} on ${result.machine.cores} x ${result.machine.cpu}, ${result.machine.memoryMiB} MiB, Linux ${result.machine.kernel}`]
  lines.push(`with ${Object.entries(result.versions).map(([name, text]) => `${name} ${text}`).join(', ')}${result.seed === null ? '' : `, seed ${result.seed}`}`, '')
  const spreadText = ({ median, min, max }: Spread): string => (min === max ? number(median) : `${number(median)} (${number(min)}..${number(max)})`)
  for (const { name, unit, ours, peers, ratio, goal, met } of result.figures) {
    const beside = Object.entries(peers).map(([peer, value]) => `${peer} ${spreadText(value)}`).join(', ')
    lines.push(`${met === false ? 'MISSED ' : met === true ? 'met    ' : '       '}${name}: ${spreadText(ours)} ${unit}${beside === '' ? '' : `; ${beside}`}${ratio === null ? '' : `; ratio ${number(ratio)}`}${goal === null ? '' : `; goal ${goal}`}`)
  }
  return [...lines, '', ...result.notes.map((note) => `- ${note}`)].join('\n')
}
