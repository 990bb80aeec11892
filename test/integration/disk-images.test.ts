/**
 * A real Debian on a disk of its own: imported as raw and as qcow2, judged by QEMU and by e2fsck, and booted again from images that are computed where they are read.
 * VARVE_BOOT_FORMATS=all boots every format over NBD and HTTP; one is booted otherwise.
 * Debian packages: mmdebstrap, qemu-system-x86, qemu-utils, qemu-block-extra, grub-common, grub-pc-bin, grub-efi-amd64-bin, e2fsprogs.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import test from 'node:test'
import { Guest } from '@varve/tools/demo/guest.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'
import { buildDebian } from './debian-layers.ts'

/** Far above what a slow machine needs; a guest that hangs fails the test, a slow one does not. */
const BOOT_MS_MAX = 300_000
const PROMPT = /root@varve-test:~# /
const FORMATS = { raw: 'raw', vhd: 'vpc', vhdx: 'vhdx', vmdk: 'vmdk', qcow2: 'qcow2' }

async function boot(drive: string, commands: readonly string[] = []): Promise<string> {
  await using guest = new Guest({ extra: ['-drive', `${drive},if=virtio`] })
  await guest.waitFor(PROMPT, { timeoutMs: BOOT_MS_MAX })
  for (const command of commands) {
    const after = guest.mark()
    guest.type(`${command}; echo "done""."\n`)
    await guest.waitFor(/done\./, { timeoutMs: BOOT_MS_MAX, after })
  }
  guest.type('systemctl poweroff\n')
  assert.equal(await guest.exited, 0)
  return guest.console
}

/** What the root filesystem of a disk holds, as the kernel shows it, read-only. */
function filesOf(disk: string, offset: number, mountPoint: string): string {
  mkdirSync(mountPoint, { recursive: true })
  const loop = execFileSync('losetup', ['-f', '--show', '-r', '-o', String(offset), disk], { encoding: 'utf8' }).trim()
  try {
    execFileSync('e2fsck', ['-fn', loop], { stdio: 'pipe' })
    execFileSync('mount', ['-t', 'ext4', '-o', 'ro,noload', loop, mountPoint])
    return execFileSync('sh', ['-c', 'tar -C "$1" --sort=name --numeric-owner --xattrs --acls --format=pax -cf - . | sha256sum', 'sh', mountPoint], { encoding: 'utf8' })
  } finally {
    spawnSync('umount', [mountPoint])
    spawnSync('losetup', ['-d', loop])
  }
}

test('a Debian that has its own disk is imported, and boots again from images of it', async () => {
  using scratch = new ScratchDirectory('disk-images')
  const [tree, home, raw, qcow2] = ['tree', 'home', 'pc.raw', 'pc.qcow2'].map((name) => scratch.join(name))
  buildDebian(tree)
  varve(home, ['layer', 'import', 'debian', `dir:${tree}`, '--kind', 'base'])
  varve(home, ['cvd', 'create', 'seed', '--layer', 'debian'])
  const { partitions } = varve(home, ['compose', 'seed']).json as { partitions: { firstByte: number }[] }
  varve(home, ['export', 'seed', raw, '--format', 'raw'])
  // From here on it is a disk that a machine has written to.
  await boot(`file=${raw},format=raw,cache=unsafe`, ['echo kept > /root/kept', 'rm -rf /usr/share/doc', 'dd if=/dev/urandom of=/root/random bs=1M count=8 status=none'])
  execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2])

  const imported = varve(home, ['layer', 'import', 'pc', `disk:${qcow2}`, '--kind', 'base']).json
  assert.deepEqual(imported.problems, [])
  assert.ok(imported.bytesNew < 80 << 20, `${imported.bytesNew} bytes are new: what the boot wrote, and metadata`)
  assert.equal(varve(home, ['layer', 'import', 'same', `disk:${raw}`, '--kind', 'base']).json.map, imported.map)
  varve(home, ['layer', 'import', 'whole', `disk:${raw}`, '--kind', 'base', '--keep-free'])
  varve(home, ['cvd', 'import', 'desk', `disk:${raw}`, '--layer', 'desk'])

  const [whole, back] = [scratch.join('whole.raw'), scratch.join('back.raw')]
  varve(home, ['export', 'layer:whole', whole, '--format', 'raw'])
  execFileSync('cmp', [whole, raw])
  varve(home, ['export', 'layer:pc', back, '--format', 'raw'])
  const root = partitions.at(-1)!.firstByte
  assert.equal(filesOf(back, root, scratch.join('back')), filesOf(raw, root, scratch.join('raw')))

  const socket = scratch.join('nbd.sock')
  await using server = await VarveServer.start(home, `unix:${socket}`, { args: ['--http', '127.0.0.1:0', '--images'] })
  const nbd = (format: string): string => `nbd+unix:///image:${format}:layer:pc@1?socket=${socket}`
  for (const [format, name] of Object.entries(FORMATS)) {
    assert.match(execFileSync('qemu-img', ['compare', '-f', name, '-F', 'raw', nbd(format), back], { encoding: 'utf8' }), /Images are identical/, format)
    if (['qcow2', 'vhdx', 'vmdk'].includes(format)) execFileSync('qemu-img', ['check', '-f', name, nbd(format)], { stdio: 'pipe' })
  }
  const http = `file=http://${server.document.http}/images/layer:pc@1`
  await boot(`${http}.vhdx,format=vhdx,snapshot=on`, ['grep kept /root/kept'])
  if (process.env.VARVE_BOOT_FORMATS === 'all') {
    for (const [format, name] of Object.entries(FORMATS)) {
      for (const file of [`file=${nbd(format)}`, `${http}.${format}`]) await boot(`${file},format=${name},snapshot=on`, ['grep kept /root/kept'])
    }
  }
  assert.equal(await server.stop(), 0)
})
