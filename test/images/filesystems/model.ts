/**
 * Model of a filesystem: what it should hold, in the words of the Filesystem contract. `modelOf` takes it from a directory where the kernel, or a driver
 * in FUSE, has the filesystem mounted; what a driver cannot tell is left undefined, and is not compared.
 */
import { createHash } from 'node:crypto'
import { closeSync, lstatSync, openSync, readSync, readdirSync, readlinkSync } from 'node:fs'
import type { BigIntStats } from 'node:fs'
import type { Timestamp } from '@varve/images/filesystems/filesystem.ts'
import { dataParts, readXattrs } from '@varve/images/native/libc.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'

export interface ModelEntry {
  /** Bytes in latin1, without a leading slash; '' for the root. */
  path: string
  kind: Kind
  mode?: number
  uid?: number
  gid?: number
  /** Of files and symlinks. */
  sizeBytes?: number
  /** Of files: see ContentDigest. */
  contentDigest?: string
  /** The driver cannot read the content of the file: nor should we. */
  isDamaged?: boolean
  /** Parts of a file that hold data, ordered; the rest is holes. */
  data?: { offset: number; length: number }[]
  /** Of symlinks: bytes in latin1. */
  target?: string
  modified?: Timestamp
  accessed?: Timestamp
  changed?: Timestamp
  /** The same for all names of one file, and for no other. */
  inode?: bigint
  /** Of all but directories. */
  links?: number
  /** Sorted by name. */
  xattrs?: Xattr[]
  device?: { major: number; minor: number }
}

/** Directories before what they hold; the root is first. */
export type Model = ModelEntry[]

export interface ModelOptions {
  /** Names in the root that are left out. */
  skip?: readonly string[]
  /** Also the times of access and of change, which a mount may alter while it is read. */
  allTimes?: boolean
  /** Also where files have data, by SEEK_DATA. */
  data?: boolean
  /** Attributes as the filesystem keeps them; default as they are mounted. */
  xattrs?: (path: string, mounted: Xattr[]) => Xattr[] | undefined
}

/** @param directory where the filesystem is mounted */
export function modelOf(directory: string, options: ModelOptions = {}): Model {
  const model: Model = []
  const pending = ['']
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    const place = Buffer.from(path === '' ? directory : `${directory}/${path}`, 'latin1')
    const entry = entryOf(path, place, options)
    model.push(entry)
    if (entry.kind !== Kind.directory) continue
    const names = readdirSync(place, { encoding: 'buffer' }).map((name) => name.toString('latin1')).sort()
    for (const name of names.reverse()) {
      if (path !== '' || options.skip?.includes(name) !== true) pending.push(path === '' ? name : `${path}/${name}`)
    }
  }
  return model
}

const KINDS = new Map<number, Kind>([[0o100000, Kind.file], [0o040000, Kind.directory], [0o120000, Kind.symlink], [0o020000, Kind.character], [0o060000, Kind.block], [0o010000, Kind.fifo], [0o140000, Kind.socket]])

function entryOf(path: string, place: Buffer, options: ModelOptions): ModelEntry {
  const stat = lstatSync(place, { bigint: true })
  const kind = KINDS.get(Number(stat.mode) & 0o170000)!
  const xattrs = readXattrs(place)
  const entry: ModelEntry = {
    path,
    kind,
    mode: Number(stat.mode) & 0o7777,
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    modified: timestamp(stat.mtimeNs),
    inode: stat.ino,
    xattrs: options.xattrs === undefined ? xattrs : options.xattrs(path, xattrs),
  }
  if (options.allTimes === true) Object.assign(entry, { accessed: timestamp(stat.atimeNs), changed: timestamp(stat.ctimeNs) })
  if (kind !== Kind.directory) entry.links = Number(stat.nlink)
  if (kind === Kind.character || kind === Kind.block) entry.device = deviceOf(stat)
  if (kind === Kind.symlink) {
    entry.target = readlinkSync(place, { encoding: 'buffer' }).toString('latin1')
    entry.sizeBytes = entry.target.length
  }
  if (kind === Kind.file) addContent(entry, place, Number(stat.size), options)
  return entry
}

/** What drivers say of a file that is damaged. */
const DAMAGE = ['EIO', 'EOVERFLOW', 'EUCLEAN', 'EBADMSG']

function addContent(entry: ModelEntry, place: Buffer, sizeBytes: number, options: ModelOptions): void {
  entry.sizeBytes = sizeBytes
  const fd = openSync(place, 'r')
  try {
    const parts = dataParts(fd, sizeBytes)
    if (options.data === true) entry.data = parts
    entry.contentDigest = digestFile(fd, parts, sizeBytes)
  } catch (error) {
    if (!DAMAGE.includes((error as NodeJS.ErrnoException).code!)) throw error
    entry.isDamaged = true
  } finally {
    closeSync(fd)
  }
}

function digestFile(fd: number, parts: { offset: number; length: number }[], sizeBytes: number): string {
  const digest = new ContentDigest(sizeBytes)
  for (const { offset, length } of digestWindows(parts, sizeBytes)) {
    const bytes = Buffer.allocUnsafe(length)
    for (let at = 0; at < length;) {
      const count = readSync(fd, bytes, at, length - at, offset + at)
      if (count === 0) throw new Error(`a file of ${sizeBytes} bytes ends at ${offset + at}`)
      at += count
    }
    digest.add(offset, bytes)
  }
  return digest.digest()
}

function timestamp(nanoseconds: bigint): Timestamp {
  const part = ((nanoseconds % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n
  return { seconds: Number((nanoseconds - part) / 1_000_000_000n), nanoseconds: Number(part) }
}

function deviceOf({ rdev }: BigIntStats): { major: number; minor: number } {
  const number = Number(rdev)
  return { major: (number >>> 8) & 0xfff, minor: (number & 0xff) | ((number >>> 12) & 0xfff00) }
}

/** Content is digested in pages of so many bytes, of which those that are all zeroes are left out: so that holes of any size cost nothing. */
const PAGE_BYTES = 4096
/** At most so much is read at once, bytes. */
const WINDOW_BYTES = 1 << 20
const ZEROES = Buffer.alloc(PAGE_BYTES)

/** SHA-256 of a content's size and of those of its pages that are not all zeroes, each with its place: the same for whatever map of holes. */
export class ContentDigest {
  readonly #hash = createHash('sha256')

  constructor(sizeBytes: number) {
    this.#hash.update(`${sizeBytes}\n`)
  }

  /** Digest of a content that is in memory. */
  static of(content: Uint8Array): string {
    const digest = new ContentDigest(content.length)
    digest.add(0, content)
    return digest.digest()
  }

  /** @param offset a multiple of the page; what is left out, or lies between two calls, is zero */
  add(offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
      const page = bytes.subarray(at, at + PAGE_BYTES)
      if (ZEROES.compare(page, 0, page.length, 0, page.length) === 0) continue
      this.#hash.update(`${offset + at}\n`).update(page)
    }
  }

  digest(): string {
    return this.#hash.digest('hex')
  }
}

/** Ranges of whole pages that hold all `parts`, in order, each read at once. */
export function* digestWindows(parts: readonly { offset: number; length: number }[], sizeBytes: number): Generator<{ offset: number; length: number }> {
  let done = 0
  for (const { offset, length } of parts) {
    const end = Math.min(sizeBytes, Math.ceil((offset + length) / PAGE_BYTES) * PAGE_BYTES)
    for (let at = Math.max(done, offset - (offset % PAGE_BYTES)); at < end; at = done) {
      done = Math.min(end, at + WINDOW_BYTES)
      yield { offset: at, length: done - at }
    }
  }
}
