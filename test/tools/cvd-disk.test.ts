/**
 * The disk of a CVD beside other processes, and when a step fails: what a snapshot names stays, and what is in use is not removed.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { importLayer } from '@varve/composer/import/import-layer.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { ChunkCache, ChunkTickets } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import { Home } from '@varve/images/store/home.ts'
import { reachableChunks } from '@varve/images/store/reachable.ts'
import { CvdDisk, ownCvd, removeCvdFiles, removeLeftOverlays } from '@varve/tools/cvd-disk.ts'
import { readMap } from '@varve/tools/settlement.ts'
import { ScratchDirectory } from '../varve-command.ts'

const CVD = 'desk'
const BLOCK_BYTES = 4096

async function homeWithCvd(scratch: ScratchDirectory): Promise<Home> {
  const source = scratch.join('source')
  mkdirSync(source)
  writeFileSync(`${source}/file`, 'content')
  const home = await Home.open(scratch.join('home'))
  await importLayer({ home, name: 'base', kind: 'base', source: `dir:${source}`, workers: 1 })
  await home.catalog.createCvd({ name: CVD, layers: ['base'], policy: { boot: 'none' } })
  return home
}

async function fill(device: BlockDevice, value: number): Promise<void> {
  await device.write(new Uint8Array(BLOCK_BYTES).fill(value), 0)
  await device.flush()
}

async function firstByte(device: BlockDevice): Promise<number> {
  const bytes = new Uint8Array(BLOCK_BYTES)
  await device.read(bytes, 0)
  return bytes[0]
}

/** Fills a cache with chunks that nobody wants, so that what it held is read from the store again. */
function pushOutAll(cache: ChunkCache): void {
  const chunks = cache.figures.bytesMax / 2 ** 20 * 2
  const digests = new Uint32Array(Uint8Array.from(randomBytes(32 * chunks)).buffer)
  const tickets = new ChunkTickets(chunks)
  for (let chunk = 0; chunk < chunks; chunk++) {
    assert.ok(cache.room(2 ** 20) >= 0)
    cache.unpin(cache.publish(digests, chunk, 2 ** 20, tickets))
  }
}

describe('CvdDisk', () => {
  it('a snapshot whose settling the catalog could not record is kept, and settled before the next one', async () => {
    using scratch = new ScratchDirectory('cvd-disk')
    await using home = await homeWithCvd(scratch)
    const cache = ChunkCache.create({ bytesMax: 1 << 20 })
    const shows = async (snapshot: string) => {
      const { map } = await home.catalog.snapshot(CVD, snapshot)
      return firstByte(new MapDevice(await readMap(home, map!), home.store, cache))
    }
    {
      await using disk = await CvdDisk.open(CVD, { home, cache })
      await fill(disk.device, 1)
      await disk.snapshot('one')
      const settle = home.catalog.settle.bind(home.catalog)
      home.catalog.settle = () => Promise.reject(new Error('no space left on device'))
      await assert.rejects(disk.settle(), /no space left/)
      // What the disk stands on now has no name yet.
      await home.store.collect(() => reachableChunks(home))
      pushOutAll(cache)
      assert.equal(await firstByte(disk.device), 1)
      home.catalog.settle = settle
      await fill(disk.device, 2)
      await disk.snapshot('two')
      await disk.settle()
      assert.equal(await firstByte(disk.device), 2)
    }
    assert.equal(await shows('one'), 1)
    assert.equal(await shows('two'), 2)
    await using disk = await CvdDisk.open(CVD, { home, cache })
    assert.equal(await firstByte(disk.device), 2)
  })

  it('a name that is refused freezes nothing', async () => {
    using scratch = new ScratchDirectory('cvd-disk')
    await using home = await homeWithCvd(scratch)
    await using disk = await CvdDisk.open(CVD, { home, cache: ChunkCache.create({ bytesMax: 1 << 20 }) })
    await assert.rejects(disk.snapshot('../one'), (error) => isVarveError(error, 'NAME_INVALID'))
    assert.equal((disk.device as CvdDisk['device'] & { topGeneration: number }).topGeneration, 1)
  })

  it('a snapshot of an overlay that was given up for other layers is settled by the next owner, and the overlay goes', async () => {
    using scratch = new ScratchDirectory('cvd-disk')
    await using home = await homeWithCvd(scratch)
    const cache = ChunkCache.create({ bytesMax: 1 << 20 })
    let first: number
    {
      await using disk = await CvdDisk.open(CVD, { home, cache })
      first = disk.cvd.overlay!
      for (const [index, name] of ['one', 'two'].entries()) {
        await fill(disk.device, index + 1)
        await disk.snapshot(name)
      }
      await fill(disk.device, 9)
    }
    await home.catalog.setCvdLayers(CVD, ['base'], { policy: { boot: 'none', label: 'other' }, discardWrites: true })
    await using disk = await CvdDisk.open(CVD, { home, cache })
    await disk.settle()
    for (const [index, name] of ['one', 'two'].entries()) {
      const { map, overlay } = await home.catalog.snapshot(CVD, name)
      assert.equal(overlay, null)
      assert.equal(await firstByte(new MapDevice(await readMap(home, map!), home.store, cache)), index + 1)
    }
    assert.equal(existsSync(home.overlayDirectory(disk.cvd.id, first)), false)
    assert.notEqual(disk.cvd.overlay, first)
  })

  it('the lock of a CVD that is removed goes with it, at once or with the next collection', async () => {
    using scratch = new ScratchDirectory('cvd-disk')
    await using home = await homeWithCvd(scratch)
    const locks = () => readdirSync(home.runDirectory).filter((name) => name.endsWith('.lock'))
    await home.catalog.createCvd({ name: 'other', layers: ['base'] })
    for (const name of [CVD, 'other']) (await ownCvd(home, name)).owner[Symbol.dispose]()
    assert.equal(locks().length, 2)
    removeCvdFiles(home, await home.catalog.removeCvd('other'))
    assert.equal(locks().length, 1)
    await removeLeftOverlays(home)
    assert.equal(locks().length, 1)
    await home.catalog.removeCvd(CVD)
    await removeLeftOverlays(home)
    assert.deepEqual(locks(), [])
  })

  it('an overlay that is made while left ones are removed stays', async () => {
    using scratch = new ScratchDirectory('cvd-disk')
    await using home = await homeWithCvd(scratch)
    const cache = ChunkCache.create({ bytesMax: 1 << 20 })
    const left = home.overlayDirectory('gone', 1)
    mkdirSync(left, { recursive: true })
    const overlays = home.catalog.overlays.bind(home.catalog)
    let disk: CvdDisk | undefined
    home.catalog.overlays = async () => {
      const needed = await overlays()
      disk = await CvdDisk.open(CVD, { home, cache })
      return needed
    }
    await removeLeftOverlays(home)
    await using opened = disk!
    assert.equal(existsSync(left), false)
    assert.equal(existsSync(home.overlayDirectory(opened.cvd.id, opened.cvd.overlay!)), true)
  })

  it('whoever waits for the name of a CVD that is removed does not own the next one of that name by it', async () => {
    using scratch = new ScratchDirectory('cvd-disk')
    await using home = await homeWithCvd(scratch)
    const first = await home.catalog.cvd(CVD)
    const cvd = home.catalog.cvd.bind(home.catalog)
    home.catalog.cvd = async (name) => {
      home.catalog.cvd = cvd
      const found = await cvd(name)
      await home.catalog.removeCvd(name)
      await home.catalog.createCvd({ name, layers: ['base'] })
      return found
    }
    const owned = await ownCvd(home, CVD)
    using _owner = owned.owner
    assert.notEqual(owned.cvd.id, first.id)
    await assert.rejects(ownCvd(home, CVD), (error) => isVarveError(error, 'STORE_LOCKED'))
  })
})
