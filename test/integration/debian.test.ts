/**
 * The whole way, with a real system: layers of Debian 12 are imported, composed, served, booted by UEFI, BIOS and -kernel;
 * what the guest writes survives guest, server, and the server's sudden death.
 * Debian packages: mmdebstrap, qemu-system-x86, ovmf, grub-common, grub-pc-bin, grub-efi-amd64-bin.
 */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { Guest } from '@varve/tools/demo/guest.ts'
import type { GuestOptions } from '@varve/tools/demo/guest.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'
import { buildDebian, buildUserLayer, installOnOverlay } from './debian-layers.ts'

/** Far above what a slow machine needs; a guest that hangs fails the test, a slow one does not. */
const BOOT_MS_MAX = 300_000

async function boot(options: GuestOptions): Promise<Guest> {
  const guest = new Guest(options)
  await guest.waitFor(/root@varve-test:~# /, { timeoutMs: BOOT_MS_MAX })
  // From here on the kernel's own messages stay out of what commands print.
  await shell(guest, 'dmesg -n 1')
  assert.equal(await shell(guest, 'systemctl is-system-running --wait >/dev/null; systemctl is-active default.target'), 'active')
  return guest
}

/** Types a command. @returns what it printed */
async function shell(guest: Guest, command: string): Promise<string> {
  const after = guest.mark()
  const tag = Math.random().toString(36).slice(2, 10)
  // The echo of the typed line does not hold the tags as they are printed.
  guest.type(`echo "<<""${tag}"; ${command}; echo "${tag}"">>"\n`)
  const found = await guest.waitFor(new RegExp(`<<${tag}\\r?\\n([^]*?)${tag}>>`), { timeoutMs: BOOT_MS_MAX, after })
  return found[1].replaceAll('\r', '').trim()
}

async function powerOff(guest: Guest): Promise<void> {
  guest.type('systemctl poweroff\n')
  assert.equal(await guest.exited, 0)
}

test('three layers of Debian 12 boot by UEFI, BIOS and -kernel, and keep what the guest writes', async () => {
  using scratch = new ScratchDirectory('debian')
  const base = scratch.join('base')
  buildDebian(base)
  const upper = installOnOverlay(base, scratch.join('install'), ['jq'])
  const user = buildUserLayer(scratch.join('user'))

  const home = scratch.join('home')
  varve(home, ['layer', 'import', 'debian', `dir:${base}`, '--kind', 'base'])
  varve(home, ['layer', 'import', 'jq', `overlay:${upper}`, '--kind', 'app'])
  varve(home, ['layer', 'import', 'ada', `dir:${user}`, '--kind', 'user'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'debian', '--layer', 'jq', '--layer', 'ada'])
  const composed = varve(home, ['compose', 'desk']).json
  assert.deepEqual(composed.conflicts.filter((conflict: any) => conflict.needsDecision), [])
  assert.equal(varve(home, ['compose', 'desk']).json.diskDigest, composed.diskDigest)

  const socket = scratch.join('nbd.sock')
  const disk = `nbd+unix:///desk?socket=${socket}`
  {
    await using server = await VarveServer.start(home, `unix:${socket}`)
    await using guest = await boot({ disk, firmware: 'uefi' })
    assert.equal(await shell(guest, 'test -d /sys/firmware/efi && echo uefi'), 'uefi')
    assert.match(await shell(guest, `echo '{"a":[1,2]}' | jq -cM '.a|add'`), /^3$/)
    assert.equal(await shell(guest, 'dpkg --audit; echo audited'), 'audited')
    assert.equal(await shell(guest, 'dpkg-query -W -f \'${db:Status-Status}\' jq'), 'installed')
    assert.equal(await shell(guest, 'su - ada -c "cat notes.txt; id -un; stat -c %U:%a /home/ada"'), 'the only copy of my work\nada\nada:750')
    assert.equal(await shell(guest, 'echo kept > /root/kept; dd if=/dev/urandom of=/root/random bs=1M count=8 status=none; sha256sum < /root/random > /root/random.sum; sync; echo synced'), 'synced')
    assert.equal(await server.stop('SIGKILL'), 'SIGKILL')
    await guest.kill()
  }
  {
    await using server = await VarveServer.start(home, `unix:${socket}`)
    await using guest = await boot({ disk, firmware: 'bios' })
    assert.equal(await shell(guest, 'test -d /sys/firmware/efi || echo bios'), 'bios')
    assert.equal(await shell(guest, 'cat /root/kept; sha256sum < /root/random | cmp - /root/random.sum && echo same'), 'kept\nsame')
    await shell(guest, 'echo again >> /root/kept')
    await powerOff(guest)
    assert.equal(await server.stop('SIGTERM'), 0)
  }
  {
    await using server = await VarveServer.start(home, `unix:${socket}`)
    const kernel = readdirSync(path.join(base, 'boot')).find((name) => name.startsWith('vmlinuz-'))!
    await using guest = await boot({ disk, kernel: {
      image: path.join(base, 'boot', kernel),
      initrd: path.join(base, 'boot', kernel.replace('vmlinuz-', 'initrd.img-')),
      commandLine: `root=UUID=${composed.rootUuid} rw console=ttyS0`,
    } })
    assert.equal(await shell(guest, 'cat /root/kept; dpkg --audit; echo audited'), 'kept\nagain\naudited')
    await powerOff(guest)
    assert.equal(await server.stop('SIGTERM'), 0)
  }
  assert.deepEqual(varve(home, ['verify']).json.damage, [])
})
