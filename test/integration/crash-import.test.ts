/**
 * Imports and collections are killed at any moment, over and over in one home. It opens by itself each time, is clean, and has every layer
 * that was acknowledged, and no layer that is not whole. VARVE_CRASH_KILLS: how often.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { importDiskLayer } from '@varve/composer/import/import-disk-layer.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { Home } from '@varve/images/store/home.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import { formatLayerName } from '@varve/images/store/names.ts'
import { checkRoots, reachableChunks } from '@varve/images/store/reachable.ts'
import { Random, testSeed } from '../random.ts'
import { ScratchDirectory } from '../varve-command.ts'
import { CrashSource } from './crash-source.ts'

const KILLS = Number(process.env.VARVE_CRASH_KILLS ?? 100)
/** How often old layers are removed and collected, and the typical duration is measured anew. */
const KILLS_PER_COLLECTION = 20
const LAYERS_KEPT = 4
/** Far above the time that making a home takes. */
const CREATION_MS_MAX = 60

const script = path.join(import.meta.dirname, 'crash-process.ts')

/** crash-process.ts, to be killed. */
class Victim implements AsyncDisposable {
  readonly #child: ChildProcess
  readonly #closed: Promise<unknown>
  #output = ''
  #errors = ''
  #moved = Promise.withResolvers<void>()

  /** @param compiled directory where compiled modules are kept between runs, for a fast start */
  constructor(compiled: string, args: string[]) {
    this.#child = spawn(process.execPath, [script, ...args], { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, NODE_COMPILE_CACHE: compiled } })
    this.#closed = once(this.#child, 'close').finally(() => this.#moved.resolve())
    this.#child.stdin!.on('error', () => undefined)
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => (this.#errors += text))
    this.#child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text
      this.#moved.resolve()
      this.#moved = Promise.withResolvers()
    })
  }

  /** Whole lines that it has printed. */
  get lines(): string[] {
    return this.#output.split('\n').slice(0, -1)
  }

  /** Lets it begin; resolves when it does. */
  async begin(): Promise<void> {
    await this.waitFor('ready')
    this.#child.stdin!.write('\n')
    await this.waitFor('work')
  }

  async waitFor(beginning: string): Promise<void> {
    while (!this.lines.some((line) => line.startsWith(beginning))) {
      assert.ok(this.#isAlive, `the process ended by itself\n${this.#output}\n${this.#errors}`)
      await this.#moved.promise
    }
  }

  /** Kills it, which must not have ended before. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#closed
    assert.equal(this.#child.signalCode, 'SIGKILL', `the process ended by itself\n${this.#output}\n${this.#errors}`)
  }

  /** Ends it in order. */
  async end(): Promise<void> {
    this.#child.stdin!.end()
    await this.#closed
    assert.equal(this.#child.exitCode, 0, this.#errors)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isAlive) this.#child.kill('SIGKILL')
    await this.#closed
  }

  get #isAlive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null
  }
}

/** One home, and what it must hold. */
class CrashedHome {
  readonly directory: string
  /** Digests by `NAME@N`. */
  readonly #acknowledged = new Map<string, string>()
  /** Layers that were seen in an earlier check: what is new since must be of the present source. */
  #seen = new Set<string>()

  constructor(directory: string) {
    this.directory = directory
  }

  acknowledge(victim: Victim): number {
    const acknowledged = victim.lines.map((line) => /^ack (\S+@\d+) ([0-9a-f]{64})$/.exec(line)).filter((match) => match !== null)
    for (const [, layer, digest] of acknowledged) this.#acknowledged.set(layer, digest)
    return acknowledged.length
  }

  /** Opens the home as anyone would, and looks at everything in it. @returns digests of the layers that are new */
  async check(message: string): Promise<Set<string>> {
    await using home = await Home.open(this.directory)
    const report = await home.store.verify({ readData: true })
    assert.deepEqual(report.damage, [], message)
    assert.deepEqual(home.catalog.damage(), [], message)
    for await (const { root, chunksMissing, problem } of checkRoots(home)) {
      assert.deepEqual([chunksMissing, problem], [0, undefined], `${message}: ${root.holder} is not whole`)
    }
    const layers = new Map((await home.catalog.layers()).map((layer) => [formatLayerName(layer), digestToHex(layer.digest)]))
    for (const [layer, digest] of this.#acknowledged) assert.equal(layers.get(layer), digest, `${message}: ${layer} was acknowledged`)
    const fresh = new Set([...layers].filter(([layer]) => !this.#seen.has(layer)).map(([, digest]) => digest))
    this.#seen = new Set(layers.keys())
    return fresh
  }

  /** Removes all layers but the latest. */
  async removeOld(): Promise<void> {
    await using home = await Home.open(this.directory)
    const layers = (await home.catalog.layers()).sort((a, b) => b.version - a.version).slice(LAYERS_KEPT)
    for (const layer of layers) {
      await home.catalog.removeLayer(formatLayerName(layer))
      this.#acknowledged.delete(formatLayerName(layer))
    }
  }

  /** What nothing reaches is gone afterwards, whoever left it, and nothing else. */
  async collect(): Promise<void> {
    await using home = await Home.open(this.directory)
    const report = await home.store.collect(() => reachableChunks(home))
    assert.equal(report.chunksMissing, 0)
    assert.deepEqual(report.holders, [])
    assert.equal((await home.store.verify({ readData: false })).chunks, report.chunksReachable)
    assert.deepEqual(readdirSync(path.join(home.store.directory, 'locks')).sort(), ['collect', 'store'])
  }
}

test('an import that is killed at any moment leaves a home that opens, is clean, and has every acknowledged layer', async (t) => {
  const seed = testSeed()
  t.diagnostic(`seed ${seed}, ${KILLS} kills`)
  const random = new Random(seed)
  using scratch = new ScratchDirectory('crash-import')
  const source = new CrashSource(scratch.path, random)
  const crashed = new CrashedHome(scratch.join('home'))
  const figures = { kills: 0, acknowledged: 0, unheard: 0, creations: 0, collections: 0 }
  await using running = new AsyncDisposableStack()
  const start = (...args: string[]) => running.use(new Victim(scratch.join('compiled'), args))
  const message = () => `seed ${seed}, after ${figures.kills} kills`
  const kill = async (victim: Victim): Promise<number> => {
    await victim.kill()
    figures.kills++
    const acknowledged = crashed.acknowledge(victim)
    figures.acknowledged += acknowledged
    return acknowledged
  }

  /** From `work` to `ack`, undisturbed, ms. */
  const measure = async (...args: string[]): Promise<number> => {
    const victim = start(...args)
    await victim.begin()
    const beginMs = performance.now()
    await victim.waitFor('ack')
    const durationMs = performance.now() - beginMs
    await delay(random.below(20))
    await kill(victim)
    return durationMs
  }

  /** All of it alike, and the last steps, where things become durable, once more. */
  const moment = (typicalMs: number): number => typicalMs * (random.chance(0.5) ? 1.2 * random.below(1000) : random.between(700, 1200)) / 1000

  // Compiled modules are kept when a process ends in order.
  const warm = start('import', scratch.join('warm'), source.directory)
  await warm.begin()
  await warm.waitFor('ack')
  await warm.end()
  rmSync(scratch.join('warm'), { recursive: true })

  const importArguments = (): string[] => {
    const sources = [source.directory, source.archive, source.disk]
    const first = random.below(sources.length)
    return ['import', crashed.directory, ...sources.slice(first), ...sources.slice(0, first)]
  }
  await measure(...importArguments())
  source.change()
  let importMs = await measure(...importArguments())
  let collectMs = await measure('collect', crashed.directory)
  await crashed.check(message())
  let next = start(...importArguments())
  for (let round = 1; figures.kills < KILLS; round++) {
    source.change()
    const victim = next
    const collector = random.chance(0.1) ? start('collect', crashed.directory) : undefined
    await Promise.all([victim.begin(), collector?.begin()])
    // Loads its modules meanwhile.
    next = start(...importArguments())
    await delay(moment(importMs))
    const heard = await kill(victim)
    if (collector !== undefined) await kill(collector)
    const fresh = await crashed.check(message())
    // Directory and archive give the same tree, the disk one that has lost+found, too: whatever has become visible is one of these.
    assert.ok(fresh.size <= 2, `${message()}: one source gave ${fresh.size} trees`)
    if (heard === 0 && fresh.size > 0) figures.unheard++
    if (random.chance(0.1)) await killCreation()
    if (round % KILLS_PER_COLLECTION === 0) await collectKilled()
  }
  await next.end()

  /** A home that dies while it is made. */
  async function killCreation(): Promise<void> {
    const home = new CrashedHome(scratch.join(`fresh${figures.creations++}`))
    const victim = start('import', home.directory, source.directory)
    await victim.begin()
    await delay(random.below(CREATION_MS_MAX))
    await victim.kill()
    figures.kills++
    home.acknowledge(victim)
    await home.check(`${message()}, in a new home`)
    await home.collect()
    rmSync(home.directory, { recursive: true })
  }

  async function collectKilled(): Promise<void> {
    await crashed.removeOld()
    for (let times = random.below(4); times > 0; times--) {
      const collector = start('collect', crashed.directory)
      await collector.begin()
      await delay(moment(collectMs))
      await kill(collector)
      figures.collections++
      await crashed.check(`${message()} of a collection`)
    }
    await crashed.collect()
    await crashed.check(`${message()} and a collection`)
    source.change()
    importMs = await measure(...importArguments())
    if (random.chance(0.5)) collectMs = await measure('collect', crashed.directory)
    await crashed.check(message())
  }

  await crashed.collect()
  source.change()
  const digests: string[] = []
  const disks: string[] = []
  for (const directory of [crashed.directory, scratch.join('elsewhere')]) {
    await using home = await Home.open(directory)
    for (const each of [source.directory, source.archive]) {
      const { layers } = await importLayer({ home, name: 'last', kind: 'base', source: each, workers: 2 })
      digests.push(digestToHex(layers[0].digest))
    }
    await using image = await openImage(source.disk.slice('disk:'.length))
    const { layer } = await importDiskLayer({ home, name: 'disk', kind: 'base', disk: image.disk, source: source.disk, workers: 2 })
    disks.push(digestToHex(layer.digest), digestToHex(layer.map!))
  }
  assert.equal(new Set(digests).size, 1, `${message()}: ${digests.join()}`)
  assert.equal(new Set(disks).size, 2, `${message()}: ${disks.join()}`)
  await crashed.check(message())
  t.diagnostic(`an import takes ${importMs.toFixed()} ms, a collection ${collectMs.toFixed()} ms; ${JSON.stringify(figures)}`)
})
