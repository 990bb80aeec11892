/** What boots and reads of a home's disks teach, and the lists that agents get. */
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import path from 'node:path'
import { BOOT_SET_KIND, layerKey, learnedBootSet } from '@varve/composer/bootset/stored-boot-sets.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { DiskView } from '@varve/composer/bootset/disk-view.ts'
import { compose } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { decodeChunkList } from '@varve/images/chunk/chunk-list.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { Home } from '@varve/images/store/home.ts'
import { getObject } from '@varve/images/store/object.ts'
import { reachableChunks } from '@varve/images/store/reachable.ts'
import { CvdDisk } from '@varve/tools/cvd-disk.ts'
import { readMap } from '@varve/tools/settlement.ts'
import { makeToken, tokenHash } from '@varve/tools/streaming/agent-token.ts'
import { HomeStreams } from '@varve/tools/streaming/home-streams.ts'
import { BOOT_CHUNKS_MIN, bootListsOf, forgetLeftBootSets, HEAT_KIND, isBoot, recordBoot, recordHeat } from '@varve/tools/streaming/boot-lists.ts'
import { Random, testSeed } from '../../random.ts'
import { ScratchDirectory } from '../../varve-command.ts'

const seed = testSeed()
const FILES = 300

/** Imports files `NAME/0`, ... as the next version of a layer; those of `changed` have other content than in other versions. */
async function importFiles(home: Home, scratch: ScratchDirectory, name: string, changed: readonly number[] = []): Promise<void> {
  const source = scratch.join(`source-${Math.random()}`)
  mkdirSync(path.join(source, name), { recursive: true })
  const random = new Random(name.length)
  for (let index = 0; index < FILES; index++) {
    const content = random.bytes(4000)
    if (changed.includes(index)) content.fill(index & 0xff, 0, 100)
    writeFileSync(path.join(source, name, String(index)), content)
  }
  await importLayer({ home, name, kind: 'base', source: `dir:${source}`, workers: 1 })
}

/** A CVD that was started. @returns its map */
async function startCvd(home: Home, name: string, layers: string[]): Promise<{ digest: Digest; map: BlockMap; view: DiskView }> {
  await home.catalog.createCvd({ name, layers, policy: { boot: 'none' } })
  await using _disk = await CvdDisk.open(name, { home, cache: ChunkCache.create({ bytesMax: 1 << 20 }) })
  const digest = (await home.catalog.cvd(name)).baseMap!
  const map = await readMap(home, digest)
  return { digest, map, view: await DiskView.open(map, home.store) }
}

async function chunksOf(view: DiskView, files: readonly string[]): Promise<number[]> {
  const chunks: number[] = []
  for (const file of files) {
    for (const { start, length } of (await view.placesOf((await view.trail(file))!.at(-1)!.node.id)).pieces) view.forEachChunk(start, length, (chunk) => chunks.push(chunk))
  }
  return chunks
}

async function listed(home: Home, digest: Digest | null): Promise<string[]> {
  if (digest === null) return []
  const digests = decodeChunkList(await getObject(home.store, digest))
  return Array.from({ length: digests.length / 32 }, (_, index) => digestToHex(digests.subarray(index * 32, index * 32 + 32)))
}

const names = (layer: string, from: number, count: number): string[] => Array.from({ length: count }, (_, index) => `${layer}/${from + index}`)

describe(`boot lists (seed ${seed})`, () => {
  test('a boot of one CVD teaches all over the same layers, and over the next versions of these', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    await importFiles(home, scratch, 'application')
    const one = await startCvd(home, 'one', ['base', 'application'])
    assert.deepEqual(await bootListsOf(home, one.digest, 'one').then(({ order }) => order), null)
    const booted = [...names('base', 20, 80), ...names('application', 5, 20)]
    const random = new Random(seed)
    booted.sort(() => random.below(3) - 1)
    assert.equal(await recordBoot(home, one.digest, await chunksOf(one.view, booted)), true)

    // The next base has changed files among those that were used; the other CVD another stack.
    await importFiles(home, scratch, 'base', [30, 31, 150])
    await importFiles(home, scratch, 'user')
    for (const [name, layers] of [['one', undefined], ['two', ['base', 'application']], ['three', ['base@1', 'user']]] as const) {
      const { digest, map, view } = layers === undefined ? one : await startCvd(home, name, [...layers])
      const list = await listed(home, (await bootListsOf(home, digest, name)).bootSet)
      const wanted = await chunksOf(view, booted.filter((file) => (layers as readonly string[] | undefined)?.includes('user') !== true || file.startsWith('base')))
      const ofFiles = new Set(wanted.map((chunk) => digestToHex(map.chunkDigest(chunk))))
      assert.deepEqual(list.filter((digestHex) => ofFiles.has(digestHex)), [...ofFiles], name)
      const ofMap = new Set(Array.from(map.chunkBytes, (_, chunk) => digestToHex(map.chunkDigest(chunk))))
      assert.ok(list.every((digestHex) => ofMap.has(digestHex)), name)
    }
  })

  test('boots that are reported at the same time all count', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    const { digest, view } = await startCvd(home, 'desk', ['base'])
    const chunks = await chunksOf(view, names('base', 0, 100))
    await Promise.all([1, 2, 3].map(() => recordBoot(home, digest, chunks)))
    assert.equal((await learnedBootSet(layerKey('base'), home))!.set.boots, 3)
  })

  test('what is no boot teaches nothing: too few chunks, nearly all of a disk, a disk of nobody', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    const { digest, map, view } = await startCvd(home, 'desk', ['base'])
    const chunks = await chunksOf(view, names('base', 0, 100))
    assert.equal(await recordBoot(home, digest, chunks.slice(0, BOOT_CHUNKS_MIN - 1)), false)
    // Numbers that the map does not have are not counted.
    assert.equal(await recordBoot(home, digest, chunks.slice(0, 10).concat(Array.from(chunks, (_, index) => map.chunkCount + index))), false)
    assert.equal(await recordBoot(home, new Uint8Array(32), chunks), false)
    assert.deepEqual(await home.catalog.objects(BOOT_SET_KIND), [])
    const large = { chunkCount: 100_000 } as BlockMap
    assert.deepEqual([isBoot(large, 5000), isBoot(large, 90_000)], [true, false])
  })

  test('what is used and not in the boot set is filled by heat, of the CVD before that of others', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    const { digest, map, view } = await startCvd(home, 'desk', ['base'])
    await recordBoot(home, digest, await chunksOf(view, names('base', 0, 80)))
    const [hot, warm, inBootSet] = await chunksOf(view, ['base/200', 'base/100', 'base/7'])
    await recordHeat(home, digest, { chunks: Uint32Array.of(warm, hot, inBootSet, map.chunkCount + 3), uses: Uint32Array.of(10, 50, 99, 1) })
    await recordHeat(home, digest, { chunks: Uint32Array.of(warm), uses: Uint32Array.of(10) })
    const { bootSet, order } = await bootListsOf(home, digest, 'desk')
    const hex = (chunk: number): string => digestToHex(map.chunkDigest(chunk))
    const boot = await listed(home, bootSet)
    const fill = await listed(home, order)
    assert.deepEqual(fill, [hex(hot), hex(warm)])
    assert.ok(boot.includes(hex(inBootSet)))

    // Others over the same files know what is hot in the fleet, and put their own first.
    const other = await startCvd(home, 'other', ['base'])
    const [own] = await chunksOf(other.view, ['base/250'])
    const first = await listed(home, (await bootListsOf(home, other.digest, 'other')).order)
    assert.equal(first[0], hex(hot))
    await recordHeat(home, other.digest, { chunks: Uint32Array.of(own), uses: Uint32Array.of(20) })
    assert.equal((await listed(home, (await bootListsOf(home, other.digest, 'other')).order))[0], digestToHex(other.map.chunkDigest(own)))
  })

  test('a stack that was learned from is laid out by it at first start; a disk that is there stays as it is', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    const one = await startCvd(home, 'one', ['base'])
    const booted = names('base', 100, 90)
    await recordBoot(home, one.digest, await chunksOf(one.view, booted))
    const two = await startCvd(home, 'two', ['base'])
    assert.notEqual(digestToHex(two.digest), digestToHex(one.digest))
    const starts = (await chunksOf(two.view, booted)).map((chunk) => two.map.starts[two.map.refs.indexOf(chunk)])
    assert.deepEqual(starts, starts.toSorted((a, b) => a - b))
    assert.ok(starts.at(-1)! < two.map.starts[two.map.refs.indexOf((await chunksOf(two.view, ['base/0']))[0])])

    // More is learned; what was chosen stays chosen.
    await recordBoot(home, one.digest, await chunksOf(one.view, names('base', 0, 90)))
    for (const [name, digest] of [['one', one.digest], ['two', two.digest]] as const) {
      assert.equal(digestToHex((await compose(await prepareRecipe({ cvd: name }, home), home)).mapDigest), digestToHex(digest), name)
    }
    assert.equal(digestToHex((await startCvd(home, 'three', ['base'])).digest), digestToHex(two.digest))
  })

  test('an agent that comes back finds its disk as it was, though its own boot was learned from', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    await home.catalog.createCvd({ name: 'desk', layers: ['base'], policy: { boot: 'none' } })
    const { token, hash } = makeToken(undefined)
    await home.catalog.addAgentToken({ hash, cvds: null, uses: 1, expiresAtMs: Date.now() + 3_600_000 })
    const agent = await home.catalog.enrolAgent({ tokenHash: tokenHash(token), publicKey: new Uint8Array(32), name: 'machine' })
    await using streams = new HomeStreams(home)
    const { signal } = new AbortController()
    const disk = await streams.openDisk('desk', { agent, signal })
    const view = await DiskView.open(await readMap(home, disk.map), home.store)
    const booted = await chunksOf(view, names('base', 50, 90))
    await disk.recordBoot(Uint32Array.from(booted))
    await disk.close()
    const again = await streams.openDisk('desk', { agent, signal })
    assert.deepEqual(Buffer.from(again.map), Buffer.from(disk.map))
    const wanted = booted.map((chunk) => digestToHex(view.map.chunkDigest(chunk)))
    assert.deepEqual((await listed(home, again.bootSet)).filter((digest) => wanted.includes(digest)), wanted)
    await again.close()
  })

  test('collection keeps what was learned of layers and CVDs that are there, and only that', async () => {
    using scratch = new ScratchDirectory('boot-lists')
    await using home = await Home.open(scratch.join('home'))
    await importFiles(home, scratch, 'base')
    const { digest, view } = await startCvd(home, 'desk', ['base'])
    const chunks = await chunksOf(view, names('base', 0, 100))
    await recordBoot(home, digest, chunks)
    await recordHeat(home, digest, { chunks: Uint32Array.from(chunks), uses: Uint32Array.from(chunks).fill(5) })
    await prepareRecipe({ cvd: 'desk' }, home)
    const keys = async (): Promise<string[]> => [...(await home.catalog.objects(BOOT_SET_KIND)), ...(await home.catalog.objects(HEAT_KIND))].map(({ key }) => key.split(' ')[0])
    assert.deepEqual(await keys(), ['layer', 'stack', 'cvd', 'fleet'])
    await forgetLeftBootSets(home)
    await home.store.collect(() => reachableChunks(home))
    assert.deepEqual(await keys(), ['layer', 'stack', 'cvd', 'fleet'])
    assert.equal((await learnedBootSet(layerKey('base'), home))!.set.boots, 1)
    await home.catalog.removeCvd('desk')
    await home.catalog.removeLayer('base@1')
    await forgetLeftBootSets(home)
    assert.deepEqual(await keys(), ['fleet'])
  })
})
