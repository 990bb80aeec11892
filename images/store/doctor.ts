/**
 * Doctor: looks a home over and says what is wrong with it and what to do. Changes nothing, and works on a home that cannot be opened.
 * It does not read the content of chunks (PackStore.verify), nor look for every chunk of every layer (checkRoots).
 * Everything that could fail to load is imported inside a check, so that the others still run.
 */
import { readdirSync, statfsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { isVarveError } from '../errors.ts'
import type { Catalog } from './catalog.ts'

export interface Finding {
  /** What was looked at, and what was seen, in words. */
  what: string
  /** `damage`: content is lost or cannot be reached; `warning`: it works, but should not stay so. */
  state: 'ok' | 'warning' | 'damage'
  /** What to do; empty if nothing. */
  advice: string
}

/** Below this much free space, and this part of the disk, there is a warning. Bytes. */
const FREE_BYTES_MIN = 1 << 30
const FREE_PART_MIN = 0.05
/** Damage of one kind that is told one by one. */
const DAMAGE_TOLD_MAX = 10

/** Findings in the order in which they should be dealt with. */
export async function doctor(directory: string, options: { signal?: AbortSignal } = {}): Promise<Finding[]> {
  const findings = await checkLibraries()
  const home = await checked('home', () => checkHome(directory))
  findings.push(...home)
  if (home[0].state !== 'ok') return findings
  findings.push(...checkSpace(directory))
  findings.push(...(await checked('catalog', () => checkCatalog(directory))))
  findings.push(...(await checked('packs', () => checkPacks(directory, options.signal))))
  return findings
}

function ok(what: string): Finding {
  return { what, state: 'ok', advice: '' }
}

/** Turns what a check throws into a finding. */
async function checked(subject: string, check: () => Promise<Finding[]>): Promise<Finding[]> {
  try {
    return await check()
  } catch (error) {
    if (isVarveError(error, 'STORE_LOCKED')) return [{ what: `${subject}: not checked: ${error.message}`, state: 'warning', advice: 'try again when that has ended' }]
    if (isVarveError(error, 'INDEX_INVALID')) return [{ what: `${subject}: ${error.message}`, state: 'damage', advice: "stop what uses the home and run 'varve verify --repair': it builds the index again from the packs" }]
    if (isVarveError(error)) return [{ what: `${subject}: ${error.message}`, state: 'damage', advice: `see ${error.code} in docs/errors.md` }]
    return [{ what: `${subject}: ${(error as Error).message}`, state: 'damage', advice: 'restore it from a copy' }]
  }
}

/** Each is not only found, but gives a right answer. */
async function checkLibraries(): Promise<Finding[]> {
  const sample = Buffer.from('varve '.repeat(1000))
  const libraries: [name: string, works: () => Promise<boolean>][] = [
    ['libc', async () => typeof (await import('../native/libc.ts')).tryLock === 'function'],
    ['better-sqlite3', async () => new (await import('better-sqlite3')).default(':memory:').prepare('select 1 + 1').pluck().get() === 2],
    ['@napi-rs/blake-hash', async () => {
      const { digestOf, digestToHex } = await import('../chunk/digest.ts')
      return digestToHex(digestOf(new Uint8Array())) === 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262'
    }],
    ['@node-rs/crc32', async () => (await import('@node-rs/crc32')).crc32c(Buffer.from('123456789')) === 0xe3069283],
    ['lz4-napi', () => roundTrips('lz4', sample)],
    ['libzstd', () => roundTrips('zstd', sample)],
  ]
  const findings: Finding[] = []
  for (const [name, works] of libraries) {
    let problem = 'it gives wrong answers'
    const isRight = await works().catch((error: unknown) => {
      problem = (error as Error).message
      return false
    })
    if (!isRight) findings.push({ what: `library ${name}: ${problem}`, state: 'damage', advice: `install it again, for this machine and Node ${process.version}` })
  }
  return findings.length > 0 ? findings : [ok(`libraries: ${libraries.map(([name]) => name).join(', ')}`)]
}

async function roundTrips(codec: 'lz4' | 'zstd', sample: Buffer): Promise<boolean> {
  const { compress, decompress } = await import('../chunk/codec.ts')
  const compressed = compress(sample, { codec })
  return compressed.codec === codec && sample.equals(decompress(codec, compressed.bytes, sample.length))
}

async function checkHome(directory: string): Promise<Finding[]> {
  const { homeVersion } = await import('./home.ts')
  const version = homeVersion(directory)
  if (version === undefined) return [{ what: `home: there is none in ${directory}`, state: 'warning', advice: 'name the right directory with --home; the first import makes one' }]
  const findings = [ok(`home: version ${version}`)]
  const mode = statSync(directory).mode & 0o777
  if ((mode & 0o077) !== 0) findings.push({ what: `home: others may enter it (mode ${mode.toString(8)}), and it holds password files`, state: 'warning', advice: `chmod 700 ${directory}` })
  return findings
}

function checkSpace(directory: string): Finding[] {
  const { bavail, blocks, bsize } = statfsSync(directory)
  const freeBytes = bavail * bsize
  const what = `disk: ${(freeBytes / 2 ** 30).toFixed(1)} GiB free`
  if (freeBytes >= FREE_BYTES_MIN && bavail >= blocks * FREE_PART_MIN) return [ok(what)]
  return [{ what, state: 'warning', advice: "make room: 'varve gc' removes what nothing reaches" }]
}

async function checkCatalog(directory: string): Promise<Finding[]> {
  const [{ Catalog }, { catalogFile }] = [await import('./catalog.ts'), await import('./home.ts')]
  const file = catalogFile(directory)
  if (statSync(file, { throwIfNoEntry: false }) === undefined) {
    return [{ what: `catalog: ${file} is missing, and with it the names of all layers and CVDs`, state: 'damage', advice: 'restore it from a copy' }]
  }
  await using catalog = await Catalog.open(file)
  const damage = catalog.damage()
  const told: Finding[] = damage.slice(0, DAMAGE_TOLD_MAX).map((text) => ({ what: `catalog: ${text}`, state: 'damage', advice: 'restore it from a copy' }))
  if (told.length > 0) return told
  return [ok(`catalog: ${(await catalog.layers()).length} layers, ${(await catalog.cvds()).length} CVDs`), ...(await checkOverlays(directory, catalog))]
}

/** Directories of overlays that no CVD and no snapshot needs. */
async function checkOverlays(directory: string, catalog: Catalog): Promise<Finding[]> {
  const overlays = join(directory, 'overlays')
  const present = (path: string) => readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory()).map((entry) => entry.name)
  const found = present(overlays).map((id) => ({ id, generations: present(join(overlays, id)) }))
  // The catalog is asked afterwards: it knows of an overlay before its directory is made.
  const needed = await catalog.overlays()
  const leftOver = found.flatMap(({ id, generations }) => {
    const ofCvd = needed.get(id)
    if (ofCvd === undefined) return [join(overlays, id)]
    return generations.filter((generation) => !ofCvd.has(Number(generation))).map((generation) => join(overlays, id, generation))
  })
  if (leftOver.length === 0) return [ok('overlays: each belongs to a CVD')]
  return leftOver.map((path) => ({ what: `overlays: no CVD and no snapshot needs ${path}`, state: 'warning', advice: 'remove it, unless a server still serves from it' }))
}

async function checkPacks(directory: string, signal: AbortSignal | undefined): Promise<Finding[]> {
  const [{ PackStore }, { packsDirectory }] = [await import('./pack-store.ts'), await import('./home.ts')]
  await using store = PackStore.open(packsDirectory(directory))
  const report = await store.verify({ signal, readData: false })
  if (report.damageCount === 0) return [ok(`packs: ${report.packs}, with ${report.chunks} chunks, as the index says`)]
  const told: Finding[] = report.damage.slice(0, DAMAGE_TOLD_MAX).map(({ file, offset, problem }) => ({
    what: `packs: ${file}${offset === undefined ? '' : ` at offset ${offset}`}: ${problem}`,
    state: 'damage',
    advice: "run 'varve verify --repair'",
  }))
  return report.damageCount > told.length ? [...told, { what: `packs: ${report.damageCount - told.length} more`, state: 'damage', advice: "run 'varve verify --repair'" }] : told
}
