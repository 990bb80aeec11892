/** A composed disk boots by BIOS and by UEFI: firmware, GRUB, kernel and initrd from ext4, root filesystem by its UUID. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { Home } from '@varve/images/store/home.ts'
import { buildInitrd } from '../../../tools/demo/debian.ts'
import { downloadPackages, kernelPackage, unpackPackage } from '../../../tools/recovery/debian-packages.ts'
import { Guest } from '../../../tools/demo/guest.ts'
import { putLayer } from './layers.ts'
import type { FileSpec } from './layers.ts'
import { writeRawDisk } from './raw-disk.ts'

const BOOT_TIMEOUT_MS = 240_000
const directory = mkdtempSync(join(tmpdir(), 'varve-boot-test-'))
const disks = new Map<string, { path: string; rootUuid: string }>()
after(() => rmSync(directory, { recursive: true }))

/** Tells what it was booted with, and reads a file that an upper layer has replaced. */
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
echo "varve-test: $(/bin/busybox cat /etc/marker) $(/bin/busybox sed 's/.*\\(root=[^ ]*\\).*/\\1/' /proc/cmdline) on $(/bin/busybox grep ' / ' /proc/mounts | /bin/busybox head -n 1)" >/dev/console
/bin/busybox sleep 1
/bin/busybox poweroff -f
`

before(async () => {
  const name = kernelPackage('cloud-amd64')
  const version = name.replace('linux-image-', '')
  const [kernel] = downloadPackages([name], join(directory, 'packages'))
  const root = join(directory, 'root')
  mkdirSync(root)
  unpackPackage(kernel, root)
  const initrd = join(directory, 'initrd.img')
  buildInitrd(root, version, initrd, join(directory, 'initrd'))
  const base: FileSpec[] = [
    { path: `boot/vmlinuz-${version}`, content: readFileSync(join(root, `boot/vmlinuz-${version}`)) },
    { path: `boot/initrd.img-${version}`, content: readFileSync(initrd) },
    { path: 'bin/busybox', content: readFileSync('/bin/busybox'), mode: 0o755 },
    { path: 'sbin/init', content: Buffer.from(INIT), mode: 0o755 },
    { path: 'etc/marker', content: Buffer.from('the base layer') },
    ...['proc', 'dev', 'sys'].map((path) => ({ path: `${path}/keep`, content: Buffer.alloc(0) })),
  ]
  const app: FileSpec[] = [{ path: 'etc/marker', content: Buffer.from('the top layer') }]
  await composeDisk('plain', [base, app])
  // A value longer than a block: ext4 keeps it in an inode of its own, and GRUB does not read such a filesystem.
  await composeDisk('attributes', [base, app, [{ path: 'etc/long', xattrs: [{ name: 'user.long', value: Buffer.alloc(20_000, 'x') }] }]])
})

async function composeDisk(name: string, layers: FileSpec[][]): Promise<void> {
  await using home = await Home.open(join(directory, `${name}.home`), { create: true })
  const { store, catalog } = home
  const names = layers.map((_, index) => `layer${index}`)
  for (const [index, files] of layers.entries()) {
    await catalog.addLayer({ name: names[index], kind: 'app', content: 'tree', digest: await putLayer(store, files), entries: files.length, contentBytes: 0, source: 'test' })
  }
  const composition = await compose(await prepareRecipe({ layers: names, policy: { freeBytes: 64 << 20 } }, { store, catalog }), { store, catalog })
  const path = join(directory, `${name}.img`)
  await writeRawDisk(composition, store, path)
  disks.set(name, { path, rootUuid: composition.rootUuid })
}

const boots = [
  { disk: 'plain', firmware: 'bios', what: 'a composed disk boots by BIOS to its topmost layer' },
  { disk: 'plain', firmware: 'uefi', what: 'a composed disk boots by UEFI to its topmost layer' },
  { disk: 'attributes', firmware: 'bios', what: 'a disk whose root filesystem GRUB cannot read boots all the same' },
] as const
for (const { disk, firmware, what } of boots) {
  test(what, async () => {
    const { path, rootUuid } = disks.get(disk)!
    await using guest = new Guest({ disk: path, firmware, memoryMiB: 512, extra: ['-snapshot'] })
    const [, marker, root, mount] = await guest.waitFor(/varve-test: (.*) (root=\S+) on (.*)\r?\n/, { timeoutMs: BOOT_TIMEOUT_MS })
    assert.equal(marker, 'the top layer')
    assert.equal(root, `root=UUID=${rootUuid}`)
    assert.match(mount, /^\/dev\/vda3 \/ ext4 /)
  })
}
