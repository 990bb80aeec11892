/** Boot sets and disks: what a boot of one disk teaches of it and of others, what can be guessed, and disks that are laid out by it. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { BootSet, Part } from '@varve/composer/bootset/boot-set.ts'
import { DiskView } from '@varve/composer/bootset/disk-view.ts'
import { placeChunks } from '@varve/composer/bootset/place-chunks.ts'
import { guessBootSet } from '@varve/composer/bootset/static-guess.ts'
import { translateBootSet } from '@varve/composer/bootset/translate.ts'
import { compose } from '@varve/composer/compose.ts'
import type { Composition } from '@varve/composer/compose.ts'
import type { DiskOptions } from '@varve/composer/recipe.ts'
import { BlockMapBuilder, SPECIAL_MIN } from '@varve/images/blockmap/block-map.ts'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { putObject } from '@varve/images/store/object.ts'
import { Random, testSeed } from '../../random.ts'
import { putLayer } from '../compose/layers.ts'
import type { FileSpec } from '../compose/layers.ts'
import { LoopPartition, writeRawDisk } from '../compose/raw-disk.ts'

const MIB = 2 ** 20
const seed = testSeed()
const directory = mkdtempSync(join(tmpdir(), 'varve-bootset-'))
after(() => rmSync(directory, { recursive: true }))

async function composed(store: MemoryStore, layers: FileSpec[][], bootSet: Digest | null = null): Promise<Composition> {
  const disk: DiskOptions = { boot: 'none', bootKit: null, sizeBytes: null, freeBytes: 16 * MIB, label: 'root', filesystem: 'ext4', bootSet, kernelCommandLine: '' }
  const trees = await Promise.all(layers.map((files) => putLayer(store, files)))
  return compose({ layers: trees.map((tree, index) => ({ name: `layer${index}@1`, kind: 'base', tree })), decisions: new Map(), disk }, { store })
}

async function viewOf(store: MemoryStore, layers: FileSpec[][]): Promise<DiskView> {
  return DiskView.open((await composed(store, layers)).map, store)
}

function randomFiles(random: Random, count: number): FileSpec[] {
  return Array.from({ length: count }, (_, index) => ({ path: `usr/dir${index % 17}/sub${index % 5}/file${index}`, content: random.bytes(random.pick([10, 3000, 70_000, 200_000])) }))
}

async function learned(view: DiskView, chunks: Iterable<number>): Promise<BootSet> {
  return BootSet.empty.with((await placeChunks(view, Uint32Array.from(chunks))).map((placed, rank) => ({ ...placed, rank })))
}

/** Chunks of the content of a file, in order. */
async function chunksOf(view: DiskView, path: string): Promise<number[]> {
  const trail = (await view.trail(path))!
  const chunks: number[] = []
  for (const { start, length } of (await view.placesOf(trail.at(-1)!.node.id)).pieces) view.forEachChunk(start, length, (chunk) => chunks.push(chunk))
  return chunks
}

function contentOf(view: DiskView, chunks: Iterable<number>): Set<string> {
  return new Set([...chunks].map((chunk) => digestToHex(view.map.chunkDigest(chunk))))
}

/** The same disk, but for what one chunk shows. */
async function withChanged(store: MemoryStore, map: BlockMap, victim: number, change: (bytes: Buffer) => void): Promise<BlockMap> {
  const builder = new BlockMapBuilder(map.sizeBytes)
  await using writer = store.writer()
  const bytes = Buffer.from(store.get(map.chunkDigest(victim)))
  change(bytes)
  const numbers = Array.from(map.chunkBytes, (length, chunk) => builder.addChunk(chunk === victim ? writer.put(bytes) : map.chunkDigest(chunk), length))
  await writer.commit()
  for (let index = 0; index < map.extentCount; index++) {
    if (map.refs[index] < SPECIAL_MIN) builder.data(map.starts[index], map.endOf(index) - map.starts[index], numbers[map.refs[index]], map.chunkOffsets[index])
  }
  return builder.build()
}

describe(`boot sets of disks (seed ${seed})`, () => {
  test('what any boot of a disk used, its set gives again for the same disk', async () => {
    const random = new Random(seed)
    await using store = new MemoryStore()
    const view = await viewOf(store, [randomFiles(random, 300)])
    for (let round = 0; round < 5; round++) {
      const used = new Set(Array.from({ length: 100 }, () => random.below(view.map.chunkCount)))
      const chunks = await translateBootSet(await learned(view, used), view)
      const given = new Set(chunks)
      assert.equal(given.size, chunks.length, 'none twice')
      for (const chunk of used) assert.ok(given.has(chunk), `seed ${seed}, round ${round}: chunk ${chunk}`)
    }
  })

  test('a disk that was built independently gets the same files, in the same order, each after what leads to it', async () => {
    const random = new Random(seed + 1)
    await using store = new MemoryStore()
    const files = randomFiles(random, 200)
    const one = await viewOf(store, [files])
    // Other files before and between, so that nothing lies where it was.
    const other = await viewOf(store, [random.pick([files.toReversed(), files]).concat(randomFiles(random, 50).map((file) => ({ ...file, path: `aaa/${file.path}` })))])
    const booted = files.filter(() => random.chance(0.3)).map(({ path }) => path)
    const used: number[] = []
    for (const path of booted) used.push(...(await chunksOf(one, path)))
    const chunks = [...(await translateBootSet(await learned(one, used), other))]
    const wanted: string[] = []
    for (const path of booted) {
      const trail = (await other.trail(path))!
      const content = await chunksOf(other, path)
      wanted.push(...content.map((chunk) => digestToHex(other.map.chunkDigest(chunk))))
      for (const { node } of trail) {
        const [{ start }] = other.onDisk((await other.placesOf(node.id)).inode, 1)
        other.forEachChunk(start, 1, (chunk) => assert.ok(chunks.indexOf(chunk) >= 0 && chunks.indexOf(chunk) < chunks.indexOf(content[0]), `seed ${seed}: inode of ${path}`))
      }
    }
    const given = contentOf(other, chunks)
    assert.deepEqual([...given].filter((digest) => wanted.includes(digest)), [...new Set(wanted)], `seed ${seed}`)
    // Little else comes: what leads there.
    assert.ok(chunks.length < new Set(wanted).size + 40, `${chunks.length} chunks for ${wanted.length}`)
  })

  test('a new version of a file is found by its path, and one that has moved by its content', async () => {
    const random = new Random(seed + 2)
    await using store = new MemoryStore()
    const files = randomFiles(random, 100)
    const changed = { path: 'usr/bin/changed', content: random.bytes(200_000) }
    const moved = { path: 'usr/bin/moved', content: random.bytes(50_000) }
    const one = await viewOf(store, [[...files, changed, moved]])
    const set = await learned(one, [...(await chunksOf(one, changed.path)), ...(await chunksOf(one, moved.path))])
    const other = await viewOf(store, [[...files, { ...changed, content: random.bytes(190_000) }, { ...moved, path: 'opt/else/where' }]])
    const given = new Set(await translateBootSet(set, other))
    for (const path of [changed.path, 'opt/else/where']) for (const chunk of await chunksOf(other, path)) assert.ok(given.has(chunk), path)
  })

  test('a disk that holds nothing of what is known, or no filesystem, gets nothing that it does not have', async () => {
    const random = new Random(seed + 3)
    await using store = new MemoryStore()
    const one = await viewOf(store, [randomFiles(random, 50)])
    const set = await learned(one, one.map.chunkBytes.keys())
    const other = await viewOf(store, [[{ path: 'alone', content: random.bytes(100) }]])
    for (const chunk of await translateBootSet(set, other)) assert.ok(chunk < other.map.chunkCount)
    await using writer = store.writer()
    const builder = new BlockMapBuilder(10 * MIB)
    builder.data(0, 5000, builder.addChunk(writer.put(random.bytes(5000)), 5000), 0)
    await writer.commit()
    const blank = await DiskView.open(builder.build(), store)
    assert.equal(blank.files, undefined)
    assert.equal((await translateBootSet(set, blank)).length, 0)
    assert.equal((await guessBootSet(blank)).entries.length, 0)
  })

  test('a damaged filesystem gives less, and no error', async () => {
    const random = new Random(seed + 4)
    await using store = new MemoryStore()
    const { map } = await composed(store, [randomFiles(random, 60)])
    const whole = await DiskView.open(map, store)
    const set = await learned(whole, map.chunkBytes.keys())
    for (let round = 0; round < 40; round++) {
      const victim = random.below(Math.min(12, map.chunkCount))
      const damaged = await withChanged(store, map, victim, (bytes) => {
        for (let change = random.between(1, 40); change > 0; change--) bytes[random.below(bytes.length)] = random.pick([0, 0xff, random.below(256)])
      })
      const view = await DiskView.open(damaged, store)
      await translateBootSet(set, view)
      await guessBootSet(view)
      await placeChunks(view, Uint32Array.from([0, 1, 2]))
    }
  })

  test('a disk whose journal is damaged has all the rest', async () => {
    const random = new Random(seed + 6)
    await using store = new MemoryStore()
    const { map } = await composed(store, [randomFiles(random, 10)])
    const sound = await DiskView.open(map, store)
    // Of inode 8: six inodes behind that of the root.
    const position = sound.onDisk((await sound.placesOf(sound.files!.root)).inode + 6 * 256, 1)[0].start
    const index = map.indexAt(position)
    const at = position - map.starts[index] + map.chunkOffsets[index]
    // The mode, then the flags.
    for (const field of [0, 0x20]) {
      const view = await DiskView.open(await withChanged(store, map, map.refs[index], (bytes) => void bytes.fill(0, at + field, at + field + 4)), store)
      assert.equal(view.segmentsOf('journal').length, 0)
      assert.ok(view.segmentsOf('superblock').length > 0)
    }
  })
})

describe(`static guess (seed ${seed})`, () => {
  test('follows default target, units, programs, scripts and libraries, and passes over what is not there', async () => {
    const random = new Random(seed + 5)
    await using store = new MemoryStore()
    const program = readFileSync('/bin/true')
    const text = (content: string): Uint8Array => Buffer.from(content)
    const system = 'usr/lib/systemd/system'
    const wanted: FileSpec[] = [
      { path: 'usr/lib/systemd/systemd', content: program },
      { path: 'usr/lib/libc.so.6', content: random.bytes(150_000) },
      { path: `${system}/graphical.target`, content: text('[Unit]\nRequires=multi-user.target\nWants=absent.service\n') },
      { path: `${system}/multi-user.target`, content: text('[Unit]\nRequires=basic.target\n') },
      { path: `${system}/web.service`, content: text('[Service]\nExecStartPre=-/usr/bin/script --flag\nExecStart=!!/opt/web/server \\\n  --more\n') },
      { path: `${system}/web.service.d/more.conf`, content: text('[Unit]\nBindsTo=log@one.service\n') },
      { path: `${system}/log@.service`, content: text('[Service]\nExecStart=logger\n') },
      { path: 'usr/bin/script', content: text('#! /usr/bin/interpreter -x\n') },
      { path: 'usr/bin/interpreter', content: random.bytes(1000) },
      { path: 'usr/bin/logger', content: random.bytes(1000) },
      { path: 'opt/web/server', content: random.bytes(90_000) },
      { path: 'etc/web.conf', content: text('port 80\n') },
      { path: 'usr/lib/udev/rules.d/50-x.rules', content: text('RUN\n') },
      { path: 'usr/lib/modules/6.1.10/kernel/fs/fuse.ko.xz', content: random.bytes(5000) },
      { path: 'usr/lib/modules/6.1.10/kernel/lib/needed.ko', content: random.bytes(5000) },
    ]
    const others: FileSpec[] = [{ path: 'usr/bin/unused', content: random.bytes(3000) }, { path: `${system}/unused.service`, content: text('[Service]\nExecStart=/usr/bin/unused\n') }, { path: 'srv/data', content: random.bytes(300_000) },
      { path: 'usr/lib/modules/6.1.10/modules.dep', content: text('kernel/fs/fuse.ko.xz: kernel/lib/needed.ko\nkernel/fs/rare.ko:\n') }, { path: 'usr/lib/modules/6.1.10/kernel/fs/rare.ko', content: random.bytes(100) },
      { path: 'usr/lib/modules/6.1.9/modules.dep.bin', content: random.bytes(100) }]
    const links: FileSpec[] = [
      { path: 'sbin', target: 'usr/sbin' },
      { path: 'lib', target: 'usr/lib' },
      { path: 'usr/sbin/init', target: '../lib/systemd/systemd' },
      { path: 'usr/lib/systemd/system/default.target', target: 'graphical.target' },
      { path: 'etc/systemd/system/multi-user.target.wants/web.service', target: '/usr/lib/systemd/system/web.service' },
      { path: 'etc/loop', target: 'loop' },
    ]
    const view = await viewOf(store, [[...wanted, ...others, ...links]])
    const guessed = (await guessBootSet(view)).entries.filter(({ part }) => part === Part.file).map(({ path }) => path)
    assert.deepEqual([...new Set(guessed)].sort(), wanted.map(({ path }) => path).sort())
    assert.equal(guessed[0], 'usr/lib/systemd/systemd')
    const given = new Set(await translateBootSet(await guessBootSet(view), view))
    for (const { path } of wanted) for (const chunk of await chunksOf(view, path)) assert.ok(given.has(chunk), path)
  })
})

describe(`layout by a boot set (seed ${seed})`, () => {
  test('its files lie side by side, in order and before all others; the same recipe gives the same disk', async () => {
    const random = new Random(seed + 6)
    await using store = new MemoryStore()
    const files = randomFiles(random, 150)
    const plain = await composed(store, [files])
    const view = await DiskView.open(plain.map, store)
    const booted = files.filter(() => random.chance(0.2)).map(({ path }) => path).sort(() => random.below(3) - 1)
    const used: number[] = []
    for (const path of booted) used.push(...(await chunksOf(view, path)))
    await using writer = store.writer()
    const bootSet = putObject(writer, (await learned(view, used)).encode())
    await writer.commit()
    const ordered = await composed(store, [files], bootSet)
    assert.notEqual(digestToHex(ordered.recipeDigest), digestToHex(plain.recipeDigest))
    assert.equal(digestToHex((await composed(store, [files], bootSet)).diskDigest), digestToHex(ordered.diskDigest))

    const orderedView = await DiskView.open(ordered.map, store)
    const starts: number[] = []
    const startOf = async (path: string): Promise<number> => (await orderedView.placesOf((await orderedView.trail(path))!.at(-1)!.node.id)).pieces[0].start
    for (const path of booted) starts.push(await startOf(path))
    assert.deepEqual(starts, starts.toSorted((a, b) => a - b))
    const end = starts.at(-1)!
    for (const { path } of files) if (!booted.includes(path)) assert.ok((await startOf(path)) > end, path)

    const image = join(directory, 'ordered.img')
    await writeRawDisk(ordered, store, image)
    using loop = new LoopPartition(image, ordered.partitions[0])
    execFileSync('e2fsck', ['-fn', loop.device], { stdio: 'pipe' })
    const mounted = loop.mount()
    for (const { path, content } of files) assert.ok(readFileSync(join(mounted, path)).equals(content!), path)
  })

  test('a recipe whose boot set is not in the store is refused', async () => {
    await using store = new MemoryStore()
    await assert.rejects(composed(store, [[{ path: 'file', content: Buffer.from('x') }]], new Uint8Array(32)), (error) => isVarveError(error, 'CHUNK_MISSING'))
  })
})
