/**
 * Disks of the dedup benchmark: a series of related Debian disks, as people have them. Each is a GPT disk with one ext4 that the kernel's driver
 * has filled; later ones are changed in place, the last is installed anew in another order. Made once below a directory, and kept for later runs.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Random } from '../../test/random.ts'

const DISK_BYTES = 5 * 2 ** 30
const PARTITION_OFFSET = 1 << 20
const BASE = ['systemd', 'systemd-sysv', 'udev', 'dbus', 'kmod', 'initramfs-tools', 'linux-image-cloud-amd64', 'apt', 'openssh-client', 'vim', 'git', 'python3']
const UPGRADE = { add: ['perl', 'rsync', 'curl', 'sqlite3', 'nodejs'], remove: ['git', 'vim'] }
const DESKTOP = ['xfce4', 'firefox-esr', 'libreoffice-writer', 'gimp', 'gcc']
/** Of the content of the disk, what the change of 1% touches. */
const CHANGED_PART = 0.01

export interface DiskOfSeries {
  name: string
  raw: string
  qcow2: string
}

export interface Series {
  disks: DiskOfSeries[]
  /** The third of the series with 1% of its content changed through the kernel, and what of the disk that has changed, as nbdinfo would print it. */
  changed: { raw: string; list: string }
}

function execute(command: string, args: readonly string[], options: { input?: string } = {}): string {
  return execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' }, ...options })
}

/** Mounted while `work` runs. */
export function mounted<Result>(raw: string, mode: 'ro' | 'rw', work: (root: string) => Result): Result {
  const root = `${raw}.mnt`
  mkdirSync(root, { recursive: true })
  const loop = execute('losetup', ['-f', '--show', '-o', String(PARTITION_OFFSET), raw]).trim()
  try {
    execute('mount', ['-t', 'ext4', '-o', mode === 'ro' ? 'ro,noload' : 'rw', loop, root])
    return work(root)
  } finally {
    spawnSync('umount', [root])
    spawnSync('losetup', ['-d', loop])
  }
}

function emptyDisk(raw: string): void {
  writeFileSync(raw, '')
  truncateSync(raw, DISK_BYTES)
  execute('sfdisk', ['-q', raw], { input: `label: gpt\nstart=${PARTITION_OFFSET / 512}\n` })
  const loop = execute('losetup', ['-f', '--show', '-o', String(PARTITION_OFFSET), '--sizelimit', String(DISK_BYTES - 2 * PARTITION_OFFSET), raw]).trim()
  try {
    execute('mke2fs', ['-q', '-t', 'ext4', '-E', 'lazy_itable_init=0,lazy_journal_init=0', loop])
  } finally {
    execute('losetup', ['-d', loop])
  }
}

function install(root: string, packages: readonly string[]): void {
  execute('mmdebstrap', ['--variant=minbase', '--mode=root', '--skip=check/empty', `--include=${packages.join(',')}`, 'bookworm', root])
}

/** `apt-get` on a system that is mounted, with the network of this machine. */
function aptGet(root: string, ...commands: string[][]): void {
  for (const file of ['etc/resolv.conf', 'etc/apt/apt.conf.d']) if (existsSync(`/${file}`)) cpSync(`/${file}`, path.join(root, file), { recursive: true, dereference: true })
  execute('mount', ['--bind', '/proc', `${root}/proc`])
  try {
    for (const args of [['update'], ...commands, ['clean']]) execute('chroot', [root, 'apt-get', ...args])
  } finally {
    execute('umount', [`${root}/proc`])
  }
  rmSync(path.join(root, 'var/lib/apt/lists'), { recursive: true, force: true })
}

/** Makes a file under another name first: one that is there is whole. */
function made(file: string, make: (building: string) => void): string {
  if (existsSync(file)) return file
  const building = `${file}.building`
  rmSync(building, { force: true })
  console.error(`making ${file}`)
  make(building)
  renameSync(building, file)
  return file
}

export function prepareSeries(directory: string): Series {
  mkdirSync(directory, { recursive: true })
  const at = (name: string): string => path.join(directory, name)
  const copied = (from: string, change: (root: string) => void) => (building: string): void => {
    execute('cp', ['--sparse=always', from, building])
    mounted(building, 'rw', change)
    // What is zero takes no space, whoever reads it.
    execute('fallocate', ['-d', building])
  }
  const base = made(at('base.raw'), (building) => {
    emptyDisk(building)
    mounted(building, 'rw', (root) => install(root, BASE))
  })
  const upgraded = made(at('upgraded.raw'), copied(base, (root) => {
    aptGet(root, ['install', '-y', '--no-install-recommends', ...UPGRADE.add], ['remove', '-y', '--autoremove', ...UPGRADE.remove])
  }))
  const desktop = made(at('desktop.raw'), copied(base, (root) => {
    aptGet(root, ['install', '-y', '--no-install-recommends', ...DESKTOP])
  }))
  const fresh = made(at('fresh.raw'), (building) => {
    emptyDisk(building)
    mounted(building, 'rw', (root) => install(root, [...DESKTOP, ...BASE].toReversed()))
  })
  const disks = [base, upgraded, desktop, fresh].map((raw) => {
    const name = path.basename(raw, '.raw')
    return { name, raw, qcow2: made(at(`${name}.qcow2`), (building) => execute('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, building])) }
  })
  const changedRaw = made(at('desktop-changed.raw'), copied(desktop, changeOnePercent))
  const list = made(at('desktop-changed.json'), (building) => writeFileSync(building, JSON.stringify(changedBlocks(desktop, changedRaw))))
  return { disks, changed: { raw: changedRaw, list } }
}

/** Rewrites and appends to random files, and adds some, until 1% of the content was written. */
function changeOnePercent(root: string): void {
  const random = new Random(1)
  const files = execute('find', [`${root}/usr`, '-xdev', '-type', 'f', '-size', '+1', '-size', '-20000', '-printf', '%s %p\n']).trim().split('\n').sort()
  const total = files.reduce((sum, line) => sum + Number(line.slice(0, line.indexOf(' '))), 0)
  for (let written = 0, added = 0; written < total * CHANGED_PART; ) {
    const line = random.pick(files)
    const bytes = Number(line.slice(0, line.indexOf(' ')))
    const file = line.slice(line.indexOf(' ') + 1)
    const content = readFileSync(file)
    if (random.chance(0.5)) content.set(random.bytes(Math.min(bytes, 4096)), random.below(Math.max(1, bytes - 4096)))
    writeFileSync(random.chance(0.7) ? file : `${root}/usr/share/added-${added++}`, content)
    written += bytes
  }
}

/** Of 64 KiB each, as a dirty bitmap has them. */
function changedBlocks(before: string, after: string): { offset: number; length: number; type: number }[] {
  const blockBytes = 65_536
  const differing = spawnSync('sh', ['-c', 'cmp -l "$1" "$2" | awk \'{b=int(($1-1)/65536); if (b!=last) {print b; last=b}}\'', 'sh', before, after], { encoding: 'utf8', maxBuffer: 1 << 30 }).stdout
  return differing.trim().split('\n').map((block) => ({ offset: Number(block) * blockBytes, length: blockBytes, type: 1 }))
}

/** Bytes of all files below a directory. */
export function storedBytes(directory: string): number {
  return readdirSync(directory, { recursive: true, withFileTypes: true }).reduce((sum, entry) => sum + (entry.isFile() ? statSync(path.join(entry.parentPath, entry.name)).size : 0), 0)
}
