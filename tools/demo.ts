/**
 * `npm run demo`: a small Debian system from three layers is imported, composed, served over NBD and booted in QEMU, twice:
 * what the guest writes at its first boot is there at its second. Uses the varve command as a user would.
 */
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { buildDemoLayers } from './demo/debian.ts'
import { Guest } from './demo/guest.ts'
import { formatBytes, formatDuration } from './terminal.ts'

const launcher = path.join(import.meta.dirname, 'varve')
/** Far above what a slow machine needs. */
const BOOT_MS_MAX = 120_000

const scratch = mkdtempSync(path.join(tmpdir(), 'varve-demo-'))
const home = path.join(scratch, 'home')
const socket = path.join(scratch, 'nbd.sock')

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

/** Runs `varve ARGS`, and shows the command. */
function varve(...args: string[]): any {
  say(`  $ varve ${args.join(' ')}`)
  const { status, stdout, stderr } = spawnSync(launcher, [...args, '--home', home, '--json'], { encoding: 'utf8', maxBuffer: 1 << 28 })
  if (status !== 0) throw new Error(`varve ${args[0]} ended with status ${status}: ${stdout}${stderr}`)
  return JSON.parse(stdout)
}

/** Runs `PRODUCER | varve ARGS`. */
async function varveFrom(producer: string[], ...args: string[]): Promise<any> {
  say(`  $ ${producer.join(' ')} | varve ${args.join(' ')}`)
  const source = spawn(producer[0], producer.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
  const sink = spawn(launcher, [...args, '--home', home, '--json'], { stdio: [source.stdout, 'pipe', 'inherit'] })
  let stdout = ''
  for await (const bytes of sink.stdout) stdout += String(bytes)
  const status = sink.exitCode ?? (await new Promise((resolve) => sink.on('exit', resolve)))
  if (status !== 0) throw new Error(`varve ${args[0]} ended with status ${status}: ${stdout}`)
  return JSON.parse(stdout)
}

async function serveAndBoot(): Promise<string[]> {
  say(`  $ varve serve --nbd unix:${socket}`)
  const server = spawn(launcher, ['serve', '--nbd', `unix:${socket}`, '--http', 'off', '--home', home, '--json'], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = new Promise<void>((resolve) => server.on('exit', () => resolve()))
  await Promise.race([new Promise((resolve) => server.stdout.once('data', resolve)), exited.then(() => { throw new Error('varve serve ended early') })])
  try {
    const started = Date.now()
    await using guest = new Guest({ disk: `nbd+unix:///desk?socket=${socket}`, memoryMiB: 512 })
    await guest.waitFor(/varve-demo: done/, { timeoutMs: BOOT_MS_MAX })
    say(`  the guest booted from NBD and was done after ${formatDuration(Date.now() - started)}`)
    await guest.exited
    const lines = [...guest.console.matchAll(/varve-demo: ([^\r\n]*)/g)].map((match) => match[1]).filter((line) => line !== 'done')
    for (const line of lines) say(`  guest: ${line}`)
    return lines
  } finally {
    server.kill('SIGTERM')
    await exited
  }
}

async function demo(): Promise<void> {
  say('1. Three layers are made from Debian packages: a kernel with busybox, an application, a person\'s files.')
  const layers = buildDemoLayers(scratch)
  say(`  kernel ${layers.kernelVersion}`)

  say('2. They are imported: cut into chunks, deduplicated, compressed.')
  const imported = [
    varve('layer', 'import', 'base', `dir:${layers.base}`, '--kind', 'base'),
    await varveFrom(['dpkg-deb', '--fsys-tarfile', layers.application], 'layer', 'import', 'hello', 'tar:-', '--kind', 'app'),
    varve('layer', 'import', 'ada', `dir:${layers.user}`, '--kind', 'user'),
  ]
  for (const { layer, files, contentBytes, storedBytes } of imported) {
    say(`  ${layer}: ${files} files, ${formatBytes(contentBytes)}, ${formatBytes(storedBytes)} added to the store`)
  }

  say('3. They are composed into a bootable disk; no file is copied.')
  varve('cvd', 'create', 'desk', '--layer', 'base', '--layer', 'hello', '--layer', 'ada')
  const disk = varve('compose', 'desk')
  say(`  a disk of ${formatBytes(disk.sizeBytes)} with ${disk.files} files in ${formatDuration(disk.milliseconds)}; the store grew by ${formatBytes(disk.storedBytes)}`)
  say(`  its digest: ${disk.diskDigest}`)

  say('4. It is served, and a virtual machine boots from it.')
  const first = await serveAndBoot()
  say('5. The server was stopped. It is started again, and so is the machine.')
  const second = await serveAndBoot()

  const kept = second.find((line) => line.startsWith('found what an earlier boot wrote'))
  if (!first.includes('wrote a file in the guest') || kept === undefined) throw new Error('the second boot did not find what the first wrote')
  say('What the guest wrote at its first boot was there at its second. Done.')
}

try {
  await demo()
} finally {
  rmSync(scratch, { recursive: true, force: true })
}
