/**
 * How mounts end, as root and as others: nobody hangs, and no dead mount point is left but by SIGKILL.
 * Debian packages: fuse3, util-linux, mount.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, readSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { ScratchDirectory, VarveServer, varve } from '../varve-command.ts'
import { VarveMount, isMounted } from './varve-mount.ts'

const NOBODY = 65534
const FILE_BYTES = 8 << 20
const launcher = new URL('../../tools/varve', import.meta.url).pathname

function codeOf(work: () => unknown): string | undefined {
  try {
    work()
    return undefined
  } catch (error) {
    return (error as NodeJS.ErrnoException).code
  }
}

describe('a mount', () => {
  const scratch = new ScratchDirectory('mount-lifecycle')
  const home = scratch.join('home')
  const at = (name: string): string => scratch.join('mounts', name)

  before(() => {
    const source = scratch.join('source')
    mkdirSync(`${source}/etc`, { recursive: true })
    mkdirSync(`${source}/usr`)
    writeFileSync(`${source}/etc/hostname`, 'desk\n')
    writeFileSync(`${source}/usr/large`, Buffer.alloc(FILE_BYTES, 'content '))
    mkdirSync(scratch.join('mounts'))
    varve(home, ['layer', 'import', 'base', `dir:${source}`, '--kind', 'base'])
    varve(home, ['cvd', 'create', 'desk', '--layer', 'base', '--boot', 'none'])
  })
  after(() => scratch[Symbol.dispose]())

  test('ends with the command that serves it, in use or not, by every signal', async () => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGALRM'] as const) {
      await using mounted = await VarveMount.open(home, 'layer:base', at(signal))
      const fd = openSync(`${mounted.directory}/usr/large`, 'r')
      try {
        assert.equal(readSync(fd, Buffer.alloc(10), 0, 10, 0), 10)
        mounted.process.kill(signal)
        assert.equal(await mounted.exited, 0, signal)
        assert.equal(mounted.isMounted, false, signal)
        // Whoever has it open gets an error, and no data that were not read before.
        assert.ok(['ENOTCONN', 'ECONNABORTED', 'EIO'].includes(codeOf(() => readSync(fd, Buffer.alloc(4096), 0, 4096, 4 << 20)) ?? ''), signal)
      } finally {
        // Closing tells the mount, which is not there any more.
        codeOf(() => closeSync(fd))
      }
    }
  })

  test('goes with umount; one that is used is kept until it is detached', async () => {
    await using mounted = await VarveMount.open(home, 'layer:base', at('busy'))
    const fd = openSync(`${mounted.directory}/usr/large`, 'r')
    assert.notEqual(spawnSync('umount', [mounted.directory]).status, 0)
    execFileSync('umount', ['-l', mounted.directory])
    assert.equal(readSync(fd, Buffer.alloc(4096), 0, 4096, 4 << 20), 4096)
    closeSync(fd)
    assert.equal(await mounted.exited, 0)
  })

  test('of a killed process is named, and cleared', async () => {
    await using mounted = await VarveMount.open(home, 'layer:base', at('killed'))
    mounted.process.kill('SIGKILL')
    assert.equal(await mounted.exited, 'SIGKILL')
    assert.equal(codeOf(() => statSync(mounted.directory)), 'ENOTCONN')
    assert.match(varve(home, ['mount', 'layer:base', mounted.directory], { expect: 1 }).json.error.message, /process was killed.*varve mount --clear/)
    assert.equal(varve(home, ['mount', '--clear', mounted.directory]).json.cleared, true)
    assert.equal(mounted.isMounted, false)
    assert.equal(varve(home, ['mount', '--clear', mounted.directory]).json.cleared, false)
  })

  test('in the background serves when the command has ended, and ends by --clear', () => {
    mkdirSync(at('background'))
    const { pid } = varve(home, ['mount', 'layer:base', at('background')]).json
    assert.equal(readFileSync(`${at('background')}/etc/hostname`, 'utf8'), 'desk\n')
    process.kill(pid, 0)
    varve(home, ['mount', '--clear', at('background')])
    assert.equal(isMounted(at('background')), false)
  })

  test('is refused where it cannot be, with a code', () => {
    assert.equal(varve(home, ['mount', 'layer:base', scratch.join('missing')], { expect: 1 }).json.error.code, 'MOUNT_FAILED')
    assert.equal(varve(home, ['mount', 'nothing', at('background')], { expect: 1 }).json.error.code, 'NOT_FOUND')
    assert.equal(varve(home, ['mount', '--clear', '/proc'], { expect: 1 }).json.error.code, 'MOUNT_FAILED')
  })

  test('gives errors, and no hang, when the store is gone', async () => {
    const copy = scratch.join('copy')
    execFileSync('cp', ['-a', home, copy])
    await using mounted = await VarveMount.open(copy, 'layer:base', at('removed'))
    execFileSync('sh', ['-c', 'for pack in "$0"/packs/*.pack; do : > "$pack"; done', copy])
    rmSync(copy, { recursive: true })
    assert.equal(codeOf(() => readFileSync(`${mounted.directory}/usr/large`)), 'EIO')
    assert.equal(statSync(`${mounted.directory}/usr/large`).size, FILE_BYTES)
    assert.notEqual(await mounted.unmount(), 'SIGKILL')
    assert.match(mounted.log, /CHUNK_|PACK_/)
  })

  test('of a CVD that is served shows what it shows now, and outlives the server; its snapshot goes with it', async () => {
    const server = await VarveServer.start(home, `unix:${scratch.join('nbd.sock')}`)
    await using _server = server
    const client = await NbdClient.connect(`unix:${scratch.join('nbd.sock')}`, { exportName: 'desk' })
    await client.write(await client.read(0, 512), 0, { fua: true })
    await using mounted = await VarveMount.open(home, 'desk', at('served'))
    assert.equal(varve(home, ['snapshot', 'list', 'desk']).json.length, 1)
    {
      await using killed = await VarveMount.open(home, 'desk', at('look'))
      killed.process.kill('SIGKILL')
      await killed.exited
      assert.equal(varve(home, ['snapshot', 'list', 'desk']).json.length, 2)
      // It is none of those that are looked through, and goes with the next look.
      assert.deepEqual(varve(home, ['find', 'desk@*:/etc', '--name', 'hostname']).json.map(({ of }: { of: string }) => of), ['desk'])
      assert.equal(varve(home, ['snapshot', 'list', 'desk']).json.length, 1)
    }
    await client[Symbol.asyncDispose]()
    assert.equal(await server.stop(), 0)
    assert.equal(readFileSync(`${mounted.directory}/etc/hostname`, 'utf8'), 'desk\n')
    assert.ok(readFileSync(`${mounted.directory}/usr/large`).equals(Buffer.alloc(FILE_BYTES, 'content ')))
    assert.equal(await mounted.unmount(), 0)
    assert.deepEqual(varve(home, ['snapshot', 'list', 'desk']).json, [])
  })

  test('and an export of a CVD leave no snapshot behind, also when they are killed', async () => {
    const socket = scratch.join('killed.sock')
    await using server = await VarveServer.start(home, `unix:${socket}`)
    await using client = await NbdClient.connect(`unix:${socket}`, { exportName: 'desk' })
    // Boot code, which a disk without a boot loader does not have.
    const sector = Buffer.from(await client.read(0, 512))
    sector.writeUInt8(1, 0)
    await client.write(sector, 0, { fua: true })
    const child = spawn(launcher, ['export', 'desk', '-', '--format', 'raw', '--home', home], { stdio: ['ignore', 'pipe', 'inherit'] })
    // The disk is larger than a pipe: the rest waits for a reader, who does not come.
    await once(child.stdout, 'readable')
    child.kill('SIGKILL')
    await once(child, 'exit')
    const names = (): string[] => varve(home, ['snapshot', 'list', 'desk']).json.map(({ name }: { name: string }) => name)
    assert.match(names().join(), /^look-[^,]*$/)
    varve(home, ['export', 'desk', scratch.join('exported'), '--format', 'raw'])
    assert.deepEqual(names(), [])
    assert.equal(await server.stop(), 0)
  })

  test('of a disk takes writes, which the CVD keeps; snapshots show what was', async () => {
    const [root] = varve(home, ['compose', 'desk']).json.partitions
    {
      await using disks = await VarveMount.open(home, 'desk', at('disk'), { args: ['--disk'] })
      const directory = scratch.join('written')
      mkdirSync(directory)
      const device = execFileSync('losetup', ['-f', '--show', '-o', String(root.firstByte), '--sizelimit', String(root.byteLength), `${disks.directory}/disk.raw`], { encoding: 'utf8' }).trim()
      execFileSync('mount', [device, directory])
      writeFileSync(`${directory}/etc/hostname`, 'written\n')
      execFileSync('umount', [directory])
      execFileSync('losetup', ['-d', device])
      assert.equal(varve(home, ['mount', 'desk', at('background'), '--disk'], { expect: 1 }).json.error.code, 'STORE_LOCKED')
      varve(home, ['snapshot', 'create', 'desk', 'monday'])
      assert.equal(await disks.unmount(), 0)
    }
    const cat = (what: string): string => execFileSync(launcher, ['cat', what, '--home', home], { encoding: 'utf8' })
    assert.equal(cat('desk:/etc/hostname'), 'written\n')
    assert.equal(cat('desk@monday:/etc/hostname'), 'written\n')
    assert.equal(cat('layer:base:/etc/hostname'), 'desk\n')
    assert.deepEqual(varve(home, ['diff', 'layer:base', 'desk@monday'], { expect: 3 }).json.map(({ path }: { path: string }) => path), ['etc/hostname', 'lost+found'])
    await using mounted = await VarveMount.open(home, 'desk', at('snapshots'))
    assert.deepEqual(execFileSync('ls', [mounted.directory], { encoding: 'utf8' }).split('\n').filter((name) => name.startsWith('@')), ['@monday'])
    assert.equal(readFileSync(`${mounted.directory}/@monday/etc/hostname`, 'utf8'), 'written\n')
    assert.equal(varve(home, ['find', 'desk@*:/etc', '--name', 'host*', '--size', '-1K']).json.length, 2)
  })

  test('is made by who is not root, with fusermount3 and in a user namespace', () => {
    const own = scratch.join('own')
    execFileSync('cp', ['-a', home, own])
    mkdirSync(at('nobody'))
    execFileSync('chown', ['-R', String(NOBODY), own, at('nobody')])
    execFileSync('chmod', ['755', scratch.path])
    // Where udev does not rule, /dev/fuse is root's alone.
    const script = `mknod -m 666 ${scratch.join('fuse')} c 10 229 && mount --bind ${scratch.join('fuse')} /dev/fuse && exec setpriv --reuid ${NOBODY} --clear-groups "$@"`
    const use = `"${launcher}" mount layer:base ${at('nobody')} --home ${own} && cat ${at('nobody')}/etc/hostname && ! touch ${at('nobody')}/x 2>/dev/null`
    for (const [command, end] of [[['sh', '-c'], `fusermount3 -u ${at('nobody')}`], [['unshare', '-Urm', 'sh', '-c'], `umount ${at('nobody')}`]] as const) {
      const said = execFileSync('unshare', ['-m', 'sh', '-ec', script, 'sh', ...command, `export HOME=${scratch.path}; ${use} && ${end}`], { encoding: 'utf8' })
      assert.match(said, /^desk$/m)
      rmSync(scratch.join('fuse'))
    }
  })
})
