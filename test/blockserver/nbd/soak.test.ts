/**
 * Hostile clients of all kinds against `varve serve`, while an honest one works: it has no error, memory stays bounded, and the server ends in order.
 * VARVE_SOAK_FRAMES: requests, options and connections that the hostile clients send; a soak run takes 1,000,000.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { NBD_LIMITS } from '@varve/blockserver/nbd/limits.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { DeskHome } from '../../integration/desk-home.ts'
import { Random, testSeed } from '../../random.ts'
import { varve } from '../../varve-command.ts'
import { attackAll } from './hostile-peer.ts'
import { RawPeer } from './raw-peer.ts'
import { run } from './serving.ts'

const FRAMES = Number(process.env.VARVE_SOAK_FRAMES ?? 20_000)
const HOSTILE_CLIENTS = 24
const MiB = 1024 * 1024
const CACHE_BYTES = 64 * MiB
/** The runtime, what each connection may always hold, and buffers of the kernel's replies. */
const OTHER_BYTES_MAX = 512 * MiB
const REGION_BYTES = 64 * 1024

/** Writes and reads back, on two connections, until it is over. @returns rounds */
async function workHonestly([one, other]: readonly NbdClient[], random: Random, isOver: () => boolean): Promise<number> {
  const model = await one.read(0, 16 * MiB)
  let rounds = 0
  for (; !isOver(); rounds++) {
    const writes = Array.from({ length: 8 }, (_, index) => ({ at: index * 2 * MiB + random.below(2 * MiB - REGION_BYTES), bytes: random.bytes(random.between(1, REGION_BYTES)) }))
    await Promise.all(writes.map(({ at, bytes }) => {
      bytes.copy(model, at)
      return random.pick([one, other]).write(bytes, at, { fua: random.chance(0.05) })
    }))
    await Promise.all(writes.map(async ({ at, bytes }) => assert.deepEqual(await random.pick([one, other]).read(at, bytes.length), bytes)))
    if (random.chance(0.1)) await one.flush()
  }
  await one.flush()
  assert.ok((await other.read(0, model.length)).equals(model))
  return rounds
}

/** A client that comes when the server has room for it again: a flood may leave it with as many connections as it takes. */
async function connectLate(address: string): Promise<NbdClient> {
  for (let attempts = 1; ; attempts++) {
    try {
      return await NbdClient.connect(address, { exportName: 'desk' })
    } catch (error) {
      if (attempts === 100) throw error
      await sleep(100)
    }
  }
}

function peakBytes(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024
}

test('varve serve outlives hostile clients of all kinds, in bounded memory, and its honest client notices nothing', async (context) => {
  const seed = testSeed()
  const random = new Random(seed)
  using home = new DeskHome({ size: '32M' })
  varve(home.path, ['cvd', 'create', 'honest', '--layer', 'files', '--boot', 'none', '--size', '32M'])
  await using server = await home.serve(undefined, ['--cache', `${CACHE_BYTES}`])
  const address = server.addresses[0]
  let over = false
  try {
    // Before the floods come.
    await using one = await NbdClient.connect(address, { exportName: 'honest' })
    await using other = await NbdClient.connect(address, { exportName: 'honest' })
    const honest = workHonestly([one, other], new Random(random.uint32()), () => over)
    // If the honest client fails, there is no need to go on.
    honest.catch(() => { over = true })
    const acts = await attackAll({ random, socketPath: home.socket(), victim: 'desk', clients: HOSTILE_CLIENTS, isOver: (frames) => over || frames >= FRAMES })
    over = true
    const rounds = await honest
    const memory = peakBytes(server.process.pid!)
    context.diagnostic(`seed ${seed}: ${JSON.stringify(acts)}, ${rounds} honest rounds, server at most ${Math.round(memory / MiB)} MiB`)
    assert.ok(rounds > 3)
    assert.ok(memory < NBD_LIMITS.sharedBytesMax + CACHE_BYTES + OTHER_BYTES_MAX, `${memory} bytes`)
    await using late = await connectLate(address)
    assert.equal((await late.read(0, MiB)).length, MiB)
    await late.disconnect()
    assert.equal(await server.stop('SIGTERM'), 0)
  } catch (cause) {
    throw new Error(`seed ${seed}, the server ${server.process.exitCode === null && server.process.signalCode === null ? 'lives' : 'ended'}`, { cause })
  }
})

test('varve serve refuses connections for which it has no descriptors, and serves when it has some again', async () => {
  using home = new DeskHome({ size: '32M' })
  await using server = await home.serve(undefined, ['--cache', `${CACHE_BYTES}`])
  const address = server.addresses[0]
  await using one = await NbdClient.connect(address, { exportName: 'desk' })
  await run('prlimit', ['--pid', String(server.process.pid), `--nofile=${readdirSync(`/proc/${server.process.pid}/fd`).length + 20}`])
  const peers = Array.from({ length: 60 }, () => new RawPeer(address))
  // Those that come first are greeted; of the others one at least is closed.
  await Promise.any(peers.map(async (peer) => assert.rejects(peer.read(18))))
  for (let reads = 0; reads < 10; reads++) assert.equal((await one.read(0, MiB)).length, MiB)
  for (const peer of peers) peer[Symbol.dispose]()
  await using late = await connectLate(address)
  assert.equal((await late.read(0, MiB)).length, MiB)
  await late.disconnect()
  await one.disconnect()
  assert.equal(await server.stop('SIGTERM'), 0)
})
