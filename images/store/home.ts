/**
 * Home: the directory that holds everything Varve knows, and its parts opened together. Layout: docs/formats/home.md
 */
import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readdirSync, readFileSync, renameSync, statSync, unlinkSync, writeSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { VarveError } from '../errors.ts'
import { Catalog } from './catalog.ts'
import { packIdOfFile } from './pack-format.ts'
import { PackStore } from './pack-store.ts'
import { syncPath } from './sync-path.ts'

/** Newest layout of a home that is understood, and the one that is created. */
export const HOME_VERSION = 1

const VERSION_FILE = 'varve-home'
const VERSION_TEXT = /^varve-home ([1-9][0-9]{0,5})\n$/
const SUBDIRECTORIES = ['packs', 'overlays', 'cache', 'run']

/** A home holds password files and people's data: nobody but its owner gets in. */
const DIRECTORY_MODE = 0o700

export class Home implements AsyncDisposable {
  /** Absolute path. */
  readonly directory: string
  readonly store: PackStore
  readonly catalog: Catalog

  private constructor(parts: { directory: string; store: PackStore; catalog: Catalog }) {
    this.directory = parts.directory
    this.store = parts.store
    this.catalog = parts.catalog
  }

  /**
   * Opens a home. Several processes may have one open at once.
   * @param options.create makes one of a directory that is empty or does not exist; default true
   * @throws VarveError HOME_INVALID for a directory of something else, or of a newer version; INDEX_INVALID
   */
  static async open(directory: string, options: { create?: boolean } = {}): Promise<Home> {
    const absolute = resolve(directory)
    const found = homeVersion(absolute)
    if (found === undefined) {
      if (options.create === false) throw new VarveError('HOME_INVALID', `there is no home in ${absolute}`)
      createHome(absolute)
    }
    makeSubdirectories(absolute)
    refuseLostCatalog(absolute)
    const store = PackStore.open(packsDirectory(absolute))
    try {
      return new Home({ directory: absolute, store, catalog: await Catalog.open(catalogFile(absolute)) })
    } catch (error) {
      await store[Symbol.asyncDispose]()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.catalog[Symbol.asyncDispose]()
    } finally {
      await this.store[Symbol.asyncDispose]()
    }
  }

  /** Where all overlays of a CVD are; may not exist. */
  overlaysDirectory(cvdId: string): string {
    return join(this.directory, 'overlays', cvdId)
  }

  /** Makes that directory, durably. */
  makeOverlaysDirectory(cvdId: string): void {
    const made = mkdirSync(this.overlaysDirectory(cvdId), { recursive: true, mode: DIRECTORY_MODE })
    if (made !== undefined) syncPath(join(this.directory, 'overlays'))
  }

  /** Where one overlay stack of a CVD is; its owner makes it. */
  overlayDirectory(cvdId: string, overlay: number): string {
    return join(this.overlaysDirectory(cvdId), String(overlay))
  }

  /** For what can be thrown away at any time; each user has files or a directory of its own in it. */
  get cacheDirectory(): string {
    return join(this.directory, 'cache')
  }

  /** For sockets and locks of running processes. */
  get runDirectory(): string {
    return join(this.directory, 'run')
  }
}

/** Where the home is if nobody says: `$VARVE_HOME`, else `~/.local/share/varve`. */
export function defaultHomeDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  const given = environment.VARVE_HOME
  return given !== undefined && given !== '' ? resolve(given) : join(homedir(), '.local', 'share', 'varve')
}

export function catalogFile(home: string): string {
  return join(home, 'catalog.db')
}

export function packsDirectory(home: string): string {
  return join(home, 'packs')
}

/**
 * A catalog is made with its home, before the first pack. One that is missing later is lost: an empty one in its place would name nothing,
 * and collection would remove everything.
 */
function refuseLostCatalog(home: string): void {
  const file = catalogFile(home)
  if (existsSync(file) || !readdirSync(packsDirectory(home)).some((name) => packIdOfFile(name) !== undefined)) return
  // Another process may have made the catalog, and a pack, since the first look.
  if (!existsSync(file)) throw new VarveError('HOME_INVALID', `${file} is missing, and with it the names of all layers and CVDs; restore it from a copy`)
}

/**
 * Version of the home in a directory; undefined if one can be made there.
 * @throws VarveError HOME_INVALID for a directory of something else, or of a newer version
 */
export function homeVersion(directory: string): number | undefined {
  let text: string
  try {
    text = readFileSync(join(directory, VERSION_FILE), 'latin1')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' && isVacant(directory)) return undefined
    if (code === 'ENOENT') throw new VarveError('HOME_INVALID', `${directory} is not empty and not a home of Varve; name another with --home`)
    throw new VarveError('HOME_INVALID', `${directory} cannot be a home of Varve: ${(cause as Error).message}`, { cause })
  }
  const version = Number(VERSION_TEXT.exec(text)?.[1] ?? Number.NaN)
  if (Number.isNaN(version)) throw new VarveError('HOME_INVALID', `${join(directory, VERSION_FILE)} does not say the version of a home`)
  if (version > HOME_VERSION) throw new VarveError('HOME_INVALID', `the home ${directory} is of version ${version}, newer than this Varve knows (${HOME_VERSION}); use the newer Varve`)
  return version
}

/** True if there is nothing in the directory, but perhaps what an interrupted creation left. */
function isVacant(directory: string): boolean {
  try {
    return readdirSync(directory).every(isTemporary)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true
    throw new VarveError('HOME_INVALID', `${directory} cannot be read: ${(error as Error).message}`, { cause: error })
  }
}

function isTemporary(name: string): boolean {
  return name.startsWith(`${VERSION_FILE}.`)
}

/** The version file comes first, and at once: from then on the directory is a home, and what it lacks is made by the next `open`. */
function createHome(directory: string): void {
  try {
    makeDirectory(directory)
    const temporary = join(directory, `${VERSION_FILE}.${randomBytes(6).toString('hex')}`)
    const fd = openSync(temporary, 'wx', 0o600)
    writeSync(fd, `varve-home ${HOME_VERSION}\n`)
    fsyncSync(fd)
    closeSync(fd)
    renameSync(temporary, join(directory, VERSION_FILE))
    syncPath(directory)
    syncPath(dirname(directory))
    for (const name of readdirSync(directory)) if (isTemporary(name)) removeOld(join(directory, name))
  } catch (cause) {
    throw new VarveError('HOME_INVALID', `no home can be made in ${directory}: ${(cause as Error).message}`, { cause })
  }
}

/** They are durable before anything in them is: a power cut must not take an overlay with its directory. */
function makeSubdirectories(home: string): void {
  const made = SUBDIRECTORIES.map((name) => mkdirSync(join(home, name), { recursive: true, mode: DIRECTORY_MODE }))
  if (made.some((path) => path !== undefined)) syncPath(home)
}

/** With its parents. Node's own way to do so never ends where the kernel allows no directory, as in /proc. */
function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory, { mode: DIRECTORY_MODE })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') return
    if (code !== 'ENOENT' || existsSync(dirname(directory))) throw error
    makeDirectory(dirname(directory))
    mkdirSync(directory, { mode: DIRECTORY_MODE })
  }
}

/** Removes what a creation left that was interrupted; one that runs right now keeps its file. */
function removeOld(file: string): void {
  try {
    if (Date.now() - statSync(file).mtimeMs > 60_000) unlinkSync(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}
