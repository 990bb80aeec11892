/**
 * The demo's system, from Debian packages: a kernel with busybox as base layer, one packaged application, one person's files.
 * Packages are downloaded and unpacked, not installed: nothing of the machine is changed.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { downloadPackages, kernelPackage, run, unpackPackage } from '../recovery/debian-packages.ts'
import { copyPrograms } from '../recovery/programs.ts'

/** Modules that a guest needs to find its root filesystem. */
const BOOT_MODULES = ['virtio_pci', 'virtio_blk', 'ext4', 'crc32c_generic']

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
  copyPrograms(scratch, programs)
  writeFileSync(path.join(scratch, 'init'), `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
${[...loads.values()].join('\n')}
${init}`)
  chmodSync(path.join(scratch, 'init'), 0o755)
  execFileSync('sh', ['-c', `cd "$1" && find . | LC_ALL=C sort | cpio --quiet -o -H newc | gzip -n -1 > "$2"`, 'sh', scratch, file])
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
  const kernelName = kernelPackage('cloud-amd64')
  const [kernel, libc, application] = downloadPackages([kernelName, 'libc6', 'hello'], path.join(directory, 'packages'))
  const kernelVersion = kernelName.replace('linux-image-', '')
  for (const folder of ['usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib64', 'etc', 'proc', 'sys', 'dev', 'run', 'tmp', 'home']) mkdirSync(path.join(base, folder), { recursive: true })
  for (const folder of ['bin', 'sbin', 'lib', 'lib64']) symlinkSync(`usr/${folder}`, path.join(base, folder))
  for (const file of [kernel, libc]) unpackPackage(file, base)
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
