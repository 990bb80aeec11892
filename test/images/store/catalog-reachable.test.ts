import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import Database from 'better-sqlite3'
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { LayerInit } from '@varve/images/store/catalog.ts'
import { Home } from '@varve/images/store/home.ts'
import { putObject } from '@varve/images/store/object.ts'
import { checkRoots, reachableChunks } from '@varve/images/store/reachable.ts'
import { Random, testSeed } from '../../random.ts'
import { encodeTree } from '../tree/rebuilt-tree.ts'
import { randomTree } from '../tree/random-tree.ts'

const seed = testSeed()

describe('what the catalog reaches', () => {
  const directory = mkdtempSync(join(tmpdir(), 'varve-reachable-'))
  after(() => rmSync(directory, { recursive: true }))
  let count = 0
  const openHome = () => Home.open(join(directory, `home-${count++}`))

  function layer(name: string, more: Pick<LayerInit, 'digest' | 'content'>): LayerInit {
    return { name, kind: 'base', entries: 0, contentBytes: 0, source: 'test', ...more }
  }

  /** A home with a tree, a block map and another object, and one chunk that nothing reaches. */
  async function filledHome() {
    const home = await openHome()
    const random = new Random(seed)
    await using writer = home.store.writer()
    const expected = new Set<string>()
    const tree = randomTree(random, { entries: 600, writer })
    for (let chunk = 0; chunk < tree.chunkCount; chunk++) expected.add(digestToHex(tree.chunkDigest(chunk)))
    const treeDigest = putObject(writer, encodeTree(tree))
    const builder = new BlockMapBuilder(1 << 20)
    const block = random.bytes(4096)
    const blockDigest = writer.put(block)
    expected.add(digestToHex(blockDigest))
    builder.data(8192, 4096, builder.addChunk(blockDigest, 4096), 0)
    const mapDigest = putObject(writer, builder.build().encode())
    const kitDigest = putObject(writer, random.bytes(300_000))
    const stray = writer.put(random.bytes(500))
    await writer.commit()
    await home.catalog.addLayer(layer('base', { digest: treeDigest, content: 'tree' }))
    await home.catalog.addLayer(layer('disk', { digest: mapDigest, content: 'block map' }))
    await home.catalog.setObject('boot kit', 'grub', kitDigest)
    return { home, expected, stray, objects: [treeDigest, mapDigest, kitDigest], blockDigest }
  }

  async function reached(home: Home): Promise<Set<string>> {
    const digests = new Set<string>()
    for await (const digest of reachableChunks(home)) digests.add(digestToHex(digest))
    return digests
  }

  test('trees, block maps and other objects, with all that they name, and nothing else', async () => {
    const filled = await filledHome()
    await using home = filled.home
    const { expected, stray, objects } = filled
    const digests = await reached(home)
    for (const digest of [...expected, ...objects.map(digestToHex)]) assert.ok(digests.has(digest), `VARVE_TEST_SEED=${seed}`)
    assert.ok(!digests.has(digestToHex(stray)))
    for (const digest of digests) assert.ok(home.store.has(Buffer.from(digest, 'hex')))
    assert.ok(digests.size > expected.size + objects.length, 'the pieces of larger objects are reached too')
  })

  test('collection keeps it all and removes the rest', async () => {
    const filled = await filledHome()
    await using home = filled.home
    const { stray } = filled
    const before = await reached(home)
    await home.store.collect(() => reachableChunks(home))
    assert.equal(home.store.has(stray), false)
    assert.deepEqual(await reached(home), before)
    for (const digest of before) home.store.get(Buffer.from(digest, 'hex'))
  })

  test('a layer that is removed is collected with what only it held', async () => {
    const filled = await filledHome()
    await using home = filled.home
    const { expected } = filled
    await home.catalog.removeLayer('disk')
    await home.store.collect(() => reachableChunks(home))
    const left = await reached(home)
    assert.equal([...expected].filter((digest) => left.has(digest)).length, expected.size - 1)
  })

  test('an object that cannot be read stops collection instead of losing what it names', async () => {
    const filled = await filledHome()
    await using home = filled.home
    const { stray } = filled
    await home.catalog.addLayer(layer('lost', { digest: Buffer.alloc(32, 7), content: 'tree' }))
    await assert.rejects(home.store.collect(() => reachableChunks(home)), { code: 'CHUNK_MISSING' })
    assert.ok(home.store.has(stray))
    await home.catalog.removeLayer('lost')
    await home.catalog.addLayer(layer('no-tree', { digest: (await home.catalog.layer('disk')).digest, content: 'tree' }))
    await assert.rejects(reached(home), { code: 'FORMAT_INVALID' })
  })

  test('a check names the roots that are not whole', async () => {
    const filled = await filledHome()
    await using home = filled.home
    const { blockDigest } = filled
    const problems = async () => {
      const found: [string, number, string | undefined][] = []
      for await (const { root, chunksMissing, problem } of checkRoots(home)) if (chunksMissing > 0 || problem !== undefined) found.push([root.holder, chunksMissing, problem?.code])
      return found
    }
    assert.deepEqual(await problems(), [])
    const index = new Database(join(home.directory, 'packs', 'index.db'))
    index.prepare('delete from chunks where digest = ?').run(blockDigest)
    index.close()
    assert.deepEqual(await problems(), [['layer disk@1', 1, undefined]])
    await home.catalog.addLayer(layer('lost', { digest: Buffer.alloc(32, 7), content: 'tree' }))
    assert.deepEqual(await problems(), [['layer disk@1', 1, undefined], ['layer lost@1', 0, 'CHUNK_MISSING']])
  })
})
