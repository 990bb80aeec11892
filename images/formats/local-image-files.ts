/**
 * Files of this machine that images name: parents, backing files, extents. An image may come from anybody, so what it names is opened only below the directory
 * of the image that the user named, or below those that he allowed besides: docs/decisions/0031-what-images-may-name.md
 */
import fs from 'node:fs'
import { dirname, resolve, sep } from 'node:path'
import type { BlockDevice } from '../device/block-device.ts'
import { FileDevice } from '../device/file-device.ts'
import { VarveError } from '../errors.ts'
import { CHAIN_MAX } from './disk-image.ts'
import type { ImageFiles } from './disk-image.ts'

/** Files that one image may be made of: enough for 2 TiB in parts of 2 GiB. */
const IMAGE_FILES_MAX = 1024 + CHAIN_MAX
const NAME_BYTES_MAX = 4096

/** A file, and what tells it from all others of this machine. */
interface LocalFile {
  file: BlockDevice
  identity: string
}

/**
 * @param name for messages
 * @param isAllowed of a path without symlinks
 * @throws VarveError SOURCE_INVALID
 */
export function openLocalFile(path: string, name: string, isAllowed: (path: string) => boolean = () => true): LocalFile {
  let fd: number | undefined
  try {
    // Looked at first, because it does something to open some devices; then again, because a link may have been changed meanwhile.
    if (!isAllowed(fs.realpathSync(path))) throw notAllowed(name)
    fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
    if (!isAllowed(fs.readlinkSync(`/proc/self/fd/${fd}`))) throw notAllowed(name)
    const stat = fs.fstatSync(fd, { bigint: true })
    if (!stat.isFile() && !stat.isBlockDevice()) throw new VarveError('SOURCE_INVALID', `${name} is neither a file nor a block device`)
    return { file: FileDevice.open({ path: `/proc/self/fd/${fd}`, readOnly: true }), identity: `${stat.dev}:${stat.ino}` }
  } catch (cause) {
    if (cause instanceof VarveError) throw cause
    throw new VarveError('SOURCE_INVALID', `${name} cannot be opened: ${(cause as Error).message}`, { cause })
  } finally {
    if (fd !== undefined) fs.closeSync(fd)
  }
}

function notAllowed(name: string): VarveError {
  return new VarveError('SOURCE_INVALID', `the image names ${name}, which is not below its own directory; allow the directory that it is in, if you trust the image`)
}

interface Scope {
  /** Without symlinks. */
  allowed: readonly string[]
  /** The same directories, and as they were named. Of paths that are not even below these, nothing is found out. */
  named: readonly string[]
  /** Files that were opened in all. */
  count: number
}

export class LocalImageFiles implements ImageFiles {
  readonly #directory: string
  /** The files of the chain above, so that it does not go round. */
  readonly #chain: readonly string[]
  readonly #scope: Scope

  private constructor(directory: string, chain: readonly string[], scope: Scope) {
    this.#directory = directory
    this.#chain = chain
    this.#scope = scope
  }

  /**
   * What the image with `identity` in `directory` may name.
   * @param options.allow further directories
   * @throws VarveError SOURCE_INVALID for one that is not there
   */
  static around(directory: string, { allow, identity }: { allow: readonly string[]; identity: string }): LocalImageFiles {
    try {
      const own = fs.realpathSync(directory)
      // An image in the root directory does not get the whole machine by that.
      const directories = own === sep ? allow : [directory, ...allow]
      const allowed = directories.map((path) => fs.realpathSync(path))
      return new LocalImageFiles(directory, [identity], { allowed, named: [...allowed, ...directories.map((path) => resolve(path))], count: 0 })
    } catch (cause) {
      throw new VarveError('SOURCE_INVALID', `files that images name cannot be looked for: ${(cause as Error).message}`, { cause })
    }
  }

  async open(name: string): Promise<{ file: BlockDevice; files: ImageFiles }> {
    const path = resolve(this.#directory, pathOf(name))
    if (++this.#scope.count > IMAGE_FILES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the image is made of more than ${IMAGE_FILES_MAX} files`)
    if (!isBelow(path, this.#scope.named)) throw notAllowed(JSON.stringify(name))
    const { file, identity } = openLocalFile(path, JSON.stringify(name), (real) => isBelow(real, this.#scope.allowed))
    if (this.#chain.includes(identity)) {
      await file[Symbol.asyncDispose]()
      throw new VarveError('FORMAT_INVALID', `the image lies over itself: ${JSON.stringify(name)} was opened before`)
    }
    return { file, files: new LocalImageFiles(dirname(path), [...this.#chain, identity], this.#scope) }
  }
}

function isBelow(path: string, directories: readonly string[]): boolean {
  return directories.some((directory) => directory === sep || path.startsWith(directory + sep))
}

/** Names may be written as URLs of a file; all else that has a scheme is on another machine, or made up of options. */
function pathOf(name: string): string {
  if (name === '' || name.includes('\0') || Buffer.byteLength(name) > NAME_BYTES_MAX) throw new VarveError('SOURCE_INVALID', 'the image names a file that cannot be one')
  const scheme = /^([a-z][a-z0-9+.-]+):/i.exec(name)?.[1]
  if (scheme === undefined) return name
  if (scheme !== 'file') throw new VarveError('SOURCE_UNSUPPORTED', `the image lies over ${JSON.stringify(name)}, which is not a file of this machine`)
  return name.slice('file:'.length).replace(/^\/\/(localhost)?(?=\/)/, '')
}
