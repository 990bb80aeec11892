/**
 * Mounts: reads of a disk's file beside nbdfuse on nbdkit's memory plugin; `tar c` of the mounted files beside the kernel's mount of the same disk;
 * time from command to first file, for a CVD of few files and of many. As root. Debian packages: nbdkit, libnbd-bin, tar, util-linux, mount, e2fsprogs.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { closeSync, constants, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Random, testSeed } from '../../test/random.ts'
import { figure, machine, version } from '../figures.ts'
import type { BenchResult, FigureInit } from '../figures.ts'

const ROUNDS = Number(process.env.VARVE_BENCH_ROUNDS ?? 5)
const SEQUENTIAL_BYTES = 256 << 20
const READ_BYTES = 1 << 20
const RANDOM_READS = 20_000
const RANDOM_BYTES = 4096
const MANY_FILES = 200_000
const FEW_FILES = 2000
const START_MS_MAX = 30_000
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')
/** Files that people have: most small, some not. */
const USED_TREE = process.env.VARVE_BENCH_TREE ?? '/usr'

export async function run(): Promise<BenchResult> {
  const seed = testSeed()
  const random = new Random(seed)
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-bench-fuse-'))
  await using stack = new AsyncDisposableStack()
  stack.defer(() => rmSync(directory, { recursive: true, force: true }))
  const home = path.join(directory, 'home')
  const varve = (...args: string[]): { partitions: { firstByte: number; byteLength: number }[] } => JSON.parse(execFileSync(launcher, [...args, '--json', '--home', home], { encoding: 'utf8', maxBuffer: 1 << 28 }))
  console.error('importing')
  varve('layer', 'import', 'used', `dir:${USED_TREE}`, '--kind', 'base')
  for (const [name, count] of [['few', FEW_FILES], ['many', MANY_FILES]] as const) {
    makeFiles(path.join(directory, name), count)
    varve('layer', 'import', name, `dir:${path.join(directory, name)}`, '--kind', 'base')
  }
  for (const name of ['used', 'few', 'many']) {
    varve('cvd', 'create', name, '--layer', name, '--boot', 'none')
    varve('compose', name)
  }
  const figures = [
    ...(await diskFigures({ directory, home, random, stack })),
    await tarFigure({ directory, home, partition: varve('compose', 'used').partitions[0] }),
    ...firstFileFigures({ directory, home }),
  ]
  return {
    bench: 'fuse', machine: machine(), versions: { nbdkit: version('nbdkit', '--version'), nbdfuse: version('nbdfuse', '--version'), tar: version('tar', '--version') }, seed,
    figures: figures.map(figure),
    notes: [
      `reads go around the page cache (O_DIRECT) where a file allows it: what is measured is the server; ${SEQUENTIAL_BYTES >> 20} MiB of content, warm in both servers`,
      'reader and server share the cores: with two, the reader has one',
      'tar is warm: the page cache holds the files for both, and so do directories and attributes',
      'the first file is read by a command in a process of its own, and through a mount that was not there before; starting Node takes 40 to 80 ms of it',
    ],
  }
}

function makeFiles(directory: string, count: number): void {
  for (let index = 0; index < count; index++) {
    const below = path.join(directory, `d${Math.floor(index / 500)}`)
    if (index % 500 === 0) mkdirSync(below, { recursive: true })
    writeFileSync(path.join(below, `file ${index}`), `content ${index % 1000}\n`)
  }
}

interface Mounted {
  directory: string
  process: ChildProcess
}

async function mount(home: string, what: string, directory: string, ...args: string[]): Promise<Mounted> {
  mkdirSync(directory, { recursive: true })
  const child = spawn(launcher, ['mount', what, directory, '--foreground', '--json', '--home', home, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  await new Promise<void>((resolve, reject) => {
    child.stdout.once('data', () => resolve())
    child.once('exit', (status) => reject(new Error(`varve mount ${what} ended with ${status}`)))
  })
  return { directory, process: child }
}

async function unmount({ directory, process }: Mounted): Promise<void> {
  const exited = process.exitCode === null ? new Promise((resolve) => process.once('exit', resolve)) : undefined
  spawnSync('umount', [directory])
  await exited
}

async function diskFigures({ directory, home, random, stack }: { directory: string; home: string; random: Random; stack: AsyncDisposableStack }): Promise<FigureInit[]> {
  const ours = await mount(home, 'layer:used', path.join(directory, 'disk'), '--disk')
  stack.defer(() => unmount(ours))
  const raw = path.join(ours.directory, 'disk.raw')
  const socket = path.join(directory, 'nbd.sock')
  const nbdkit = spawn('nbdkit', ['-f', '-U', socket, 'memory', String(statSync(raw).size)], { stdio: ['ignore', 'ignore', 'inherit'] })
  stack.defer(() => { nbdkit.kill() })
  await until(() => existsSync(socket))
  const peerDirectory = path.join(directory, 'nbdfuse')
  mkdirSync(peerDirectory)
  const peer = path.join(peerDirectory, 'nbd')
  const nbdfuse = spawn('nbdfuse', [peer, `nbd+unix:///?socket=${socket}`], { stdio: ['ignore', 'ignore', 'inherit'] })
  stack.defer(() => unmount({ directory: peerDirectory, process: nbdfuse }))
  await until(() => existsSync(peer))
  const start = contentAt(raw)
  execFileSync('dd', [`if=${raw}`, `of=${peer}`, 'bs=1M', `skip=${start / READ_BYTES}`, `seek=${start / READ_BYTES}`, `count=${SEQUENTIAL_BYTES / READ_BYTES}`, 'conv=notrunc'], { stdio: 'ignore' })
  const [rates, reads] = [new Map<string, number[]>(), new Map<string, number[]>()]
  for (let round = 0; round <= ROUNDS; round++) {
    const offsets = Array.from({ length: RANDOM_READS }, () => start + random.below(SEQUENTIAL_BYTES / RANDOM_BYTES) * RANDOM_BYTES)
    const sums = [raw, peer].map((file) => {
      const measured = measureReads(file, start, offsets)
      // The first round warms both.
      if (round > 0) {
        rates.set(file, [...(rates.get(file) ?? []), measured.megabytesPerSecond])
        reads.set(file, [...(reads.get(file) ?? []), measured.readsPerSecond])
      }
      return measured.sum
    })
    if (sums[0] !== sums[1]) throw new Error('the two disks do not hold the same')
  }
  const row = (name: string, unit: string, values: Map<string, number[]>): FigureInit => ({ name, unit, ours: values.get(raw)!, peers: { 'nbdfuse on nbdkit memory': values.get(peer)! }, moreIsBetter: true, ratioMin: 2 })
  return [row('disk.raw, sequential reads of 1 MiB', 'MB/s', rates), row('disk.raw, random reads of 4 KiB, one at a time', '1/s', reads)]
}

/** Where so much of the disk is data that the readers read no holes, bytes. */
function contentAt(file: string): number {
  const bytes = Buffer.alloc(READ_BYTES)
  const fd = openSync(file, 'r')
  try {
    const end = statSync(file).size - SEQUENTIAL_BYTES
    for (let at = Math.floor(end / 4 / READ_BYTES) * READ_BYTES; at < end; at += READ_BYTES) {
      readSync(fd, bytes, 0, READ_BYTES, at)
      if (!bytes.every((byte) => byte === 0)) return at
    }
    return 0
  } finally {
    closeSync(fd)
  }
}

function measureReads(file: string, start: number, offsets: readonly number[]): { megabytesPerSecond: number; readsPerSecond: number; sum: number } {
  const fd = openSync(file, constants.O_RDONLY | constants.O_DIRECT)
  const bytes = Buffer.allocUnsafeSlow(READ_BYTES)
  let sum = 0
  try {
    const before = performance.now()
    for (let at = start; at < start + SEQUENTIAL_BYTES; at += READ_BYTES) {
      if (readSync(fd, bytes, 0, READ_BYTES, at) !== READ_BYTES) throw new Error(`${file} ends at ${at}`)
      sum = (sum + bytes.readUInt32LE(at % 4000)) % 2 ** 40
    }
    const between = performance.now()
    for (const offset of offsets) {
      if (readSync(fd, bytes, 0, RANDOM_BYTES, offset) !== RANDOM_BYTES) throw new Error(`${file} ends at ${offset}`)
      sum = (sum + bytes.readUInt32LE(offset % 4000)) % 2 ** 40
    }
    const after = performance.now()
    return { megabytesPerSecond: SEQUENTIAL_BYTES / 1000 / (between - before), readsPerSecond: (offsets.length * 1000) / (after - between), sum }
  } finally {
    closeSync(fd)
  }
}

async function tarFigure({ directory, home, partition }: { directory: string; home: string; partition: { firstByte: number; byteLength: number } }): Promise<FigureInit> {
  const files = await mount(home, 'used', path.join(directory, 'files'))
  const disk = await mount(home, 'layer:used', path.join(directory, 'tar-disk'), '--disk')
  const kernel = path.join(directory, 'kernel')
  mkdirSync(kernel)
  const device = execFileSync('losetup', ['-f', '--show', '-r', '-o', String(partition.firstByte), '--sizelimit', String(partition.byteLength), path.join(disk.directory, 'disk.raw')], { encoding: 'utf8' }).trim()
  const [ours, theirs]: number[][] = [[], []]
  try {
    execFileSync('mount', ['-o', 'ro,noload', device, kernel])
    const tar = (from: string): number => {
      const before = performance.now()
      execFileSync('sh', ['-c', 'tar -c -C "$0" . | wc -c', from], { stdio: 'ignore' })
      return performance.now() - before
    }
    for (let round = 0; round <= ROUNDS; round++) {
      const [mine, other] = [tar(files.directory), tar(kernel)]
      if (round > 0) {
        ours.push(mine)
        theirs.push(other)
      }
    }
    return { name: `tar c of ${USED_TREE}, warm`, unit: 'ms', ours, peers: { 'the kernel\'s ext4': theirs }, moreIsBetter: false, ratioMin: 1 / 1.5 }
  } finally {
    spawnSync('umount', [kernel])
    spawnSync('losetup', ['-d', device])
    await unmount(disk)
    await unmount(files)
  }
}

function firstFileFigures({ directory, home }: { directory: string; home: string }): FigureInit[] {
  const at = path.join(directory, 'first')
  mkdirSync(at)
  const measured = new Map<string, number[]>()
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [name, count] of [['few', FEW_FILES], ['many', MANY_FILES]] as const) {
      const last = `d${Math.floor((count - 1) / 500)}/file ${count - 1}`
      const expected = `content ${(count - 1) % 1000}\n`
      const timed = (kind: string, work: () => string): void => {
        const before = performance.now()
        if (work() !== expected) throw new Error(`${kind} of ${name} gave another content`)
        if (round > 0) measured.set(`${kind} ${name}`, [...(measured.get(`${kind} ${name}`) ?? []), performance.now() - before])
      }
      timed('cat', () => execFileSync(launcher, ['cat', `${name}:/${last}`, '--home', home], { encoding: 'utf8' }))
      timed('mount', () => {
        execFileSync(launcher, ['mount', name, at, '--home', home], { stdio: 'ignore' })
        return readFileSync(path.join(at, last), 'utf8')
      })
      execFileSync('umount', [at])
    }
  }
  const row = (kind: string, name: string): FigureInit => ({
    name: `${kind === 'cat' ? 'varve cat' : 'varve mount, then a read'}: first file of ${name === 'many' ? MANY_FILES : FEW_FILES}`, unit: 'ms', ours: measured.get(`${kind} ${name}`)!, moreIsBetter: false, ...(name === 'many' ? { oursMax: 500 } : {}),
  })
  return [row('cat', 'few'), row('cat', 'many'), row('mount', 'few'), row('mount', 'many')]
}

async function until(condition: () => boolean): Promise<void> {
  for (let waitedMs = 0; !condition(); waitedMs += 20) {
    if (waitedMs > START_MS_MAX) throw new Error('a server does not start')
    await sleep(20)
  }
}
