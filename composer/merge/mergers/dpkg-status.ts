/**
 * dpkg's database of package states, `var/lib/dpkg/status` (deb-control(5) stanzas), joined by package.
 *
 * A layer carries the whole file as it was when the layer was made, so that after an update of the base below an application the application's
 * file speaks of packages that are no longer there. What is true of a package is known where its files are: the state
 * comes from the topmost layer that has the package's list of files (`info/NAME.list`) in its own tree.
 */
import { printPath } from '../print-path.ts'
import type { Disagreement } from '../report.ts'
import { VarveError } from '@varve/images/errors.ts'
import { MERGE_LINES_MAX } from './merger.ts'
import type { Merger, MergerContext, MergerInput } from './merger.ts'
import { DELETED } from '../stack.ts'

const STATUS_PATH = 'var/lib/dpkg/status'
const INFO_PATH = 'var/lib/dpkg/info'

/** What one layer says of a package. */
interface Version {
  layer: number
  stanza: string
}

interface Package {
  name: string
  architecture: string
  /** Bottom first. */
  versions: Version[]
}

export const dpkgStatus: Merger = { name: 'dpkg-status', paths: [STATUS_PATH], merge: mergeStatus }

function mergeStatus(inputs: readonly MergerInput[], context: MergerContext) {
  const packages = gather(inputs)
  const conflicts: Disagreement[] = []
  const stanzas: string[] = []
  for (const entry of packages.values()) {
    const stanza = entry.name === '' ? entry.versions[0].stanza : choose(entry, inputs, context, conflicts)
    if (stanza !== null) stanzas.push(stanza)
  }
  return { bytes: stanzas.length === 0 ? new Uint8Array(0) : Buffer.from(stanzas.join('\n\n') + '\n\n', 'latin1'), conflicts }
}

/** @returns null if the package is gone */
function choose({ name, architecture, versions }: Package, inputs: readonly MergerInput[], context: MergerContext, conflicts: Disagreement[]): string | null {
  const last = versions[versions.length - 1]
  // packages that are Multi-Arch: same have the architecture in the name of their list
  const lists = [context.provider(INFO_PATH, `${name}:${architecture}.list`), context.provider(INFO_PATH, `${name}.list`)]
  const provider = Math.max(...lists)
  if (provider >= 0) {
    const own = versions.find(({ layer }) => layer === provider)
    if (own !== undefined) return latestState(own, versions)
    // a layer that has the list and a database, but not this package in it, has the list for another architecture
    return inputs.some(({ layer }) => layer === provider) ? null : last.stanza
  }
  if (lists.includes(DELETED)) return null
  // what the lowest database says without lists, it says of itself; an upper one has it from a layer that is not below it any more
  if (versions[0].layer === inputs[0].layer || field(last.stanza, 'Status').endsWith(' not-installed')) return last.stanza
  const detail = `${printPath(name)}: ${context.layerName(last.layer)} says that it is installed, but no layer has its list of files; it is left out`
  conflicts.push({ subject: `${name}:${architecture}`, detail, layers: [] })
  return null
}

/** The stanza of the layer that has the files, or what a layer above has made of the same version since (configured, on hold). */
function latestState(own: Version, versions: readonly Version[]): string {
  let latest = own
  let version: string | undefined
  for (const other of versions) {
    if (other.layer <= own.layer || other.stanza === latest.stanza) continue
    version ??= field(own.stanza, 'Version')
    if (field(other.stanza, 'Version') === version) latest = other
  }
  return latest.stanza
}

/** All packages, in the order in which they first come. */
function gather(inputs: readonly MergerInput[]): Map<string, Package> {
  const texts = inputs.map(({ bytes }) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1'))
  const native = nativeArchitecture(texts)
  const packages = new Map<string, Package>()
  let count = 0
  texts.forEach((text, index) => {
    const { layer } = inputs[index]
    for (const stanza of stanzasOf(text)) {
      if (++count > MERGE_LINES_MAX) throw new VarveError('LIMIT_EXCEEDED', `${STATUS_PATH} has more than ${MERGE_LINES_MAX} packages in all layers`)
      const name = field(stanza, 'Package')
      const architecture = field(stanza, 'Architecture')
      const known = architecture === 'all' ? native : architecture
      const key = name === '' ? `\n${stanza}` : `${name}:${known}`
      const entry = packages.get(key)
      if (entry === undefined) packages.set(key, { name, architecture: known, versions: [{ layer, stanza }] })
      else if (entry.versions[entry.versions.length - 1].layer === layer) entry.versions[entry.versions.length - 1].stanza = stanza
      else entry.versions.push({ layer, stanza })
    }
  })
  return packages
}

/** A package may go from its architecture to `all` and back: both are one package. dpkg itself always has the native one. */
function nativeArchitecture(texts: readonly string[]): string {
  for (const text of texts.toReversed()) {
    const at = text.startsWith('Package: dpkg\n') ? 0 : text.indexOf('\nPackage: dpkg\n') + 1
    if (at === 0 && !text.startsWith('Package: dpkg\n')) continue
    const end = text.indexOf('\n\n', at)
    const architecture = field(text.slice(at, end < 0 ? text.length : end), 'Architecture')
    if (architecture !== '') return architecture
  }
  return 'all'
}

function* stanzasOf(text: string): Generator<string> {
  for (let at = 0; at < text.length; ) {
    if (text.charCodeAt(at) === 10) {
      at++
      continue
    }
    const found = text.indexOf('\n\n', at)
    const end = found >= 0 ? found : text.endsWith('\n') ? text.length - 1 : text.length
    yield text.slice(at, end)
    at = end + 1
  }
}

/** First line of a field, or ''. As dpkg writes it, in this case and with one space. */
function field(stanza: string, name: string): string {
  const head = `${name}: `
  const at = stanza.startsWith(head) ? 0 : stanza.indexOf(`\n${head}`) + 1
  if (at === 0 && !stanza.startsWith(head)) return ''
  const end = stanza.indexOf('\n', at)
  return stanza.slice(at + head.length, end < 0 ? stanza.length : end).trim()
}
