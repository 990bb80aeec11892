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
  moreIsBetter: boolean
  ours: Spread
  peers: Record<string, Spread>
  /** Against the best peer; above 1 is better for us. Null without peers. */
  ratio: number | null
  /** Against each peer. */
  ratios: Record<string, number>
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
  /** Least ratios against peers by their names; a peer that was not measured is passed over. */
  ratioMinTo?: Record<string, number>
  /** Largest value of our own median. */
  oursMax?: number
  /** Least value of it. */
  oursMin?: number
}

export function figure(init: FigureInit): Figure {
  const ours = spread(init.ours)
  const peers = Object.fromEntries(Object.entries(init.peers ?? {}).map(([name, values]) => [name, spread(values)]))
  const medians = Object.values(peers).map(({ median }) => median)
  const best = init.moreIsBetter ? Math.max(...medians) : Math.min(...medians)
  const ratioTo = (peer: number): number => (init.moreIsBetter ? ours.median / peer : peer / ours.median)
  const ratio = medians.length === 0 ? null : ratioTo(best)
  const ratios = Object.fromEntries(Object.entries(peers).map(([name, { median }]) => [name, ratioTo(median)]))
  const goals: string[] = []
  const met: boolean[] = []
  if (init.ratioMin !== undefined && ratio !== null) {
    goals.push(`ratio >= ${Number(init.ratioMin.toFixed(3))}`)
    met.push(ratio >= init.ratioMin)
  }
  for (const [name, ratioMin] of Object.entries(init.ratioMinTo ?? {})) {
    if (!(name in peers)) continue
    goals.push(`${ratioMin} x ${name}`)
    met.push(ratios[name] >= ratioMin)
  }
  if (init.oursMax !== undefined) {
    goals.push(`<= ${init.oursMax} ${init.unit}`)
    met.push(ours.median <= init.oursMax)
  }
  if (init.oursMin !== undefined) {
    goals.push(`>= ${init.oursMin} ${init.unit}`)
    met.push(ours.median >= init.oursMin)
  }
  return { name: init.name, unit: init.unit, moreIsBetter: init.moreIsBetter, ours, peers, ratio, ratios, goal: goals.length === 0 ? null : goals.join(', '), met: met.length === 0 ? null : met.every(Boolean) }
}

export function machine(): BenchResult['machine'] {
  return { cpu: cpus()[0].model, cores: cpus().length, memoryMiB: Math.round(totalmem() / 2 ** 20), kernel: readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim() }
}

/** First line of what a program says of its version. */
export function version(command: string, ...args: string[]): string {
  return execFileSync('sh', ['-c', '"$@" 2>&1', 'sh', command, ...args], { encoding: 'utf8' }).split('\n')[0].trim()
}

/** More peers than these are printed as columns of a table. */
const PEERS_OF_LINE_MAX = 2

function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(2) : value.toPrecision(3)
}

function spreadText({ median, min, max }: Spread): string {
  return min === max ? number(median) : `${number(median)} (${number(min)}..${number(max)})`
}

/** For people. */
export function printResult(result: BenchResult): string {
  const lines = [`${result.bench} on ${result.machine.cores} x ${result.machine.cpu}, ${result.machine.memoryMiB} MiB, Linux ${result.machine.kernel}`]
  lines.push(`with ${Object.entries(result.versions).map(([name, text]) => `${name} ${text}`).join(', ')}${result.seed === null ? '' : `, seed ${result.seed}`}`, '')
  const tables = new Map<string, Figure[]>()
  for (const figure of result.figures) {
    const peers = Object.keys(figure.peers)
    const key = peers.length <= PEERS_OF_LINE_MAX ? '' : peers.sort().join('\n')
    tables.set(key, [...(tables.get(key) ?? []), figure])
  }
  for (const [key, figures] of tables) lines.push(...(key === '' ? figures.map(figureLine) : figureTable(figures)), '')
  return [...lines, ...result.notes.map((note) => `- ${note}`)].join('\n')
}

function metText(met: boolean | null): string {
  return met === false ? 'MISSED' : met === true ? 'met' : ''
}

function figureLine({ name, unit, ours, peers, ratio, goal, met }: Figure): string {
  const beside = Object.entries(peers).map(([peer, value]) => `${peer} ${spreadText(value)}`).join(', ')
  return `${metText(met).padEnd(7)}${name}: ${spreadText(ours)} ${unit}${beside === '' ? '' : `; ${beside}`}${ratio === null ? '' : `; ratio ${number(ratio)}`}${goal === null ? '' : `; goal ${goal}`}`
}

/** One row for each figure; of a peer its median, and our ratio to it. */
function figureTable(figures: readonly Figure[]): string[] {
  const peers = Object.keys(figures[0].peers).sort()
  const rows = [['', '', 'unit', 'ours', ...peers, 'goal']]
  for (const { name, unit, ours, peers: of, ratios, goal, met } of figures) {
    rows.push([metText(met), name, unit, spreadText(ours), ...peers.map((peer) => `${number(of[peer].median)} (${ratios[peer].toFixed(2)}x)`), goal ?? ''])
  }
  return aligned(rows)
}

function aligned(rows: readonly string[][]): string[] {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)))
  return rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column])).join('  ').trimEnd())
}

/** Figure by figure, two runs of one benchmark. Above 1 is better in the second; what only one of them has is listed too. */
export function compareResults(before: BenchResult, after: BenchResult): string {
  const rows = [['', 'unit', 'before', 'after', 'after is better by', 'ratio to the best peer before', 'after']]
  const names = new Set([...before.figures, ...after.figures].map(({ name }) => name))
  for (const name of names) {
    const [first, second] = [before, after].map(({ figures }) => figures.find((figure) => figure.name === name))
    const either = (first ?? second)!
    const better = first === undefined || second === undefined ? '' : number(either.moreIsBetter ? second.ours.median / first.ours.median : first.ours.median / second.ours.median)
    const text = (of: Figure | undefined): string => (of === undefined ? '-' : spreadText(of.ours))
    const ratio = (of: Figure | undefined): string => (of?.ratio == null ? '' : number(of.ratio))
    rows.push([name, either.unit, text(first), text(second), better, ratio(first), ratio(second)])
  }
  const machines = [before, after].map(({ machine }) => `${machine.cores} x ${machine.cpu}`)
  return [...aligned(rows), ...(machines[0] === machines[1] ? [] : ['', `- the machines differ (${machines.join('; ')}): compare ratios only`])].join('\n')
}
