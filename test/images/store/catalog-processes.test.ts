import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { digestOf } from '@varve/images/chunk/digest.ts'
import { Home } from '@varve/images/store/home.ts'

const PROCESSES = 4
const LAYERS_EACH = 25

/** Says what it has added, a line each, after it was told that it is durable. */
const ADD_LAYERS = `
  import { Home } from ${JSON.stringify(import.meta.resolve('@varve/images/store/home.ts'))}
  const [directory, count, letter] = process.argv.slice(1)
  await using home = await Home.open(directory)
  for (let index = 0; index < Number(count); index++) {
    const layer = await home.catalog.addLayer({ name: 'app', kind: 'app', content: 'tree', digest: new Uint8Array(32).fill(letter.charCodeAt(0)), entries: 1, contentBytes: index, source: 'dir:/' + letter })
    process.stdout.write(layer.version + '\\n')
  }
`

function addLayers(directory: string, count: number, letter: string) {
  const child = spawn(process.execPath, ['--input-type=module', '-e', ADD_LAYERS, directory, String(count), letter], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (text: Buffer) => (output += text.toString()))
  const versions = () => output.split('\n').slice(0, -1).map(Number)
  return { child, versions, ended: once(child, 'close').then(([code]) => ({ code: code as number | null, versions: versions() })) }
}

describe('a home that several processes use at once', () => {
  test('processes that make the home together, and add versions of one layer, get distinct consecutive ones', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'varve-processes-'))
    try {
      const results = await Promise.all(Array.from({ length: PROCESSES }, (_, index) => addLayers(directory, LAYERS_EACH, 'abcd'[index]).ended))
      assert.deepEqual(results.map(({ code }) => code), Array(PROCESSES).fill(0))
      const versions = results.flatMap((result) => result.versions)
      assert.deepEqual(versions.toSorted((a, b) => a - b), Array.from({ length: PROCESSES * LAYERS_EACH }, (_, index) => index + 1))
      await using home = await Home.open(directory)
      assert.equal((await home.catalog.layers()).length, PROCESSES * LAYERS_EACH)
      assert.deepEqual(home.catalog.damage(), [])
    } finally {
      await rm(directory, { recursive: true })
    }
  })

  test('what a process was told is durable is there after it was killed', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'varve-killed-'))
    try {
      for (let round = 0; round < 3; round++) {
        const { child, ended } = addLayers(directory, 1_000_000, 'k')
        await once(child.stdout, 'data')
        await new Promise((resolve) => setTimeout(resolve, 20 * round))
        child.kill('SIGKILL')
        const { versions } = await ended
        await using home = await Home.open(directory)
        const there = new Set((await home.catalog.layers()).map(({ version }) => version))
        assert.ok(versions.length > 0 && versions.every((version) => there.has(version)))
        assert.deepEqual(home.catalog.damage(), [])
        await home.catalog.addLayer({ name: 'other', kind: 'app', content: 'tree', digest: digestOf(Buffer.of(1)), entries: 0, contentBytes: 0, source: 'test' })
      }
    } finally {
      await rm(directory, { recursive: true })
    }
  })
})
