/** Overlays on overlays: snapshots under load, settling, and what a restart finds. Crashes: overlay-kill.test.ts, overlay-power-cut.test.ts. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { BlockMap, SPECIAL_MIN, ZERO } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { MemoryDevice } from '@varve/images/device/memory-device.ts'
import { localFiles } from '@varve/images/device/overlay-files.ts'
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { decodeStackFile } from '@varve/images/device/overlay-stack-file.ts'
import type { MemoryStore } from '@varve/images/store/memory-store.ts'
import { Random, testSeed } from '../../random.ts'
import { deviceConformance, randomContent } from './conformance.ts'
import { DelayedDevice, DelayedStore } from './delayed.ts'
import { mapDisk } from './map-disk.ts'
import { TemporaryDirectory } from './temporary.ts'

const seed = testSeed()
const hastyFiles: OverlayFiles = { ...localFiles, sync: async () => {}, syncDirectory: async () => {} }

/** A CVD as a server has it: a map, its chunks, and a stack on it; keeps the map that is below as a catalog would. */
class Disk implements AsyncDisposable {
  readonly #directory = new TemporaryDirectory()
  readonly path = `${this.#directory.path}/overlays/cvd`
  readonly store: MemoryStore
  readonly #files: OverlayFiles
  readonly #late: Random | undefined
  map: BlockMap
  stack!: OverlayStack

  private constructor(map: BlockMap, store: MemoryStore, files: OverlayFiles, late: Random | undefined) {
    this.map = map
    this.store = store
    this.#files = files
    this.#late = late
  }

  static async of(content: Uint8Array, { files = hastyFiles, late, random = new Random(seed) }: { files?: OverlayFiles; late?: Random; random?: Random } = {}): Promise<Disk> {
    const { map, store } = await mapDisk(content, random)
    const disk = new Disk(map, store, files, late)
    await disk.open()
    return disk
  }

  lower(map = this.map): { lower: BlockDevice; lowerDigest: Uint8Array; directory: string; files: OverlayFiles } {
    const store = this.#late === undefined ? this.store : new DelayedStore(this.store, this.#late)
    return { lower: new MapDevice(map, store, ChunkCache.create({ bytesMax: 50_000 })), lowerDigest: digestOf(map.encode()), directory: this.path, files: this.#files }
  }

  async open(): Promise<void> {
    this.stack = await OverlayStack.open(this.lower())
  }

  async reopen(): Promise<void> {
    await this.stack[Symbol.asyncDispose]()
    await this.open()
  }

  /** Settles the lowest frozen generation. */
  async settle(): Promise<BlockMap> {
    const writer = this.store.writer()
    const { generation, map } = await this.stack.settle(this.map, writer)
    await writer.commit()
    await this.stack.adopt({ ...this.lower(map), generation })
    this.map = map
    await this.stack.drop()
    return map
  }

  frozen(generation: number): Promise<BlockDevice> {
    return OverlayStack.openFrozen({ ...this.lower(), generation })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack[Symbol.asyncDispose]()
    this.#directory[Symbol.dispose]()
  }
}

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.sizeBytes)
  await device.read(content, 0)
  return content
}

for (const late of [false, true]) {
  deviceConformance(late ? 'OverlayStack over a store that answers late' : 'OverlayStack', async content => {
    const random = new Random(seed)
    const disk = await Disk.of(content, { late: late ? random : undefined })
    return {
      get device() { return disk.stack },
      reopen: () => disk.reopen(),
      async disturb() {
        if (disk.stack.frozenGenerations().length < 4 && random.chance(0.6)) await disk.stack.snapshot()
        else if (disk.stack.frozenGenerations().length > 0) await disk.settle()
      },
      [Symbol.asyncDispose]: () => disk[Symbol.asyncDispose](),
    }
  })
}

describe('a snapshot', () => {
  test('keeps what the disk showed, whatever is written afterwards, through restarts', async () => {
    const random = new Random(seed)
    await using disk = await Disk.of(randomContent(random, 300_000))
    const snapshots: { generation: number; content: Buffer }[] = []
    for (let round = 0; round < 6; round++) {
      for (let write = 0; write < 10; write++) await disk.stack.write(random.bytes(random.between(1, 9000)), random.below(290_000))
      await disk.stack.trim(random.below(200_000), 20_000)
      const content = await contentOf(disk.stack)
      snapshots.push({ generation: await disk.stack.snapshot(), content })
      if (round % 2 === 1) await disk.reopen()
      for (const snapshot of snapshots) {
        await using frozen = await disk.frozen(snapshot.generation)
        assert.ok((await contentOf(frozen)).equals(snapshot.content), `generation ${snapshot.generation} after round ${round}`)
        await assert.rejects(async () => frozen.write(Buffer.alloc(1), 0), { code: 'READ_ONLY' })
      }
    }
    assert.deepEqual(disk.stack.frozenGenerations(), [1, 2, 3, 4, 5, 6])
    assert.equal(disk.stack.topGeneration, 7)
  })

  test('under load shows one moment: each writer as far as it had come, and no write torn', async () => {
    const random = new Random(seed)
    await using disk = await Disk.of(Buffer.alloc(8 * 20_000, 1), { late: random })
    let stop = false
    const writers = Array.from({ length: 8 }, async (_, writer) => {
      for (let value = 2; !stop && value < 250; value++) await disk.stack.write(Buffer.alloc(10_000, value), writer * 20_000 + 5000)
    })
    const moments: Buffer[] = []
    for (let round = 0; round < 5; round++) {
      await using frozen = await disk.frozen(await disk.stack.snapshot())
      moments.push(await contentOf(frozen))
      await using again = await disk.frozen(disk.stack.topGeneration - 1)
      assert.ok((await contentOf(again)).equals(moments[round]))
    }
    stop = true
    await Promise.all(writers)
    for (const [round, content] of moments.entries()) {
      for (let writer = 0; writer < 8; writer++) {
        const written = content.subarray(writer * 20_000 + 5000, writer * 20_000 + 15_000)
        assert.ok(written.every(byte => byte === written[0]), `writer ${writer} in snapshot ${round}`)
        if (round > 0) assert.ok(written[0] >= moments[round - 1][writer * 20_000 + 5000])
      }
    }
  })

  test('a flush after it covers what was written before it', async () => {
    // Syncs of the data of generation 1 wait for `release`.
    let holding = false
    const held = new Set<number>()
    const { promise: released, resolve: release } = Promise.withResolvers<void>()
    const files: OverlayFiles = {
      ...hastyFiles,
      open(path, mode) {
        const fd = localFiles.open(path, mode)
        if (path.endsWith('/1/data')) held.add(fd)
        else held.delete(fd)
        return fd
      },
      sync: async fd => { if (holding && held.has(fd)) await released },
    }
    await using disk = await Disk.of(Buffer.alloc(100_000, 1), { files })
    holding = true
    await disk.stack.write(Buffer.alloc(4096, 2), 0)
    let answered = 0
    const calls = [disk.stack.snapshot().then(() => { answered++ })]
    while (disk.stack.topGeneration === 1) await new Promise<void>(resolve => { setImmediate(resolve) })
    for (let flush = 0; flush < 2; flush++) {
      calls.push(Promise.resolve(disk.stack.flush()).then(() => { answered++ }))
      await disk.stack.write(Buffer.alloc(4096, 3), 8192)
    }
    for (let turn = 0; turn < 20; turn++) await new Promise<void>(resolve => { setImmediate(resolve) })
    const answeredEarly = answered
    release()
    await Promise.all(calls)
    assert.equal(answeredEarly, 0)
  })

  test('a write that waits for the disk below meanwhile ends on the new top, whole', async () => {
    using directory = new TemporaryDirectory()
    const memory = MemoryDevice.of(Buffer.alloc(100_000, 1))
    const { promise: released, resolve: release } = Promise.withResolvers<void>()
    const lower: BlockDevice = Object.assign(new DelayedDevice(memory, new Random(seed)), { async read(into: Uint8Array, offset: number) { await released; memory.read(into, offset) } })
    const options = { directory: directory.path, lower, lowerDigest: digestOf(Buffer.from('lower')), files: hastyFiles }
    let stack = await OverlayStack.open(options)
    const calls = [stack.write(Buffer.alloc(10_000, 2), 100), stack.trim(50_100, 10_000)]
    assert.ok(calls.every(call => call instanceof Promise))
    const generation = await stack.snapshot()
    await stack.write(Buffer.alloc(4096, 3), 0)
    release()
    await Promise.all(calls)
    await stack.flush()
    const expected = Buffer.alloc(100_000, 1)
    expected.fill(3, 0, 4096).fill(2, 100, 10_100).fill(0, 50_100, 60_100)
    await stack[Symbol.asyncDispose]()
    stack = await OverlayStack.open(options)
    assert.ok((await contentOf(stack)).equals(expected))
    await using frozen = await OverlayStack.openFrozen({ ...options, generation })
    assert.ok((await contentOf(frozen)).equals(Buffer.alloc(100_000, 1)))
    await stack[Symbol.asyncDispose]()
  })

  test('that cannot be made leaves the disk as it was, and the next one works', async () => {
    let full = false
    const files: OverlayFiles = { ...hastyFiles, makeDirectory: path => { if (full && path.endsWith('.new')) throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' }); localFiles.makeDirectory(path) } }
    await using disk = await Disk.of(Buffer.alloc(100_000, 1), { files })
    full = true
    await assert.rejects(disk.stack.snapshot(), { code: 'ENOSPC' })
    await disk.stack.write(Buffer.alloc(100, 2), 0)
    full = false
    assert.equal(await disk.stack.snapshot(), 1)
    assert.equal((await contentOf(disk.stack))[0], 2)
  })

  test('whose commit finds no room fails every flush until there is room, and none after', async () => {
    let full = false
    const frozen = new Set<number>()
    const files: OverlayFiles = {
      ...hastyFiles,
      open(path, mode) {
        const fd = localFiles.open(path, mode)
        if (path.endsWith('/1/map')) frozen.add(fd)
        else frozen.delete(fd)
        return fd
      },
      write(fd, bytes, offset) {
        if (full && frozen.has(fd)) throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' })
        localFiles.write(fd, bytes, offset)
      },
    }
    await using disk = await Disk.of(Buffer.alloc(100_000, 1), { files })
    await disk.stack.write(Buffer.alloc(4096, 2), 0)
    full = true
    await assert.rejects(disk.stack.snapshot(), { code: 'ENOSPC' })
    await disk.stack.write(Buffer.alloc(4096, 3), 4096)
    for (let flush = 0; flush < 2; flush++) await assert.rejects(async () => disk.stack.flush(), { code: 'ENOSPC' })
    await assert.rejects(disk.stack.snapshot(), { code: 'ENOSPC' })
    full = false
    await disk.stack.flush()
    assert.equal(disk.stack.flush(), undefined)
    const generation = await disk.stack.snapshot()
    const content = await contentOf(disk.stack)
    await using snapshot = await disk.frozen(generation)
    assert.ok((await contentOf(snapshot)).equals(content))
    await disk.reopen()
    assert.ok((await contentOf(disk.stack)).equals(content))
  })

  test('one that is not frozen, or not there, is not found', async () => {
    await using disk = await Disk.of(Buffer.alloc(100_000, 1))
    for (const generation of [0, 1, 2]) await assert.rejects(disk.frozen(generation), { code: 'NOT_FOUND' })
  })
})

describe('settling', () => {
  test('gives a map that shows what the snapshot showed, and the disk goes on over it', async () => {
    const random = new Random(seed)
    for (const sizeBytes of [300_001, 1 << 20]) {
      await using disk = await Disk.of(randomContent(random, sizeBytes))
      const frozen = new Map<number, Buffer>()
      for (let round = 0; round < 4; round++) {
        for (let write = 0; write < 15; write++) await disk.stack.write(random.chance(0.3) ? Buffer.alloc(8192) : random.bytes(random.between(1, 90_000)), random.below(200_000))
        await disk.stack.trim(random.below(200_000), 50_000)
        const content = await contentOf(disk.stack)
        frozen.set(await disk.stack.snapshot(), Buffer.from(content))
        if (round === 1) continue
        await disk.stack.write(Buffer.alloc(4096, 5), 0)
        const [settled] = disk.stack.frozenGenerations()
        const map = await disk.settle()
        assert.ok((await contentOf(new MapDevice(map, disk.store, ChunkCache.create({ bytesMax: 1 << 20 })))).equals(frozen.get(settled)!))
        content.fill(5, 0, 4096)
        assert.ok((await contentOf(disk.stack)).equals(content))
        await disk.reopen()
        assert.ok((await contentOf(disk.stack)).equals(content))
      }
    }
  })

  test('stores only what was written, cut at fixed places, and no zeroes', async () => {
    await using disk = await Disk.of(Buffer.alloc(1 << 20))
    await disk.stack.write(Buffer.alloc(8192, 1), 65_536 - 4096)
    await disk.stack.write(Buffer.alloc(4096), 200_704)
    await disk.stack.trim(300_000, 100_000)
    await disk.stack.snapshot()
    const chunksBefore = disk.store.chunkCount
    const map = await disk.settle()
    assert.equal(disk.store.chunkCount, chunksBefore + 1, 'both halves are the same chunk')
    const rows = [...map.starts.keys()].filter(index => map.refs[index] < SPECIAL_MIN || map.refs[index] === ZERO).map(index => [map.starts[index], map.endOf(index), map.refs[index] === ZERO ? 'zero' : map.refs[index]])
    assert.deepEqual(rows.filter(row => row[2] !== 'zero'), [[61_440, 65_536, 0], [65_536, 69_632, 0]])
    const zeroes = rows.filter(row => row[2] === 'zero')
    assert.ok(zeroes.some(([start, end]) => (start as number) <= 200_704 && (end as number) >= 204_800))
    assert.ok(zeroes.some(([start, end]) => (start as number) <= 303_104 && (end as number) >= 397_312))
  })

  test('leaves the stack on both maps until the old one is dropped', async () => {
    await using disk = await Disk.of(Buffer.alloc(100_000, 1))
    await disk.stack.write(Buffer.alloc(4096, 2), 0)
    await disk.stack.snapshot()
    await disk.stack.write(Buffer.alloc(4096, 3), 4096)
    const content = await contentOf(disk.stack)
    const before = disk.map
    const writer = disk.store.writer()
    const { generation, map } = await disk.stack.settle(before, writer)
    await writer.commit()
    await disk.stack.adopt({ ...disk.lower(map), generation })
    for (const below of [before, map, before]) {
      disk.map = below
      await disk.reopen()
      assert.ok((await contentOf(disk.stack)).equals(content))
    }
    await disk.stack.adopt({ ...disk.lower(map), generation })
    disk.map = map
    await disk.stack.drop()
    assert.deepEqual(readdirSync(disk.path).sort(), ['2', 'lock', 'stack'])
    await disk.reopen()
    assert.ok((await contentOf(disk.stack)).equals(content))
    disk.map = before
    await assert.rejects(disk.reopen(), { code: 'OVERLAY_INVALID' })
    disk.map = map
    await disk.open()
  })

  test('is done when the stack lies on the map, whether the files of the generation can be closed or not', async () => {
    const lost = new Set<number>()
    const files: OverlayFiles = {
      ...hastyFiles,
      open(path, mode) {
        const fd = localFiles.open(path, mode)
        if (path.includes('/1/') || path.includes('/1.new/')) lost.add(fd)
        else lost.delete(fd)
        return fd
      },
      close(fd) {
        localFiles.close(fd)
        if (adopting && lost.has(fd)) throw Object.assign(new Error('EIO: close'), { code: 'EIO' })
      },
    }
    let adopting = false
    await using disk = await Disk.of(Buffer.alloc(100_000, 1), { files })
    await disk.stack.write(Buffer.alloc(4096, 2), 0)
    await disk.stack.snapshot()
    const writer = disk.store.writer()
    const { generation, map } = await disk.stack.settle(disk.map, writer)
    await writer.commit()
    adopting = true
    await disk.stack.adopt({ ...disk.lower(map), generation })
    adopting = false
    disk.map = map
    assert.deepEqual(disk.stack.frozenGenerations(), [])
    await disk.stack.drop()
    assert.equal((await contentOf(disk.stack))[0], 2)
  })

  test('a snapshot that was opened before its files were dropped stays readable', async () => {
    await using disk = await Disk.of(Buffer.alloc(100_000, 1))
    await disk.stack.write(Buffer.alloc(50_000, 2), 0)
    await using frozen = await disk.frozen(await disk.stack.snapshot())
    await disk.settle()
    assert.deepEqual(await contentOf(frozen), Buffer.concat([Buffer.alloc(50_000, 2), Buffer.alloc(50_000, 1)]))
  })

  test('nothing that was written is a map like the one below', async () => {
    await using disk = await Disk.of(Buffer.alloc(100_000, 1))
    await disk.stack.snapshot()
    const before = disk.map.encode()
    assert.deepEqual((await disk.settle()).encode(), before)
    await disk.reopen()
  })

  test('only the lowest frozen generation is adopted', async () => {
    await using disk = await Disk.of(Buffer.alloc(100_000, 1))
    await assert.rejects(disk.stack.settle(disk.map, disk.store.writer()), RangeError)
    await disk.stack.snapshot()
    await assert.rejects(disk.stack.adopt({ ...disk.lower(), generation: 2 }), RangeError)
  })
})

describe('opening a stack', () => {
  test('is for one owner', async () => {
    await using disk = await Disk.of(Buffer.alloc(1000, 1))
    await assert.rejects(OverlayStack.open(disk.lower()), { code: 'STORE_LOCKED' })
  })

  test('finds missing generations and files, and another disk below, and says so', async () => {
    await using disk = await Disk.of(Buffer.alloc(100_000, 1))
    await disk.stack.snapshot()
    await disk.stack.snapshot()
    await disk.stack[Symbol.asyncDispose]()
    const { path } = disk
    const broken = async (breakIt: () => void, mend: () => void): Promise<void> => {
      breakIt()
      await assert.rejects(disk.open(), { code: 'OVERLAY_INVALID' })
      mend()
    }
    for (const part of ['1', '2', '2/map', '3/map', '3/data', 'stack']) {
      await broken(() => renameSync(`${path}/${part}`, `${path}/../away`), () => renameSync(`${path}/../away`, `${path}/${part}`))
    }
    await broken(() => { renameSync(`${path}/1`, `${path}/9`); renameSync(`${path}/2`, `${path}/1`); renameSync(`${path}/9`, `${path}/2`) },
      () => { renameSync(`${path}/1`, `${path}/9`); renameSync(`${path}/2`, `${path}/1`); renameSync(`${path}/9`, `${path}/2`) })
    const other = await mapDisk(Buffer.alloc(100_000, 2), new Random(seed))
    await assert.rejects(OverlayStack.open({ ...disk.lower(other.map) }), { code: 'OVERLAY_INVALID' })
    await disk.open()
  })

  test('finishes a creation that was interrupted at any point, and clears away what one has left', async () => {
    await using disk = await Disk.of(Buffer.alloc(1000, 1))
    await disk.stack[Symbol.asyncDispose]()
    const { path } = disk
    renameSync(`${path}/1`, `${path}/1.new`)
    await disk.open()
    await disk.stack[Symbol.asyncDispose]()
    renameSync(`${path}/1`, `${path}/1.new`)
    rmSync(`${path}/stack`)
    rmSync(`${path}/1.new/map`)
    await disk.open()
    assert.ok(!existsSync(`${path}/1.new`))
    assert.deepEqual(await contentOf(disk.stack), Buffer.alloc(1000, 1))
  })

  test(`its file, mutated or cut short, is refused with a code (seed ${seed})`, async () => {
    const random = new Random(seed)
    await using disk = await Disk.of(Buffer.alloc(1000, 1))
    const good = readFileSync(`${disk.path}/stack`)
    assert.equal(decodeStackFile(good, 'stack').bases.length, 1)
    for (let round = 0; round < 5000; round++) {
      let bytes: Buffer = Buffer.from(good)
      if (random.chance(0.3)) bytes = bytes.subarray(0, random.below(bytes.length))
      else if (random.chance(0.1)) bytes = random.bytes(random.below(300))
      else bytes[random.below(bytes.length)] ^= 1 << random.below(8)
      assert.throws(() => decodeStackFile(bytes, 'stack'), (error: { code?: string }) => error.code === 'OVERLAY_INVALID' || error.code === 'FORMAT_UNSUPPORTED')
    }
    writeFileSync(`${disk.path}/stack`, good)
  })
})

describe('what was changed since the map below', () => {
  test(`is the blocks of all generations, in runs that are merged, through snapshots, settling and restarts (seed ${seed})`, async () => {
    const random = new Random(seed)
    const sizeBytes = 400_000
    await using disk = await Disk.of(randomContent(random, sizeBytes))
    const blockCount = Math.ceil(sizeBytes / 4096)
    /** Of each generation above the map: the blocks that it has changed. */
    let generations: Set<number>[] = [new Set()]
    for (let round = 0; round < 60; round++) {
      const offset = random.below(sizeBytes - 20_000)
      const length = random.between(1, 20_000)
      const step = random.below(6)
      if (step === 0) {
        await disk.stack.snapshot()
        generations.push(new Set())
      } else if (step === 1 && generations.length > 1) {
        await disk.settle()
        generations = generations.slice(1)
      } else if (step === 2) await disk.reopen()
      else {
        // Whole blocks, so that the model need not know what a trim does with parts of them.
        const [first, last] = [Math.floor(offset / 4096), Math.floor((offset + length) / 4096)]
        if (step === 3) await disk.stack.trim(first * 4096, (last - first + 1) * 4096)
        else await disk.stack.write(random.bytes((last - first + 1) * 4096), first * 4096)
        for (let block = first; block <= last; block++) generations.at(-1)!.add(block)
      }
      const runs = disk.stack.changedRuns(0, sizeBytes, Infinity)
      const shown = runs.flatMap(run => Array.from({ length: Math.ceil(run.length / 4096) }, () => run.changed))
      assert.deepEqual(shown, Array.from({ length: blockCount }, (_, block) => generations.some(changed => changed.has(block))), `round ${round}, VARVE_TEST_SEED=${seed}`)
      assert.ok(runs.every((run, index) => index === 0 || run.changed !== runs[index - 1].changed))
      assert.equal(runs.reduce((sum, run) => sum + run.length, 0), sizeBytes)
      const [one] = disk.stack.changedRuns(offset, length, 1)
      assert.equal(one.changed, shown[Math.floor(offset / 4096)])
    }
  })
})
