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
  /** The same for versions with the same lines. */
  identity: number
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
      if (list.at(-1)?.layer !== layer) list.push({ layer, ranges: [], identity: 0 })
      const { ranges } = list[list.length - 1]
      const start = Number(match[2])
      ranges.push({ line, start, end: start + Number(match[3]) })
      if (ranges.length > (slotCounts.get(name) ?? 0)) {
        slots.push({ name, index: ranges.length - 1 })
        slotCounts.set(name, ranges.length)
      }
    }
  }
  const identities = new Map<string, number>()
  for (const version of [...versions.values()].flat()) {
    const text = version.ranges.map(({ line }) => line).join('\n')
    version.identity = identities.get(text) ?? identities.size
    identities.set(text, version.identity)
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
      if (conflicts.has(subject) || standTogether(versions, standing, { a, b })) continue
      const sides = [a, b].map((name) => ({ name, versions: versions.get(name)! }))
      const layers = [...new Set(sides.flatMap((side) => side.versions.map(({ layer }) => layer)))].sort((x, y) => x - y)
      const described = sides.map((side) => `${printPath(side.name)} (${context.layerName(standing.get(side.name)!.layer)})`)
      conflicts.set(subject, { subject, detail: `the ranges of ${described.join(' and ')} overlap`, layers })
      const decided = context.decided(subject, layers)
      if (decided < 0) continue
      changed = true
      for (const { name, versions: own } of sides) standing.set(name, own.find(({ layer }) => layer === decided) ?? standing.get(name)!)
      for (const [own, other] of [sides, sides.toReversed()]) {
        if (own.versions.some(({ layer }) => layer === decided)) continue
        const version = standing.get(own.name)!
        standing.set(own.name, { ...version, ranges: without(version.ranges, standing.get(other.name)!.ranges) })
      }
    }
  }
  return [...conflicts.values()]
}

/** True if some layer has both names with the ranges that stand. */
function standTogether(versions: ReadonlyMap<string, readonly Version[]>, standing: ReadonlyMap<string, Version>, { a, b }: Overlap): boolean {
  const layersOf = (name: string) => versions.get(name)!.filter(({ identity }) => identity === standing.get(name)!.identity).map(({ layer }) => layer)
  const layers = new Set(layersOf(a))
  return layersOf(b).some((layer) => layers.has(layer))
}

/** The ranges that touch none of `taken`. */
function without(ranges: readonly Range[], taken: readonly Range[]): Range[] {
  const sorted = taken.toSorted((x, y) => x.start - y.start)
  let furthest = 0
  const ends = sorted.map(({ end }) => (furthest = Math.max(furthest, end)))
  return ranges.filter(({ start, end }) => {
    let low = 0
    let high = sorted.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (sorted[middle].start < end) low = middle + 1
      else high = middle
    }
    return low === 0 || ends[low - 1] <= start
  })
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
