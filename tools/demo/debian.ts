/**
 * The demo's system, from Debian packages: a kernel with busybox as base layer, one packaged application, one person's files.
 * Packages are downloaded and unpacked, not installed: nothing of the machine is changed.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'

/** Modules that a guest needs to find its root filesystem. */
const BOOT_MODULES = ['virtio_pci', 'virtio_blk', 'ext4', 'crc32c_generic']

function run(command: string, args: string[], options: { cwd?: string; input?: string } = {}): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'], maxBuffer: 64 << 20, ...options })
}

/** Downloads Debian packages with apt into `directory`. @returns the files, in the order of `packages` */
export function downloadPackages(packages: string[], directory: string): string[] {
  mkdirSync(directory, { recursive: true })
  // apt drops its rights to this user, which cannot write into a private directory.
  chmodSync(directory, 0o777)
  return packages.map((name) => {
    run('apt-get', ['download', name], { cwd: directory })
    const file = readdirSync(directory).find((entry) => entry.startsWith(`${name}_`) && entry.endsWith('.deb'))
    if (file === undefined) throw new Error(`apt-get download ${name} left no package`)
    return path.join(directory, file)
  })
}

/** Name of the package that holds the kernel which `linux-image-cloud-amd64` stands for today. */
export function kernelPackage(): string {
  const depends = (): string | undefined => /linux-image-\d[\w.+-]*-cloud-amd64/.exec(run('apt-cache', ['depends', 'linux-image-cloud-amd64']))?.[0]
  let name: string | undefined
  try {
    name = depends()
  } catch {
    // The machine has no package lists yet.
  }
  if (name === undefined) {
    run('apt-get', ['update'])
    name = depends()
  }
  if (name === undefined) throw new Error('Debian offers no linux-image-cloud-amd64')
  return name
}

/** A small initrd: busybox and the modules of `version` below `root`, mounting the filesystem that `root=` names. */
export function buildInitrd(root: string, version: string, file: string, scratch: string): void {
  packInitrd({ root, version, file, scratch, modules: BOOT_MODULES, init: `for argument in $(/bin/busybox cat /proc/cmdline); do
  case $argument in root=*) wanted=\${argument#root=} ;; esac
done
tries=0
while [ $tries -lt 100 ]; do
  case $wanted in
    UUID=*) device=$(/bin/busybox findfs "$wanted" 2>/dev/null) ;;
    *) device=$wanted ;;
  esac
  [ -b "$device" ] && break
  tries=$((tries + 1))
  /bin/busybox sleep 0.1
done
/bin/busybox mount -t ext4 "$device" /root || { echo "no root filesystem $wanted"; /bin/busybox poweroff -f; }
exec /bin/busybox switch_root /root /sbin/init
` })
}

export interface InitrdOptions {
  /** Holds `lib/modules/VERSION`. */
  root: string
  version: string
  /** Where the initrd goes. */
  file: string
  /** Is filled with what the initrd holds. */
  scratch: string
  /** Kernel modules to load, with their parameters; what they depend on is loaded before. */
  modules: readonly string[]
  /** Programs of this machine, by absolute path, with the libraries that they need. */
  programs?: readonly string[]
  /** Shell commands, run as process 1 when /dev, /proc and /sys are there and the modules loaded. */
  init: string
}

/** An initrd of busybox, kernel modules, programs and what they are to do. */
export function packInitrd({ root, version, file, scratch, modules, programs = [], init }: InitrdOptions): void {
  run('depmod', ['-b', root, version])
  const loads = new Map<string, string>()
  for (const [module, ...parameters] of modules.map((line) => line.split(' '))) {
    for (const line of run('modprobe', ['-d', root, '-S', version, '--show-depends', module]).split('\n')) {
      const found = /^insmod (\S+)/.exec(line)?.[1]
      if (found === undefined) continue
      const name = path.basename(found).replace(/\.(xz|zst)$/, '')
      if (!loads.has(found)) loads.set(found, `/bin/busybox insmod /modules/${name}`)
      if (name === `${module}.ko` && parameters.length > 0) loads.set(found, `/bin/busybox insmod /modules/${name} ${parameters.join(' ')}`)
    }
  }
  for (const folder of ['bin', 'dev', 'proc', 'sys', 'root', 'modules']) mkdirSync(path.join(scratch, folder), { recursive: true })
  copyFileSync('/bin/busybox', path.join(scratch, 'bin/busybox'))
  for (const module of loads.keys()) {
    const target = path.join(scratch, 'modules', path.basename(module).replace(/\.(xz|zst)$/, ''))
    if (module.endsWith('.xz')) writeFileSync(target, execFileSync('xz', ['-dc', module], { maxBuffer: 64 << 20 }))
    else copyFileSync(module, target)
  }
  for (const program of programs) {
    for (const needed of [program, ...libraries(program)]) {
      mkdirSync(path.dirname(path.join(scratch, needed)), { recursive: true })
      copyFileSync(needed, path.join(scratch, needed))
    }
  }
  writeFileSync(path.join(scratch, 'init'), `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
${[...loads.values()].join('\n')}
${init}`)
  chmodSync(path.join(scratch, 'init'), 0o755)
  execFileSync('sh', ['-c', `cd "$1" && find . | LC_ALL=C sort | cpio --quiet -o -H newc | gzip -n -1 > "$2"`, 'sh', scratch, file])
}

/** Shared libraries that a program loads, and their loader. */
function libraries(program: string): string[] {
  return [...run('ldd', [program]).matchAll(/(\/\S+) \(0x/g)].map((match) => match[1])
}

/** What the demo's guest does when it starts. */
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev 2>/dev/null
say() { echo "varve-demo: $*" >/dev/console; }
say "the application says: $(/usr/bin/hello)"
say "the person's notes say: $(/bin/busybox cat /home/ada/notes.txt)"
visits=/home/ada/visits.txt
if [ -f $visits ]; then
  say "found what an earlier boot wrote: $(/bin/busybox cat $visits)"
else
  echo "written in the guest, kernel $(/bin/busybox uname -r)" >$visits
  /bin/busybox sync
  say "wrote a file in the guest"
fi
say "done"
/bin/busybox mount -o remount,ro /
/bin/busybox poweroff -f
`

export interface DemoLayers {
  /** Directory: kernel, initrd, C library, busybox, init. */
  base: string
  /** Debian package of the application. */
  application: string
  /** Directory: a home. */
  user: string
  kernelVersion: string
}

/** Builds the three layers' sources below `directory`. */
export function buildDemoLayers(directory: string): DemoLayers {
  const base = path.join(directory, 'base')
  const user = path.join(directory, 'user')
  const kernelName = kernelPackage()
  const [kernel, libc, application] = downloadPackages([kernelName, 'libc6', 'hello'], path.join(directory, 'packages'))
  const kernelVersion = kernelName.replace('linux-image-', '')
  for (const folder of ['usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib64', 'etc', 'proc', 'sys', 'dev', 'run', 'tmp', 'home']) mkdirSync(path.join(base, folder), { recursive: true })
  for (const folder of ['bin', 'sbin', 'lib', 'lib64']) symlinkSync(`usr/${folder}`, path.join(base, folder))
  for (const file of [kernel, libc]) execFileSync('sh', ['-c', 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"', 'sh', file, base])
  copyFileSync('/bin/busybox', path.join(base, 'usr/bin/busybox'))
  symlinkSync('busybox', path.join(base, 'usr/bin/sh'))
  writeFileSync(path.join(base, 'usr/sbin/init'), INIT)
  chmodSync(path.join(base, 'usr/sbin/init'), 0o755)
  writeFileSync(path.join(base, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\n')
  buildInitrd(base, kernelVersion, path.join(base, `boot/initrd.img-${kernelVersion}`), path.join(directory, 'initrd'))
  rmSync(path.join(base, 'usr/share/doc'), { recursive: true, force: true })
  mkdirSync(path.join(user, 'home/ada'), { recursive: true })
  mkdirSync(path.join(user, 'etc'), { recursive: true })
  writeFileSync(path.join(user, 'home/ada/notes.txt'), 'layers are laid down season by season\n')
  writeFileSync(path.join(user, 'etc/passwd'), 'ada:x:1000:1000:Ada:/home/ada:/bin/sh\n')
  return { base, application, user, kernelVersion }
}
