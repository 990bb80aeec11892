/**
 * `varve serve` is killed at any moment while clients write, flush and make snapshots. The next one shows what was flushed, snapshots that were
 * acknowledged show their moment, and the store is clean, without any repair. VARVE_CRASH_KILLS: how often.
 */
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { controlRequest } from '@varve/blockserver/control/client.ts'
import { NbdClient, NbdRequestError } from '@varve/blockserver/nbd/client.ts'
import { Home } from '@varve/images/store/home.ts'
import { checkRoots, reachableChunks } from '@varve/images/store/reachable.ts'
import { removeLeftOverlays } from '@varve/tools/cvd-disk.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory, varve, VarveServer } from '../varve-command.ts'
import { SECTOR_BYTES, SectorHistory, numberedSectors } from './crash-sectors.ts'
import type { SectorView } from './crash-sectors.ts'

const KILLS = Number(process.env.VARVE_CRASH_KILLS ?? 100)
const CVD = 'desk'
const CONNECTIONS = 2
/** Requests of a connection in flight at once. */
const IN_FLIGHT = 4
const LIFE_MS_MAX = 150
/** Of what a server does while it opens a disk: recovery, settling. */
const OPENING_MS_MAX = 60
const SECTORS_PER_REQUEST = [1, 1, 2, 7, 8, 8, 16, 33, 64, 128]
/** Half of all requests go where others go too. */
const HOT_SECTORS = 2048
/** Before the end of a life. */
const SNAPSHOT_MS_MAX = 80
const SNAPSHOTS_KEPT = 2

/** One CVD, its server's successive lives, and what they must show. */
class CrashedCvd {
  readonly #homeDirectory: string
  readonly #cvdId: string
  readonly #address: string
  readonly #random: Random
  #history: SectorHistory | undefined
  /** Those that were acknowledged, or were found all the same. */
  readonly #snapshots = new Map<string, SectorView>()
  /** Asked for in the last life, and not answered. */
  readonly #unanswered = new Map<string, SectorView>()
  readonly figures = { kills: 0, opening: 0, writes: 0, flushes: 0, snapshots: 0, unanswered: 0, found: 0, collections: 0 }

  constructor({ scratch, cvdId, random }: { scratch: ScratchDirectory; cvdId: string; random: Random }) {
    this.#cvdId = cvdId
    this.#homeDirectory = scratch.join('home')
    this.#address = `unix:${scratch.join('socket')}`
    this.#random = random
  }

  /** A server from its start to its death. */
  async life(message: string): Promise<void> {
    const random = this.#random
    const starting = VarveServer.start(this.#homeDirectory, this.#address)
    const checked = await Promise.allSettled([starting, this.#checkHome(message)])
    await using server = await starting
    for (const result of checked) if (result.status === 'rejected') throw result.reason
    if (this.#history !== undefined && random.chance(0.15)) {
      await this.#killOpening(server)
      return
    }
    await using clients = new ClientStack()
    await clients.connect(this.#address)
    await this.#checkDisks(clients.all[0], message)
    await this.#writeUntilKilled(clients.all, server)
    this.figures.kills++
  }

  /** A server that is told to end: all that it acknowledged is there, flushed or not. */
  async cleanLife(message: string): Promise<void> {
    await using server = await VarveServer.start(this.#homeDirectory, this.#address)
    await using clients = new ClientStack()
    await clients.connect(this.#address)
    await this.#checkDisks(clients.all[0], message)
    const endMs = performance.now() + LIFE_MS_MAX
    await Promise.all(clients.all.map((client) => this.#lane(client, () => performance.now() > endMs)))
    this.#history!.flushed(this.#history!.now)
    await clients[Symbol.asyncDispose]()
    assert.equal(await server.stop('SIGTERM'), 0, message)
    await using next = await VarveServer.start(this.#homeDirectory, this.#address)
    await using readers = new ClientStack()
    await readers.connect(this.#address)
    await this.#checkDisks(readers.all[0], `${message}, and a clean stop`)
    await readers[Symbol.asyncDispose]()
    assert.equal(await next.stop('SIGTERM'), 0, message)
  }

  async #killOpening(server: VarveServer): Promise<void> {
    const connecting = NbdClient.connect(this.#address, { exportName: CVD }).then((client) => client.destroy(), () => undefined)
    await delay(this.#random.below(OPENING_MS_MAX))
    await server.stop('SIGKILL')
    await connecting
    this.figures.kills++
    this.figures.opening++
  }

  /** Opens the home as anyone would; takes note of which snapshots there are, and removes some. */
  async #checkHome(message: string): Promise<void> {
    const random = this.#random
    await using home = await Home.open(this.#homeDirectory)
    const report = await home.store.verify({ readData: this.figures.kills % 10 === 9 })
    assert.deepEqual(report.damage, [], message)
    assert.deepEqual(home.catalog.damage(), [], message)
    for await (const { root, chunksMissing, problem } of checkRoots(home)) {
      assert.deepEqual([chunksMissing, problem], [0, undefined], `${message}: ${root.holder} is not whole`)
    }
    const found = new Set((await home.catalog.snapshots(CVD)).map(({ name }) => name))
    for (const name of this.#snapshots.keys()) assert.ok(found.delete(name), `${message}: snapshot ${name} was acknowledged`)
    for (const name of found) {
      const view = this.#unanswered.get(name)
      assert.ok(view !== undefined, `${message}: nobody asked for snapshot ${name}`)
      this.#snapshots.set(name, view)
      this.figures.found++
    }
    this.#unanswered.clear()
    while (this.#snapshots.size > SNAPSHOTS_KEPT && random.chance(0.7)) {
      const name = random.pick([...this.#snapshots.keys()])
      await home.catalog.removeSnapshot(CVD, name)
      this.#snapshots.delete(name)
    }
    if (!random.chance(0.05)) return
    await removeLeftOverlays(home)
    assert.equal((await home.store.collect(() => reachableChunks(home))).chunksMissing, 0, message)
    this.figures.collections++
  }

  async #checkDisks(client: NbdClient, message: string): Promise<void> {
    const disk = await readAll(client)
    if (this.#history === undefined) this.#history = new SectorHistory(disk)
    else this.#history.check(disk, message)
    for (const [name, view] of this.#snapshots) {
      const snapshot = await NbdClient.connect(this.#address, { exportName: `${CVD}@${name}` })
      try {
        assert.ok(snapshot.readOnly)
        view.check(await readAll(snapshot), `${message}: snapshot ${name}`)
      } finally {
        snapshot.destroy()
      }
    }
  }

  /** Writes by all connections, and perhaps makes snapshots, until it kills the server. */
  async #writeUntilKilled(clients: NbdClient[], server: VarveServer): Promise<void> {
    const lifeMs = this.#random.between(1, LIFE_MS_MAX)
    let dying = false
    const failures: unknown[] = []
    const working = [...clients.map((client) => this.#lane(client, () => dying)), this.#makeSnapshots(lifeMs, () => dying)].map((work) => work.catch((error: unknown) => {
      // That connections break is what is expected of a kill, and of nothing else.
      if (!dying || error instanceof NbdRequestError || error instanceof assert.AssertionError) failures.push(error)
    }))
    await delay(lifeMs)
    if (this.#random.chance(0.4)) {
      // Killed while it is settled.
      await this.#makeSnapshot(() => false).catch((error: unknown) => failures.push(error))
      await delay(this.#random.below(SNAPSHOT_MS_MAX))
    }
    dying = true
    await server.stop('SIGKILL')
    await Promise.all(working)
    if (failures.length > 0) throw failures[0]
  }

  async #lane(client: NbdClient, isOver: () => boolean): Promise<void> {
    await Promise.all(Array.from({ length: IN_FLIGHT }, async () => {
      while (!isOver()) {
        if (this.#random.chance(0.05)) await this.#flush(client)
        else await this.#write(client)
      }
    }))
  }

  async #flush(client: NbdClient): Promise<void> {
    const history = this.#history!
    const sentAt = history.now
    await client.flush()
    history.flushed(sentAt)
    this.figures.flushes++
  }

  async #write(client: NbdClient): Promise<void> {
    const random = this.#random
    const history = this.#history!
    const sectors = random.pick(SECTORS_PER_REQUEST)
    const sector = random.below((random.chance(0.5) ? HOT_SECTORS : history.sectors) - sectors + 1)
    const kind = random.pick(['write', 'write', 'write', 'write', 'write', 'write', 'trim', 'zeroes'] as const)
    const fua = random.chance(0.1)
    const write = history.issue({ sector, sectors, zeroes: kind !== 'write' })
    const [offset, length] = [sector * SECTOR_BYTES, sectors * SECTOR_BYTES]
    if (kind === 'trim') await client.trim(offset, length, { fua })
    else if (kind === 'zeroes') await client.writeZeroes(offset, length, { fua, noHole: random.chance(0.5) })
    else await client.write(numberedSectors(sector, sectors, write.number), offset, { fua })
    history.acknowledge(write, { durable: fua })
    this.figures.writes++
  }

  /** Near the end of the life, so that some are killed while they are made or settled. */
  async #makeSnapshots(lifeMs: number, isOver: () => boolean): Promise<void> {
    const startMs = performance.now()
    while (this.#random.chance(0.6)) {
      const atMs = startMs + lifeMs - this.#random.below(SNAPSHOT_MS_MAX)
      await delay(Math.max(0, atMs - performance.now()))
      if (isOver()) return
      await this.#makeSnapshot(isOver)
    }
  }

  async #makeSnapshot(isOver: () => boolean): Promise<void> {
    const name = `s${++this.figures.snapshots}`
    const socket = path.join(this.#homeDirectory, 'run', `${this.#cvdId}.sock`)
    const end = this.#history!.beginSnapshot()
    try {
      const answer = await controlRequest(socket, 'snapshot', { cvd: CVD, name })
      assert.ok(answer !== undefined, 'nobody listens on the control socket')
      this.#snapshots.set(name, end())
    } catch (error) {
      this.#unanswered.set(name, end())
      this.figures.unanswered++
      if (!isOver()) throw error
    }
  }
}

/** Connections that are closed together. */
class ClientStack implements AsyncDisposable {
  readonly all: NbdClient[] = []

  async connect(address: string): Promise<void> {
    for (let index = 0; index < CONNECTIONS; index++) this.all.push(await NbdClient.connect(address, { exportName: CVD }))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.all) client.destroy()
  }
}

async function readAll(client: NbdClient): Promise<Buffer> {
  return client.read(0, client.sizeBytes)
}

test('a server that is killed at any moment leaves a disk with all that was flushed, snapshots that were acknowledged, and a clean store', async (t) => {
  const seed = testSeed()
  t.diagnostic(`seed ${seed}, ${KILLS} kills`)
  const random = new Random(seed)
  using scratch = new ScratchDirectory('crash-serve')
  mkdirSync(scratch.join('files'))
  for (let index = 0; index < 8; index++) writeFileSync(scratch.join('files', `file${index}`), random.bytes(random.below(300_000)))
  varve(scratch.join('home'), ['layer', 'import', 'files', `dir:${scratch.join('files')}`, '--kind', 'base'])
  const { json: cvd } = varve(scratch.join('home'), ['cvd', 'create', CVD, '--layer', 'files', '--boot', 'none', '--size', '24M'])
  const crashed = new CrashedCvd({ scratch, cvdId: cvd.id, random })
  const message = () => `seed ${seed}, after ${crashed.figures.kills} kills`
  while (crashed.figures.kills < KILLS) await crashed.life(message())
  await crashed.cleanLife(message())
  const { json: report } = varve(scratch.join('home'), ['verify'])
  assert.deepEqual([report.damage, report.broken], [[], []], message())
  t.diagnostic(JSON.stringify(crashed.figures))
})
