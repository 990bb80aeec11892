/**
 * Collection: removes the chunks that no root reaches and no lease protects, while writers and readers go on.
 * The protocol, and why it is right: docs/formats/pack.md#collection and docs/decisions/0003-collection.md.
 */
import { statSync, truncateSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { Digest } from '../chunk/digest.ts'
import { StoreLock, liveLeases, removeStrayLeaseFiles } from './lease.ts'
import { PACK_HEADER_BYTES, RECORD_HEADER_BYTES, packFileName } from './pack-format.ts'
import type { LeaseRow } from './pack-index.ts'
import type { PackIndex, PackRow } from './pack-index.ts'
import { repack, retirePacks } from './repack.ts'

/** A pack with a larger part of dead bytes is copied. */
const DEAD_PART_MAX = 0.25
/** Packs below this size, bytes, are put together when there are so many of them. */
const SMALL_PACK_BYTES = 4 << 20
const SMALL_PACKS_MAX = 32
/** Digests that go into the set of the reachable in one transaction. */
const BATCH_DIGESTS = 10_000

/** Gives the digest of every chunk that any root reaches, repeated or not, from the roots as they are when it is called. */
export type Reachable = () => AsyncIterable<Digest> | Iterable<Digest>

export interface CollectOptions {
  signal?: AbortSignal
  /** Only count what is not reachable. */
  dryRun?: boolean
}

export interface ChunkFigures {
  chunks: number
  /** In packs, headers of records included. */
  bytesStored: number
}

export interface CollectReport {
  /** Distinct chunks that roots reach. */
  chunksReachable: number
  /** Of these, chunks that the store does not have: there is damage, and unfinished packs are left alone. */
  chunksMissing: number
  /** Chunks that no root reaches. */
  unreachable: ChunkFigures
  /** Of these, chunks that were removed. */
  removed: ChunkFigures
  /** Of these, chunks that wait for a later collection because of a lease. */
  waiting: ChunkFigures
  /** Who holds the leases that were alive: `process 123`. */
  holders: string[]
  packsRemoved: number
  packsRepacked: number
  /** Packs that could not be repacked because chunks in them are damaged. */
  packsDamaged: string[]
  /** Bytes that pack files became smaller by. */
  bytesFreed: number
}

/** @throws VarveError STORE_LOCKED if another collection or a verification runs */
export async function collect(directory: string, index: PackIndex, reachable: Reachable, options: CollectOptions): Promise<CollectReport> {
  const lock = StoreLock.take(directory, 'collect', { mode: 'exclusive', wait: false })
  try {
    const report = emptyReport()
    await gatherReachable(index, reachable, options.signal)
    if (options.dryRun === true) return index.run(() => countReachable(index, report))
    condemn(index)
    const leases = leasesBeforeRoots(directory, index)
    await gatherReachable(index, reachable, options.signal)
    sweep(index, leases, report)
    await collectPacks(directory, index, report, options.signal)
    removeStrayLeaseFiles(directory)
    return report
  } finally {
    index.run(() => index.database.exec('DROP TABLE IF EXISTS temp.reachable; DROP TABLE IF EXISTS temp.moved_chunks'))
    lock[Symbol.dispose]()
  }
}

function emptyReport(): CollectReport {
  const none = (): ChunkFigures => ({ chunks: 0, bytesStored: 0 })
  return { chunksReachable: 0, chunksMissing: 0, unreachable: none(), removed: none(), waiting: none(), holders: [], packsRemoved: 0, packsRepacked: 0, packsDamaged: [], bytesFreed: 0 }
}

/** Puts what the caller gives into a temporary table, in place of what is there. */
async function gatherReachable(index: PackIndex, reachable: Reachable, signal: AbortSignal | undefined): Promise<void> {
  const { database } = index
  index.run(() => database.exec('DROP TABLE IF EXISTS temp.reachable; CREATE TEMP TABLE reachable (digest BLOB PRIMARY KEY) WITHOUT ROWID'))
  const insert = database.prepare('INSERT OR IGNORE INTO temp.reachable VALUES (?)')
  let batch: Digest[] = []
  const flush = () => {
    signal?.throwIfAborted()
    batch.sort((a, b) => Buffer.compare(a, b))
    index.run(() => database.transaction(() => batch.forEach((digest) => insert.run(digest)))())
    batch = []
  }
  for await (const digest of reachable()) {
    batch.push(digest)
    if (batch.length >= BATCH_DIGESTS) flush()
  }
  flush()
}

const UNREACHABLE = 'NOT EXISTS (SELECT 1 FROM temp.reachable AS reached WHERE reached.digest = chunks.digest)'
const FIGURES = `count(*) AS chunks, coalesce(sum(stored + ${RECORD_HEADER_BYTES}), 0) AS bytesStored`

function countReachable(index: PackIndex, report: CollectReport): CollectReport {
  const { database } = index
  report.chunksReachable = database.prepare('SELECT count(*) FROM temp.reachable').pluck().get() as number
  report.chunksMissing = database.prepare('SELECT count(*) FROM temp.reachable AS reached WHERE NOT EXISTS (SELECT 1 FROM main.chunks AS chunks WHERE chunks.digest = reached.digest)').pluck().get() as number
  report.unreachable = database.prepare(`SELECT ${FIGURES} FROM main.chunks AS chunks WHERE ${UNREACHABLE}`).get() as ChunkFigures
  return report
}

/** From here on no writer counts on a chunk that was not reachable; those that may have counted on it before hold older leases. */
function condemn(index: PackIndex): void {
  index.transaction(() => {
    const sequence = nextSequence(index)
    index.database.prepare(`UPDATE main.chunks AS chunks SET condemned = ? WHERE condemned IS NULL AND ${UNREACHABLE}`).run(sequence)
  })
}

/**
 * The leases that are alive before the roots are read for the second time. Whoever ended before wrote its roots before, so the reading finds them;
 * whoever begins later gets a higher number.
 */
function leasesBeforeRoots(directory: string, index: PackIndex): LeaseRow[] {
  return index.transaction(() => {
    nextSequence(index)
    return liveLeases(directory, index)
  })
}

function nextSequence(index: PackIndex): number {
  return index.database.prepare('UPDATE state SET sequence = sequence + 1 RETURNING sequence').pluck().get() as number
}

/** Removes what is condemned, still not reachable, and was condemned before every lease began; takes back what is reachable after all. */
function sweep(index: PackIndex, leases: LeaseRow[], report: CollectReport): void {
  const oldest = leases.reduce((least, { sequence }) => Math.min(least, sequence), Number.MAX_SAFE_INTEGER)
  report.holders = leases.map(({ holder }) => holder)
  index.transaction(() => {
    countReachable(index, report)
    const swept = `condemned < ? AND ${UNREACHABLE}`
    report.removed = index.database.prepare(`SELECT ${FIGURES} FROM main.chunks AS chunks WHERE ${swept}`).get(oldest) as ChunkFigures
    index.database.prepare(`DELETE FROM main.chunks AS chunks WHERE ${swept}`).run(oldest)
    index.database.prepare(`UPDATE main.chunks AS chunks SET condemned = NULL WHERE condemned IS NOT NULL AND NOT (${UNREACHABLE})`).run()
    report.waiting = index.database.prepare(`SELECT ${FIGURES} FROM main.chunks AS chunks WHERE condemned IS NOT NULL`).get() as ChunkFigures
  })
}

interface PackUse extends PackRow {
  fileBytes: number
  liveBytes: number
}

/** Takes away packs without chunks, repacks those with many dead bytes, and cuts off what killed writers left behind. */
async function collectPacks(directory: string, index: PackIndex, report: CollectReport, signal: AbortSignal | undefined): Promise<void> {
  const packs = finishedPacks(directory, index)
  // If reachable chunks are missing, the index may be older than the packs: what it does not know may be what is missing.
  const trusted = report.chunksMissing === 0 ? packs : packs.filter((pack) => pack.bytes >= pack.fileBytes)
  const dead = trusted.filter((pack) => pack.liveBytes === 0)
  retirePacks(directory, index, dead, (pack) => removeFile(directory, pack))
  report.packsRemoved = dead.length
  report.bytesFreed += dead.reduce((sum, { fileBytes }) => sum + fileBytes, 0)

  const live = trusted.filter((pack) => pack.liveBytes > 0)
  const small = live.filter((pack) => pack.fileBytes < SMALL_PACK_BYTES)
  const worthIt = (pack: PackUse) => pack.fileBytes - PACK_HEADER_BYTES - pack.liveBytes > DEAD_PART_MAX * pack.fileBytes || (small.length >= SMALL_PACKS_MAX && pack.fileBytes < SMALL_PACK_BYTES)
  const result = await repack(directory, index, live.filter(worthIt), { damaged: 'keep', retire: (pack) => removeFile(directory, pack), signal })
  report.packsRepacked = result.retired.length
  report.packsDamaged = result.kept.map(({ id }) => id)
  const retired = new Set(result.retired.map(({ pack }) => pack))
  for (const pack of live) {
    if (retired.has(pack.pack)) report.bytesFreed += pack.fileBytes
    else if (pack.fileBytes > pack.bytes) {
      truncateSync(join(directory, packFileName(pack.id)), pack.bytes)
      report.bytesFreed += pack.fileBytes - pack.bytes
    }
  }
  report.bytesFreed -= result.bytesWritten
}

/** Packs to which nobody appends any more, with what of them is in use; all as of one moment. */
function finishedPacks(directory: string, index: PackIndex): PackUse[] {
  const packs = index.transaction(() => {
    const live = new Set(liveLeases(directory, index).map(({ lease }) => lease))
    const used = new Map(index.database.prepare(`SELECT pack, sum(stored + ${RECORD_HEADER_BYTES}) FROM chunks GROUP BY pack`).raw().all() as [number, number][])
    return index.packs().filter(({ lease }) => lease === null || !live.has(lease)).map((pack) => ({ ...pack, liveBytes: used.get(pack.pack) ?? 0 }))
  })
  const present: PackUse[] = []
  for (const pack of packs) {
    const fileBytes = statSync(join(directory, packFileName(pack.id)), { throwIfNoEntry: false })?.size
    // A missing file with chunks is damage, and for verify to report.
    if (fileBytes !== undefined || pack.liveBytes === 0) present.push({ ...pack, fileBytes: fileBytes ?? 0 })
  }
  return present
}

function removeFile(directory: string, pack: PackRow): void {
  try {
    unlinkSync(join(directory, packFileName(pack.id)))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}
