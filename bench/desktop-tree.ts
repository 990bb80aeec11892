/**
 * A real root tree of more than 2 GiB: Debian 12 with a desktop, by mmdebstrap. Built once, and kept for later runs.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

const PACKAGES = ['systemd', 'systemd-sysv', 'udev', 'dbus', 'initramfs-tools', 'linux-image-amd64', 'openssh-client', 'vim', 'git', 'python3', 'gcc', 'xfce4', 'firefox-esr', 'gimp', 'libreoffice-writer', 'libreoffice-calc']

/** @returns its directory: $VARVE_BENCH_TREE, or one below the temporary directory, which is built if it is not there (some minutes) */
export function desktopTree(): string {
  const given = process.env.VARVE_BENCH_TREE
  if (given !== undefined) return path.resolve(given)
  const directory = path.join(tmpdir(), 'varve-bench-desktop')
  if (existsSync(directory)) return directory
  const building = `${directory}.building`
  rmSync(building, { recursive: true, force: true })
  mkdirSync(building)
  console.error(`Building a Debian desktop in ${directory}; it is kept for later runs`)
  execFileSync('mmdebstrap', ['--variant=minbase', '--mode=root', `--include=${PACKAGES.join(',')}`, 'bookworm', building], { stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 })
  renameSync(building, directory)
  return directory
}
