/**
 * A small guest whose root filesystem is on its kernel's own NBD client: Debian's cloud kernel, an initrd with nbd-client, and a root
 * directory of busybox that writes files and makes them durable when it is told to.
 */
import { chmodSync, copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { packInitrd } from '@varve/tools/demo/debian.ts'
import { downloadPackages, kernelPackage, unpackPackage } from '@varve/tools/recovery/debian-packages.ts'

/** Where a guest with `-nic user` finds this machine. */
const HOST = '10.0.2.2'
const CONNECTIONS = 4
/** After so long the kernel sends a request again that was on a connection which has died. */
const REQUEST_SECONDS_MAX = 5
/** Requests wait so long for a server, far above what a restart takes. */
const OUTAGE_SECONDS_MAX = 600

/** Files that the guest makes durable for each line that it is sent. */
export const FILES_PER_LINE = 6

/**
 * For each line on the console some files are written, and named with their digests when they are durable: `sync` alone leaves metadata in the device's cache,
 * which is why the device is synced after it. Meanwhile all files are read over and over. The line `stop` ends it.
 */
const INIT = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -o remount,noatime /
$b mount -t devtmpfs dev /dev
while [ ! -e /dev/stop ]; do
  echo 3 >/proc/sys/vm/drop_caches
  $b cat /bin/busybox /kept/*/* >/dev/null || echo "guest: read failed"
done &
echo "guest: root $($b awk '$2 == "/" && $1 != "rootfs" { print $1, $3 }' /proc/mounts)"
n=0
while read line && [ "$line" != stop ]; do
  for index in $($b seq ${FILES_PER_LINE}); do
    n=$((n + 1))
    file=/kept/$((n % 5))/$n
    $b dd if=/dev/urandom of=$file bs=1k count=$((1 + n * 7 % 60)) 2>/dev/null || echo "guest: write failed"
    sum=$($b sha256sum $file) || echo "guest: read failed"
    $b sync && $b dd of=/dev/nbd0p1 count=0 conv=notrunc,fsync </dev/null 2>/dev/null || echo "guest: sync failed"
    echo "guest: synced $file \${sum%% *}"
  done
  echo "guest: waits"
done </dev/console
$b touch /dev/stop
wait
$b mount -o remount,ro / && echo "guest: read-only"
$b poweroff -f
`

/** Fills `directory` with the guest's root filesystem. */
export function buildGuestRoot(directory: string): void {
  for (const folder of ['bin', 'sbin', 'dev', 'proc', ...Array.from({ length: 5 }, (_, index) => `kept/${index}`)]) mkdirSync(path.join(directory, folder), { recursive: true })
  copyFileSync('/bin/busybox', path.join(directory, 'bin/busybox'))
  writeFileSync(path.join(directory, 'kept/0/0'), 'from the layer\n')
  writeFileSync(path.join(directory, 'sbin/init'), INIT)
  chmodSync(path.join(directory, 'sbin/init'), 0o755)
}

/** Builds kernel and initrd below `scratch`; the initrd connects to the export `name` on `port` of this machine, on 4 connections that are made again. */
export function buildNbdKernel({ scratch, port, name }: { scratch: string; port: number; name: string }): { image: string; initrd: string; commandLine: string } {
  const kernel = kernelPackage('cloud-amd64')
  const version = kernel.replace('linux-image-', '')
  const root = path.join(scratch, 'kernel')
  mkdirSync(root)
  unpackPackage(downloadPackages([kernel], path.join(scratch, 'packages'))[0], root)
  const initrd = path.join(scratch, 'initrd.img')
  const content = path.join(scratch, 'initrd')
  mkdirSync(content)
  const reconnect = 'nbd-reconnect.pl'
  copyFileSync(path.join(import.meta.dirname, reconnect), path.join(content, reconnect))
  packInitrd({ root, version, file: initrd, scratch: content, modules: ['virtio_pci', 'virtio_net', 'nbd max_part=4', 'ext4', 'crc32c_generic'], programs: ['/usr/sbin/nbd-client', '/usr/bin/perl'], init: `b=/bin/busybox
$b ip link set eth0 up
$b ip addr add 10.0.2.15/24 dev eth0
fail() { echo "guest: $*"; $b poweroff -f; }
nbd-client ${HOST} ${port} /dev/nbd0 -N ${name} -b 512 -C ${CONNECTIONS} -t ${REQUEST_SECONDS_MAX} || fail "nbd-client failed"
perl /${reconnect} ${HOST} ${port} ${name} ${OUTAGE_SECONDS_MAX} || fail "nbd-reconnect.pl failed"
$b blockdev --rereadpt /dev/nbd0
$b mount -t ext4 /dev/nbd0p1 /root || fail "no root filesystem"
exec $b switch_root /root /sbin/init
` })
  return { image: path.join(root, `boot/vmlinuz-${version}`), initrd, commandLine: 'console=ttyS0 panic=-1 quiet' }
}
