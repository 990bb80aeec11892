/**
 * The life of a stack of overlays on files that keep a log (PowerCutFiles): calls at random, some of them at a time, and what a power cut, or the
 * death of its process, at any moment of it may leave. Subject of overlay-power-cut.test.ts and overlay-faults.test.ts.
 */
import assert from 'node:assert/strict'
import type { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import type { Random } from '../../random.ts'
import { DelayedStore } from './delayed.ts'
import { PowerCutFiles } from './power-cut-files.ts'
import { fillSector, SECTOR_BYTES, SectorHistory, versionIn } from './sector-history.ts'

const DISK_SECTORS = 24 * 8
const DIRECTORY = '/overlays/cvd'

/** What the catalog says at a moment: the map below the stack, and the snapshots that have been acknowledged. */
interface CatalogState {
  moment: number
  map: BlockMap
  snapshots: { generation: number; content: Buffer }[]
}

export class OverlayHistory {
  readonly files: PowerCutFiles
  readonly #random: Random
  readonly #store: MemoryStore
  readonly #catalog: CatalogState[]
  #stack: OverlayStack | undefined
  #sectors!: SectorHistory
  #value: number
  /** From this moment on it can be cut: before, there is the life of a process that was killed. */
  firstMoment = 0
  #livesOn = false
  /** The map that is below the stack now; the catalog's, or a later one. */
  #below: BlockMap

  constructor({ random, files, store, map, snapshots, value }: { random: Random; files: PowerCutFiles; store: MemoryStore; map: BlockMap; snapshots: CatalogState['snapshots']; value: number }) {
    this.#random = random
    this.files = files
    this.#store = store
    this.#catalog = [{ moment: -1, map, snapshots }]
    this.#value = value
    this.#below = map
  }

  options(map: BlockMap, files = this.files): { directory: string; lower: BlockDevice; lowerDigest: Uint8Array; files: PowerCutFiles } {
    const store = this.#random.chance(0.5) ? this.#store : new DelayedStore(this.#store, this.#random)
    return { directory: DIRECTORY, lower: new MapDevice(map, store, ChunkCache.create({ bytesMax: 1 << 20 })), lowerDigest: digestOf(map.encode()), files }
  }

  static async begin(random: Random): Promise<OverlayHistory> {
    return new OverlayHistory({ random, files: new PowerCutFiles(random), ...await firstMap(random), snapshots: [], value: 0 })
  }

  /**
   * Runs some calls at a time until all have been answered.
   * @param mayFail what is thrown is handed to it, and it throws what is not to be; nothing may fail unless it is given
   */
  async run({ steps = this.#random.between(5, 60), mayFail }: { steps?: number; mayFail?: (error: unknown) => void } = {}): Promise<void> {
    if (this.#stack === undefined) {
      this.#stack = await OverlayStack.open(this.options(this.#now.map))
      this.#sectors = new SectorHistory(await contentOf(this.#stack))
      if (this.#livesOn) this.firstMoment = this.files.moment
    }
    const calls: Promise<void>[] = []
    let changing = false
    for (; steps > 0; steps--) {
      let call: Promise<void>
      if (!changing && this.#random.chance(0.1)) {
        changing = true
        call = this.#change().finally(() => { changing = false })
      } else {
        call = this.#random.chance(0.2) ? this.flush() : this.#random.chance(0.2) ? this.#writeOn() : this.#write()
      }
      calls.push(mayFail === undefined ? call : call.catch(mayFail))
      if (this.#random.chance(0.3)) await Promise.all(calls.splice(0))
      else if (this.#random.chance(0.3)) await new Promise<void>(resolve => { setImmediate(resolve) })
    }
    await Promise.all(calls)
  }

  async close(): Promise<void> {
    await this.#stack![Symbol.asyncDispose]()
  }

  get #now(): CatalogState {
    return this.#catalog[this.#catalog.length - 1]
  }

  /** Each as soon as the one before it is answered, which is when a commit ends and the next is about to begin. */
  async #writeOn(): Promise<void> {
    for (let write = 0; write < 4; write++) await this.#write(0.7)
  }

  async #write(fuaChance = 0.1): Promise<void> {
    const first = this.#random.below(DISK_SECTORS)
    const count = Math.min(DISK_SECTORS - first, this.#random.pick([1, 8, 8, 16, this.#random.between(1, 60)]))
    const kind = this.#random.below(4)
    const value = kind === 0 ? 0 : ++this.#value
    const fua = this.#random.chance(fuaChance)
    const { complete, fail } = this.#sectors.begin(first, count, value, this.files.moment)
    try {
      if (kind === 0) {
        await this.#stack!.writeZeroes(first * SECTOR_BYTES, count * SECTOR_BYTES, { fua, noHole: this.#random.chance(0.3) })
      } else {
        const bytes = new Uint8Array(count * SECTOR_BYTES)
        for (let sector = 0; sector < count; sector++) fillSector(bytes, sector, value)
        await this.#stack!.write(bytes, first * SECTOR_BYTES, { fua })
      }
    } catch (error) {
      fail()
      throw error
    }
    complete(this.files.moment, fua)
  }

  async flush(): Promise<void> {
    const acknowledge = this.#sectors.flush()
    const answer = this.#stack!.flush()
    if (answer !== undefined) await answer
    acknowledge(this.files.moment)
  }

  /** A snapshot, or the settling of one, in the order in which a catalog does it. */
  async #change(): Promise<void> {
    if (this.#stack!.frozenGenerations().length === 0 || this.#random.chance(0.5)) {
      const acknowledge = this.#sectors.flush()
      const generation = await this.#stack!.snapshot()
      acknowledge(this.files.moment)
      await using frozen = await OverlayStack.openFrozen({ ...this.options(this.#now.map), generation })
      this.#record({ snapshots: [...this.#now.snapshots, { generation, content: await contentOf(frozen) }] })
      return
    }
    const writer = this.#store.writer()
    const { generation, map } = await this.#stack!.settle(this.#below, writer)
    await writer.commit()
    const snapshot = this.#now.snapshots.find(candidate => candidate.generation === generation)
    if (snapshot !== undefined) assert.ok((await contentOf(this.options(map).lower)).equals(snapshot.content), 'the settled map shows the snapshot')
    await this.#stack!.adopt({ ...this.options(map), generation })
    this.#below = map
    // A catalog that did not get to it: the stack still opens over the map that it knows.
    if (this.#random.chance(0.2)) return
    this.#record({ map, snapshots: this.#now.snapshots.filter(candidate => candidate.generation > generation) })
    if (this.#random.chance(0.8)) await this.#stack!.drop()
  }

  #record(change: Partial<CatalogState>): void {
    this.#catalog.push({ ...this.#now, ...change, moment: this.files.moment })
  }

  /** Opens what a power cut at `moment` leaves, checks it, and gives the history that goes on from there. */
  async cut(moment: number): Promise<OverlayHistory> {
    const catalog = this.#catalogAt(moment)
    const files = new PowerCutFiles(this.#random, this.files.cut(moment, this.#random))
    await this.#check(files, catalog, sector => this.#sectors.allowed(sector, moment))
    return this.#goOn(new PowerCutFiles(this.#random, files.cut(files.moment, this.#random)), catalog)
  }

  /**
   * The same if the process is killed and the system lives: what was not durable before may still be lost later.
   * @param faulty calls that failed may have kept it from noting what was answered: only what was flushed is there
   */
  async kill(moment: number, { faulty = false } = {}): Promise<OverlayHistory> {
    const catalog = this.#catalogAt(moment)
    const remains = this.files.kill(moment, this.#random)
    const files = new PowerCutFiles(this.#random, remains)
    await this.#check(files, catalog, sector => this.#sectors.allowedAfterKill(sector, moment, { faulty }))
    const again = files.kill(this.#random.between(remains.living!.log.length, files.moment), this.#random)
    const next = this.#goOn(new PowerCutFiles(this.#random, again), catalog)
    next.#livesOn = true
    return next
  }

  #catalogAt(moment: number): CatalogState {
    return this.#catalog.findLast(state => state.moment <= moment)!
  }

  #goOn(files: PowerCutFiles, { map, snapshots }: CatalogState): OverlayHistory {
    return new OverlayHistory({ random: this.#random, files, store: this.#store, map, snapshots, value: this.#value })
  }

  async #check(files: PowerCutFiles, catalog: CatalogState, allowedIn: (sector: number) => number[]): Promise<void> {
    await using stack = await OverlayStack.open(this.options(catalog.map, files))
    const content = await contentOf(stack)
    for (let sector = 0; sector < DISK_SECTORS; sector++) {
      const [found, allowed] = [versionIn(content, sector), allowedIn(sector)]
      assert.ok(allowed.includes(found), `sector ${sector} holds ${found}, not one of ${allowed.join(', ')}`)
    }
    for (const snapshot of catalog.snapshots) {
      await using frozen = await OverlayStack.openFrozen({ ...this.options(catalog.map, files), generation: snapshot.generation })
      assert.ok((await contentOf(frozen)).equals(snapshot.content), `snapshot ${snapshot.generation}`)
    }
  }
}

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.from(new ArrayBuffer(device.sizeBytes))
  await device.read(content, 0)
  return content
}

/** A map whose sectors hold versions of their own. */
async function firstMap(random: Random): Promise<{ map: BlockMap; store: MemoryStore }> {
  const store = new MemoryStore()
  const writer = store.writer()
  const builder = new BlockMapBuilder(DISK_SECTORS * SECTOR_BYTES)
  for (let sector = 0; sector < DISK_SECTORS; sector += 8) {
    const bytes = new Uint8Array(8 * SECTOR_BYTES)
    for (let at = 0; at < 8; at++) fillSector(bytes, at, 1_000_000 + sector + at)
    if (random.chance(0.8)) builder.data(sector * SECTOR_BYTES, bytes.length, builder.addChunk(writer.put(bytes), bytes.length), 0)
  }
  await writer.commit()
  return { map: builder.build(), store }
}
