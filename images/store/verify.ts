/**
 * Verification and repair of a pack store. Without repair it changes nothing. Repair makes the index say what the packs hold: it takes in what
 * the index does not know, and gives up what cannot be read. docs/formats/pack.md#repair.
 */
import { closeSync, existsSync, fdatasyncSync, fstatSync, openSync, readSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { digestToHex } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { StoreLock, liveLeases } from './lease.ts'
import { PACK_HEADER_BYTES, packFileName, packHeaderProblem, packIdOfFile } from './pack-format.ts'
import { INDEX_FILE, PackIndex } from './pack-index.ts'
import type { ChunkRow, PackRow } from './pack-index.ts'
import { scanPack } from './pack-scan.ts'
import { dropRows, repack } from './repack.ts'
import { syncPath } from './sync-path.ts'

/** Damage that a report lists one by one; the rest is only counted. */
const DAMAGE_LISTED_MAX = 10_000
const EMPTY = new Uint8Array(0)
const DAMAGED_SUFFIX = '.damaged'

export interface VerifyOptions {
  signal?: AbortSignal
  /** false: headers of records and the index only. */
  readData?: boolean
  repair?: boolean
}

export interface Damage {
  /** Name of the file. */
  file: string
  /** Bytes from its start. */
  offset?: number
  /** Chunk that is lost, hexadecimal, where it is known. */
  digest?: string
  problem: string
}

export interface VerifyReport {
  packs: number
  /** Chunks in the index. */
  chunks: number
  /** Bytes of packs that were looked at. */
  bytes: number
  /** At most 10,000 of it. */
  damage: Damage[]
  damageCount: number
  /** With repair: chunks that the index did not know. */
  chunksRecovered: number
  /** With repair: chunks that are lost; the next import that has them stores them anew. */
  chunksDropped: number
  /** With repair: files that were set aside as `ID.pack.damaged`. */
  packsSetAside: string[]
}

/** @throws VarveError STORE_LOCKED if a collection or another verification runs; INDEX_INVALID if only PackStore.rebuild can help; HOME_INVALID for packs of a newer version */
export async function verify(directory: string, index: PackIndex, options: VerifyOptions & { rebuilding?: boolean }): Promise<VerifyReport> {
  const lock = StoreLock.take(directory, 'collect', { mode: 'exclusive', wait: false })
  try {
    return await new Verification(directory, index, options).run()
  } finally {
    lock[Symbol.dispose]()
  }
}

/** Makes the index of a directory anew from its packs. The caller holds the store's lock exclusively. */
export async function rebuildIndex(directory: string, options: { signal?: AbortSignal }): Promise<VerifyReport> {
  const temporary = join(directory, `${INDEX_FILE}.new`)
  for (const suffix of ['', '-wal', '-shm']) rmSync(temporary + suffix, { force: true })
  const index = PackIndex.openFile(temporary, { create: true })
  let report
  try {
    report = await verify(directory, index, { ...options, repair: true, rebuilding: true })
  } finally {
    index.close()
  }
  syncPath(temporary)
  // The log of the old index must not be applied to the new one. Stopped in between there is no index, and the next opening says so.
  for (const suffix of ['', '-wal', '-shm']) rmSync(join(directory, INDEX_FILE + suffix), { force: true })
  renameSync(temporary, join(directory, INDEX_FILE))
  syncPath(directory)
  return report
}

class Verification {
  readonly #directory: string
  readonly #index: PackIndex
  readonly #signal: AbortSignal | undefined
  readonly #readData: boolean
  readonly #repair: boolean
  /** The index is new: that it does not know the packs is no damage. */
  readonly #rebuilding: boolean
  readonly #report: VerifyReport = { packs: 0, chunks: 0, bytes: 0, damage: [], damageCount: 0, chunksRecovered: 0, chunksDropped: 0, packsSetAside: [] }
  readonly #damagedPacks = new Set<PackRow>()
  /** Chunks whose rows were dropped. */
  readonly #lost: Digest[] = []

  constructor(directory: string, index: PackIndex, { signal, readData = true, repair = false, rebuilding = false }: VerifyOptions & { rebuilding?: boolean }) {
    this.#directory = directory
    this.#index = index
    this.#signal = signal
    // What is taken into the index is read before.
    this.#readData = readData || repair
    this.#repair = repair
    this.#rebuilding = rebuilding
  }

  async run(): Promise<VerifyReport> {
    this.#checkIndex()
    this.#findUnknownPacks()
    const { packs, rowsOf, writing } = this.#snapshot()
    for (const pack of packs) {
      this.#signal?.throwIfAborted()
      this.#checkPack(pack, { rows: rowsOf.get(pack.pack) ?? 0, finished: pack.lease === null || !writing.has(pack.lease) })
      await new Promise(setImmediate)
    }
    this.#checkPackless()
    if (this.#repair) {
      await this.#setAside(writing)
      this.#report.chunksDropped = this.#findSecondCopies()
    }
    this.#report.packs = packs.length
    this.#report.chunks = this.#index.run(() => this.#index.database.prepare('SELECT count(*) FROM chunks').pluck().get()) as number
    return this.#report
  }

  /** @param pack if its file is damaged, not only what the index says of it */
  #damage(damage: Damage, pack?: PackRow): void {
    if (pack !== undefined) this.#damagedPacks.add(pack)
    this.#report.damageCount++
    if (this.#report.damage.length < DAMAGE_LISTED_MAX) this.#report.damage.push(damage)
  }

  #checkIndex(): void {
    const result = this.#index.run(() => this.#index.database.pragma('integrity_check(1)', { simple: true }))
    if (result !== 'ok') throw new VarveError('INDEX_INVALID', `${join(this.#directory, INDEX_FILE)} is damaged (${String(result)}); run 'varve verify --repair'`)
  }

  /** Files that have no row: the index is older than they are. A row always comes before its file. */
  #findUnknownPacks(): void {
    const files = readdirSync(this.#directory).map(packIdOfFile).filter((id) => id !== undefined)
    const known = new Set(this.#index.packs().map(({ id }) => id))
    for (const id of files) {
      // A writer that ends without a commit takes its file away, and then its row.
      if (known.has(id) || !existsSync(join(this.#directory, packFileName(id)))) continue
      if (!this.#rebuilding) this.#damage({ file: packFileName(id), problem: 'the index does not know this pack' })
      if (this.#repair) this.#index.addPack(id, null)
    }
  }

  /** Packs, how many rows name each up to its committed length, and the leases of those who write: all of one moment. */
  #snapshot(): { packs: PackRow[]; rowsOf: Map<number, number>; writing: Set<number> } {
    return this.#index.transaction(() => ({
      packs: this.#index.packs(),
      rowsOf: new Map(this.#index.database.prepare('SELECT pack, count(*) FROM chunks GROUP BY pack').raw().all() as [number, number][]),
      writing: new Set(liveLeases(this.#directory, this.#index).map(({ lease }) => lease)),
    }))
  }

  #checkPack(pack: PackRow, { rows, finished }: { rows: number; finished: boolean }): void {
    const file = packFileName(pack.id)
    const fd = openIfThere(join(this.#directory, file))
    if (fd === undefined) {
      // A pack is entered before its file is made, and one that holds no chunk any more loses its file before its row.
      if (rows === 0) return
      this.#damage({ file, problem: 'the file is missing' }, pack)
      return
    }
    try {
      const fileBytes = fstatSync(fd).size
      if (fileBytes < pack.bytes) this.#damage({ file, offset: fileBytes, problem: `the file ends here; ${pack.bytes} bytes were committed` }, pack)
      this.#scan(fd, pack, { rows, to: this.#repair && finished ? fileBytes : Math.min(fileBytes, pack.bytes) })
    } finally {
      closeSync(fd)
    }
  }

  #scan(fd: number, pack: PackRow, { rows, to }: { rows: number; to: number }): void {
    const file = packFileName(pack.id)
    const matched = new Map<number, Digest>()
    const recovered: ChunkRow[] = []
    let uncertain: Damage[] = []
    let goodEnd = 0
    for (const { offset, length, header, problem } of scanPack(fd, { to, readData: this.#readData })) {
      this.#report.bytes += length
      const found: Damage | undefined = problem === undefined ? undefined : { file, offset, digest: header && digestToHex(header.digest), problem }
      if (offset < pack.bytes) {
        if (found !== undefined) this.#damage(found, pack)
        if (header !== undefined && this.#isNamed({ ...header, pack: pack.pack, offset }, file)) matched.set(offset, header.digest)
      } else if (found !== undefined) {
        // Behind the committed length it is damage only if something good follows: otherwise a writer was killed here.
        uncertain.push(found)
      } else {
        for (const damage of uncertain) this.#damage(damage, pack)
        uncertain = []
        recovered.push({ ...header!, pack: pack.pack, offset })
        goodEnd = offset + length
      }
    }
    this.#checkHeader(fd, pack, goodEnd)
    if (matched.size < rows) this.#findLostRows(pack, matched)
    if (recovered.length === 0) return
    // Whoever wrote this may have been killed before it was durable; the index counts on it from now on.
    fdatasyncSync(fd)
    syncPath(this.#directory)
    this.#recover(recovered, pack, goodEnd)
  }

  #checkHeader(fd: number, pack: PackRow, goodEnd: number): void {
    if (pack.bytes === 0 && goodEnd === 0) return
    const header = Buffer.alloc(PACK_HEADER_BYTES)
    const problem = packHeaderProblem(header.subarray(0, readSync(fd, header, 0, PACK_HEADER_BYTES, 0)), pack.id)
    if (problem?.startsWith('version') === true) throw new VarveError('HOME_INVALID', `${join(this.#directory, packFileName(pack.id))}: ${problem}`)
    if (problem !== undefined) this.#damage({ file: packFileName(pack.id), offset: 0, problem }, pack)
  }

  /** True if the chunk's row names this record. A row that names another record is no damage: the chunk was stored twice. */
  #isNamed(record: ChunkRow, file: string): boolean {
    const row = this.#index.find(record.digest)
    if (row === undefined || row.pack !== record.pack || row.offset !== record.offset) return false
    if (row.stored !== record.stored || row.raw !== record.raw || row.codec !== record.codec) {
      this.#damage({ file, offset: record.offset, digest: digestToHex(record.digest), problem: 'the index says other lengths or another codec' })
      if (this.#repair) this.#forget([record])
    }
    return true
  }

  /**
   * Rows that name a place of the pack where their record is not. If the pack is damaged, repacking it by its rows saves what can be saved;
   * otherwise it is the row that is wrong.
   */
  #findLostRows(pack: PackRow, matched: Map<number, Digest>): void {
    const select = this.#index.database.prepare('SELECT digest, pack, offset FROM chunks WHERE pack = ? AND offset < ?')
    const rows = (this.#index.run(() => select.all(pack.pack, pack.bytes)) as ChunkRow[]).filter(({ offset, digest }) => Buffer.compare(matched.get(offset) ?? EMPTY, digest) !== 0)
    for (const { digest, offset } of rows) {
      this.#damage({ file: packFileName(pack.id), offset, digest: digestToHex(digest), problem: 'the index names a record here, but there is none' })
    }
    if (this.#repair && !this.#damagedPacks.has(pack)) this.#forget(rows)
  }

  #forget(rows: ChunkRow[]): void {
    dropRows(this.#index, rows)
    this.#lost.push(...rows.map(({ digest }) => digest))
  }

  #recover(recovered: ChunkRow[], pack: PackRow, goodEnd: number): void {
    const count = () => this.#index.run(() => this.#index.database.prepare('SELECT count(*) FROM chunks WHERE pack = ?').pluck().get(pack.pack)) as number
    const before = count()
    this.#index.addChunks(recovered, [{ pack: pack.pack, bytes: goodEnd }])
    this.#report.chunksRecovered += count() - before
  }

  /** Rows whose pack the index itself does not know. */
  #checkPackless(): void {
    const select = this.#index.database.prepare('SELECT digest, pack, offset FROM chunks WHERE pack NOT IN (SELECT pack FROM packs)')
    const rows = this.#index.run(() => select.all()) as ChunkRow[]
    for (const { digest } of rows) this.#damage({ file: INDEX_FILE, digest: digestToHex(digest), problem: 'the chunk lies in a pack that the index does not know' })
    if (this.#repair) this.#forget(rows)
  }

  /**
   * Copies what is good in damaged packs, gives up the rest, and renames the files, so that nothing reads them again.
   * One that a living writer appends to is left for a later repair: its next commit would name a pack that has gone.
   */
  async #setAside(writing: Set<number>): Promise<void> {
    const finished = [...this.#damagedPacks].filter(({ lease }) => lease === null || !writing.has(lease))
    const result = await repack(this.#directory, this.#index, finished, {
      damaged: 'drop',
      signal: this.#signal,
      retire: (pack) => {
        const name = packFileName(pack.id)
        try {
          renameSync(join(this.#directory, name), join(this.#directory, name + DAMAGED_SUFFIX))
          this.#report.packsSetAside.push(name + DAMAGED_SUFFIX)
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
        }
      },
    })
    this.#lost.push(...result.dropped)
  }

  /** Chunks that lost their row may lie in a pack a second time. @returns how many do not */
  #findSecondCopies(): number {
    const wanted = new Set(this.#lost.map(digestToHex))
    for (const pack of wanted.size === 0 ? [] : this.#index.packs()) {
      const fd = openIfThere(join(this.#directory, packFileName(pack.id)))
      if (fd === undefined) continue
      try {
        const found: ChunkRow[] = []
        for (const { offset, header, problem } of scanPack(fd, { to: pack.bytes, readData: true })) {
          if (problem === undefined && wanted.delete(digestToHex(header!.digest))) found.push({ ...header!, pack: pack.pack, offset })
        }
        this.#index.addChunks(found, [])
      } finally {
        closeSync(fd)
      }
    }
    return wanted.size
  }
}

function openIfThere(path: string): number | undefined {
  try {
    return openSync(path, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
