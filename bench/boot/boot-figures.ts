/**
 * What is said of measured boots: medians over rounds, on each line, beside the peers', against the goals of streaming.
 */
import { figure } from '../figures.ts'
import type { Figure } from '../figures.ts'
import type { Boot, LineSetting } from './measure.ts'
import { COPY_PEER, FLOOR, OURS, PEERS } from './variants.ts'

/** A line that is thin and slow: where streaming has to show what it is for. */
const HARD: LineSetting = { megabitsPerSecond: 20, roundTripMs: 80 }

export function lineName({ megabitsPerSecond, roundTripMs }: LineSetting): string {
  return `${megabitsPerSecond >= 1000 ? `${megabitsPerSecond / 1000} Gbit/s` : `${megabitsPerSecond} Mbit/s`}, ${roundTripMs} ms`
}

/** Boots by line, in the order in which the lines were measured. */
export function byLine(boots: readonly Boot[]): Map<string, Boot[]> {
  return Map.groupBy(boots, ({ line }) => lineName(line))
}

/** Nothing is said of a variant that was not measured, and nothing without ours. */
export function bootFigures(boots: readonly Boot[]): Figure[] {
  return [...byLine(boots)].flatMap(([name, measured]) => figuresOfLine(name, measured))
}

function figuresOfLine(name: string, boots: readonly Boot[]): Figure[] {
  const { line } = boots[0]
  const hard = line.megabitsPerSecond === HARD.megabitsPerSecond && line.roundTripMs === HARD.roundTripMs
  const of = (variant: string, value: (boot: Boot) => number): number[] => boots.filter((boot) => boot.variant === variant).map(value)
  const peers = (value: (boot: Boot) => number, skip?: string): Record<string, number[]> =>
    Object.fromEntries(PEERS.map((peer) => [peer.name, of(peer.name, value)]).filter(([peer, values]) => peer !== skip && values.length > 0))
  const seconds = (boot: Boot): number => boot.markMs / 1000
  const floor = of(FLOOR, seconds)
  const figures: Figure[] = []
  const add = (what: string, variant: string, unit: string, value: (boot: Boot) => number, goals: { ratioMin?: number; skip?: string }): void => {
    const ours = of(variant, value)
    if (ours.length > 0) figures.push(figure({ name: `${what}; ${name}`, unit, ours, peers: peers(value, goals.skip), moreIsBetter: false, ratioMin: goals.ratioMin }))
  }
  for (const [variant, ratioMin] of [[OURS.learned, hard ? 3 : 1], [OURS.never, hard ? 1.5 : undefined], [OURS.other, undefined]] as const) {
    add(`time to the mark, ${variant}`, variant, 's', seconds, { ratioMin })
    const ours = of(variant, seconds)
    if (ours.length === 0 || floor.length === 0) continue
    const oursMax = variant === OURS.learned ? (line.megabitsPerSecond >= 100 ? 1.15 : 1.3) : undefined
    const floorMedian = figure({ name: FLOOR, unit: 's', ours: floor, moreIsBetter: false }).ours.median
    figures.push(figure({ name: `time to the mark over that from a ${FLOOR}, ${variant}; ${name}`, unit: 'x', ours: ours.map((value) => value / floorMedian), moreIsBetter: false, oursMax }))
  }
  for (const variant of [OURS.learned, OURS.never, OURS.other]) {
    const learned = variant === OURS.learned
    add(`bytes down the line before the mark, less the fill, ${variant}`, variant, 'MiB', ({ bytesDown, fillBytes }) => (bytesDown - fillBytes) / 2 ** 20, { ratioMin: learned ? 2 : undefined })
    add(`bytes down the line before the mark, ${variant}`, variant, 'MiB', ({ bytesDown }) => bytesDown / 2 ** 20, {})
    add(`requests before the mark, ${variant}`, variant, '', ({ requests }) => requests, { ratioMin: learned ? 20 : undefined })
    add(`waited for before the mark, ${variant}`, variant, '', ({ misses }) => misses, { skip: COPY_PEER })
  }
  return figures
}
