/**
 * Import of a real tree beside `borg create` and `restic backup`: throughput, stored bytes, and the second import of the unchanged tree.
 * Whole commands, each into a new repository, in turns. Debian packages: borgbackup, restic, mmdebstrap.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { desktopTree } from '../desktop-tree.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult } from '../figures.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 3)
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

interface Tool {
  prepare(repository: string): void
  import(repository: string): void
  check(repository: string): void
}

function execute(command: string, args: string[], environment: Record<string, string> = {}, cwd?: string): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, cwd, env: { ...process.env, ...environment } })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${status}\n${stdout.slice(-2000)}\n${stderr.slice(-2000)}`)
  return stdout
}

/** Bytes of all files below a directory. */
function storedBytes(directory: string): number {
  return Number(execute('du', ['-s', '--apparent-size', '--block-size=1', directory]).split('\t')[0])
}

function tools(tree: string): Record<string, Tool> {
  const borg = (repository: string): Record<string, string> => ({ BORG_BASE_DIR: `${repository}.base`, BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes' })
  const restic = (repository: string): Record<string, string> => ({ RESTIC_PASSWORD: 'bench', RESTIC_CACHE_DIR: `${repository}.cache`, RESTIC_REPOSITORY: repository })
  let archive = 0
  return {
    varve: {
      prepare: () => {},
      import: (repository) => execute(launcher, ['layer', 'import', 'tree', `dir:${tree}`, '--kind', 'base', '--home', repository, '--json']),
      check: (repository) => execute(launcher, ['verify', '--home', repository, '--json']),
    },
    borg: {
      prepare: (repository) => execute('borg', ['init', '-e', 'none', repository], borg(repository)),
      import: (repository) => execute('borg', ['create', '-C', 'zstd,1', '--one-file-system', `${repository}::a${archive++}`, '.'], borg(repository), tree),
      check: (repository) => execute('borg', ['check', repository], borg(repository)),
    },
    restic: {
      prepare: (repository) => execute('restic', ['init', '-q'], restic(repository)),
      import: (repository) => execute('restic', ['backup', '-q', '--one-file-system', '.'], restic(repository), tree),
      check: (repository) => execute('restic', ['check', '-q'], restic(repository)),
    },
  }
}

export async function run(): Promise<BenchResult> {
  const tree = desktopTree()
  const treeBytes = Number(execute('du', ['-s', '--apparent-size', '--block-size=1', tree]).split('\t')[0])
  const files = execute('find', [tree, '-xdev']).split('\n').length - 1
  const all = tools(tree)
  const first: Record<string, number[]> = { varve: [], borg: [], restic: [] }
  const second: Record<string, number[]> = { varve: [], borg: [], restic: [] }
  const stored: Record<string, number[]> = { varve: [], borg: [], restic: [] }
  execute('tar', ['-C', tree, '-cf', '/dev/null', '--one-file-system', '.'])
  execute('sh', ['-c', `find ${tree} -xdev -type f -print0 | xargs -0 cat > /dev/null`])
  const scratch = mkdtempSync(path.join(tmpdir(), 'varve-bench-'))
  const timed = (work: () => void): number => {
    const started = process.hrtime.bigint()
    work()
    return Number(process.hrtime.bigint() - started) / 1e9
  }
  try {
    for (let round = 0; round < ROUNDS; round++) {
      for (const [name, tool] of Object.entries(all)) {
        const repository = path.join(scratch, name)
        tool.prepare(repository)
        execute('sync', [])
        first[name].push(treeBytes / 1e6 / timed(() => tool.import(repository)))
        stored[name].push(storedBytes(repository) / 2 ** 20)
        execute('sync', [])
        second[name].push(timed(() => tool.import(repository)))
        if (round === 0) tool.check(repository)
        for (const suffix of ['', '.base', '.cache']) rmSync(repository + suffix, { recursive: true, force: true })
      }
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  const peers = (of: Record<string, number[]>) => ({ borg: of.borg, restic: of.restic })
  return {
    bench: 'import',
    machine: machine(),
    versions: { node: process.version, borg: version('borg', '--version'), restic: version('restic', 'version') },
    seed: null,
    figures: [
      figure({ name: 'first import', unit: 'MB/s', ours: first.varve, peers: peers(first), moreIsBetter: true, ratioMin: 2 }),
      figure({ name: 'stored', unit: 'MiB', ours: stored.varve, peers: peers(stored), moreIsBetter: false, ratioMin: 1 / 1.05 }),
      figure({ name: 'second import, unchanged', unit: 's', ours: second.varve, peers: peers(second), moreIsBetter: false, ratioMin: 2 }),
    ],
    notes: [
      `tree: ${tree}, ${files} entries, ${(treeBytes / 2 ** 20).toFixed(0)} MiB, in the page cache; ${ROUNDS} rounds in turns, each into a new repository on the same disk`,
      'borg with zstd,1 and no encryption; restic with its default compression, and encryption, which it cannot leave out',
      'a repository is checked by its own tool in the first round',
    ],
  }
}

