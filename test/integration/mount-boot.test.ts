/**
 * A guest boots from the disk that `varve mount --disk` shows as a file, and what it writes stays in the CVD's overlay.
 * Debian packages: qemu-system-x86, fuse3, mount, and what tools/demo needs.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { buildDemoLayers } from '@varve/tools/demo/debian.ts'
import { Guest } from '@varve/tools/demo/guest.ts'
import { ScratchDirectory, varve } from '../varve-command.ts'
import { VarveMount } from './varve-mount.ts'

/** Far above what a slow machine needs; a guest that hangs fails the test, a slow one does not. */
const BOOT_MS_MAX = 300_000
const WRITTEN = 'home/ada/visits.txt'
const launcher = new URL('../../tools/varve', import.meta.url).pathname

/** @returns what the guest says on its console until it turns itself off */
async function boot(disk: string): Promise<string> {
  await using guest = new Guest({ disk, memoryMiB: 256 })
  await guest.waitFor(/varve-demo: done/, { timeoutMs: BOOT_MS_MAX })
  assert.equal(await guest.exited, 0)
  return guest.console
}

test('QEMU boots from a mounted disk.raw; what the guest writes is there at the next boot, in the files of the CVD, and not in its snapshot', async () => {
  using scratch = new ScratchDirectory('mount-boot')
  const home = scratch.join('home')
  const layers = buildDemoLayers(scratch.path)
  varve(home, ['layer', 'import', 'base', `dir:${layers.base}`, '--kind', 'base'])
  varve(home, ['layer', 'import', 'ada', `dir:${layers.user}`, '--kind', 'user'])
  varve(home, ['cvd', 'create', 'desk', '--layer', 'base', '--layer', 'ada'])
  for (const said of [/varve-demo: wrote a file in the guest/, /varve-demo: found what an earlier boot wrote: written in the guest/]) {
    await using disks = await VarveMount.open(home, 'desk', scratch.join('disks'), { args: ['--disk'] })
    if (varve(home, ['snapshot', 'list', 'desk']).json.length === 0) varve(home, ['snapshot', 'create', 'desk', 'before'])
    assert.match(await boot(`${disks.directory}/disk.raw`), said)
    assert.equal(await disks.unmount(), 0)
    assert.equal(disks.log, '')
  }
  const changes = varve(home, ['diff', 'desk@before', 'desk'], { expect: 3 }).json as { path: string; change: string }[]
  assert.deepEqual(changes.filter(({ path }) => path.startsWith('home/ada/')).map(({ path, change }) => `${change} ${path}`), [`added ${WRITTEN}`])
  assert.match(execFileSync(launcher, ['cat', `desk:/${WRITTEN}`, '--home', home], { encoding: 'utf8' }), /^written in the guest, kernel /)
})
