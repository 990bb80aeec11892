/**
 * The recovery medium: built as a user does, it boots by BIOS, by UEFI, from kernel and initrd, and from the network, finds the machine's network and disk with its own
 * drivers, and starts the agent.
 * Debian packages: qemu-system-x86, ovmf, grub-pc-bin, grub-efi-amd64-bin, busybox-static, nbd-client, kmod, cpio, zstd.
 */
import assert from 'node:assert/strict'
import { mkdirSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { Guest } from '@varve/tools/demo/guest.ts'
import type { GuestOptions } from '@varve/tools/demo/guest.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'

/** Far above what a slow machine needs. */
const BOOT_MS_MAX = 300_000
/** Nobody answers there. */
const SERVER = 'http://10.0.2.2:1'
const TOKEN = `varve1.${'x'.repeat(43)}.`
const ANSWERS = `panic=-1 varve.server=${SERVER} varve.cvd=desk varve.token=${TOKEN}`

function drive(id: string, file: string): string[] {
  return ['-drive', `file=${file},format=raw,if=none,id=${id}`]
}

test('the recovery medium boots by BIOS, UEFI, -kernel and the network, and starts the agent on the disk that it was told', async () => {
  using scratch = new ScratchDirectory('recovery')
  const out = scratch.join('out')
  const built = varve(scratch.join('home'), ['recovery', 'build', '--out', out, '--kernel-arguments', `console=ttyS0 ${ANSWERS} varve.target=/dev/sda`]).json
  const [kernel, initrd, disk] = ['vmlinuz', 'initrd.img', 'recovery.img'].map((name) => path.join(out, name))
  assert.deepEqual(built.files, [kernel, initrd, disk].map((file) => ({ file, bytes: statSync(file).size })))
  const blank = scratch.join('blank.raw')
  writeFileSync(blank, '')
  truncateSync(blank, 1 << 30)

  // iPXE is the network card's own ROM; it gets from TFTP where the script is, and all else from varve serve.
  const tftp = scratch.join('tftp')
  mkdirSync(tftp)
  await using server = await VarveServer.start(scratch.join('home'), `unix:${scratch.join('nbd.sock')}`, { args: ['--http', '127.0.0.1:0', '--recovery', out] })
  const ownServer = `http://10.0.2.2:${server.document.http.split(':')[1]}`
  writeFileSync(path.join(tftp, 'chain.ipxe'), `#!ipxe\nchain ${ownServer}/boot/boot.ipxe?cvd=desk&token=${TOKEN}&target=/dev/vda\n`)

  const machines: { name: string; target: string; from?: string; options: GuestOptions }[] = [
    { name: 'BIOS', target: '/dev/sda', options: { firmware: 'bios', extra: [...drive('blank', blank), '-device', 'ide-hd,drive=blank', ...drive('medium', disk), '-device', 'virtio-blk-pci,drive=medium,bootindex=0', '-nic', 'user,model=virtio'] } },
    {
      name: 'UEFI, medium on USB',
      target: '/dev/sda',
      options: { firmware: 'uefi', extra: [...drive('blank', blank), '-device', 'ide-hd,drive=blank,bus=ide.0', ...drive('medium', disk), '-device', 'qemu-xhci', '-device', 'usb-storage,drive=medium,bootindex=0', '-nic', 'user,model=e1000e'] },
    },
    {
      name: '-kernel',
      target: '/dev/nvme0n1',
      options: {
        kernel: { image: kernel, initrd, commandLine: `console=ttyS0 ${ANSWERS} varve.target=/dev/nvme0n1 varve.ip=10.0.2.15/24,10.0.2.2,10.0.2.3` },
        extra: [...drive('blank', blank), '-device', 'nvme,drive=blank,serial=1', '-nic', 'user,model=rtl8139'],
      },
    },
    { name: 'network', target: '/dev/vda', from: ownServer, options: { firmware: 'bios', disk: blank, extra: ['-boot', 'n', '-nic', `user,model=virtio,tftp=${tftp},bootfile=chain.ipxe`] } },
  ]
  for (const { name, target, from = SERVER, options } of machines) {
    await using guest = new Guest(options)
    const [, version] = await guest.waitFor(/varve: recovery medium of Varve (\S+), Linux/, { timeoutMs: BOOT_MS_MAX })
    assert.match(version, /^\d+\.\d+\.\d+$/, name)
    await guest.waitFor(new RegExp(`varve: starting the agent: varve agent stream desk --to ${target} .*--from ${from}`), { timeoutMs: BOOT_MS_MAX })
    // It says why it cannot go on, and waits for the user on the last console, which for the network's script is the screen.
    await guest.waitFor(/varve: the agent did not start/, { timeoutMs: BOOT_MS_MAX })
    await guest.waitFor(from === SERVER ? /\/ # / : /a shell is on the console/, { timeoutMs: BOOT_MS_MAX })
    assert.doesNotMatch(guest.console, /Kernel panic|not found$/m, name)
  }
})
