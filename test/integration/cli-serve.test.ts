/**
 * Serving as a user meets it: what is offered, snapshots made while a CVD is served and while it is not, a clean end,
 * and a second server of the same home. The clients are not ours: nbdinfo, nbdcopy, qemu-io.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Certificates } from '../blockserver/nbd/certificates.ts'
import { LoopPartition } from '../composer/compose/raw-disk.ts'
import { varve } from '../varve-command.ts'
import { DeskHome } from './desk-home.ts'
import { QemuIo } from './qemu-io.ts'

/** Where the tests write: free space of the root filesystem, blocks of this size. */
const WRITE_BYTES = 65_536

/** Somewhere in the middle of the disk. */
function freeOffset(home: DeskHome): number {
  return Math.floor(home.composed.sizeBytes / 2 / WRITE_BYTES) * WRITE_BYTES
}

function command(program: string, ...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(program, args, { encoding: 'utf8' })
}

function info(uri: string): any {
  const { status, stdout, stderr } = command('nbdinfo', '--json', uri)
  assert.equal(status, 0, stderr)
  return JSON.parse(stdout).exports[0]
}

/** Writes blocks of one byte, and flushes. */
function write(uri: string, offset: number, pattern: number): void {
  const { status, stdout, stderr } = command('qemu-io', '-f', 'raw', '-c', `write -P ${pattern} ${offset} ${WRITE_BYTES}`, '-c', 'flush', uri)
  assert.equal(status, 0, stdout + stderr)
  assert.doesNotMatch(stdout, /failed/)
}

/** The disk holds blocks of this byte there. */
function assertHolds(uri: string, offset: number, pattern: number): void {
  const { status, stdout, stderr } = command('qemu-io', '-r', '-f', 'raw', '-c', `read -P ${pattern} ${offset} ${WRITE_BYTES}`, uri)
  assert.equal(status, 0, stdout + stderr)
  assert.match(stdout, /^read /m)
  assert.doesNotMatch(stdout, /failed/)
}

test('a CVD is writable, its snapshots and layers are read-only, and each shows its own bytes', async () => {
  using home = new DeskHome()
  const offset = freeOffset(home)
  {
    await using server = await home.serve()
    write(home.uri('desk'), offset, 0x11)
    // While it is served: the owner is asked.
    assert.equal(varve(home.path, ['snapshot', 'create', 'desk', 'one']).json.snapshot, 'desk@one')
    write(home.uri('desk'), offset, 0x22)
    assertHolds(home.uri('desk@one'), offset, 0x11)
    assertHolds(home.uri('desk'), offset, 0x22)
    assert.equal(varve(home.path, ['snapshot', 'create', 'desk', 'one'], { expect: 1 }).json.error.code, 'ALREADY_EXISTS')
    assert.equal(await server.stop('SIGTERM'), 0)
  }
  // While nobody serves it: here.
  varve(home.path, ['snapshot', 'create', 'desk', 'two'])
  assert.deepEqual(varve(home.path, ['snapshot', 'list', 'desk']).json.map(({ snapshot }: any) => snapshot), ['desk@one', 'desk@two'])
  {
    await using server = await home.serve()
    write(home.uri('desk'), offset, 0x33)
    for (const [disk, pattern, readOnly] of [['desk', 0x33, false], ['desk@one', 0x11, true], ['desk@two', 0x22, true], ['layer:files@1', 0, true]] as const) {
      const { is_read_only: isReadOnly, 'export-size': sizeBytes } = info(home.uri(disk))
      assert.equal(isReadOnly, readOnly, disk)
      assert.equal(sizeBytes, home.composed.sizeBytes)
      assertHolds(home.uri(disk), offset, pattern)
    }
    const refused = command('qemu-io', '-f', 'raw', '-c', `write -P 1 ${offset} 4096`, home.uri('desk@one'))
    assert.match(refused.stdout + refused.stderr, /Permission denied|read.?only/i)
    assertHolds(home.uri('desk@one'), offset, 0x11)

    const copy = home.scratch.join('copy.img')
    assert.equal(command('nbdcopy', home.uri('layer:files'), copy).status, 0)
    using partition = new LoopPartition(copy, home.composed.partitions[0])
    assert.equal(readFileSync(path.join(partition.mount(), 'hello'), 'utf8'), 'hello from the layer\n')
    assert.equal(await server.stop('SIGINT'), 0)
  }
  varve(home.path, ['snapshot', 'remove', 'desk@one'])
  assert.deepEqual(varve(home.path, ['snapshot', 'list', 'desk']).json.map(({ name }: any) => name), ['two'])
  varve(home.path, ['gc'])
  const { damageCount, broken } = varve(home.path, ['verify']).json
  assert.deepEqual([damageCount, broken], [0, []])
  {
    await using server = await home.serve()
    assertHolds(home.uri('desk@two'), offset, 0x22)
    assertHolds(home.uri('desk'), offset, 0x33)
    assert.equal(await server.stop(), 0)
  }
})

test('what is not there is refused, and the server goes on', async () => {
  using home = new DeskHome()
  await using server = await home.serve()
  for (const disk of ['nothing', 'desk@nothing', 'layer:nothing', 'layer:files@9', '../desk', 'desk@']) {
    const { status, stderr } = command('nbdinfo', home.uri(disk))
    assert.notEqual(status, 0, disk)
    assert.match(stderr, /no export|not found|has no|export/i)
  }
  // The only CVD is the default.
  assert.equal(info(home.uri(''))['export-size'], home.composed.sizeBytes)
  assert.deepEqual(JSON.parse(command('nbdinfo', '--list', '--json', `nbd+unix:///?socket=${home.socket()}`).stdout).exports.map((one: any) => one['export-name']).sort(), ['desk', 'layer:files@1'])
  assert.equal(await server.stop(), 0)
})

test('of two servers of one home only one serves a CVD at a time; the other says so, and takes over when it can', async () => {
  using home = new DeskHome()
  const offset = freeOffset(home)
  await using first = await home.serve()
  await using second = await home.serve(`unix:${home.socket('second')}`)
  const there = home.uri('desk', home.socket('second'))
  {
    await using holder = await QemuIo.open('-f', 'raw', home.uri('desk'))
    await holder.type(`write -P 0x44 ${offset} ${WRITE_BYTES}`)
    const { status, stderr } = command('qemu-io', '-r', '-f', 'raw', '-c', 'length', there)
    assert.notEqual(status, 0)
    assert.match(stderr, /in use by another process/)
    await holder.type(`read -P 0x44 ${offset} ${WRITE_BYTES}`)
  }
  // Layers are anybody's.
  assert.equal(info(home.uri('layer:files@1', home.socket('second'))).is_read_only, true)
  assertHolds(there, offset, 0x44)
  assert.equal(await first.stop(), 0)
  assertHolds(there, offset, 0x44)
  assert.equal(await second.stop(), 0)
})

test('what was written to a CVD is shown as varve:dirty, until a snapshot of it is settled', async () => {
  using home = new DeskHome()
  const offset = freeOffset(home)
  const dirty = () => {
    const { status, stdout, stderr } = command('nbdinfo', '--json', '--map=varve:dirty', home.uri('desk'))
    assert.equal(status, 0, stderr)
    return JSON.parse(stdout).filter(({ type }: any) => type === 1).map((run: any) => [run.offset, run.length])
  }
  await using server = await home.serve()
  assert.deepEqual(dirty(), [])
  write(home.uri('desk'), offset, 0x11)
  assert.deepEqual(dirty(), [[offset, WRITE_BYTES]])
  {
    await using client = await QemuIo.open('-f', 'raw', home.uri('desk'))
    varve(home.path, ['snapshot', 'create', 'desk', 'one'])
    await client.type(`write -P 0x22 ${offset + 2 * WRITE_BYTES} 4096`)
    await client.type('flush')
    const both = [[offset, WRITE_BYTES], [offset + 2 * WRITE_BYTES, 4096]]
    // The snapshot is settled in the background: then it is part of what is below.
    for (let runs = dirty(); runs.length > 1; runs = dirty()) {
      assert.deepEqual(runs, both)
      await sleep(50)
    }
    assert.deepEqual(dirty(), both.slice(1))
  }
  assert.equal(await server.stop(), 0)
})

test('varve serve speaks TLS with the files that it is told, and with nobody else', async () => {
  using home = new DeskHome()
  const certificates = await Certificates.make(home.scratch.join('certificates'))
  const socket = home.socket()
  const server = ['--tls-cert', certificates.file('server', 'cert'), '--tls-key', certificates.file('server', 'key')]
  const withCertificate = (client: 'desk' | 'anonymous') => `nbds+unix:///?socket=${socket}&tls-certificates=${certificates.clientDirectory(client)}`
  const withKey = (which: 'keys' | 'wrong') => `nbds+unix://alice@/?socket=${socket}&tls-psk-file=${certificates.pskFile(which)}`
  const statuses = (...uris: string[]) => uris.map((uri) => command('nbdinfo', '--size', uri).status)
  {
    await using _server = await home.serve(`unix:${socket}`, ['--tls', 'required', ...server, '--tls-ca', certificates.file('authority', 'cert'), '--tls-verify-peer', '--default-export', 'desk'])
    assert.deepEqual(statuses(withCertificate('desk'), withCertificate('anonymous'), home.uri('desk')), [0, 1, 1])
  }
  {
    await using _server = await home.serve(`unix:${socket}`, ['--tls', 'optional', ...server, '--tls-psk', certificates.pskFile('keys'), '--default-export', 'desk@missing'])
    // The default export is what it was said to be.
    assert.deepEqual(statuses(home.uri('desk'), home.uri('')), [0, 1])
    assert.deepEqual(statuses(withKey('keys').replace('/?', '/desk?'), withKey('wrong').replace('/?', '/desk?'), withCertificate('anonymous').replace('/?', '/desk?')), [0, 1, 0])
  }
  for (const options of [['--tls', 'required'], ['--tls', 'required', '--tls-cert', '/missing', '--tls-key', '/missing']]) {
    assert.equal(varve(home.path, ['serve', '--nbd', `unix:${socket}`, ...options], { expect: 1 }).json.error.code, 'CONFIG_INVALID')
  }
})
