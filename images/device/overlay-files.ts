/**
 * OverlayFiles: the few file operations that overlays are made of, so that a test can keep them in a log, replay any part of it
 * that a power cut may leave behind, and open what is there. `localFiles` is the operating system.
 */
import fs from 'node:fs'
import { basename } from 'node:path'
import { promisify } from 'node:util'
import { digestOf } from '../chunk/digest.ts'
import { allocate, punchHole, tryLock } from '../native/libc.ts'
import { blockDeviceBytes } from './file-device.ts'

const fdatasync = promisify(fs.fdatasync)

/** Everything but the syncs completes at once. Errors are those of the operating system. */
export interface OverlayFiles {
  /**
   * `create`: for reading and writing; an existing file keeps its content. A block device is there already, and is opened for writing only if nobody has
   * mounted it or a part of it, and nobody can until it is closed: EBUSY.
   * @returns a file descriptor
   */
  open(path: string, mode: 'read' | 'write' | 'create'): number
  close(fd: number): void
  sizeBytes(fd: number): number
  /** True for a block device, whose size is what it is. */
  isDevice(fd: number): boolean
  exists(path: string): boolean
  /** Fills all of `into`. */
  read(fd: number, into: Uint8Array, offset: number): void
  /** Writes all of `bytes`. */
  write(fd: number, bytes: Uint8Array, offset: number): void
  truncate(fd: number, sizeBytes: number): void
  /** False where the filesystem cannot. */
  punch(fd: number, offset: number, length: number): boolean
  /** False where the filesystem cannot. */
  allocate(fd: number, offset: number, length: number): boolean
  /** The content and size that the file has now are durable when this resolves. */
  sync(fd: number): Promise<void>
  makeDirectory(path: string): void
  /** Names in a directory. */
  list(path: string): string[]
  rename(from: string, to: string): void
  /** Removes a file, or a directory with all that it holds; it need not exist. */
  remove(path: string): void
  /** The names that the directory has now are durable when this resolves. */
  syncDirectory(path: string): Promise<void>
  /** False if another open file has the lock, which dies with its process. */
  tryLock(fd: number): boolean
  /**
   * Names the cache that a file's unsynced content is in, 32 bytes. Where it is the same later, whatever a killed process had written is still there.
   * Undefined if it has no name.
   */
  incarnation(fd: number): Uint8Array | undefined
}

export const localFiles: OverlayFiles = {
  open(path, mode) {
    const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL } = fs.constants
    if (mode !== 'read' && fs.statSync(path, { throwIfNoEntry: false })?.isBlockDevice()) return fs.openSync(path, O_RDWR | O_EXCL)
    return fs.openSync(path, mode === 'read' ? O_RDONLY : mode === 'write' ? O_RDWR : O_RDWR | O_CREAT, 0o600)
  },
  close: fd => fs.closeSync(fd),
  sizeBytes(fd) {
    const stat = fs.fstatSync(fd)
    return stat.isBlockDevice() ? blockDeviceBytes(stat.rdev) : stat.size
  },
  isDevice: fd => fs.fstatSync(fd).isBlockDevice(),
  exists: path => fs.existsSync(path),
  read(fd, into, offset) {
    for (let at = 0; at < into.length;) {
      const count = fs.readSync(fd, into, at, into.length - at, offset + at)
      if (count === 0) throw new Error(`the file ends at byte ${offset + at}, before the ${into.length} bytes at ${offset}`)
      at += count
    }
  },
  write(fd, bytes, offset) {
    for (let at = 0; at < bytes.length;) at += fs.writeSync(fd, bytes, at, bytes.length - at, offset + at)
  },
  truncate: (fd, sizeBytes) => fs.ftruncateSync(fd, sizeBytes),
  punch: punchHole,
  allocate,
  sync: fdatasync,
  makeDirectory: path => void fs.mkdirSync(path, { recursive: true }),
  list: path => fs.readdirSync(path),
  rename: (from, to) => fs.renameSync(from, to),
  remove: path => fs.rmSync(path, { recursive: true, force: true }),
  async syncDirectory(path) {
    const fd = fs.openSync(path, 'r')
    try {
      await promisify(fs.fsync)(fd)
    } finally {
      fs.closeSync(fd)
    }
  },
  tryLock: fd => tryLock(fd),
  incarnation(fd) {
    try {
      const { dev, ino } = fs.fstatSync(fd, { bigint: true })
      return digestOf(Buffer.from(`${fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')} ${dev} ${ino} ${mountOf(fd, dev)}`))
    } catch {
      // There is no /proc, say.
      return undefined
    }
  },
}

/** File systems with a directory in /sys that is made when one is mounted, with an inode number that none had before. */
const TYPES_IN_SYS = ['ext4', 'xfs', 'f2fs']

/**
 * Names what a file system was mounted as, from when it was until nobody has it mounted any more. Where /sys does not say: the mount, whose number
 * another may get that follows it.
 */
function mountOf(fd: number, device: bigint): string {
  const [major, minor] = [(device >> 8n) & 0xfffn, (device & 0xffn) | ((device >> 12n) & 0xfff00n)]
  const name = linkNameOf(`/sys/dev/block/${major}:${minor}`)
  for (const type of name === undefined ? [] : TYPES_IN_SYS) {
    const instance = fs.statSync(`/sys/fs/${type}/${name}`, { bigint: true, throwIfNoEntry: false })
    if (instance !== undefined) return `${type} ${instance.ino}`
  }
  return /^mnt_id:.*$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![0]
}

function linkNameOf(path: string): string | undefined {
  try {
    return basename(fs.readlinkSync(path))
  } catch {
    return undefined
  }
}

/** A file that is to be there whole or not at all: written as NAME.new, and renamed once it is durable. */
export interface WholeFile {
  directory: string
  name: string
  bytes: Uint8Array
}

/** Durable when this resolves. */
export async function writeWhole(files: OverlayFiles, file: WholeFile): Promise<void> {
  await writeFresh(files, file)
  await publishFresh(files, file)
}

/** The first half of `writeWhole`: until the second, nothing has happened to the file of that name. */
export async function writeFresh(files: OverlayFiles, { directory, name, bytes }: WholeFile): Promise<void> {
  const path = `${directory}/${name}.new`
  const fd = files.open(path, 'create')
  try {
    files.truncate(fd, 0)
    files.write(fd, bytes, 0)
    await files.sync(fd)
  } catch (error) {
    files.remove(path)
    throw error
  } finally {
    files.close(fd)
  }
}

/** The second half. */
export async function publishFresh(files: OverlayFiles, { directory, name }: WholeFile): Promise<void> {
  files.rename(`${directory}/${name}.new`, `${directory}/${name}`)
  await files.syncDirectory(directory)
}

/** All of a file, if it is not larger than `bytesMax`; otherwise undefined. */
export function readWhole(files: OverlayFiles, path: string, bytesMax: number): Buffer | undefined {
  const fd = files.open(path, 'read')
  try {
    const length = files.sizeBytes(fd)
    if (length > bytesMax) return undefined
    const bytes = Buffer.allocUnsafe(length)
    files.read(fd, bytes, 0)
    return bytes
  } finally {
    files.close(fd)
  }
}
