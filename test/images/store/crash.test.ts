import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random, testSeed } from '../../random.ts'
import { TemporaryDirectory } from './temporary-directory.ts'

const seed = testSeed()
const kills = Number(process.env.VARVE_CRASH_KILLS ?? 40)
const script = join(import.meta.dirname, 'crash-writer.ts')

/** Starts a writer and kills it at some point. @returns the digests that it had acknowledged */
async function killedWriter(directory: string, random: Random): Promise<string[]> {
  const child: ChildProcess = spawn(process.execPath, [script, directory, String(random.uint32())], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout!.setEncoding('latin1').on('data', (text: string) => (output += text))
  const closed = once(child, 'close')
  const lines = () => output.split('\n').slice(0, -1)
  const wanted = random.chance(0.1) ? 1 : 2 + random.below(60)
  while (lines().length < wanted && child.exitCode === null) await delay(1)
  await delay(random.below(30))
  child.kill('SIGKILL')
  await closed
  assert.equal(child.signalCode, 'SIGKILL', 'the writer ended by itself')
  // A line without its end was not printed whole; the commit was acknowledged all the same, but we cannot know of what.
  return lines().slice(2)
}

describe(`a store whose writers are killed (seed ${seed}, ${kills} kills)`, () => {
  it('opens by itself, is clean, and has everything that was acknowledged', async (t) => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const acknowledged = new Set<string>()
    for (let kill = 0; kill < kills; kill++) {
      const writers = Array.from({ length: random.chance(0.3) ? 2 : 1 }, () => killedWriter(directory.path, random))
      for (const digests of await Promise.all(writers)) for (const digest of digests) acknowledged.add(digest)
      await using store = PackStore.open(directory.path)
      const report = await store.verify({ readData: kill % 8 === 7 })
      assert.deepEqual(report.damage, [], `after kill ${kill}`)
      for (const digest of acknowledged) assert.ok(store.has(Buffer.from(digest, 'hex')), `chunk ${digest} after kill ${kill}`)
      // A collection takes away what killed writers left behind; now and then, so that leftovers also pile up.
      if (random.chance(0.25)) await store.collect(() => [...acknowledged].map((digest) => Buffer.from(digest, 'hex')))
    }
    await using store = PackStore.open(directory.path)
    for (const digest of acknowledged) store.get(Buffer.from(digest, 'hex'))
    await store.collect(() => [...acknowledged].map((digest) => Buffer.from(digest, 'hex')))
    const report = await store.verify()
    assert.deepEqual(report.damage, [])
    assert.equal(report.chunks, acknowledged.size)
    assert.deepEqual(readdirSync(join(directory.path, 'locks')).sort(), ['collect', 'store'])
    t.diagnostic(`${acknowledged.size} chunks acknowledged`)
  })

  it('is built again from its packs with everything that was acknowledged', async () => {
    using directory = new TemporaryDirectory()
    const random = new Random(seed)
    const acknowledged: string[] = []
    for (let kill = 0; kill < Math.ceil(kills / 10); kill++) acknowledged.push(...(await killedWriter(directory.path, random)))
    const report = await PackStore.rebuild(directory.path)
    assert.deepEqual(report.damage, [])
    await using store = PackStore.open(directory.path)
    for (const digest of acknowledged) store.get(Buffer.from(digest, 'hex'))
    assert.deepEqual((await store.verify()).damage, [])
  })
})
