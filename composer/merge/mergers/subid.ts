/**
 * subuid(5) and subgid(5): ranges of ids that a user may map into user namespaces; several lines a name.
 * The last layer that has a name gives all its ranges. Ranges of different names that overlap let one user reach the files of another: a conflict,
 * unless they stand like that in one layer already.
 */
import type { Disagreement } from '../report.ts'
import { printPath } from '../print-path.ts'
import { fileOf, linesOf } from './merger.ts'
import type { Merger, MergerContext, MergerInput } from './merger.ts'

/** The lines of one name in one layer. */
interface Version {
  layer: number
  ranges: Range[]
}

interface Range {
  line: string
  start: number
  /** First id after the range. */
  end: number
}

/** The n-th range of a name, or a line that is kept as it is. */
type Slot = { name: string; index: number } | string

interface Overlap {
  a: string
  b: string
}

export const subid: Merger = { name: 'subid', paths: ['etc/subuid', 'etc/subgid'], merge: mergeSubids }

function mergeSubids(inputs: readonly MergerInput[], context: MergerContext) {
  const { slots, versions } = gather(inputs)
  /** What stands, by name. */
  const standing = new Map<string, Version>()
  for (const [name, list] of versions) standing.set(name, list[list.length - 1])
  const conflicts = settle(versions, standing, context)
  const lines: string[] = []
  for (const slot of slots) {
    if (typeof slot === 'string') lines.push(slot)
    else if (slot.index < standing.get(slot.name)!.ranges.length) lines.push(standing.get(slot.name)!.ranges[slot.index].line)
  }
  return { bytes: fileOf(lines), conflicts }
}

function gather(inputs: readonly MergerInput[]): { slots: Slot[]; versions: Map<string, Version[]> } {
  const slots: Slot[] = []
  const versions = new Map<string, Version[]>()
  const slotCounts = new Map<string, number>()
  const kept = new Set<string>()
  for (const { layer, lines } of linesOf(inputs)) {
    const seen = new Map<string, number>()
    for (const line of lines) {
      const match = /^([^:#]+):(\d{1,10}):(\d{1,10})$/.exec(line)
      if (match === null) {
        const times = (seen.get(line) ?? 0) + 1
        seen.set(line, times)
        if (kept.has(`${times} ${line}`)) continue
        kept.add(`${times} ${line}`)
        slots.push(line)
        continue
      }
      const name = match[1]
      let list = versions.get(name)
      if (list === undefined) versions.set(name, (list = []))
      if (list.at(-1)?.layer !== layer) list.push({ layer, ranges: [] })
      const { ranges } = list[list.length - 1]
      const start = Number(match[2])
      ranges.push({ line, start, end: start + Number(match[3]) })
      if (ranges.length > (slotCounts.get(name) ?? 0)) {
        slots.push({ name, index: ranges.length - 1 })
        slotCounts.set(name, ranges.length)
      }
    }
  }
  return { slots, versions }
}

/** Finds overlaps and applies the decided ones, until nothing new turns up; each pair of names is settled once. */
function settle(versions: ReadonlyMap<string, readonly Version[]>, standing: Map<string, Version>, context: MergerContext): Disagreement[] {
  const conflicts = new Map<string, Disagreement>()
  for (let changed = true; changed; ) {
    changed = false
    for (const { a, b } of overlaps(standing)) {
      const subject = `${a}+${b}`
      if (conflicts.has(subject) || sharedLayer(versions.get(a)!, versions.get(b)!)) continue
      const sides = [a, b].map((name) => ({ name, versions: versions.get(name)! }))
      const layers = [...new Set(sides.flatMap((side) => side.versions.map(({ layer }) => layer)))].sort((x, y) => x - y)
      const described = sides.map((side) => `${printPath(side.name)} (${context.layerName(standing.get(side.name)!.layer)})`)
      conflicts.set(subject, { subject, detail: `the ranges of ${described.join(' and ')} overlap`, layers })
      const decided = context.decided(subject, layers)
      if (decided < 0) continue
      changed = true
      const other = (name: string) => standing.get(name === a ? b : a)!
      for (const side of sides) {
        const own = side.versions.find(({ layer }) => layer === decided)
        if (own !== undefined) standing.set(side.name, own)
      }
      for (const side of sides) {
        if (side.versions.some(({ layer }) => layer === decided)) continue
        const { layer, ranges } = standing.get(side.name)!
        const taken = other(side.name).ranges
        standing.set(side.name, { layer, ranges: ranges.filter((range) => !taken.some(({ start, end }) => range.start < end && start < range.end)) })
      }
    }
  }
  return [...conflicts.values()]
}

/** True if one layer has both names with ranges that overlap. */
function sharedLayer(a: readonly Version[], b: readonly Version[]): boolean {
  return a.some((versionA) => b.some((versionB) => versionA.layer === versionB.layer && touch(versionA.ranges, versionB.ranges)))
}

function touch(a: readonly Range[], b: readonly Range[]): boolean {
  const all = [...a.map((range) => ({ ...range, side: 0 })), ...b.map((range) => ({ ...range, side: 1 }))].sort((x, y) => x.start - y.start)
  const ends = [0, 0]
  for (const { start, end, side } of all) {
    if (end > start && ends[1 - side] > start) return true
    ends[side] = Math.max(ends[side], end)
  }
  return false
}

/**
 * Pairs of names with overlapping ranges, in order of ids: each range with the furthest one of another name that begins before it.
 * Of many names that all overlap not every pair, but no overlap stays unseen.
 */
function overlaps(standing: ReadonlyMap<string, Version>): Overlap[] {
  const ranges = [...standing].flatMap(([name, version]) => version.ranges.filter(({ start, end }) => end > start).map(({ start, end }) => ({ name, start, end })))
  ranges.sort((x, y) => x.start - y.start || x.end - y.end || (x.name < y.name ? -1 : 1))
  const found: Overlap[] = []
  let furthest = { name: '', end: 0 }
  /** Furthest end of a name other than that of `furthest`. */
  let second = { name: '', end: 0 }
  for (const { name, start, end } of ranges) {
    const other = furthest.name === name ? second : furthest
    if (other.end > start) found.push(name < other.name ? { a: name, b: other.name } : { a: other.name, b: name })
    if (name === furthest.name) furthest.end = Math.max(furthest.end, end)
    else if (end > furthest.end) [second, furthest] = [furthest, { name, end }]
    else if (end > second.end) second = { name, end }
  }
  return found
}
