/**
 * What is booted: a real Debian with a unit in its default target that says so on the serial console, composed by Varve, and copied out for the peers.
 * A second system is built from the same packages, independently. All of it is made once in a directory, and kept for later runs.
 */
import { execFile, execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { buildDebian } from '../../test/integration/debian-layers.ts'
import { varve, VarveServer } from '../../test/varve-command.ts'

/** What the console shows when the default target is reached. */
export const MARK = 'varve-bench: the default target is reached'
export const CVD = 'boot'
/** Stacks the system that was built independently. */
export const OTHER_CVD = 'other'

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
} as const
export type ImageName = keyof typeof IMAGES

export interface Images {
  image: ImageName
  /** Holds both CVDs; neither was ever booted. */
  home: string
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
  const trees = [CVD, OTHER_CVD].map((name) => tree(path.join(place, `${name}.tree`), image))
  const home = path.join(place, 'home')
  rmSync(home, { recursive: true, force: true })
  for (const [index, name] of [CVD, OTHER_CVD].entries()) {
    varve(home, ['layer', 'import', `${name}-system`, `dir:${trees[index]}`, '--kind', 'base'])
    varve(home, ['cvd', 'create', name, '--layer', `${name}-system`])
  }
  const { rootUuid } = varve(home, ['compose', CVD]).json as { rootUuid: string }
  varve(home, ['compose', OTHER_CVD])
  const rawFile = path.join(place, 'disk.raw')
  const qcow2File = path.join(place, 'disk.qcow2')
  await copyOut(home, rawFile)
  execute('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-c', '-o', 'compression_type=zstd', rawFile, qcow2File])
  const sizeBytes = (JSON.parse(execute('qemu-img', ['info', '--output=json', qcow2File])) as { 'virtual-size': number })['virtual-size']
  const boot = path.join(trees[0], 'boot')
  const kernelFile = path.join(boot, readdirSync(boot).find((file) => file.startsWith('vmlinuz-'))!)
  const images: Images = { image, home, rawFile, qcow2File, sizeBytes, rootUuid, kernelFile, initrdFile: kernelFile.replace('vmlinuz-', 'initrd.img-') }
  writeFileSync(manifest, JSON.stringify(images))
  return images
}

/** @returns its directory; only a finished tree has the name */
function tree(directory: string, image: ImageName): string {
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
