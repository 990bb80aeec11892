/**
 * Sources of layers as an administrator has them: a Debian 12 by mmdebstrap, an application as the overlayfs upper directory
 * of a real `apt-get install` on it, and a person's home.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'

/** The console logs in as root by itself, so that tests can type commands. */
const AUTOLOGIN = `[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - dumb
`

/** Builds Debian 12 with systemd, udev and a kernel in `directory` (Debian packages mmdebstrap, debian-archive-keyring). */
export function buildDebian(directory: string, packages: readonly string[] = [], kernel = 'linux-image-cloud-amd64'): void {
  const include = ['systemd', 'systemd-sysv', 'udev', 'dbus', 'kmod', 'initramfs-tools', kernel, 'apt', ...packages]
  execFileSync('mmdebstrap', ['--variant=minbase', '--mode=root', `--include=${include.join(',')}`, 'bookworm', directory], { stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 })
  const dropIn = path.join(directory, 'etc/systemd/system/serial-getty@ttyS0.service.d')
  mkdirSync(dropIn, { recursive: true })
  writeFileSync(path.join(dropIn, 'autologin.conf'), AUTOLOGIN)
  writeFileSync(path.join(directory, 'etc/hostname'), 'varve-test\n')
}

/** Installs `packages` on `base` through overlayfs. @returns the upper directory */
export function installOnOverlay(base: string, scratch: string, packages: readonly string[]): string {
  const upper = path.join(scratch, 'upper')
  const work = path.join(scratch, 'work')
  const merged = path.join(scratch, 'merged')
  for (const directory of [upper, work, merged]) mkdirSync(directory, { recursive: true })
  execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', `lowerdir=${base},upperdir=${upper},workdir=${work},redirect_dir=off,metacopy=off,index=off`, merged])
  try {
    // The chroot looks package hosts up, and goes through a proxy, as the machine does.
    for (const file of ['etc/resolv.conf', 'etc/apt/apt.conf.d']) {
      if (existsSync(`/${file}`)) cpSync(`/${file}`, path.join(merged, file), { recursive: true, dereference: true })
    }
    const chroot = (...command: string[]): void => {
      execFileSync('chroot', [merged, ...command], { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' }, stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 })
    }
    chroot('apt-get', 'update')
    chroot('apt-get', 'install', '-y', '--no-install-recommends', ...packages)
    chroot('apt-get', 'clean')
    rmSync(path.join(merged, 'var/lib/apt/lists'), { recursive: true, force: true })
  } finally {
    execFileSync('umount', [merged])
  }
  return upper
}

/** A person's layer: account and home. @returns the directory */
export function buildUserLayer(directory: string): string {
  const home = path.join(directory, 'home/ada')
  mkdirSync(home, { recursive: true })
  mkdirSync(path.join(directory, 'etc'))
  writeFileSync(path.join(home, 'notes.txt'), 'the only copy of my work\n')
  chownSync(home, 1000, 1000)
  chownSync(path.join(home, 'notes.txt'), 1000, 1000)
  chmodSync(home, 0o750)
  writeFileSync(path.join(directory, 'etc/passwd'), 'ada:x:1000:1000:Ada:/home/ada:/bin/bash\n')
  writeFileSync(path.join(directory, 'etc/group'), 'ada:x:1000:\n')
  writeFileSync(path.join(directory, 'etc/shadow'), 'ada:!:19000:0:99999:7:::\n')
  chmodSync(path.join(directory, 'etc/shadow'), 0o640)
  chownSync(path.join(directory, 'etc/shadow'), 0, 42)
  return directory
}
