/**
 * The table of FAT and exFAT that links clusters to chains. Read in pages, of which the last used are kept: it may have many gigabytes.
 * Specified by Microsoft's "FAT: General Overview of On-Disk Format", version 1.03, and "exFAT file system specification", section 4.1.
 */
import type { ReadableDisk } from '../../device/block-device.ts'
import { VarveError } from '../../errors.ts'
import { FIRST_CLUSTER } from './geometry.ts'
import { RecentlyUsed } from '../recently-used.ts'

export interface ClusterTableShape {
  /** Of the filesystem, for messages. */
  type: string
  /** Of its first entry on the volume, bytes. */
  offset: number
  /** Of an entry, those that count: 28 of FAT32's 32. */
  bits: 12 | 16 | 28 | 32
  /** Clusters are numbered FIRST_CLUSTER .. FIRST_CLUSTER + clusters - 1. */
  clusters: number
}

/** Neighbouring clusters of a chain. */
export interface ClusterRun {
  cluster: number
  count: number
}

/** Runs of one chain, at most: a file of 4 GiB in clusters of 4 KiB, no two of them neighbours. */
const RUNS_MAX = 1 << 20
/** Entries of the table in one page; even, so that no entry of 12 bits is in two. */
const PAGE_ENTRIES = 1 << 14
const PAGES_MAX = 128
/** Chains of fewer runs are looked through for loops at their end only. */
const LOOP_CHECK_RUNS_MIN = 16

export class ClusterTable {
  /** Behind the last cluster. */
  readonly end: number
  readonly #volume: ReadableDisk
  readonly #shape: ClusterTableShape
  readonly #pages = new RecentlyUsed<Uint32Array>(PAGES_MAX)
  /** An entry that says that its cluster is bad; greater ones end a chain. */
  readonly #bad: number

  constructor(volume: ReadableDisk, shape: ClusterTableShape) {
    this.#volume = volume
    this.#shape = shape
    this.end = FIRST_CLUSTER + shape.clusters
    this.#bad = 2 ** shape.bits - 9
  }

  /** @param number of the entry; below `end` */
  async entry(number: number): Promise<number> {
    return (await this.#page(Math.floor(number / PAGE_ENTRIES)))[number % PAGE_ENTRIES]
  }

  /**
   * The chain that starts at `first`: its first `wanted` clusters, or if that is undefined, all up to its end.
   * @param name of whose chain it is, for messages
   * @throws VarveError FORMAT_INVALID if it is shorter, loops, or leads to free, bad or impossible clusters; LIMIT_EXCEEDED
   */
  async chain(first: number, { wanted, most, name }: { wanted?: number; most: number; name: string }): Promise<ClusterRun[]> {
    const runs: ClusterRun[] = []
    let run: ClusterRun | undefined
    let page: Uint32Array = new Uint32Array()
    let pageNumber = -1
    for (let cluster = first, length = 1; ; length++) {
      if (!this.holds(cluster, 1)) throw this.#invalid(`the clusters of ${name} lead to ${cluster}, which there is not`)
      if (length > most) throw new VarveError('LIMIT_EXCEEDED', `${this.#shape.type}: ${name} has more than ${most} clusters`)
      if (run !== undefined && cluster === run.cluster + run.count) {
        run.count++
      } else {
        // With each doubling: a loop is noticed before it was gone through often.
        if (runs.length >= LOOP_CHECK_RUNS_MIN && (runs.length & (runs.length - 1)) === 0) this.#checkLoop(runs, name)
        if (runs.length === RUNS_MAX) throw new VarveError('LIMIT_EXCEEDED', `${this.#shape.type}: ${name} is in more than ${RUNS_MAX} pieces`)
        runs.push(run = { cluster, count: 1 })
      }
      const number = Math.floor(cluster / PAGE_ENTRIES)
      if (number !== pageNumber) {
        page = await this.#page(number)
        pageNumber = number
      }
      const next = page[cluster % PAGE_ENTRIES]
      if (next < FIRST_CLUSTER) throw this.#invalid(`cluster ${cluster} of ${name} is marked as free`)
      if (next === this.#bad) throw this.#invalid(`cluster ${cluster} of ${name} is marked as bad`)
      if (length === wanted) break
      if (next > this.#bad) {
        if (wanted === undefined) break
        throw this.#invalid(`${name} has ${length} clusters, and its size takes ${wanted}`)
      }
      cluster = next
    }
    this.#checkLoop(runs, name)
    return runs
  }

  /** True if `count` clusters from `cluster` on are some of the volume. */
  holds(cluster: number, count: number): boolean {
    return cluster >= FIRST_CLUSTER && cluster + count <= this.end
  }

  /** Clusters that belong to nothing, in order. */
  async *free(): AsyncGenerator<ClusterRun> {
    let run: ClusterRun | undefined
    for (let at = 0; at < this.end; at += PAGE_ENTRIES) {
      const page = await this.#load(at / PAGE_ENTRIES)
      for (let index = at === 0 ? FIRST_CLUSTER : 0; index < page.length; index++) {
        if (page[index] !== 0) continue
        if (run !== undefined && run.cluster + run.count === at + index) {
          run.count++
        } else {
          if (run !== undefined) yield run
          run = { cluster: at + index, count: 1 }
        }
      }
    }
    if (run !== undefined) yield run
  }

  /** Every cluster has one successor: a chain loops if, and only if, a cluster is in it twice. */
  #checkLoop(runs: readonly ClusterRun[], name: string): void {
    if (runs.every((run, index) => index === 0 || run.cluster > runs[index - 1].cluster + runs[index - 1].count)) return
    // Start and number of each run in one exact double: sorted without objects.
    const keys = Float64Array.from(runs, (run, index) => run.cluster * RUNS_MAX + index).sort()
    let end = 0
    for (const key of keys) {
      const { cluster, count } = runs[key % RUNS_MAX]
      if (cluster < end) throw this.#invalid(`the clusters of ${name} lead back to ${cluster}, which was there before`)
      end = cluster + count
    }
  }

  async #page(number: number): Promise<Uint32Array> {
    let page = this.#pages.get(number)
    if (page === undefined) this.#pages.set(number, page = await this.#load(number))
    return page
  }

  async #load(number: number): Promise<Uint32Array> {
    const first = number * PAGE_ENTRIES
    const count = Math.min(PAGE_ENTRIES, this.end - first)
    const { offset, bits } = this.#shape
    const entryBits = bits === 28 ? 32 : bits
    const bytes = Buffer.alloc(Math.ceil((count * entryBits) / 8))
    await this.#volume.read(bytes, offset + (first * entryBits) / 8)
    const entries = new Uint32Array(count)
    if (bits === 12) {
      for (let index = 0; index < count; index++) {
        const at = (index * 3) >> 1
        entries[index] = (index & 1) === 0 ? bytes[at] | ((bytes[at + 1] & 0xf) << 8) : (bytes[at] >> 4) | (bytes[at + 1] << 4)
      }
    } else if (bits === 16) {
      for (let index = 0; index < count; index++) entries[index] = bytes.readUInt16LE(2 * index)
    } else {
      // The upper four bits of FAT32 are reserved.
      const mask = 2 ** bits - 1
      for (let index = 0; index < count; index++) entries[index] = bytes.readUInt32LE(4 * index) & mask
    }
    return entries
  }

  #invalid(what: string): VarveError {
    return new VarveError('FORMAT_INVALID', `${this.#shape.type}: ${what}`)
  }
}
