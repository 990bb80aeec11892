/**
 * New hardware, the whole way: a machine with a blank disk boots the recovery medium, streams a real Debian over a line, works in it, loses power,
 * goes on where it was with the same command line, completes, and boots from its own disk with the server gone.
 * VARVE_RECOVERY_DESKTOP=1: a desktop of 2 GiB over 20 Mbit/s and 40 ms, with an outage of a minute; takes half an hour and more.
 * Debian packages: those of recovery.test.ts, and mmdebstrap.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, truncateSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Guest } from '@varve/tools/demo/guest.ts'
import { DelayLine } from '@varve/tools/wan/delay-line.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'
import { buildDebian } from './debian-layers.ts'

/** Far above what a slow machine needs. */
const BOOT_MS_MAX = 600_000
const POLL_MS = 5000
const GiB = 2 ** 30
const SETTING = process.env.VARVE_RECOVERY_DESKTOP === '1'
  ? { packages: ['xfce4', 'lightdm', 'xserver-xorg', 'firefox-esr', 'libreoffice-writer', 'gimp'], kernel: 'linux-image-amd64', megabitsPerSecond: 20, delayMs: 20, outageMs: 60_000, diskBytes: 8 * GiB, memoryMiB: 2048, fillMsMax: 3600_000 }
  : { packages: [], kernel: 'linux-image-cloud-amd64', megabitsPerSecond: 100, delayMs: 10, outageMs: 3000, diskBytes: 3 * GiB, memoryMiB: 1536, fillMsMax: 900_000 }

/** One digest of the files below some directories, of their names and contents. */
function hashFiles(...directories: string[]): string {
  return `find ${directories.join(' ')} -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`
}

/** Runs a command in a root directory on this machine. */
function runIn(root: string, command: string): string {
  return execFileSync('chroot', [root, 'sh', '-c', command], { encoding: 'utf8' }).trim()
}

/** Mounts the last partition of a disk's file, looks at it, and leaves it as it is. */
function lookInto<Result>(disk: string, mountPoint: string, look: () => Result): Result {
  const { partitiontable: { sectorsize, partitions } } = JSON.parse(execFileSync('sfdisk', ['--json', disk], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }))
  mkdirSync(mountPoint)
  execFileSync('mount', ['-o', `ro,noload,loop,offset=${partitions.at(-1).start * (sectorsize ?? 512)}`, disk, mountPoint])
  try {
    return look()
  } finally {
    execFileSync('umount', [mountPoint])
  }
}

async function login(guest: Guest): Promise<void> {
  await guest.waitFor(/root@varve-test:~# /, { timeoutMs: BOOT_MS_MAX })
  await shell(guest, 'dmesg -n 1')
  assert.equal(await shell(guest, 'systemctl is-system-running --wait >/dev/null; systemctl is-active default.target'), 'active')
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

test('a blank machine streams a CVD and works in it, survives a power cut, completes, and boots by itself', async () => {
  using scratch = new ScratchDirectory('recovery-stream')
  const home = scratch.join('home')
  const base = scratch.join('base')
  buildDebian(base, SETTING.packages, SETTING.kernel)
  varve(home, ['layer', 'import', 'debian', `dir:${base}`, '--kind', 'base'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'debian'])
  const out = scratch.join('out')
  varve(home, ['recovery', 'build', '--out', out])
  const disk = scratch.join('disk.raw')
  closeSync(openSync(disk, 'w'))
  truncateSync(disk, SETTING.diskBytes)

  {
    await using server = await VarveServer.start(home, `unix:${scratch.join('nbd.sock')}`, { args: ['--http', '127.0.0.1:0'] })
    await using line = await DelayLine.open({ listen: '127.0.0.1:0', target: server.document.http, delayMs: SETTING.delayMs, bitsPerSecond: SETTING.megabitsPerSecond * 1e6 })
    const { token } = varve(home, ['agent', 'token']).json
    const medium = {
      memoryMiB: SETTING.memoryMiB,
      kernel: {
        image: path.join(out, 'vmlinuz'),
        initrd: path.join(out, 'initrd.img'),
        commandLine: `console=ttyS0 panic=-1 varve.server=http://10.0.2.2:${line.address.split(':')[1]} varve.cvd=desk varve.token=${token} varve.target=/dev/vda`,
      },
      disk,
      extra: ['-nic', 'user,model=virtio'],
    }
    {
      await using guest = new Guest(medium)
      await login(guest)
      assert.equal(await shell(guest, 'findmnt -no SOURCE /'), '/dev/nbd0p3')
      assert.equal(await shell(guest, 'echo kept > /root/kept; sync; blockdev --flushbufs /dev/nbd0; echo synced'), 'synced')
      await guest.kill()
    }
    await using guest = new Guest(medium)
    await login(guest)
    // What is there is served on; the rest waits for the line.
    const read = 'cat /root/kept; sync; echo read'
    assert.equal(await shell(guest, read), 'kept\nread')
    line.cut()
    assert.equal(await shell(guest, read), 'kept\nread')
    const waiting = shell(guest, hashFiles('/usr/sbin'))
    await sleep(SETTING.outageMs)
    line.mend()
    assert.equal(await waiting, runIn(base, hashFiles('/usr/sbin')))
    assert.equal(await shell(guest, 'cat /root/kept; echo again >> /root/kept; sync; echo written'), 'kept\nwritten')
    assert.equal(await shell(guest, hashFiles('/usr/bin')), runIn(base, hashFiles('/usr/bin')))
    for (const until = Date.now() + SETTING.fillMsMax; (await shell(guest, `grep -c '"complete"' /run/varve-agent/agent.log`)) === '0'; await sleep(POLL_MS)) {
      assert.ok(Date.now() < until, `the disk is not complete: ${await shell(guest, 'cat /run/varve-agent/agent.log')}`)
    }
    guest.type('systemctl poweroff\n')
    assert.equal(await guest.exited, 0)
  }
  // An emulated processor would take minutes for all of it.
  const everything = hashFiles('/usr', '/etc/apt', '/var/lib/dpkg/info')
  lookInto(disk, scratch.join('mounted'), () => assert.equal(runIn(scratch.join('mounted'), everything), runIn(base, everything)))

  await using guest = new Guest({ disk, firmware: 'bios' })
  await login(guest)
  assert.equal(await shell(guest, 'findmnt -no SOURCE /'), '/dev/vda3')
  assert.equal(await shell(guest, 'cat /root/kept'), 'kept\nagain')
  guest.type('systemctl poweroff\n')
  assert.equal(await guest.exited, 0)
})
