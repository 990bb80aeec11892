/**
 * kill -9: a process that writes to a stack of overlays is killed at random moments, again and again. Each time the stack opens by itself,
 * everything answered is there, flushed or not, and snapshots are what they were. Only the call that was under way may be there in part.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import type { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { Random, testSeed } from '../../random.ts'
import { callAt, DISK_SECTORS, LOWER_DIGEST, lowerDisk } from './overlay-kill-calls.ts'
import { versionIn } from './sector-history.ts'
import { TemporaryDirectory } from './temporary.ts'

const KILLS = Number(process.env.VARVE_CRASH_KILLS ?? 40)
/** Then another stack is begun, so that it does not grow out of bounds. */
const KILLS_PER_STACK = 10
const seed = testSeed()

interface Acknowledged {
  /** The last call that was answered. */
  answered: number
  snapshots: { generation: number; call: number }[]
  opened: boolean
}

/** Runs a writer from call `first` for some time, and kills it. */
async function writeUntilKilled(directory: string, first: number, random: Random): Promise<Acknowledged> {
  const writer = spawn(process.execPath, [new URL('overlay-writer.ts', import.meta.url).pathname, directory, String(seed), String(first)], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  let killing = false
  const kill = (): void => { writer.kill('SIGKILL') }
  writer.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text
    // Sometimes at once, sometimes while much is under way; the clock starts when the stack is open, whatever the machine does else.
    if (!killing) setTimeout(kill, random.below(random.pick([1, 20, 150, 300])))
    killing = true
  })
  if (random.chance(0.1)) setTimeout(kill, random.between(50, 400))
  const [code] = await once(writer, 'close') as [number | null]
  assert.equal(code, null, 'the writer only ends when it is killed')
  const lines = output.split('\n').slice(0, -1).map(line => line.split(' '))
  return {
    opened: lines.length > 0,
    answered: lines.reduce((answered, [word, call]) => (word === 'answered' ? Number(call) : answered), first - 1),
    snapshots: lines.filter(([word]) => word === 'frozen').map(([, generation, call]) => ({ generation: Number(generation), call: Number(call) })),
  }
}

async function contentOf(stack: { sizeBytes: number; read(into: Uint8Array, offset: number): void | Promise<void> }): Promise<Uint8Array> {
  const content = new Uint8Array(stack.sizeBytes)
  await stack.read(content, 0)
  return content
}

/** Checks that every sector shows the state after call `from`, or that after a later one up to `to`. */
function checkSectors(content: Uint8Array, before: Uint32Array, { first, from, to }: { first: number; from: number; to: number }): void {
  const allowed = Array.from(before, version => new Set([version]))
  for (let call = first; call <= to; call++) {
    const { sector, count, kind } = callAt(seed, call)
    for (let at = sector; at < sector + count; at++) {
      if (call <= from) allowed[at].clear()
      allowed[at].add(kind === 'zero' ? 0 : call)
    }
  }
  for (let sector = 0; sector < DISK_SECTORS; sector++) {
    const found = versionIn(content, sector)
    assert.ok(allowed[sector].has(found), `sector ${sector} holds ${found}; calls up to ${from} were answered`)
  }
}

/** One stack and its writers, one after another. */
class Victim {
  readonly #options: { directory: string; lower: MemoryDevice; lowerDigest: Uint8Array }
  readonly #random: Random
  /** What each sector held when it was last looked at. */
  #before!: Uint32Array
  readonly #frozen = new Map<number, Uint8Array>()
  #first = 1
  /** Writers that came as far as writing. */
  opened = 0

  constructor(directory: string, random: Random) {
    this.#options = { directory, lower: lowerDisk(), lowerDigest: LOWER_DIGEST }
    this.#random = random
  }

  async killOnce(): Promise<void> {
    this.#before ??= versionsIn(await contentOf(this.#options.lower))
    const acknowledged = await writeUntilKilled(this.#options.directory, this.#first, this.#random)
    if (acknowledged.opened) this.opened++
    await using stack = await OverlayStack.open(this.#options)
    const content = await contentOf(stack)
    const after = versionsIn(content)
    checkSectors(content, this.#before, { first: this.#first, from: acknowledged.answered, to: acknowledged.answered + 1 })
    for (const { generation, call } of acknowledged.snapshots) {
      const frozen = await this.#frozenContent(generation)
      checkSectors(frozen, this.#before, { first: this.#first, from: call, to: call })
      this.#frozen.set(generation, frozen)
    }
    if (this.#frozen.size > 0) {
      const [generation, expected] = this.#random.pick([...this.#frozen])
      assert.ok(Buffer.compare(await this.#frozenContent(generation), expected) === 0, `snapshot ${generation} changed`)
    }
    this.#before = after
    this.#first = acknowledged.answered + 2
  }

  async #frozenContent(generation: number): Promise<Uint8Array> {
    await using snapshot = await OverlayStack.openFrozen({ ...this.#options, generation })
    return contentOf(snapshot)
  }
}

test(`kill -9 loses nothing that was answered, flushed or not (seed ${seed}, ${KILLS} kills)`, async () => {
  const random = new Random(seed)
  let opened = 0
  for (let kills = 0; kills < KILLS; kills += KILLS_PER_STACK) {
    using directory = new TemporaryDirectory()
    const victim = new Victim(`${directory.path}/overlay`, random)
    for (let kill = kills; kill < Math.min(KILLS, kills + KILLS_PER_STACK); kill++) await victim.killOnce()
    opened += victim.opened
  }
  assert.ok(opened > KILLS / 2, 'most writers came as far as writing')
})

function versionsIn(content: Uint8Array): Uint32Array {
  return Uint32Array.from({ length: DISK_SECTORS }, (_, sector) => versionIn(content, sector))
}
