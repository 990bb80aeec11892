/**
 * `varve bootset`: record, list, show. What a boot reads, learned from boots or guessed.
 */
import { InvalidArgumentError } from 'commander'
import type { Command } from 'commander'
import { openLog } from '@varve/blockserver/log.ts'
import { SharedExports } from '@varve/blockserver/nbd/export.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'
import { Part, tierOf } from '@varve/composer/bootset/boot-set.ts'
import type { BootSet } from '@varve/composer/bootset/boot-set.ts'
import { DiskView } from '@varve/composer/bootset/disk-view.ts'
import { guessBootSet } from '@varve/composer/bootset/static-guess.ts'
import { BOOT_SET_KIND, bootSetOf, layerKey, learnedBootSet } from '@varve/composer/bootset/stored-boot-sets.ts'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { RecordingDevice } from '@varve/images/device/recording-device.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { Cvd } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { CvdDisk } from '../cvd-disk.ts'
import { action } from '../invocation.ts'
import type { Invocation } from '../invocation.ts'
import { readMap } from '../settlement.ts'
import { recordBoot } from '../streaming/boot-lists.ts'
import { formatBytes, formatTable } from '../terminal.ts'

interface RecordOptions {
  nbd: string
  seconds: number
  quiet: number
}

const CACHE_BYTES = 256 << 20
const LOOK_EACH_MS = 250
const DRAIN_MS = 2000

export function addBootSetCommands(program: Command): void {
  const bootset = program.command('bootset').description('boot sets: what a boot reads, in order; served boots are learned from by themselves')

  bootset.command('record').argument('<cvd>')
    .option('--nbd <address>', 'HOST:PORT or unix:PATH', '127.0.0.1:10809')
    .option('--seconds <count>', 'the boot ends so long after its first read', seconds, 600)
    .option('--quiet <count>', 'or when nothing new was read for so long', seconds, 30)
    .description('serve a CVD, alone and over NBD, and learn from its next boot; Ctrl-C ends the boot too')
    .action(action(async (invocation, name: string, options: RecordOptions) => {
      await using home = await invocation.openHome()
      const learned = await recordNextBoot(invocation, home, name, options)
      const text = learned.learned ? `learned from a boot that used ${learned.chunks} chunks, ${formatBytes(learned.bytes)}` : `nothing was learned: ${learned.chunks} chunks were used, which is no boot`
      invocation.result({ cvd: name, ...learned }, text)
    }))

  bootset.command('list').description('what was learned, by layer and CVD').action(action(async (invocation) => {
    await using home = await invocation.openHome()
    const documents = await listBootSets(home)
    invocation.result(documents, formatTable([['OF', 'BOOTS', 'FILES', 'SIZE'], ...documents.map(({ subject, boots, files, bytes }) => [subject, String(boots), String(files), formatBytes(bytes)])]))
  }))

  bootset.command('show').argument('<name>', 'a CVD, or a layer').description('files of a boot set, in the order in which they are first used').action(action(async (invocation, name: string) => {
    await using home = await invocation.openHome()
    const { source, set } = await bootSetNamed(home, name, invocation.signal)
    const files = filesOf(set)
    const rows = files.map(({ path, bytes, rank, boots, tier }) => [String(Math.round(rank)), set.boots === 0 ? '-' : `${boots}/${set.boots}`, TIERS[tier], formatBytes(bytes), path])
    invocation.result({ name, source, ...figuresOf(set), entries: set.entries.length, fileList: files }, `${source}\n${formatTable([['RANK', 'BOOTS', 'USED', 'SIZE', 'PATH'], ...rows])}`)
  }))
}

const TIERS = ['usually', 'less', 'rarely'] as const

function seconds(text: string): number {
  const count = Number(text)
  if (!(count > 0 && count <= 86_400)) throw new InvalidArgumentError('seconds, up to a day, are wanted.')
  return count
}

async function recordNextBoot(invocation: Invocation, home: Home, name: string, options: RecordOptions): Promise<{ learned: boolean; chunks: number; bytes: number }> {
  let recording: RecordingDevice | undefined
  const lowerOf = (device: ConstructorParameters<typeof RecordingDevice>[0]): RecordingDevice => (recording = new RecordingDevice(device))
  await using disk = await CvdDisk.open(name, { home, cache: ChunkCache.create({ bytesMax: CACHE_BYTES }), lowerOf, signal: invocation.signal })
  // What is frozen comes into the map first: a boot is recorded on one map.
  await disk.settle(invocation.signal)
  const { map } = recording!
  const mapDigest = (await home.catalog.cvd(name)).baseMap!
  recording!.recorder.beginBoot()
  {
    const info = { name, description: `CVD ${name}` }
    const source = { list: async () => [info], canonicalName: (asked: string) => asked === '' ? name : asked, open: async (asked: string) => openOnly(asked, { ...info, device: disk.device }) }
    const server = await NbdServer.listen([options.nbd], { provider: new SharedExports(source), log: openLog('warn') })
    invocation.note(`${name} is served on ${server.addresses.join(', ')}; boot it`)
    await mark(recording!, options, invocation.signal)
    await server.close({ drainMs: DRAIN_MS })
  }
  const { chunks, cut } = recording!.recorder.endBoot()!
  const bytes = chunks.reduce((sum, chunk) => sum + map.chunkBytes[chunk], 0)
  return { learned: !cut && (await recordBoot(home, mapDigest, chunks)), chunks: chunks.length, bytes }
}

function openOnly<Opened extends { name: string }>(asked: string, opened: Opened): Opened & { close: () => Promise<void> } {
  if (asked !== opened.name) throw new VarveError('EXPORT_NOT_FOUND', `there is no export ${JSON.stringify(asked)}; only ${opened.name} is served`)
  // The disk is closed when the boot has been learned from.
  return { ...opened, close: async () => {} }
}

/** Resolves when the boot is over. */
async function mark(device: RecordingDevice, options: RecordOptions, signal: AbortSignal): Promise<void> {
  let startMs: number | undefined
  while (!signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_EACH_MS))
    const lastMs = device.recorder.firstUseMs
    if (lastMs === undefined) continue
    startMs ??= lastMs
    const now = performance.now()
    if (now - lastMs >= options.quiet * 1000 || now - startMs >= options.seconds * 1000) return
  }
}

interface BootSetFigures {
  boots: number
  files: number
  /** Of the parts of files that boots use. */
  bytes: number
}

async function listBootSets(home: Home): Promise<({ subject: string } & BootSetFigures)[]> {
  const names = new Map((await home.catalog.cvds()).map(({ id, name }) => [`cvd ${id}`, `CVD ${name}`]))
  const documents: ({ subject: string } & BootSetFigures)[] = []
  for (const { key } of await home.catalog.objects(BOOT_SET_KIND)) {
    // What disks are laid out by is a part of what is learned.
    if (key.startsWith('stack ')) continue
    const learned = await learnedBootSet(key, home)
    if (learned !== undefined) documents.push({ subject: names.get(key) ?? key, ...figuresOf(learned.set) })
  }
  return documents
}

/** What is known of a CVD, or of a layer. @throws VarveError NOT_FOUND */
async function bootSetNamed(home: Home, name: string, signal: AbortSignal): Promise<{ source: 'learned' | 'guessed'; set: BootSet }> {
  const cvd = await home.catalog.cvd(name).catch((error: unknown) => {
    if (isVarveError(error, 'NOT_FOUND')) return undefined
    throw error
  })
  const set = cvd === undefined ? (await learnedBootSet(layerKey(name), home))?.set : (await bootSetOf({ layers: cvd.layers, cvd }, home)).set
  if (set !== undefined && set.entries.length > 0) return { source: 'learned', set }
  if (cvd === undefined) throw new VarveError('NOT_FOUND', `there is no CVD ${JSON.stringify(name)}, and no boot of a layer of that name was learned from`)
  return { source: 'guessed', set: await guess(home, cvd, signal) }
}

async function guess(home: Home, cvd: Cvd, signal: AbortSignal): Promise<BootSet> {
  using _lease = home.store.lease()
  const map = cvd.baseMap === null ? (await compose(await prepareRecipe({ cvd: cvd.name }, home), { ...home, signal })).map : await readMap(home, cvd.baseMap)
  return guessBootSet(await DiskView.open(map, home.store))
}

function figuresOf(set: BootSet): BootSetFigures {
  const files = filesOf(set)
  return { boots: set.boots, files: files.length, bytes: files.reduce((sum, { bytes }) => sum + bytes, 0) }
}

interface BootSetFile {
  path: string
  bytes: number
  /** Of its first part. */
  rank: number
  boots: number
  tier: 0 | 1 | 2
}

/** In the order of their first use. */
function filesOf(set: BootSet): BootSetFile[] {
  const files = new Map<string, BootSetFile>()
  for (const entry of set.entries) {
    if (entry.part !== Part.file) continue
    const path = `/${Buffer.from(entry.path, 'latin1').toString()}`
    const known = files.get(path)
    if (known === undefined) files.set(path, { path, bytes: entry.length, rank: entry.rank, boots: entry.boots, tier: tierOf(entry, set.boots) })
    else known.bytes += entry.length
  }
  return [...files.values()]
}
