/**
 * Composing a disk from a real tree beside `mke2fs -d`, which builds the same tree's image; and from 50 layers with 200,000 files.
 * Debian packages: e2fsprogs, mmdebstrap.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, openSync, closeSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { Home } from '@varve/images/store/home.ts'
import { putTree } from '@varve/images/store/stored-tree.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { ComposeMeasurement } from '../compose-once.ts'
import { desktopTree } from '../desktop-tree.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult } from '../figures.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 5)
const LAYERS = 50
const FILES_PER_LAYER = 4000
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

function execute(command: string, args: string[], environment: NodeJS.ProcessEnv = {}): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, env: { ...process.env, ...environment } })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${status}\n${stdout.slice(-2000)}\n${stderr.slice(-2000)}`)
  return stdout
}

function seconds(work: () => void): number {
  const started = process.hrtime.bigint()
  work()
  return Number(process.hrtime.bigint() - started) / 1e9
}

function composeOnce(home: string, cvd: string, label: string): ComposeMeasurement {
  // Compiled modules are kept, as the varve command keeps them.
  const environment = { NODE_COMPILE_CACHE: path.join(tmpdir(), 'node-compile-cache') }
  return JSON.parse(execute(process.execPath, [path.join(import.meta.dirname, '../compose-once.ts'), home, cvd, label], environment)) as ComposeMeasurement
}

/** Layers that share directories and have files of their own, each with content of its own. */
async function addSyntheticLayers(directory: string): Promise<void> {
  await using home = await Home.open(directory)
  const names: string[] = []
  for (let number = 0; number < LAYERS; number++) {
    await using writer = home.store.writer()
    const common = { uid: 0, gid: 0, mtimeSeconds: 1_700_000_000 + number, mtimeNanoseconds: 0 }
    const builder = new TreeBuilder({ kind: Kind.directory, mode: 0o755, ...common })
    const directories = Array.from({ length: 100 }, (_, index) => builder.addEntry(0, `directory-${index}`, builder.addInode({ kind: Kind.directory, mode: 0o755, ...common })))
    for (let file = 0; file < FILES_PER_LAYER; file++) {
      const content = Buffer.from(`content of file ${file} in layer ${number}\n`)
      const inode = builder.addInode({ kind: Kind.file, mode: 0o644, ...common })
      builder.setContent(inode, [builder.addChunk(writer.put(content), content.length)], [content.length])
      builder.addEntry(directories[file % 100], `file-${number}-${file}`, inode)
    }
    const { digest, entries, contentBytes } = putTree(writer, builder)
    await writer.commit()
    await home.catalog.addLayer({ name: `layer${number}`, kind: 'app', content: 'tree', digest, entries, contentBytes, source: 'synthetic' })
    names.push(`layer${number}`)
  }
  await home.catalog.createCvd({ name: 'fifty', layers: names, policy: { boot: 'none' } })
}

/** The root filesystem of a composed disk passes e2fsck. */
async function checkDisk(directory: string, cvd: string, label: string, image: string): Promise<void> {
  await using home = await Home.open(directory)
  const recipe = await prepareRecipe({ cvd, policy: { label } }, home)
  const { map, partitions } = await compose(recipe, home)
  await using device = new MapDevice(map, home.store, ChunkCache.create({ bytesMax: 64 << 20 }))
  const root = partitions.at(-1)!
  writeFileSync(image, '')
  truncateSync(image, root.byteLength)
  const fd = openSync(image, 'r+')
  const buffer = new Uint8Array(1 << 20)
  for (const extent of device.extents(root.firstByte, root.byteLength)) {
    if (extent.type !== 'data') continue
    for (let at = extent.offset; at < extent.offset + extent.length; at += buffer.length) {
      const part = buffer.subarray(0, Math.min(buffer.length, extent.offset + extent.length - at))
      await device.read(part, at)
      writeSync(fd, part, 0, part.length, at - root.firstByte)
    }
  }
  closeSync(fd)
  execute('e2fsck', ['-fn', image])
  rmSync(image)
}

export async function run(): Promise<BenchResult> {
  const tree = desktopTree()
  const treeBytes = Number(execute('du', ['-s', '--apparent-size', '--block-size=1', tree]).split('\t')[0])
  const scratch = mkdtempSync(path.join(tmpdir(), 'varve-bench-'))
  const home = path.join(scratch, 'home')
  const image = path.join(scratch, 'image')
  const first: number[] = []
  const warm: number[] = []
  const cached: number[] = []
  const command: number[] = []
  const commandCached: number[] = []
  const fifty: number[] = []
  const fiftyFirst: number[] = []
  const peer: number[] = []
  let largest = 0
  let grown = 0
  let phases: Record<string, number> = {}
  try {
    execute(launcher, ['layer', 'import', 'tree', `dir:${tree}`, '--kind', 'base', '--home', home, '--json'])
    execute(launcher, ['cvd', 'create', 'one', '--layer', 'tree', '--home', home, '--json'])
    await addSyntheticLayers(home)
    execute('sh', ['-c', `find ${tree} -xdev -type f -print0 | xargs -0 cat > /dev/null`])
    for (let round = 0; round < ROUNDS; round++) {
      const measured = composeOnce(home, 'one', `r${round}`)
      first.push(measured.firstMs / 1000)
      warm.push(measured.warmMs / 1000)
      cached.push(measured.cachedMs / 1000)
      if (round === 0) grown = measured.storedBytes
      phases = measured.phases
      execute(launcher, ['cvd', 'create', `command${round}`, '--layer', 'tree', '--label', `c${round}`, '--home', home, '--json'])
      for (const into of [command, commandCached]) into.push(seconds(() => execute(launcher, ['compose', `command${round}`, '--home', home, '--json'])))
      const many = composeOnce(home, 'fifty', `r${round}`)
      fiftyFirst.push(many.firstMs / 1000)
      fifty.push(many.warmMs / 1000)
      largest = Math.max(largest, measured.peakBytes, many.peakBytes)
      rmSync(image, { force: true })
      writeFileSync(image, '')
      truncateSync(image, Math.ceil((treeBytes * 1.25 + 2 ** 30) / 2 ** 20) * 2 ** 20)
      peer.push(seconds(() => execute('mke2fs', ['-q', '-t', 'ext4', '-d', tree, image])))
      rmSync(image)
    }
    await checkDisk(home, 'one', 'r0', image)
    await checkDisk(home, 'fifty', 'r0', image)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  const peers = { 'mke2fs -d': peer }
  return {
    bench: 'compose',
    machine: machine(),
    versions: { node: process.version, mke2fs: version('mke2fs', '-V') },
    seed: null,
    figures: [
      figure({ name: 'first compose, the whole command', unit: 's', ours: command, peers, moreIsBetter: false, ratioMin: 20 }),
      figure({ name: 'first compose, first of its process, without the start', unit: 's', ours: first, peers, moreIsBetter: false, ratioMin: 20 }),
      figure({ name: 'first compose, warm process', unit: 's', ours: warm, peers, moreIsBetter: false, ratioMin: 20 }),
      figure({ name: 'from the cache', unit: 's', ours: cached, peers, moreIsBetter: false, ratioMin: 200 }),
      figure({ name: 'from the cache, the whole command', unit: 's', ours: commandCached, peers, moreIsBetter: false }),
      figure({ name: 'growth of the store', unit: '% of the tree', ours: [(grown / treeBytes) * 100], moreIsBetter: false, oursMax: 2 }),
      figure({ name: `${LAYERS} layers, ${LAYERS * FILES_PER_LAYER} files, warm process`, unit: 's', ours: fifty, moreIsBetter: false, oursMax: 3 }),
      figure({ name: `${LAYERS} layers, ${LAYERS * FILES_PER_LAYER} files, first of its process`, unit: 's', ours: fiftyFirst, moreIsBetter: false, oursMax: 3 }),
      figure({ name: 'peak memory', unit: 'MiB', ours: [largest / 2 ** 20], moreIsBetter: false, oursMax: 1024 }),
    ],
    notes: [
      `tree: ${tree}, ${(treeBytes / 2 ** 20).toFixed(0)} MiB, in the page cache; ${ROUNDS} rounds in turns`,
      'the whole command: from the start of the process to its end, modules loaded and code compiled on the way; other processes have run before it',
      'mke2fs writes an image into the page cache and ends before it is on the medium; what composing stores is durable when it ends',
      `phases of the last warm run, ms: ${Object.entries(phases).map(([name, ms]) => `${name} ${ms.toFixed(0)}`).join(', ')}`,
      'both composed disks of the first round passed e2fsck -fn',
    ],
  }
}
