/**
 * What is booted: a real Debian with a unit in its default target that says so on the serial console, composed by Varve, and copied out for the peers.
 * A second system is built from the same packages, independently. All of it is made once in a directory, and kept for later runs.
 */
import { execFile, execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { Guest } from '@varve/tools/demo/guest.ts'
import { buildDebian } from '../../test/integration/debian-layers.ts'
import { varve, VarveServer } from '../../test/varve-command.ts'
import { VarveProcess } from './varve-process.ts'

/** What the console shows when the default target is reached. */
export const MARK = 'varve-bench: the default target is reached'
export const CVD = 'boot'
/** Stacks the same layers, and is what the boot set is learned from. */
export const TAUGHT_CVD = 'taught'
/** Stacks the system that was built independently. */
const OTHER_CVD = 'other'

const POLL_MS = 100
const TEACH_SECONDS_MAX = '1800'

export const IMAGES = {
  debian: { packages: [], kernel: 'linux-image-cloud-amd64', memoryMiB: 1024, target: 'multi-user.target', ready: 'true', display: [] },
  desktop: {
    packages: ['xfce4', 'lightdm', 'xserver-xorg', 'firefox-esr', 'libreoffice-writer'],
    kernel: 'linux-image-amd64',
    memoryMiB: 2048,
    target: 'graphical.target',
    ready: 'until pidof xfce4-panel; do sleep 0.2; done',
    display: ['-vga', 'std'],
  },
  /** What people work with on a console. */
  workstation: {
    packages: [
      'aspell', 'aspell-en', 'bc', 'curl', 'ffmpeg', 'file', 'gcc', 'gdb', 'ghostscript', 'git', 'gnuplot-nox', 'graphviz', 'groff', 'imagemagick', 'jq', 'less', 'libc6-dev', 'libwww-perl',
      'lua5.4', 'make', 'man-db', 'mc', 'nodejs', 'openssl', 'perl', 'php-cli', 'poppler-utils', 'python3', 'python3-numpy', 'python3-pygments', 'r-base-core', 'rsync', 'ruby', 'sqlite3', 'tcl', 'units', 'vim', 'wamerican', 'xz-utils', 'zip',
    ],
    kernel: 'linux-image-cloud-amd64',
    memoryMiB: 1024,
    target: 'multi-user.target',
    ready: 'true',
    display: [],
  },
} as const
export type ImageName = keyof typeof IMAGES

export interface Homes {
  /** Nothing was booted. */
  never: string
  /** A CVD of the same layers was booted. */
  learned: string
  /** The system that was built independently was booted. */
  other: string
}

export interface Images {
  image: ImageName
  /** Each holds all CVDs; CVD was never booted in any. */
  homes: Homes
  /** How many chunks the boot used that `homes.learned` learned from. */
  bootChunks: number
  /** Of the bytes that this boot used of files, what `homes.other` would fetch; 0 .. 1. */
  otherCovers: number
  /** The disk of CVD, as composed. */
  rawFile: string
  /** The same, compressed. */
  qcow2File: string
  sizeBytes: number
  rootUuid: string
  /** Of CVD's system. */
  kernelFile: string
  initrdFile: string
}

export function execute(command: string, args: readonly string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 30, stdio: ['ignore', 'pipe', 'pipe'] })
}

/** As `execute`, while this process does other things. */
export async function executeInTheBackground(command: string, args: readonly string[]): Promise<void> {
  await promisify(execFile)(command, args, { encoding: 'utf8' })
}

/** Makes them below `directory`, or takes what an earlier run made there. */
export async function prepareImages(directory: string, image: ImageName): Promise<Images> {
  const place = path.join(directory, image)
  const manifest = path.join(place, 'images.json')
  if (existsSync(manifest)) return JSON.parse(readFileSync(manifest, 'utf8')) as Images
  console.error(`Preparing ${place}, which is kept for later runs`)
  mkdirSync(place, { recursive: true })
  const [root, otherRoot] = [CVD, OTHER_CVD].map((name) => tree(path.join(place, `${name}.tree`), image))
  const home = path.join(place, 'home')
  rmSync(home, { recursive: true, force: true })
  for (const directory of [otherRoot, root]) varve(home, ['layer', 'import', 'system', `dir:${directory}`, '--kind', 'base'])
  for (const [name, layer] of [[CVD, 'system@2'], [TAUGHT_CVD, 'system@2'], [OTHER_CVD, 'system@1']]) varve(home, ['cvd', 'create', name, '--layer', layer])
  const { rootUuid } = varve(home, ['compose', CVD]).json as { rootUuid: string }
  const rawFile = path.join(place, 'disk.raw')
  const qcow2File = path.join(place, 'disk.qcow2')
  await copyOut(home, rawFile)
  execute('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-c', '-o', 'compression_type=zstd', rawFile, qcow2File])
  const sizeBytes = (JSON.parse(execute('qemu-img', ['info', '--output=json', qcow2File])) as { 'virtual-size': number })['virtual-size']
  const boot = path.join(root, 'boot')
  const kernelFile = path.join(boot, readdirSync(boot).find((file) => file.startsWith('vmlinuz-'))!)
  const homes: Homes = { never: home, learned: path.join(place, 'home-learned'), other: path.join(place, 'home-other') }
  const bootChunks = await teach(home, homes.learned, TAUGHT_CVD, image)
  await teach(home, homes.other, OTHER_CVD, image)
  const images: Images = { image, homes, bootChunks, otherCovers: covered(homes), rawFile, qcow2File, sizeBytes, rootUuid, kernelFile, initrdFile: kernelFile.replace('vmlinuz-', 'initrd.img-') }
  writeFileSync(manifest, JSON.stringify(images))
  return images
}

/** @returns its directory; only a finished tree has the name */
export function tree(directory: string, image: ImageName): string {
  if (existsSync(directory)) return directory
  const building = `${directory}.building`
  rmSync(building, { recursive: true, force: true })
  const { packages, kernel, target, ready } = IMAGES[image]
  buildDebian(building, packages, kernel)
  const units = path.join(building, 'etc/systemd/system')
  mkdirSync(path.join(units, `${target}.wants`), { recursive: true })
  // Ordered after what the target wants, so that it ends the boot and not its own part of it.
  writeFileSync(path.join(units, 'varve-mark.service'), `[Unit]
After=${target}
[Service]
Type=oneshot
ExecStart=/bin/sh -c '${ready}; echo "${MARK}" >/dev/ttyS0'
`)
  symlinkSync('../varve-mark.service', path.join(units, `${target}.wants/varve-mark.service`))
  rmSync(path.join(units, 'default.target'), { force: true })
  symlinkSync(`/lib/systemd/system/${target}`, path.join(units, 'default.target'))
  if (target === 'graphical.target') logInByItself(building)
  renameSync(building, directory)
  return directory
}

function logInByItself(root: string): void {
  execute('chroot', [root, 'useradd', '--create-home', '--shell', '/bin/bash', 'ada'])
  mkdirSync(path.join(root, 'etc/lightdm/lightdm.conf.d'), { recursive: true })
  writeFileSync(path.join(root, 'etc/lightdm/lightdm.conf.d/50-autologin.conf'), '[Seat:*]\nautologin-user=ada\nautologin-session=xfce\n')
}

/**
 * Makes a copy of a home, and boots a CVD in it while its boot is recorded.
 * @returns how many chunks it used
 */
export async function teach(home: string, to: string, cvd: string, image: ImageName): Promise<number> {
  rmSync(to, { recursive: true, force: true })
  execute('cp', ['-a', home, to])
  const socket = `${to}.sock`
  // An emulated processor is quiet for long while nothing is over: the mark ends it.
  await using recorder = new VarveProcess(['bootset', 'record', cvd, '--nbd', `unix:${socket}`, '--seconds', TEACH_SECONDS_MAX, '--quiet', TEACH_SECONDS_MAX, '--home', to])
  while (!existsSync(socket)) await recorder.runsFor(POLL_MS)
  const { memoryMiB, display } = IMAGES[image]
  {
    await using guest = new Guest({ disk: `nbd+unix:///${cvd}?socket=${socket}`, memoryMiB, extra: display })
    await Promise.race([guest.waitFor(new RegExp(MARK), { timeoutMs: Number(TEACH_SECONDS_MAX) * 1000 }), recorder.document().then((said) => Promise.reject(new Error(`the recording ended before the boot: ${JSON.stringify(said)}`)))])
  }
  const { learned, chunks } = (await recorder.end()) as { learned: boolean; chunks: number }
  if (!learned) throw new Error(`nothing was learned from the boot of ${cvd}`)
  return chunks
}

/** From copies: a home learns what it is asked. */
function covered(homes: Homes): number {
  const [used, fetched] = [homes.learned, homes.other].map((home) => {
    const copy = `${home}.copy`
    execute('cp', ['-a', home, copy])
    const { source, fileList } = varve(copy, ['bootset', 'show', CVD]).json as { source: string; fileList: { path: string; bytes: number }[] }
    rmSync(copy, { recursive: true })
    if (source !== 'learned') throw new Error(`${home} holds no boot set for ${CVD}`)
    return new Map(fileList.map((file) => [file.path, file.bytes]))
  })
  let [bytes, bytesFetched] = [0, 0]
  for (const [file, size] of used) {
    bytes += size
    bytesFetched += Math.min(size, fetched.get(file) ?? 0)
  }
  return bytesFetched / bytes
}

/** The disk of CVD as a raw file. From a copy of the home: whoever serves a disk may learn from what is read. */
export async function copyOut(home: string, rawFile: string): Promise<void> {
  const socket = `${rawFile}.sock`
  const copy = `${home}.copy`
  execute('cp', ['-a', home, copy])
  await using server = await VarveServer.start(copy, `unix:${socket}`)
  execute('nbdcopy', [`nbd+unix:///${CVD}?socket=${socket}`, rawFile])
  await server.stop()
  rmSync(copy, { recursive: true })
}
