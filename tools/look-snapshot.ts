/**
 * LookSnapshot: a name for what a CVD shows now while somebody reads that, and the snapshot of this name if one has to be taken. It goes with its reader;
 * that of a reader who was killed, with the next.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, openSync, rmSync } from 'node:fs'
import path from 'node:path'
import { isVarveError } from '@varve/images/errors.ts'
import { tryLock } from '@varve/images/native/libc.ts'
import type { Cvd } from '@varve/images/store/catalog.ts'
import type { Home } from '@varve/images/store/home.ts'
import { snapshotName } from './exports.ts'

const PREFIX = 'look-'

/** Snapshots that somebody wants kept, by name. @throws VarveError NOT_FOUND */
export async function keptSnapshots(home: Home, cvd: string): Promise<string[]> {
  return (await home.catalog.snapshots(cvd)).map(({ name }) => name).filter((name) => !name.startsWith(PREFIX))
}

export class LookSnapshot implements AsyncDisposable {
  readonly name: string
  readonly #home: Home
  readonly #cvd: Cvd
  /** Locked until nobody reads any more. */
  readonly #fd: number

  private constructor(home: Home, cvd: Cvd, name: string) {
    this.name = name
    this.#home = home
    this.#cvd = cvd
    this.#fd = openSync(lockFile(home, cvd, name), 'w', 0o600)
    tryLock(this.#fd)
  }

  /** Takes no snapshot yet: whoever takes it names it so. */
  static async open(home: Home, cvd: Cvd): Promise<LookSnapshot> {
    for (const { name } of await home.catalog.snapshots(cvd.name)) {
      if (!name.startsWith(PREFIX) || isLockedFile(lockFile(home, cvd, name))) continue
      await remove(home, cvd, name)
    }
    return new LookSnapshot(home, cvd, `${PREFIX}${snapshotName()}-${randomBytes(3).toString('hex')}`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await remove(this.#home, this.#cvd, this.name)
    } finally {
      closeSync(this.#fd)
    }
  }
}

/** The lock of a snapshot is there before it, and goes after it. */
async function remove(home: Home, cvd: Cvd, name: string): Promise<void> {
  try {
    await home.catalog.removeSnapshot(cvd.name, name)
  } catch (error) {
    // It was not taken, or went with its CVD, or by hand.
    if (!isVarveError(error, 'NOT_FOUND')) throw error
  }
  rmSync(lockFile(home, cvd, name), { force: true })
}

function lockFile(home: Home, cvd: Cvd, name: string): string {
  return path.join(home.runDirectory, `${cvd.id}.${name}`)
}

function isLockedFile(file: string): boolean {
  if (!existsSync(file)) return false
  const fd = openSync(file, 'r')
  try {
    return !tryLock(fd)
  } finally {
    closeSync(fd)
  }
}
