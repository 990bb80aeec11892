import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import test, { describe } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Home } from '@varve/images/store/home.ts'
import { getObject } from '@varve/images/store/object.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import { parseSource } from '@varve/composer/import/source.ts'
import { gzipSync } from 'node:zlib'
import { Random, testSeed } from '../../random.ts'
import { LAYER_TYPE, OciFiles } from '../../images/formats/oci-files.ts'
import { TemporaryDirectory } from '../../images/store/temporary-directory.ts'
import { TarWriter } from '../../images/formats/tar-writer.ts'
import { ImportHome, treeDigest } from './import-home.ts'
import { assertSameLines, listDirectory, listTree } from './listing.ts'
import { makeRandomTree } from './sample-tree.ts'

const seed = testSeed()

describe('import of a layer', () => {
  test('versions count up; tree and chunks are in the home', async () => {
    using scratch = new TemporaryDirectory()
    execFileSync('mkdir', [`${scratch.path}/source`])
    makeRandomTree(`${scratch.path}/source`, new Random(seed), { entries: 60, xattrs: true })
    {
      await using home = await Home.open(`${scratch.path}/home`)
      const first = await importLayer({ home, name: 'app', kind: 'app', source: `dir:${scratch.path}/source` })
      assert.deepEqual(first.layers.map(({ name, version }) => [name, version]), [['app', 1]])
      const second = await importLayer({ home, name: 'app', kind: 'app', source: `dir:${scratch.path}/source` })
      assert.equal(second.layers[0].version, 2)
      assert.deepEqual(second.layers[0].digest, first.layers[0].digest)
      await assert.rejects(importLayer({ home, name: 'a/b', kind: 'app', source: 'dir:/' }), { code: 'NAME_INVALID' })
    }
    await using home = await Home.open(`${scratch.path}/home`)
    const layer = await home.catalog.layer('app@1')
    const tree = decodeTree(await getObject(home.store, layer.digest))
    assertSameLines(listTree(tree, home.store), listDirectory(`${scratch.path}/source`))
    assert.equal(layer.entries, tree.entryCount)
    assert.equal(layer.contentBytes, tree.contentBytes)
    assert.equal(layer.source, `dir:${scratch.path}/source`)
  })

  test('an image of several layers gives as many, or one', async () => {
    using scratch = new TemporaryDirectory()
    const files = new OciFiles(`${scratch.path}/image`)
    files.index([files.manifest(['a', 'b', 'c'].map((name) => {
      const writer = new TarWriter()
      writer.file(name, Buffer.from(name))
      writer.end()
      return files.blob(gzipSync(writer.bytes()), LAYER_TYPE)
    }))])
    await using home = await Home.open(`${scratch.path}/home`)
    const separate = await importLayer({ home, name: 'debian', kind: 'base', source: `oci:${scratch.path}/image` })
    assert.deepEqual(separate.layers.map(({ name, version }) => `${name}@${version}`), ['debian-1@1', 'debian-2@1', 'debian-3@1'])
    const squashed = await importLayer({ home, name: 'debian', kind: 'base', source: `oci:${scratch.path}/image`, squash: true })
    assert.deepEqual(squashed.layers.map(({ name, version }) => `${name}@${version}`), ['debian@1'])
    assert.equal(squashed.layers[0].entries, 4)
  })

  test(`killed at any moment, an import leaves nothing that is seen, and can be run again (seed ${seed})`, async () => {
    using scratch = new TemporaryDirectory()
    const random = new Random(seed)
    const source = `${scratch.path}/source`
    execFileSync('mkdir', [source])
    makeRandomTree(source, random, { entries: 100 })
    for (let file = 0; file < 30; file++) writeFileSync(`${source}/large-${file}`, random.bytes(700_000))
    let done = 0
    for (let kill = 0; kill < 12; kill++) {
      const child = spawn(process.execPath, [path.join(import.meta.dirname, 'layer-process.ts'), `${scratch.path}/home`, 'app', `dir:${source}`], { stdio: ['ignore', 'pipe', 'ignore'] })
      if (await isDoneBefore(child, random.below(600))) done++
      await using home = await Home.open(`${scratch.path}/home`)
      const layers = await home.catalog.layers()
      // A row may have become durable just before the kill.
      assert.ok(layers.length === done || layers.length === done + 1)
      done = layers.length
      for (const { digest } of layers) assertSameLines(listTree(decodeTree(await getObject(home.store, digest)), home.store), listDirectory(source), `seed ${seed}`)
    }
    await using home = await Home.open(`${scratch.path}/home`)
    const { layers } = await importLayer({ home, name: 'app', kind: 'app', source: `dir:${source}` })
    assert.equal(layers[0].version, done + 1)
    assertSameLines(listTree(decodeTree(await getObject(home.store, layers[0].digest)), home.store), listDirectory(source))
  })

  test('a source that fails leaves no layer', async () => {
    using scratch = new TemporaryDirectory()
    await using home = await Home.open(`${scratch.path}/home`)
    const writer = new TarWriter()
    for (let file = 0; file < 20; file++) writer.file(`f${file}`, new Random(file).bytes(1_000_000))
    writeFileSync(`${scratch.path}/cut.tar`, writer.bytes())
    await assert.rejects(importLayer({ home, name: 'cut', kind: 'app', source: `tar:${scratch.path}/cut.tar` }), { code: 'FORMAT_INVALID' })
    assert.deepEqual(await home.catalog.layers(), [])
  })

  test('sources are told by what stands before the colon', () => {
    assert.deepEqual(parseSource('dir:/a:b'), { kind: 'dir', path: '/a:b' })
    assert.deepEqual(parseSource('tar:-'), { kind: 'tar', path: '-' })
    assert.deepEqual(parseSource('oci:/images/debian:12'), { kind: 'oci', path: '/images/debian', tag: '12' })
    assert.deepEqual(parseSource('oci:/images/a:b/c'), { kind: 'oci', path: '/images/a:b/c' })
    for (const text of ['', 'dir', 'dir:', 'zip:/a', '/a', 'dir:a\0b']) assert.throws(() => parseSource(text), { code: 'SOURCE_INVALID' }, text)
    assert.throws(() => parseSource('disk:/a.qcow2'), { code: 'SOURCE_UNSUPPORTED' })
  })
})

describe('memory of an import', () => {
  const LIMIT_MIB = 512

  test('stays bounded for large files, full and sparse', async () => {
    await using home = new ImportHome()
    const source = home.makeDirectory('source')
    const random = new Random(seed)
    // Text compresses, so that the test is about memory and not about the disk.
    const block = Buffer.from(random.bytes(1 << 19).toString('hex'))
    const full = openSync(`${source}/full`, 'w')
    for (let at = 0; at < 500; at++) {
      block.writeUInt32LE(at, random.below(block.length - 4))
      writeSync(full, block)
    }
    closeSync(full)
    const sparse = openSync(`${source}/sparse`, 'w')
    for (let at = 0; at < 3000; at++) writeSync(sparse, block, 0, 4096, at * 4_194_304)
    ftruncateSync(sparse, 20 * 2 ** 30)
    closeSync(sparse)
    const { peakMiB, figures } = await importInProcess(home, `dir:${source}`)
    assert.equal(figures.contentBytes, 500 * 2 ** 20 + 20 * 2 ** 30)
    assert.ok(peakMiB < LIMIT_MIB, `${peakMiB} MiB`)
  })

  async function importInProcess(home: ImportHome, source: string): Promise<{ digest: string; peakMiB: number; figures: { contentBytes: number } }> {
    const child = spawn(process.execPath, [path.join(import.meta.dirname, 'import-process.ts'), home.path('packs'), source], { stdio: ['ignore', 'pipe', 'inherit'] })
    return JSON.parse(await textOf(child)) as { digest: string; peakMiB: number; figures: { contentBytes: number } }
  }
})

async function textOf(child: ChildProcess): Promise<string> {
  let text = ''
  child.stdout!.setEncoding('utf8').on('data', (part: string) => (text += part))
  const [status] = (await once(child, 'close')) as [number | null]
  assert.equal(status, 0)
  return text
}

/** Kills the process so long after it has begun; true if it was done before. */
async function isDoneBefore(child: ChildProcess, killAfterMs: number): Promise<boolean> {
  const closed = once(child, 'close') as Promise<[number | null]>
  await Promise.race([once(child.stdout!, 'data'), closed])
  await Promise.race([sleep(killAfterMs), closed])
  child.kill('SIGKILL')
  const [status] = await closed
  return status === 0
}

test('the digest of a tree is the same from every source', async () => {
  await using home = new ImportHome()
  const source = home.makeDirectory('source')
  makeRandomTree(source, new Random(seed), { entries: 120, nanoseconds: true, xattrs: true })
  execFileSync('tar', ['-C', source, '--format=posix', '--xattrs', '-cf', home.path('a.tar'), '.'])
  const files = new OciFiles(home.path('image'))
  files.index([files.manifest([files.blob(execFileSync('cat', [home.path('a.tar')], { maxBuffer: 1 << 30 }), LAYER_TYPE)])])
  const digests = new Set<string>()
  for (const from of [`dir:${source}`, `overlay:${source}`, `tar:${home.path('a.tar')}`, `oci:${home.path('image')}`]) digests.add(treeDigest(await home.tree(from)))
  assert.equal(digests.size, 1)
})
