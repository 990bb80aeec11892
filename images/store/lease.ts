/**
 * Leases: what keeps chunks alive while a process uses them without a root that says so. A lease is a row of the index,
 * with the number of the collection before which it began, and a locked file that proves that its holder lives: it ends with its process,
 * however that ends. What a lease protects: docs/formats/pack.md#collection.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, fstatSync, mkdirSync, openSync, readdirSync, statSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { isMainThread, threadId } from 'node:worker_threads'
import { VarveError } from '../errors.ts'
import { tryLock } from '../native/libc.ts'
import type { LeaseRow, PackIndex } from './pack-index.ts'

const LOCKS = 'locks'
const LEASE_FILE = /^([0-9a-f]{16})\.lease$/
const LOCK_WAIT_MS = 120_000
const LOCK_POLL_MS = 5

export class Lease implements Disposable, AsyncDisposable {
  /** Number of the lease in the index. */
  readonly id: number
  readonly #name: string
  readonly #directory: string
  readonly #index: PackIndex
  #fd: number

  private constructor(directory: string, index: PackIndex, name: string, fd: number) {
    this.#directory = directory
    this.#index = index
    this.#name = name
    this.#fd = fd
    const holder = `process ${process.pid}${isMainThread ? '' : `, thread ${threadId}`}`
    this.id = index.transientTransaction(() => {
      const insert = index.database.prepare('INSERT INTO leases (name, sequence, holder) SELECT ?, sequence, ? FROM state')
      return Number(insert.run(name, holder).lastInsertRowid)
    })
  }

  /** Takes a lease; whoever reads a root or looks for chunks does so after that. @param directory of the store */
  static take(directory: string, index: PackIndex): Lease {
    for (;;) {
      const name = randomBytes(8).toString('hex')
      const fd = lockNewFile(leasePath(directory, name))
      if (fd === undefined) continue
      try {
        return new Lease(directory, index, name, fd)
      } catch (error) {
        closeSync(fd)
        throw error
      }
    }
  }

  /** Ends the lease; whoever wrote a root has it durable before. A second call does nothing. */
  release(): void {
    if (this.#fd < 0) return
    const fd = this.#fd
    this.#fd = -1
    try {
      this.#index.transientTransaction(() => this.#index.database.prepare('DELETE FROM leases WHERE lease = ?').run(this.id))
      unlinkSync(leasePath(this.#directory, this.#name))
    } finally {
      closeSync(fd)
    }
  }

  [Symbol.dispose](): void {
    this.release()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release()
  }
}

/**
 * Leases whose holders live. Rows and files of those that died are removed.
 * The caller is in a transaction: no lease begins meanwhile.
 */
export function liveLeases(directory: string, index: PackIndex): LeaseRow[] {
  const rows = index.database.prepare('SELECT lease, name, sequence, holder FROM leases ORDER BY lease').all() as LeaseRow[]
  const remove = index.database.prepare('DELETE FROM leases WHERE lease = ?')
  return rows.filter((row) => {
    if (!isFree(leasePath(directory, row.name))) return true
    remove.run(row.lease)
    return false
  })
}

/** Removes the files of leases that died between lock and row, or row and file. */
export function removeStrayLeaseFiles(directory: string): void {
  for (const file of readdirSync(join(directory, LOCKS))) if (LEASE_FILE.test(file)) isFree(join(directory, LOCKS, file))
}

function leasePath(directory: string, name: string): string {
  return join(directory, LOCKS, `${name}.lease`)
}

/** A new file with its lock; undefined if a collection took it for a stray one in between. */
function lockNewFile(path: string): number | undefined {
  const fd = openSync(path, 'wx')
  try {
    if (tryLock(fd) && statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino) return fd
    closeSync(fd)
    return undefined
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** True if nobody holds the lock of this file; the file is then removed. */
function isFree(path: string): boolean {
  let fd
  try {
    fd = openSync(path, 'r+')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true
    throw error
  }
  try {
    if (!tryLock(fd)) return false
    unlinkSync(path)
    return true
  } finally {
    closeSync(fd)
  }
}

interface StoreLockOptions {
  mode: 'shared' | 'exclusive'
  wait: boolean
}

/** A lock of the store as a whole. `store`: shared by all who have it open; exclusive to make or rebuild the index. `collect`: one collection or verification at a time. */
export class StoreLock implements Disposable {
  readonly #fd: number

  private constructor(fd: number) {
    this.#fd = fd
  }

  /**
   * @throws VarveError STORE_LOCKED if it is not to be had, at once or, with `wait`, within two minutes
   * @returns undefined if `unless` became true while waiting
   */
  static take(directory: string, name: 'store' | 'collect', options: StoreLockOptions & { unless: () => boolean }): StoreLock | undefined
  static take(directory: string, name: 'store' | 'collect', options: StoreLockOptions): StoreLock
  static take(directory: string, name: 'store' | 'collect', options: StoreLockOptions & { unless?: () => boolean }): StoreLock | undefined {
    const path = join(directory, LOCKS, name)
    mkdirSync(join(directory, LOCKS), { recursive: true })
    const fd = openSync(path, 'a')
    const deadlineMs = performance.now() + (options.wait ? LOCK_WAIT_MS : 0)
    while (!tryLock(fd, options.mode)) {
      const unneeded = options.unless?.() === true
      const late = performance.now() >= deadlineMs
      if (unneeded || late) closeSync(fd)
      if (unneeded) return undefined
      if (late) throw new VarveError('STORE_LOCKED', `${path} is held by another process; wait for it to end, or stop it`)
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LOCK_POLL_MS)
    }
    return new StoreLock(fd)
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd)
  }
}
