/**
 * A server that is killed and started again under a client that waits for it: the client goes on, and what it holds for durable is there.
 * The clients are QEMU's, with `reconnect-delay`, and Linux's own in a guest, with its root filesystem on it.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { Guest } from '@varve/tools/demo/guest.ts'
import { LoopPartition } from '../composer/compose/raw-disk.ts'
import { Random, testSeed } from '../random.ts'
import { VarveServer } from '../varve-command.ts'
import { DeskHome } from './desk-home.ts'
import { buildGuestRoot, buildNbdKernel, FILES_PER_LINE } from './nbd-guest.ts'
import { QemuIo } from './qemu-io.ts'

/** Far above what a slow machine needs; a guest that hangs fails the test, a slow one does not. */
const GUEST_MS_MAX = 300_000
const GUEST_KILLS = 2
const QEMU_KILLS = 4

test('a guest whose root filesystem is on the NBD client of Linux goes on when the server is killed and started again', async () => {
  using home = new DeskHome({ fill: buildGuestRoot, size: '128M' })
  let server = await VarveServer.start(home.path, '127.0.0.1:0')
  const [address] = server.addresses
  try {
    const kernel = buildNbdKernel({ scratch: home.scratch.path, port: Number(address.split(':').at(-1)), name: 'desk' })
    await using guest = new Guest({ kernel, memoryMiB: 512, extra: ['-nic', 'user,model=virtio-net-pci'] })
    await guest.waitFor(/guest: root \/dev\/nbd0p1 ext4/, { timeoutMs: GUEST_MS_MAX })
    for (let kills = 0; kills <= GUEST_KILLS; kills++) {
      const after = guest.mark()
      guest.type('go\n')
      await guest.waitFor(/guest: waits/, { timeoutMs: GUEST_MS_MAX, after })
      if (kills === GUEST_KILLS) break
      // All that was written is durable now; what is in flight are reads.
      await server.stop('SIGKILL')
      server = await VarveServer.start(home.path, address)
    }
    guest.type('stop\n')
    assert.equal(await guest.exited, 0)
    assert.match(guest.console, /guest: read-only/)
    assert.doesNotMatch(guest.console, /guest: .*failed|I\/O error|EXT4-fs error/)
    const files = [...guest.console.matchAll(/guest: synced (\S+) ([0-9a-f]{64})/g)]
    assert.equal(files.length, (GUEST_KILLS + 1) * FILES_PER_LINE)
    assert.ok((guest.console.match(/guest: reconnected/g)?.length ?? 0) >= GUEST_KILLS)

    const copy = home.scratch.join('copy.img')
    execFileSync('nbdcopy', [`nbd://${address}/desk`, copy])
    using root = new LoopPartition(copy, home.composed.partitions[0])
    execFileSync('e2fsck', ['-fn', root.device], { stdio: 'pipe' })
    const mounted = root.mount()
    for (const [, name, sum] of files) assert.equal(createHash('sha256').update(readFileSync(path.join(mounted, name))).digest('hex'), sum, `${name} was durable`)
    assert.equal(await server.stop('SIGTERM'), 0)
  } finally {
    await server[Symbol.asyncDispose]()
  }
})

test('QEMU\'s writes in flight when the server is killed are done by the next one', (context) => restartUnderQemu(context, { cached: false }))

// QEMU and Linux do not send again what was answered.
test('a flush after a restart covers writes that were answered before it', (context) => restartUnderQemu(context, { cached: true }))

/** @param options.cached false: what is answered when the server is killed is durable, by a flush or FUA; true: by a flush after the restart */
async function restartUnderQemu(context: test.TestContext, { cached }: { cached: boolean }): Promise<void> {
  const seed = testSeed()
  const random = new Random(seed)
  using home = new DeskHome({ size: '32M' })
  const socket = home.socket()
  const sizeBytes: number = home.composed.sizeBytes
  let server = await home.serve()
  try {
    const model = Buffer.alloc(sizeBytes)
    execFileSync('nbdcopy', [home.uri(), home.scratch.join('before')])
    readFileSync(home.scratch.join('before')).copy(model)
    {
      await using client = await QemuIo.open('-t', 'writeback', '--image-opts', `driver=nbd,server.type=unix,server.path=${socket},export=desk,reconnect-delay=300`)
      let written = 0
      for (let kills = 0; kills < QEMU_KILLS; kills++) {
        const commands: string[] = []
        // One place each, so that the order of what is in flight together does not matter.
        for (let at = random.below(100_000); commands.length < 48 && at < sizeBytes - 400_000; at += random.between(100_000, 400_000)) {
          const length = random.pick([512, 4096, 10_000, 65_536, 100_000])
          const pattern = random.between(1, 255)
          commands.push(`-P ${pattern} ${at} ${length}`)
          model.fill(pattern, at, at + length)
        }
        const answered = random.between(1, commands.length - 1)
        for (const command of commands.slice(0, answered)) await client.type(`aio_write ${command}`)
        await client.type('aio_flush')
        if (!cached) await client.type('flush')
        // Those are answered; of these some are in flight.
        for (const command of commands.slice(answered)) await client.type(`aio_write ${cached ? '' : '-f '}${command}`)
        await server.stop('SIGKILL')
        server = await home.serve()
        await client.type('aio_flush')
        written += commands.length
        await client.printed(/wrote \d+\/\d+ bytes/g, written)
        await client.type('flush')
      }
    }
    await server.stop('SIGKILL')
    server = await home.serve()
    execFileSync('nbdcopy', [home.uri(), home.scratch.join('after')])
    const after = readFileSync(home.scratch.join('after'))
    for (let at = 0; at < sizeBytes; at += 512) assert.ok(after.subarray(at, at + 512).equals(model.subarray(at, at + 512)), `seed ${seed}: the sector at ${at} holds what was written`)
    assert.equal(await server.stop('SIGTERM'), 0)
    context.diagnostic(`seed ${seed}`)
  } finally {
    await server[Symbol.asyncDispose]()
  }
}
