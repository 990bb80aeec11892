/**
 * Pack index: where each chunk lies, in SQLite (`index.db`). All that it knows of chunks can be had again from the packs
 * (verify.ts); leases and marks of a collection live here only. Tables, and who changes what when: docs/formats/pack.md#index.
 */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { CODECS } from '../chunk/codec.ts'
import type { Codec } from '../chunk/codec.ts'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX } from '../chunk/limits.ts'
import { VarveError } from '../errors.ts'
import { packIdOfFile } from './pack-format.ts'

export const INDEX_FILE = 'index.db'
/** 'VRVI' */
const APPLICATION_ID = 0x56525649
const INDEX_VERSION = 1
/** How long a transaction waits for another process's. */
const BUSY_TIMEOUT_MS = 120_000
const CACHE_BYTES = 32 << 20

const SCHEMA = `
CREATE TABLE packs (
  pack INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  lease INTEGER
);
CREATE TABLE chunks (
  digest BLOB PRIMARY KEY,
  pack INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  raw INTEGER NOT NULL,
  codec INTEGER NOT NULL,
  condemned INTEGER
) WITHOUT ROWID;
CREATE TABLE leases (
  lease INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  sequence INTEGER NOT NULL,
  holder TEXT NOT NULL
);
CREATE TABLE state (sequence INTEGER NOT NULL);
INSERT INTO state VALUES (1);
`

/** Where a chunk lies. */
export interface ChunkPlace {
  /** Number of the pack, by which rows name it; never used again. */
  pack: number
  /** Of the record's header, from the start of the pack. */
  offset: number
  stored: number
  raw: number
  codec: Codec
}

export interface ChunkRow extends ChunkPlace {
  digest: Digest
}

export interface PackRow {
  pack: number
  /** 32 hexadecimal digits */
  id: string
  /** Committed length. */
  bytes: number
  /** Lease of the writer that still appends to it. */
  lease: number | null
}

export interface LeaseRow {
  lease: number
  name: string
  sequence: number
  holder: string
}

type RawChunk = [pack: number, offset: number, stored: number, raw: number, codec: number]

export class PackIndex {
  readonly #path: string
  /** For statements of collection and verification; errors are translated by `run`. */
  readonly database: Database.Database
  readonly #find: Database.Statement
  readonly #isKept: Database.Statement
  readonly #insert: Database.Statement
  readonly #insertPack: Database.Statement
  readonly #growPack: Database.Statement
  readonly #packById: Database.Statement

  private constructor(path: string, database: Database.Database) {
    this.#path = path
    this.database = database
    this.#find = database.prepare('SELECT pack, offset, stored, raw, codec FROM chunks WHERE digest = ?').raw()
    this.#isKept = database.prepare('SELECT 1 FROM chunks WHERE digest = ? AND condemned IS NULL').pluck()
    this.#insert = database.prepare(`INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, NULL) ON CONFLICT (digest) DO UPDATE SET
      pack = excluded.pack, offset = excluded.offset, stored = excluded.stored, raw = excluded.raw, codec = excluded.codec, condemned = NULL
      WHERE chunks.condemned IS NOT NULL`)
    this.#insertPack = database.prepare('INSERT INTO packs (id, bytes, lease) VALUES (?, 0, ?)')
    this.#growPack = database.prepare('UPDATE packs SET bytes = max(bytes, ?) WHERE pack = ?')
    this.#packById = database.prepare('SELECT pack, id, bytes, lease FROM packs WHERE pack = ?')
  }

  /**
   * Opens the index of a store. The caller holds the store's lock: exclusively if the index does not exist yet.
   * @throws VarveError INDEX_INVALID, HOME_INVALID (newer version)
   */
  static open(directory: string, options: { cacheBytes?: number } = {}): PackIndex {
    const path = join(directory, INDEX_FILE)
    return translated(path, () => {
      const isNew = !existsSync(path)
      if (isNew && hasPacks(directory)) throw new VarveError('INDEX_INVALID', `${path} is missing, but there are packs; run 'varve verify --repair'`)
      return PackIndex.openFile(path, { create: isNew || !hasPacks(directory), ...options })
    })
  }

  /** Opens one file, and makes its tables if it is empty and `create` says so. @param options `cacheBytes`: of the file, in memory */
  static openFile(path: string, options: { create: boolean; cacheBytes?: number }): PackIndex {
    return translated(path, () => {
      const database = new Database(path, { timeout: BUSY_TIMEOUT_MS })
      try {
        database.pragma('journal_mode = WAL')
        database.pragma('synchronous = FULL')
        database.pragma(`cache_size = -${(options.cacheBytes ?? CACHE_BYTES) >> 10}`)
        prepareSchema(path, database, options.create)
        return new PackIndex(path, database)
      } catch (error) {
        database.close()
        throw error
      }
    })
  }

  close(): void {
    this.database.close()
  }

  /** Where a chunk lies, be it condemned or not. */
  find(digest: Digest): ChunkPlace | undefined {
    let row
    try {
      row = this.#find.get(digest) as RawChunk | undefined
    } catch (error) {
      throw translatedError(this.#path, error)
    }
    return row && this.checkedPlace(row[0], row[1], row[2], row[3], row[4])
  }

  /** True if a chunk is there and not condemned, so that a writer that holds a lease may count on it. */
  isKept(digest: Digest): boolean {
    try {
      return this.#isKept.get(digest) !== undefined
    } catch (error) {
      throw translatedError(this.#path, error)
    }
  }

  /** `isKept` of many, 32 bytes each; by digest 1 or 0. One transaction for all: without it, each look-up would lock the index and look for changes. */
  areKept(digests: Uint8Array): Uint8Array {
    const kept = new Uint8Array(digests.length / DIGEST_BYTES)
    this.run(() =>
      this.database.transaction(() => {
        for (let at = 0; at < kept.length; at++) if (this.#isKept.get(digests.subarray(at * DIGEST_BYTES, (at + 1) * DIGEST_BYTES)) !== undefined) kept[at] = 1
      })(),
    )
    return kept
  }

  /** The columns of a row as they may be. @throws VarveError INDEX_INVALID */
  checkedPlace(pack: number, offset: number, stored: number, raw: number, codec: number): ChunkPlace {
    if (!(Number.isSafeInteger(offset) && offset >= 0 && raw >= 1 && raw <= CHUNK_BYTES_MAX && stored >= 1 && stored <= raw) || CODECS[codec] === undefined) {
      throw invalid(this.#path)
    }
    return { pack, offset, stored, raw, codec: CODECS[codec] }
  }

  /** A pack by its number. */
  pack(pack: number): PackRow | undefined {
    return this.run(() => this.#packById.get(pack)) as PackRow | undefined
  }

  packs(): PackRow[] {
    return this.run(() => this.database.prepare('SELECT pack, id, bytes, lease FROM packs ORDER BY pack').all()) as PackRow[]
  }

  /** Enters a pack before its file is made, so that there is no file that the index does not know. @returns its number */
  addPack(id: string, lease: number | null): number {
    return this.transaction(() => Number(this.#insertPack.run(id, lease).lastInsertRowid))
  }

  /**
   * Makes chunks visible: rows and the length of their packs that is good, in one durable transaction.
   * A chunk that another writer has brought meanwhile keeps its row, unless it is condemned.
   * @param chunks are sorted here: neighbours in the tree of the index are written together
   */
  addChunks(chunks: ChunkRow[], packs: Iterable<{ pack: number; bytes: number }>): void {
    chunks.sort((a, b) => Buffer.compare(a.digest, b.digest))
    this.transaction(() => {
      for (const { digest, pack, offset, stored, raw, codec } of chunks) this.#insert.run(digest, pack, offset, stored, raw, CODECS.indexOf(codec))
      for (const { pack, bytes } of packs) this.#growPack.run(bytes, pack)
    })
  }

  /** Runs `work` in one transaction that holds the write lock from its start. Durable when it returns. */
  transaction<T>(work: () => T): T {
    return this.run(() => this.database.transaction(work).immediate())
  }

  /** As `transaction`, but a power cut may undo it: for what does not outlive processes anyway. Saves a wait for the disk. */
  transientTransaction<T>(work: () => T): T {
    this.database.pragma('synchronous = NORMAL')
    try {
      return this.transaction(work)
    } finally {
      this.database.pragma('synchronous = FULL')
    }
  }

  /** Runs `work` and turns SQLite's errors into ours. */
  run<T>(work: () => T): T {
    return translated(this.#path, work)
  }
}

function prepareSchema(path: string, database: Database.Database, create: boolean): void {
  const version = database.pragma('user_version', { simple: true })
  const application = database.pragma('application_id', { simple: true })
  if (version === 0 && application === 0 && create) {
    database.transaction(() => {
      if (database.pragma('user_version', { simple: true }) !== 0) return
      database.exec(SCHEMA)
      database.pragma(`application_id = ${APPLICATION_ID}`)
      database.pragma(`user_version = ${INDEX_VERSION}`)
    }).immediate()
    return
  }
  if (application !== APPLICATION_ID) throw invalid(path)
  if (Number(version) > INDEX_VERSION) throw new VarveError('HOME_INVALID', `${path} is of version ${String(version)}; this program knows ${INDEX_VERSION}: use the newer Varve`)
}

function hasPacks(directory: string): boolean {
  return readdirSync(directory).some((name) => packIdOfFile(name) !== undefined)
}

function invalid(path: string, cause?: unknown): VarveError {
  return new VarveError('INDEX_INVALID', `${path} is not a valid index of chunks; run 'varve verify --repair'`, { cause })
}

function translated<T>(path: string, work: () => T): T {
  try {
    return work()
  } catch (error) {
    throw translatedError(path, error)
  }
}

function translatedError(path: string, error: unknown): unknown {
  if (!(error instanceof Database.SqliteError)) return error
  if (error.code.startsWith('SQLITE_BUSY')) return new VarveError('STORE_LOCKED', `${path} has been locked by another process for ${BUSY_TIMEOUT_MS / 1000} s`, { cause: error })
  return /^SQLITE_(CORRUPT|NOTADB|ERROR|MISMATCH|CONSTRAINT)/.test(error.code) ? invalid(path, error) : error
}
