/**
 * Account files: lines of fields between colons, one line a name (passwd, group, shadow, gshadow). What differs between them is in their own modules.
 * Joined by name: lower layers' names first, in their order, then new ones; the last layer that has a name gives its fields.
 * Comments, lines for NIS (`+`, `-`) and lines that do not follow the format are kept as they are.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { Disagreement } from '../report.ts'
import { printPath } from '../print-path.ts'
import { MERGE_LINES_MAX, fileOf, linesOf } from './merger.ts'
import type { Merger, MergerContext, MergerInput } from './merger.ts'

export interface AccountFormat {
  name: string
  path: string
  /** Fields of a line. */
  fields: number
  /** Fields that are numbers and that all layers must agree on for a name; the first of them belongs to one name alone. */
  ids: readonly { field: number; label: string }[]
  /** Fields that are lists of names and are united. */
  lists: readonly number[]
}

/** A line that several layers may have of one name. */
interface Version {
  line: string
  /** Layers that have the line, bottom first. */
  layers: number[]
}

interface Account {
  name: string
  /** Bottom first; neighbours differ. */
  versions: Version[]
}

/** What stands at one place of the file. */
type Slot = Account | string

export function accountMerger(format: AccountFormat): Merger {
  return { name: format.name, paths: [format.path], merge: (inputs, context) => mergeAccounts(format, inputs, context) }
}

function mergeAccounts(format: AccountFormat, inputs: readonly MergerInput[], context: MergerContext) {
  const conflicts: Disagreement[] = []
  const slots = gather(format, inputs)
  const lines = slots.map((slot) => (typeof slot === 'string' ? slot : joinAccount(format, slot, context, conflicts)))
  if (format.ids.length > 0) orderSharedIds(format, slots, lines, context, conflicts)
  return { bytes: fileOf(lines), conflicts }
}

/** All places of the file, in order. New names go before the lines for NIS that end the file, since those hand over to the network. */
function gather(format: AccountFormat, inputs: readonly MergerInput[]): Slot[] {
  let slots: Slot[] = []
  const accounts = new Map<string, Account>()
  const kept = new Set<string>()
  for (const { layer, lines } of linesOf(inputs)) {
    const seen = new Map<string, number>()
    const named = new Set<string>()
    const fresh: Slot[] = []
    for (const line of lines) {
      const name = accountName(format, line)
      if (name === null || named.has(name)) {
        const times = (seen.get(line) ?? 0) + 1
        seen.set(line, times)
        const key = `${times} ${line}`
        if (!kept.has(key)) fresh.push(line)
        kept.add(key)
        continue
      }
      named.add(name)
      let account = accounts.get(name)
      if (account === undefined) {
        account = { name, versions: [] }
        accounts.set(name, account)
        fresh.push(account)
      }
      const last = account.versions.at(-1)
      if (last?.line === line) last.layers.push(layer)
      else account.versions.push({ line, layers: [layer] })
    }
    if (fresh.length > 0) slots = insertBeforeNis(slots, fresh)
  }
  return slots
}

function insertBeforeNis(slots: Slot[], fresh: Slot[]): Slot[] {
  let end = slots.length
  while (end > 0 && isNis(slots[end - 1])) end--
  if (end === slots.length) return slots.concat(fresh)
  return [...slots.slice(0, end), ...fresh.filter((slot) => !isNis(slot)), ...slots.slice(end), ...fresh.filter(isNis)]
}

function isNis(slot: Slot): boolean {
  return typeof slot === 'string' && (slot.startsWith('+') || slot.startsWith('-'))
}

/** Name of a line that follows the format, or null. */
function accountName({ fields: count, ids }: AccountFormat, line: string): string | null {
  const fields = line.split(':', count + 1)
  return fields.length === count && /^[^#+-]/.test(line) && fields[0] !== '' && ids.every(({ field }) => /^\d{1,10}$/.test(fields[field])) ? fields[0] : null
}

function idOf(line: string, field: number): number {
  return Number(line.split(':', field + 1)[field])
}

/** The line of one name. Where the layers disagree on an id, the ids of the layer that was decided for, else of the last. */
function joinAccount({ ids, lists }: AccountFormat, { name, versions }: Account, context: MergerContext, conflicts: Disagreement[]): string {
  const last = versions[versions.length - 1]
  if (versions.length === 1) return last.line
  const fields = last.line.split(':')
  for (const field of lists) fields[field] = unite(versions.map(({ line }) => line.split(':')[field]))
  const described = ({ line }: Version) => ids.map(({ field, label }) => `${label} ${idOf(line, field)}`).join(', ')
  if (ids.length > 0 && new Set(versions.map(described)).size > 1) {
    const layers = versions.flatMap((version) => version.layers).sort((a, b) => a - b)
    const decided = context.decided(name, layers)
    const chosen = versions.find((version) => version.layers.includes(decided)) ?? last
    for (const { field } of ids) fields[field] = chosen.line.split(':')[field]
    const sides = versions.map((version) => `${described(version)} in ${version.layers.map((layer) => context.layerName(layer)).join(', ')}`)
    conflicts.push({ subject: name, detail: `${printPath(name)} has ${sides.join('; ')}`, layers })
  }
  return fields.join(':')
}

/** @throws VarveError LIMIT_EXCEEDED */
function unite(lists: readonly string[]): string {
  const names = new Set<string>()
  for (const list of lists) {
    for (let at = 0; at < list.length; ) {
      const comma = list.indexOf(',', at)
      const end = comma < 0 ? list.length : comma
      if (end > at) names.add(list.slice(at, end))
      if (names.size > MERGE_LINES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a group has more than ${MERGE_LINES_MAX} members in all layers`)
      at = end + 1
    }
  }
  return [...names].join(',')
}

/**
 * Names of different layers that have one id: a conflict, unless each two of them stand with it in some layer already.
 * Where it is decided, the names of that layer come first, so that the id is shown and looked up as theirs.
 */
function orderSharedIds({ ids }: AccountFormat, slots: readonly Slot[], lines: string[], context: MergerContext, conflicts: Disagreement[]): void {
  const { field, label } = ids[0]
  const placesById = new Map<number, number[]>()
  slots.forEach((slot, place) => {
    if (typeof slot === 'string') return
    const id = idOf(lines[place], field)
    const places = placesById.get(id)
    if (places === undefined) placesById.set(id, [place])
    else places.push(place)
  })
  for (const [id, places] of placesById) {
    if (places.length < 2) continue
    const accounts = places.map((place) => slots[place] as Account)
    const layersOf = accounts.map(({ versions }) => versions.filter(({ line }) => idOf(line, field) === id).flatMap((version) => version.layers))
    if (standTogether(layersOf)) continue
    const layers = [...new Set(layersOf.flat())].sort((a, b) => a - b)
    const subject = `${label}:${id}`
    const decided = context.decided(subject, layers)
    const sides = accounts.slice(0, LISTED_NAMES_MAX).map(({ name }, index) => `${printPath(name)} (${layersOf[index].map((layer) => context.layerName(layer)).join(', ')})`)
    if (accounts.length > sides.length) sides.push(`${accounts.length - sides.length} more`)
    conflicts.push({ subject, detail: `${label} ${id} belongs to ${sides.join(' and ')}`, layers })
    if (decided < 0) continue
    const ordered = places.map((place) => lines[place])
    const first = ordered.filter((_, index) => layersOf[index].includes(decided))
    const rest = ordered.filter((_, index) => !layersOf[index].includes(decided))
    for (const [index, line] of [...first, ...rest].entries()) lines[places[index]] = line
  }
}

/** Above this many names of one id, only a layer that has them all makes them harmless; keeps hostile files cheap. */
const PAIRED_NAMES_MAX = 32
/** Names that the detail of a conflict lists. */
const LISTED_NAMES_MAX = 8

function standTogether(layersOf: readonly (readonly number[])[]): boolean {
  const together = (sets: readonly (readonly number[])[]) => sets[0].some((layer) => sets.every((set) => set.includes(layer)))
  if (together(layersOf)) return true
  if (layersOf.length > PAIRED_NAMES_MAX) return false
  return layersOf.every((a, index) => layersOf.slice(index + 1).every((b) => together([a, b])))
}
