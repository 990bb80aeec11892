/**
 * A history of a streamed disk on files that log everything: writes, trims, flushes, fills, in several lives that end by a kill or a power cut.
 * It knows of each sector which contents it may show after any end.
 */
import assert from 'node:assert/strict'
import { StreamedDisk } from '@varve/agent/stream/streamed-disk.ts'
import { Target } from '@varve/agent/stream/target.ts'
import { PowerCutFiles } from '../../images/device/power-cut-files.ts'
import type { Remains } from '../../images/device/power-cut-files.ts'
import type { Random } from '../../random.ts'
import { randomDisk } from './streaming.ts'
import type { SourceDisk } from './streaming.ts'

const SECTOR_BYTES = 512
const PATH = '/target'
/** Moments before the first of a life: what was durable when it began, and what was not. */
const DURABLE = -2
const ANSWERED = -1

/** A content that a sector has had, with the moments between which it was written. */
interface Version {
  bytes: Buffer
  began: number
  ended: number
  /** When it was durable by itself. */
  forced: number
}

interface Flush {
  began: number
  ended: number
}

export class TargetHistory {
  readonly #random: Random
  readonly #source: SourceDisk
  readonly files: PowerCutFiles
  readonly #target: Target
  readonly #disk: StreamedDisk
  /** Where this life began. */
  readonly firstMoment: number
  /** By sector, oldest first; the first was durable when this life began. */
  readonly #versions: Version[][]
  readonly #flushes: Flush[] = []
  #isCompleting = false

  private constructor(parts: { random: Random; source: SourceDisk; files: PowerCutFiles; target: Target; versions: Version[][] }) {
    this.#random = parts.random
    this.#source = parts.source
    this.files = parts.files
    this.#target = parts.target
    this.#versions = parts.versions
    this.firstMoment = parts.files.moment
    this.#disk = new StreamedDisk({ target: parts.target, want: (chunks) => this.#give(chunks) })
  }

  static async begin(random: Random): Promise<TargetHistory> {
    const source = randomDisk(random, { sizeBytes: SECTOR_BYTES * random.between(1, 400), chunkBytesMax: random.pick([5000, 40_000]) })
    const files = new PowerCutFiles(random)
    const target = await Target.create({ path: PATH, map: source.map, note: { cvd: 'desk' }, files })
    const versions = sectors(source.content).map((bytes) => [{ bytes, began: ANSWERED, ended: DURABLE, forced: Infinity }])
    return new TargetHistory({ random, source, files, target, versions })
  }

  get isComplete(): boolean {
    return this.#target.isComplete
  }

  async run(): Promise<void> {
    const random = this.#random
    const waiting: Promise<void>[] = []
    for (let step = random.between(1, 40); step > 0; step--) {
      const done = this.#step()
      if (random.chance(0.8)) await done
      // No two calls change one sector at a time: which is last would be nobody's knowledge.
      else waiting.push(done)
      if (waiting.length > 3 || random.chance(0.5)) await Promise.all(waiting.splice(0))
    }
    await Promise.all(waiting)
  }

  /** All that lacks comes, and the target becomes a plain disk while it is written to. */
  async complete(): Promise<void> {
    await this.#disk.settleSuspects()
    for (let round = 0; round < 3 && !this.#target.isComplete; round++) {
      await this.#give(this.#source.chunks.map((_, chunk) => chunk))
      this.#disk.installZeroes(0, this.#target.blockCount)
    }
    assert.ok(this.#target.isComplete)
    this.#isCompleting = true
    const completed = this.#target.complete()
    await this.run()
    await completed
    await this.run()
  }

  async close(): Promise<void> {
    const began = this.files.moment
    await this.#disk[Symbol.asyncDispose]()
    await this.#target[Symbol.asyncDispose]()
    this.#flushes.push({ began, ended: this.files.moment })
  }

  /** What is there after the power has failed at a moment: everything that was flushed. */
  cut(moment: number): Promise<TargetHistory | undefined> {
    return this.#next(this.files.cut(moment, this.#random), moment, { isKilled: false })
  }

  /** What is there after the process was killed at a moment: everything that was answered. */
  kill(moment: number): Promise<TargetHistory | undefined> {
    return this.#next(this.files.kill(moment, this.#random), moment, { isKilled: true })
  }

  async #next(remains: Remains, moment: number, { isKilled }: { isKilled: boolean }): Promise<TargetHistory | undefined> {
    const files = new PowerCutFiles(this.#random, remains)
    const target = await Target.open(PATH, { files })
    const shown = Buffer.alloc(this.#source.content.length)
    let next: TargetHistory | undefined
    if (target === undefined || target === 'complete') {
      assert.ok(this.#isCompleting, 'the target is there')
      const fd = files.open(PATH, 'read')
      assert.equal(files.sizeBytes(fd), shown.length, 'it is a plain disk')
      files.read(fd, shown, 0)
    } else {
      assert.deepEqual(target.note, { cvd: 'desk' })
      next = new TargetHistory({ random: this.#random, source: this.#source, files, target, versions: [] })
      if (this.#random.chance(0.3)) await next.#disk.settleSuspects()
      await next.#readAll(shown)
    }
    const flushed = Math.max(DURABLE, ...this.#flushes.filter(({ ended }) => ended <= moment).map(({ began }) => began))
    for (const [sector, bytes] of sectors(shown).entries()) {
      // A kill may leave the beginning of the write that was about to be done.
      const versions = this.#versions[sector].filter(({ began }) => began < moment || (isKilled && began === moment))
      const durable = versions.findLastIndex(({ ended, forced }) => ended <= flushed || forced <= moment)
      const oldest = isKilled ? versions.findLastIndex(({ ended }) => ended <= moment) : durable
      const found = versions.findLastIndex((version, index) => index >= oldest && version.bytes.equals(bytes))
      assert.ok(found >= 0, `sector ${sector} shows none of the ${versions.length - oldest} contents that it may have after ${isKilled ? 'a kill' : 'a power cut'}`)
      // What was shown stays; but what only a process was killed over is in the system's cache, and the power may still fail.
      const kept = isKilled ? versions.slice(durable, found + 1) : [versions[found]]
      if (next !== undefined) next.#versions.push(kept.map((version, index) => ({ bytes: version.bytes, began: ANSWERED, ended: index === 0 ? DURABLE : ANSWERED, forced: Infinity })))
    }
    return next
  }

  async #readAll(into: Buffer): Promise<void> {
    for (let at = 0; at < into.length;) {
      const length = Math.min(into.length - at, this.#random.between(1, 30_000))
      await this.#disk.read(into.subarray(at, at + length), at)
      at += length
    }
  }

  async #step(): Promise<void> {
    const random = this.#random
    const kind = random.below(10)
    if (kind < 4) return this.#write()
    if (kind < 5) return this.#check()
    if (kind < 7) return this.#flush()
    if (kind < 8) this.#disk.installZeroes(0, this.#target.blockCount)
    else if (this.#source.chunks.length > 0) await this.#give(Array.from({ length: random.between(1, 3) }, () => random.below(this.#source.chunks.length)))
  }

  readonly #busy = new Set<number>()

  async #write(): Promise<void> {
    const random = this.#random
    const count = this.#versions.length
    const first = random.below(count)
    const end = Math.min(count, first + random.between(1, random.pick([1, 8, 40])))
    for (let sector = first; sector < end; sector++) if (this.#busy.has(sector)) return
    for (let sector = first; sector < end; sector++) this.#busy.add(sector)
    const isTrim = random.chance(0.2)
    const bytes = isTrim ? Buffer.alloc((end - first) * SECTOR_BYTES) : random.bytes((end - first) * SECTOR_BYTES)
    const began = this.files.moment
    const versions = sectors(bytes).map((content) => ({ bytes: Buffer.from(content), began, ended: Infinity, forced: Infinity }))
    for (const [index, version] of versions.entries()) this.#versions[first + index].push(version)
    const fua = random.chance(0.2)
    await (isTrim ? this.#disk.trim(first * SECTOR_BYTES, bytes.length, { fua }) : this.#disk.write(bytes, first * SECTOR_BYTES, { fua }))
    const ended = this.files.moment
    for (const version of versions) version.ended = ended
    if (fua) for (const version of versions) version.forced = ended
    for (let sector = first; sector < end; sector++) this.#busy.delete(sector)
  }

  async #flush(): Promise<void> {
    const began = this.files.moment
    await this.#disk.flush()
    this.#flushes.push({ began, ended: this.files.moment })
  }

  async #check(): Promise<void> {
    const sector = this.#random.below(this.#versions.length)
    if (this.#busy.has(sector)) return
    const into = Buffer.alloc(SECTOR_BYTES)
    this.#busy.add(sector)
    await this.#disk.read(into, sector * SECTOR_BYTES)
    this.#busy.delete(sector)
    assert.ok(into.equals(this.#versions[sector].at(-1)!.bytes), `sector ${sector} does not show what was written last`)
  }

  async #give(chunks: readonly number[]): Promise<void> {
    for (const chunk of chunks) {
      if (this.#random.chance(0.3)) await new Promise<void>((resolve) => { setImmediate(resolve) })
      this.#disk.install(chunk, this.#source.chunks[chunk])
    }
  }
}

function sectors(bytes: Buffer): Buffer[] {
  return Array.from({ length: Math.ceil(bytes.length / SECTOR_BYTES) }, (_, sector) => bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES))
}
