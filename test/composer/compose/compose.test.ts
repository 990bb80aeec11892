import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, lstatSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { encodeBootKit } from '@varve/composer/boot/boot-kit.ts'
import { compose, ComposeConflictError, mergeRecipe } from '@varve/composer/compose.ts'
import { prepareRecipe } from '@varve/composer/prepare-recipe.ts'
import { recipeDigest } from '@varve/composer/recipe.ts'
import type { DiskOptions, Recipe } from '@varve/composer/recipe.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Home } from '@varve/images/store/home.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { objectChunks, putObject } from '@varve/images/store/object.ts'
import { Random, testSeed } from '../../random.ts'
import { putLayer } from './layers.ts'
import type { FileSpec } from './layers.ts'
import { LoopPartition, writeRawDisk } from './raw-disk.ts'

const MIB = 2 ** 20
const directory = mkdtempSync(join(tmpdir(), 'varve-compose-test-'))
after(() => rmSync(directory, { recursive: true }))

const random = new Random(42)
const base: FileSpec[] = [
  { path: 'boot/vmlinuz-6.1.0-9', content: random.bytes(900_000) },
  { path: 'boot/initrd.img-6.1.0-9', content: random.bytes(2_500_000) },
  { path: 'vmlinuz', target: 'boot/vmlinuz-6.1.0-9' },
  { path: 'initrd.img', target: 'boot/initrd.img-6.1.0-9' },
  { path: 'etc/hostname', content: Buffer.from('base\n') },
  { path: 'etc/passwd', content: Buffer.from('root:x:0:0:root:/root:/bin/sh\n') },
  { path: 'usr/share/empty', content: Buffer.alloc(0) },
]
const app: FileSpec[] = [
  { path: 'etc/hostname', content: Buffer.from('app\n'), mtimeSeconds: 1_700_000_777 },
  { path: 'opt/app/größe.bin', content: random.bytes(1_000_001), mode: 0o755 },
]

function diskOptions(more: Partial<DiskOptions> = {}): DiskOptions {
  return { boot: 'none', bootKit: null, sizeBytes: null, freeBytes: 8 * MIB, label: 'root', filesystem: 'ext4', bootSet: null, kernelCommandLine: 'console=ttyS0', ...more }
}

async function recipeOf(store: ChunkStore, stacks: FileSpec[][], disk: DiskOptions = diskOptions()): Promise<Recipe> {
  const layers: Digest[] = []
  for (const files of stacks) layers.push(await putLayer(store, files))
  return { layers: layers.map((tree, index) => ({ name: `layer${index}@1`, kind: index === 0 ? 'base' : 'app', tree })), decisions: new Map(), disk }
}

test('a composed disk passes sgdisk, fsck.fat and e2fsck, and its files are those of the layers', async () => {
  await using home = await Home.open(join(directory, 'home'), { create: true })
  const { store, catalog } = home
  for (const [name, files] of [['base', base], ['app', app]] as const) {
    await catalog.addLayer({ name, kind: name, content: 'tree', digest: await putLayer(store, files), entries: files.length, contentBytes: 0, source: 'test' })
  }
  const recipe = await prepareRecipe({ layers: ['base', 'app'], policy: { freeBytes: 16 * MIB } }, { store, catalog })
  const composition = await compose(recipe, { store, catalog })
  const disk = join(directory, 'disk.img')
  await writeRawDisk(composition, store, disk)
  assert.match(execFileSync('sgdisk', ['-v', disk], { encoding: 'utf8' }), /No problems found/)

  const [, efi, root] = composition.partitions
  assert.deepEqual(composition.partitions.map(({ name }) => name), ['bios', 'efi', 'root'])
  execFileSync('dd', [`if=${disk}`, `of=${disk}.efi`, 'bs=1M', `skip=${efi.firstByte / MIB}`, `count=${efi.byteLength / MIB}`, 'status=none'])
  execFileSync('fsck.fat', ['-n', `${disk}.efi`])
  const config = execFileSync('mtype', ['-i', `${disk}.efi`, '::/grub/grub.cfg'], { encoding: 'latin1' })
  assert.ok(config.includes(`root=UUID=${composition.rootUuid} rw`))
  assert.match(config, /set kernel=\/vmlinuz/)

  using loop = new LoopPartition(disk, root)
  execFileSync('e2fsck', ['-fn', loop.device], { stdio: 'pipe' })
  assert.equal(execFileSync('blkid', ['-p', '-s', 'UUID', '-o', 'value', loop.device], { encoding: 'utf8' }).trim(), composition.rootUuid)
  const mounted = loop.mount()
  for (const { path, content, target, mode, mtimeSeconds } of [...base.filter((file) => file.path !== 'etc/hostname'), ...app]) {
    const found = lstatSync(join(mounted, path))
    assert.equal(Math.floor(found.mtimeMs / 1000), mtimeSeconds ?? 1_700_000_000, path)
    if (target !== undefined) assert.equal(readlinkSync(join(mounted, path)), target)
    else {
      assert.ok(readFileSync(join(mounted, path)).equals(content!), path)
      assert.equal(found.mode & 0o7777, mode ?? 0o644, path)
    }
  }
})

test('the same layers in two stores, put in different order, give the same disk, byte for byte', async () => {
  await using one = new MemoryStore()
  await using other = await Home.open(join(directory, 'other'), { create: true })
  const kit = encodeBootKit({ bootImage: random.bytes(440), coreImage: random.bytes(2048), efiImage: random.bytes(700_000) })
  const digests: string[] = []
  const disks: string[] = []
  for (const store of [one, other.store] as ChunkStore[]) {
    if (store !== one) for (const files of [app, base]) await putLayer(store, files.toReversed())
    await using writer = store.writer()
    const bootKit = putObject(writer, kit)
    await writer.commit()
    const composition = await compose(await recipeOf(store, [base, app], diskOptions({ boot: 'grub', bootKit })), { store })
    const path = join(directory, 'same.img')
    await writeRawDisk(composition, store, path)
    disks.push(execFileSync('sha256sum', [path]).toString())
    digests.push([composition.recipeDigest, composition.diskDigest, composition.mapDigest].map(digestToHex).join())
  }
  assert.equal(digests[0], digests[1])
  assert.equal(disks[0], disks[1])
})

test('file data is pointed at, not copied', async () => {
  await using store = new MemoryStore()
  const recipe = await recipeOf(store, [[{ path: 'large', content: random.bytes(30 * MIB) }]])
  const { figures } = await compose(recipe, { store })
  assert.ok(figures.storedBytes < 2 * MIB, `${figures.storedBytes} bytes were stored`)
})

test('the second composition comes from the catalog, and is the same', async () => {
  await using home = await Home.open(join(directory, 'cached'), { create: true })
  const { store, catalog } = home
  const recipe = await recipeOf(store, [base, app])
  const first = await compose(recipe, { store, catalog })
  const second = await compose(recipe, { store, catalog })
  assert.deepEqual([first.cached, second.cached], [false, true])
  for (const key of ['recipeDigest', 'mapDigest', 'diskDigest'] as const) assert.equal(digestToHex(second[key]), digestToHex(first[key]), key)
  for (const key of ['sizeBytes', 'rootUuid', 'partitions', 'files', 'contentBytes', 'report'] as const) assert.deepEqual(second[key], first[key], key)
  assert.ok(Buffer.from(second.map.encode()).equals(first.map.encode()))
})

test('what was composed before is read from the map alone: no tree is loaded', async () => {
  await using home = await Home.open(join(directory, 'counted'), { create: true })
  const { store, catalog } = home
  const recipe = await recipeOf(store, [base, app])
  const { mapDigest } = await compose(recipe, { store, catalog })
  const read: string[] = []
  const counting: ChunkStore = {
    get: (digest) => {
      read.push(digestToHex(digest))
      return store.get(digest)
    },
    has: (digest) => store.has(digest),
    writer: (options) => store.writer(options),
    [Symbol.asyncDispose]: async () => {},
  }
  assert.ok((await compose(recipe, { store: counting, catalog })).cached)
  assert.deepEqual(read, (await objectChunks(store, mapDigest)).map(digestToHex))
})

test('a disk of fifty layers has the extents of a disk of one, and a whole read asks for as many chunks', async () => {
  await using home = await Home.open(join(directory, 'fifty'), { create: true })
  const { store, catalog } = home
  const files = Array.from({ length: 50 }, (_, index) => ({ path: `usr/file${index}`, content: random.bytes(1000 + 3000 * index) }))
  const costs = []
  for (const stacks of [[files], files.map((file) => [file])]) {
    const { map } = await compose(await recipeOf(store, stacks), { store, catalog })
    let reads = 0
    const counting: ChunkStore = {
      get: (digest) => {
        reads++
        return store.get(digest)
      },
      has: (digest) => store.has(digest),
      writer: (options) => store.writer(options),
      [Symbol.asyncDispose]: async () => {},
    }
    const device = new MapDevice(map, counting, ChunkCache.create({ bytesMax: 64 * MIB }))
    for (let at = 0; at < map.sizeBytes; at += MIB) await device.read(Buffer.alloc(Math.min(MIB, map.sizeBytes - at)), at)
    costs.push({ extents: map.starts.length, reads })
  }
  assert.deepEqual(costs[1], costs[0])
})

test('any change of the recipe changes the identifiers on the disk', async () => {
  await using store = new MemoryStore()
  const seen = new Set<string>()
  const variants = [diskOptions(), diskOptions({ label: 'other' }), diskOptions({ freeBytes: 9 * MIB })]
  for (const disk of variants) {
    const { rootUuid, partitions } = await compose(await recipeOf(store, [base], disk), { store })
    seen.add(rootUuid).add(partitions[0].guid)
  }
  seen.add((await compose(await recipeOf(store, [base, app]), { store })).rootUuid)
  assert.equal(seen.size, 7)
})

test('a disk of a given size has that size, and one that is too small is refused with the size it needs', async () => {
  await using store = new MemoryStore()
  const content: FileSpec[] = [{ path: 'file', content: random.bytes(20 * MIB) }]
  assert.equal((await compose(await recipeOf(store, [content], diskOptions({ sizeBytes: 64 * MIB + 512 })), { store })).sizeBytes, 64 * MIB + 512)
  let message = ''
  await assert.rejects(compose(await recipeOf(store, [content], diskOptions({ sizeBytes: 20 * MIB })), { store }), (error: Error) => {
    message = error.message
    return isVarveError(error, 'DISK_TOO_SMALL')
  })
  const needed = Number(/needs (\d+)/.exec(message)![1])
  assert.equal((await compose(await recipeOf(store, [content], diskOptions({ sizeBytes: needed })), { store })).sizeBytes, needed)
})

test('layers that disagree are an error with a report, until the recipe decides', async () => {
  await using store = new MemoryStore()
  const user = (line: string): FileSpec[] => [{ path: 'etc/passwd', content: Buffer.from(line) }]
  const recipe = await recipeOf(store, [base, user('root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n'), user('root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n')])
  let error: unknown
  await compose(recipe, { store }).catch((caught: unknown) => (error = caught))
  assert.ok(error instanceof ComposeConflictError && error.code === 'COMPOSE_CONFLICT')
  const { report } = await mergeRecipe(recipe, { store, report: 'all' })
  assert.deepEqual(report.conflicts, error.report.conflicts)
  const decisions = new Map(report.conflicts.filter(({ needsDecision }) => needsDecision).map(({ key, choices }) => [key, choices[0]]))
  assert.ok(decisions.size > 0)
  assert.equal((await compose({ ...recipe, decisions }, { store })).report.open, 0)
})

test('a stack without a kernel is refused with a boot loader, and composed without one', async () => {
  await using home = await Home.open(join(directory, 'data'), { create: true })
  const { store, catalog } = home
  await catalog.addLayer({ name: 'data', kind: 'user', content: 'tree', digest: await putLayer(store, app), entries: 5, contentBytes: 0, source: 'test' })
  await assert.rejects(prepareRecipe({ layers: ['data'] }, { store, catalog }).then((recipe) => compose(recipe, { store })), (error) => isVarveError(error, 'BOOT_MISSING'))
  const composition = await compose(await prepareRecipe({ layers: ['data'], policy: { boot: 'none' } }, { store, catalog }), { store })
  assert.deepEqual(composition.partitions.map(({ name, firstByte }) => [name, firstByte]), [['root', MIB]])
})

test('a CVD is composed by its own policy, and what was chosen for it stays chosen', async () => {
  await using home = await Home.open(join(directory, 'policy'), { create: true })
  const { store, catalog } = home
  await catalog.addLayer({ name: 'base', kind: 'base', content: 'tree', digest: await putLayer(store, base), entries: 5, contentBytes: 0, source: 'test' })
  await catalog.createCvd({ name: 'desk', layers: ['base'], policy: { label: 'desk', kernelCommandLine: 'quiet', decisions: { 'etc/passwd#ada': 'base' } } })
  const recipe = await prepareRecipe({ cvd: 'desk', policy: { freeBytes: 1 } }, { store, catalog })
  assert.deepEqual([recipe.disk.label, recipe.disk.kernelCommandLine, recipe.disk.freeBytes, recipe.disk.boot], ['desk', 'quiet', 1, 'grub'])
  assert.deepEqual([...recipe.decisions], [['etc/passwd#ada', 'base@1']])
  assert.equal(digestToHex(recipeDigest(await prepareRecipe({ cvd: 'desk', policy: { freeBytes: 1 } }, { store, catalog }))), digestToHex(recipeDigest(recipe)))
  await assert.rejects(prepareRecipe({ layers: ['base'], policy: { kernelCommandLine: 'a\nb' } }, { store, catalog }), (error) => isVarveError(error, 'NAME_INVALID'))
  await assert.rejects(prepareRecipe({ layers: ['base'], policy: { sizeBytes: 513 } }, { store, catalog }), (error) => isVarveError(error, 'LIMIT_EXCEEDED'))
  await assert.rejects(prepareRecipe({ layers: ['base'], policy: { label: 'more than sixteen bytes' } }, { store, catalog }), (error) => isVarveError(error, 'NAME_INVALID'))
})

test('a composition that is interrupted or damaged leaves nothing behind', async () => {
  await using store = new MemoryStore()
  const recipe = await recipeOf(store, [base, app])
  const before = store.chunkCount
  await assert.rejects(compose(recipe, { store, signal: AbortSignal.abort(new Error('stop')) }), /stop/)
  const missing = { ...recipe, layers: [{ ...recipe.layers[0], tree: new Uint8Array(32) }] }
  await assert.rejects(compose(missing, { store }), (error) => isVarveError(error, 'CHUNK_MISSING') && error.message.includes('layer0@1'))
  assert.equal(store.chunkCount, before)
})

test('random stacks compose to clean filesystems that hold what the topmost layer says', async () => {
  const seed = testSeed()
  const own = new Random(seed)
  for (let round = 0; round < 3; round++) {
    await using store = new MemoryStore()
    const stacks: FileSpec[][] = []
    const expected = new Map<string, Uint8Array>()
    for (let layer = own.between(1, 6); layer > 0; layer--) {
      const files = new Map<string, FileSpec>()
      for (let index = own.below(60); index > 0; index--) {
        const path = `d${own.below(4)}/e${own.below(3)}/f${own.below(30)}`
        files.set(path, { path, content: own.bytes(own.pick([0, 1, 4096, own.below(200_000)])) })
      }
      for (const { path, content } of files.values()) expected.set(path, content!)
      stacks.push([...files.values()])
    }
    const composition = await compose(await recipeOf(store, stacks), { store })
    const disk = join(directory, 'random.img')
    await writeRawDisk(composition, store, disk)
    using loop = new LoopPartition(disk, composition.partitions[0])
    execFileSync('e2fsck', ['-fn', loop.device], { stdio: 'pipe' })
    const mounted = loop.mount()
    for (const [path, content] of expected) assert.ok(existsSync(join(mounted, path)) && readFileSync(join(mounted, path)).equals(content), `${path}; VARVE_TEST_SEED=${seed}, round ${round}`)
  }
})
