/**
 * Dedup of related disks beside borg, restic and casync: a series of Debian disks, each as raw file, as qcow2, and as the directory of its files, into one store;
 * and a newer image of a disk of which 1% has changed. Whole commands, in turns. Debian packages: borgbackup, restic, casync, mmdebstrap, qemu-utils.
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, mkdirSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { zstdCompressSync } from 'node:zlib'
import { mounted, prepareSeries, storedBytes } from '../dedup/disks.ts'
import type { Series } from '../dedup/disks.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult } from '../figures.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 1)
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')
const FORMS = ['raw', 'qcow2', 'dir'] as const
type Form = (typeof FORMS)[number]

interface Item {
  name: string
  form: Form
  /** File, or directory that is mounted. */
  source: string
  /** Bytes of content, as the raw disk has them. */
  bytes: number
}

interface Tool {
  prepare(): void
  put(item: Item, options?: { changed?: string }): void
  /** All of a disk, back again, as a raw file. */
  get(item: Item, to: string): void
}

function execute(command: string, args: readonly string[], options: { env?: Record<string, string>; cwd?: string } = {}): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, cwd: options.cwd, env: { ...process.env, ...options.env } })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${status}\n${stdout.slice(-2000)}\n${stderr.slice(-2000)}`)
  return stdout
}

function tools(directory: string): Record<string, Tool> {
  const at = (name: string): string => path.join(directory, name)
  const borg = { BORG_BASE_DIR: at('borg.base'), BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes', BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes' }
  const restic = { RESTIC_PASSWORD: 'bench', RESTIC_CACHE_DIR: at('restic.cache'), RESTIC_REPOSITORY: at('restic') }
  const placeOf = ({ source, form }: Item): { cwd: string; name: string } => (form === 'dir' ? { cwd: source, name: '.' } : { cwd: path.dirname(source), name: path.basename(source) })
  const archive = new Map<string, number>()
  const next = (item: Item): string => {
    const key = `${item.name}-${item.form}`
    archive.set(key, (archive.get(key) ?? 0) + 1)
    return `${key}-${archive.get(key)}`
  }
  return {
    varve: {
      prepare: () => {},
      put: ({ name, form, source }, { changed } = {}) => {
        const args = form === 'dir' ? [`dir:${source}`] : [`disk:${source}`, ...(changed === undefined ? [] : ['--changed', changed])]
        execute(launcher, ['layer', 'import', `${name}-${form}`, ...args, '--kind', 'base', '--home', at('varve'), '--json'])
      },
      get: ({ name, form }, to) => execute(launcher, ['export', `layer:${name}-${form}`, to, '--format', 'raw', '--home', at('varve'), '--json']),
    },
    borg: {
      prepare: () => execute('borg', ['init', '-e', 'none', at('borg')], { env: borg }),
      put: (item) => {
        const { cwd, name } = placeOf(item)
        execute('borg', ['create', '-C', 'zstd,1', '--chunker-params', '10,23,16,4095', '--sparse', '--one-file-system', `${at('borg')}::${next(item)}`, name], { env: borg, cwd })
      },
      get: () => undefined,
    },
    restic: {
      prepare: () => execute('restic', ['init', '-q'], { env: restic }),
      put: (item) => {
        const { cwd, name } = placeOf(item)
        execute('restic', ['backup', '-q', '--one-file-system', name], { env: restic, cwd })
      },
      get: () => undefined,
    },
    casync: {
      prepare: () => mkdirSync(at('casync'), { recursive: true }),
      put: (item) => {
        const index = at(`casync/${next(item)}.${item.form === 'dir' ? 'caidx' : 'caibx'}`)
        execute('casync', ['make', '--store', at('casync/store.castr'), index, item.source])
      },
      get: () => undefined,
    },
  }
}

/** Has a file in the page cache. */
function warm(file: string): void {
  execute('sh', ['-c', 'cat "$1" > /dev/null', 'sh', file])
}

const timed = (work: () => void): number => {
  execute('sync', [])
  const started = process.hrtime.bigint()
  work()
  return Number(process.hrtime.bigint() - started) / 1e9
}

export async function run(): Promise<BenchResult> {
  const images = process.env.VARVE_BENCH_IMAGES ?? path.join(tmpdir(), 'varve-bench-images')
  const series = prepareSeries(path.join(images, 'dedup'))
  const scratch = mkdtempSync(path.join(images, 'run-'))
  const rates: Record<string, number[]> = {}
  const stored: Record<string, number[]> = {}
  const again: Record<string, number[]> = {}
  const listed: number[] = []
  const kinds = ['varve', 'borg', 'restic', 'casync']
  const seconds: Record<string, Record<Form, number[]>> = Object.fromEntries(kinds.map((tool) => [tool, { raw: [], qcow2: [], dir: [] }]))
  const notes: string[] = []
  const allocated = (file: string): number => Number(execute('stat', ['-c', '%b', file])) * 512
  for (const name of kinds) for (const record of [rates, stored, again]) record[name] = []
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const directory = path.join(scratch, String(round))
      mkdirSync(directory)
      const all = tools(directory)
      for (const tool of Object.values(all)) tool.prepare()
      const spent: Record<string, number> = Object.fromEntries(kinds.map((tool) => [tool, 0]))
      let bytes = 0
      for (const { name, raw, qcow2 } of series.disks) {
        for (const form of FORMS) {
          const source = form === 'raw' ? raw : form === 'qcow2' ? qcow2 : `${raw}.mnt`
          const item: Item = { name, form, source, bytes: allocated(raw) }
          bytes += item.bytes
          const putAll = (): void => {
            if (form === 'dir') execute('tar', ['-C', source, '-cf', '/dev/null', '--one-file-system', '.'])
            else warm(source)
            for (const [tool, of] of Object.entries(all)) {
              const took = timed(() => of.put(item))
              spent[tool] += took
              seconds[tool][form].push(took)
            }
          }
          if (form === 'dir') mounted(raw, 'ro', putAll)
          else putAll()
        }
      }
      for (const name of kinds) {
        rates[name].push(bytes / 1e6 / spent[name])
        stored[name].push(storedBytes(path.join(directory, name)) / 2 ** 20)
      }
      const item = changedItem(series)
      warm(item.source)
      listed.push(timed(() => all.varve.put(item, { changed: series.changed.list })))
      checkSame(all.varve, item, directory)
      // The import without a list has the same base, and finds nothing of the one with it.
      execute(launcher, ['layer', 'remove', `${item.name}-${item.form}@2`, '--home', path.join(directory, 'varve')])
      execute(launcher, ['gc', '--home', path.join(directory, 'varve')])
      for (const [tool, of] of Object.entries(all)) again[tool].push(timed(() => of.put(item)))
      checkSame(all.varve, item, directory)
      if (round === 0) {
        execute(launcher, ['verify', '--quick', '--home', path.join(directory, 'varve'), '--json'])
        notes.push(...fixedDedup(series))
      }
      rmSync(directory, { recursive: true, force: true })
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  const peers = (of: Record<string, number[]>) => ({ borg: of.borg, restic: of.restic, casync: of.casync })
  const byForm = (form: Form) => figure({
    name: `one disk as ${form}`, unit: 's', ours: seconds.varve[form], moreIsBetter: false,
    peers: { borg: seconds.borg[form], restic: seconds.restic[form], casync: seconds.casync[form] },
  })
  return {
    bench: 'dedup',
    machine: machine(),
    versions: { node: process.version, borg: version('borg', '--version'), restic: version('restic', 'version'), casync: version('casync', '--version') },
    seed: null,
    figures: [
      figure({ name: 'stored, of the whole series', unit: 'MiB', ours: stored.varve, peers: peers(stored), moreIsBetter: false, ratioMin: 1 / 0.75 }),
      figure({ name: 'throughput, of the whole series', unit: 'MB/s', ours: rates.varve, peers: peers(rates), moreIsBetter: true, ratioMin: 2 }),
      ...FORMS.map(byForm),
      figure({ name: 'newer image, 1% changed, with a list', unit: 's', ours: listed, peers: peers(again), moreIsBetter: false, ratioMin: 20 }),
      figure({ name: 'newer image, 1% changed, without', unit: 's', ours: again.varve, peers: peers(again), moreIsBetter: false, ratioMin: 3 }),
    ],
    notes: [
      `${series.disks.map(({ name }) => name).join(', ')}, each as ${FORMS.join(', ')}, in this order, into one store of each tool; ${ROUNDS} rounds; sources in the page cache`,
      'throughput counts of each disk what is allocated of its raw file, whatever its form; throughput of a form is in the seconds for one disk',
      'borg with zstd,1, chunks of 64 KiB on average (as ours), and no encryption; restic with its default compression, and encryption, which it cannot leave out; casync with its defaults (zstd)',
      'peers take a qcow2 file as it is; nobody but ours drops what the filesystems do not use',
      ...notes,
    ],
  }
}

function changedItem({ changed }: Series): Item {
  return { name: 'desktop', form: 'raw', source: changed.raw, bytes: 0 }
}

/** What was put comes back: every file of the disk, as the kernel shows it. */
function checkSame(tool: Tool, item: Item, directory: string): void {
  const raw = path.join(directory, 'back.raw')
  tool.get(item, raw)
  const sums = [raw, item.source].map((file) => mounted(file, 'ro', (root) => execute('sh', ['-c', 'tar -C "$1" --sort=name --numeric-owner -cf - . | sha256sum', 'sh', root])))
  if (sums[0] !== sums[1]) throw new Error('the disk that was put did not come back')
  rmSync(raw)
}

/** For reference: what fixed blocks of the raw disks would take, each block compressed alone. */
function fixedDedup({ disks }: Series): string[] {
  return [4096, 65_536].map((blockBytes) => {
    const known = new Set<string>()
    let storedSum = 0
    for (const { raw } of disks) {
      const fd = openSync(raw, 'r')
      const buffer = Buffer.alloc(4 << 20)
      for (let at = 0, read = readSync(fd, buffer, 0, buffer.length, 0); read > 0; at += read, read = readSync(fd, buffer, 0, buffer.length, at)) {
        for (let from = 0; from < read; from += blockBytes) {
          const block = buffer.subarray(from, Math.min(read, from + blockBytes))
          if (block.every((byte) => byte === 0)) continue
          const digest = createHash('sha1').update(block).digest('base64')
          if (known.has(digest)) continue
          known.add(digest)
          storedSum += Math.min(block.length, zstdCompressSync(block).length)
        }
      }
      closeSync(fd)
    }
    return `fixed blocks of ${blockBytes >> 10} KiB of the raw disks: ${(storedSum / 2 ** 20).toFixed(0)} MiB in ${known.size} blocks`
  })
}
