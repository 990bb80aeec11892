/**
 * The catalog's database: one SQLite file that several processes use at once. Opens it, brings its tables up to date,
 * and begins every transaction that changes something with the right to write, waiting for others without holding up this process.
 */
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import type { Database as Sqlite } from 'better-sqlite3'
import type { DatabaseConnection, Kysely, TransactionSettings } from 'kysely'
import { VarveError } from '../errors.ts'
import { CATALOG_MIGRATIONS, CATALOG_VERSION } from './migrations.ts'
import type { CatalogTables } from './catalog-schema.ts'

/** How long a transaction waits for those of others before it gives up, ms. Each takes a few. */
const LOCK_WAIT_MS_MAX = 60_000
/** How long SQLite itself waits, holding up the process, for locks that last microseconds (recovery, the last close), ms. */
const BUSY_TIMEOUT_MS = 5_000

/** @throws VarveError HOME_INVALID if the file is damaged, is of a newer version, or cannot be opened */
export async function openCatalogDatabase(file: string): Promise<Sqlite> {
  let sqlite: Sqlite | undefined
  try {
    sqlite = new Database(file, { timeout: BUSY_TIMEOUT_MS })
    await whenFree(() => sqlite!.pragma('journal_mode = WAL'))
    sqlite.pragma('synchronous = FULL')
    sqlite.pragma('foreign_keys = ON')
    if (versionOf(sqlite) !== CATALOG_VERSION) await migrate(sqlite)
    return sqlite
  } catch (cause) {
    sqlite?.close()
    if (cause instanceof VarveError) throw cause
    throw new VarveError('HOME_INVALID', `the catalog ${file} cannot be opened: ${(cause as Error).message}`, { cause })
  }
}

function versionOf(sqlite: Sqlite): number {
  return sqlite.pragma('user_version', { simple: true }) as number
}

async function migrate(sqlite: Sqlite): Promise<void> {
  await begin(sqlite)
  try {
    const version = versionOf(sqlite)
    if (version > CATALOG_VERSION) throw new VarveError('HOME_INVALID', `the catalog is of version ${version}, newer than this Varve knows (${CATALOG_VERSION}); use the newer Varve`)
    if (version < CATALOG_VERSION) {
      const { Migrator } = await import('kysely/migration')
      const migrator = new Migrator({ db: await queryBuilder(sqlite), provider: { getMigrations: async () => CATALOG_MIGRATIONS } })
      const { error } = await migrator.migrateToLatest()
      if (error !== undefined) throw error instanceof Error ? error : new Error('the migration failed', { cause: error })
      sqlite.pragma(`user_version = ${CATALOG_VERSION}`)
    }
    sqlite.exec('commit')
  } catch (error) {
    sqlite.exec('rollback')
    throw error
  }
}

/** Kysely is large, and loaded when the first query needs it. */
export async function queryBuilder(sqlite: Sqlite): Promise<Kysely<CatalogTables>> {
  const { Kysely, SqliteDialect, SqliteDriver } = await import('kysely')

  class CatalogDriver extends SqliteDriver {
    override async beginTransaction(_connection: DatabaseConnection, settings?: TransactionSettings): Promise<void> {
      if (settings?.accessMode === 'read only') sqlite.exec('begin')
      else await begin(sqlite)
    }
  }
  class CatalogDialect extends SqliteDialect {
    override createDriver() {
      return new CatalogDriver({ database: sqlite })
    }
  }
  return new Kysely<CatalogTables>({ dialect: new CatalogDialect({ database: sqlite }) })
}

/** Begins a transaction that may write: what it reads stays true until it commits. */
async function begin(sqlite: Sqlite): Promise<void> {
  await whenFree(() => {
    sqlite.pragma('busy_timeout = 0')
    try {
      sqlite.exec('begin immediate')
    } finally {
      sqlite.pragma(`busy_timeout = ${BUSY_TIMEOUT_MS}`)
    }
  })
}

/** Runs `action` until no other process is in its way. The event loop turns in between: the other may be in this very process. */
async function whenFree(action: () => void): Promise<void> {
  const deadlineMs = performance.now() + LOCK_WAIT_MS_MAX
  for (let waitMs = 1; ; waitMs = Math.min(waitMs * 2, 50)) {
    try {
      return action()
    } catch (cause) {
      if (!String((cause as { code?: string }).code).startsWith('SQLITE_BUSY')) throw cause
      if (performance.now() > deadlineMs) throw new VarveError('STORE_LOCKED', `another process has been writing to the catalog for ${LOCK_WAIT_MS_MAX / 1000} s; wait for it, or stop it`, { cause })
    }
    await delay(waitMs * (0.5 + Math.random()))
  }
}
