/**
 * Compares a mounted filesystem with the tree that it was laid out from, entry by entry: names, kinds, modes, owners, times, links,
 * extended attributes, targets, devices, content, and where holes are. Every name is looked up, not only listed.
 */
import { chdir, cwd } from 'node:process'
import { closeSync, lstatSync, openSync, readSync, readdirSync, readlinkSync } from 'node:fs'
import type { BigIntStats } from 'node:fs'
import { dataParts, readXattrs } from '@varve/images/native/libc.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree, Xattr } from '@varve/images/tree/tree.ts'
import type { BuiltTree } from './memory-tree.ts'

const BLOCK_BYTES = 4096
const DIFFERENCES_MAX = 20

export interface CompareOptions {
  /** Names in the root that are not in the tree. */
  extraNames?: readonly string[]
  /** What the filesystem makes of a time; default itself. */
  time?: (seconds: number, nanoseconds: number) => bigint
  /** True if the filesystem keeps attributes of this name; default all. */
  keepsXattr?: (name: string) => boolean
  /** Also compare atime and ctime, which our writers set to mtime. */
  allTimes?: boolean
}

/** @returns differences in words, at most 20; none if the two are the same */
export function compareTree(directory: string, built: BuiltTree, options: CompareOptions = {}): string[] {
  const before = cwd()
  // Relative paths, since those of a tree may be as long as the system allows.
  chdir(directory)
  try {
    return new Comparison(built, options).run()
  } finally {
    chdir(before)
  }
}

const KIND_BITS: Record<number, bigint> = {
  [Kind.file]: 0o100000n,
  [Kind.directory]: 0o040000n,
  [Kind.symlink]: 0o120000n,
  [Kind.character]: 0o020000n,
  [Kind.block]: 0o060000n,
  [Kind.fifo]: 0o010000n,
  [Kind.socket]: 0o140000n,
}

class Comparison {
  readonly #tree: Tree
  readonly #content: BuiltTree['content']
  readonly #options: CompareOptions
  readonly #differences: string[] = []
  readonly #links: Uint32Array
  /** By inode of the tree: the filesystem's own number of it. */
  readonly #numbers = new Map<number, bigint>()
  readonly #seenNumbers = new Set<bigint>()

  constructor(built: BuiltTree, options: CompareOptions) {
    this.#tree = built.tree
    this.#content = built.content
    this.#options = options
    this.#links = built.tree.linkCounts()
  }

  run(): string[] {
    const paths = new Map<number, string>([[0, '']])
    for (let entry = 0; entry < this.#tree.entryCount && this.#differences.length < DIFFERENCES_MAX; entry++) {
      const parent = paths.get(this.#tree.parent[entry])!
      const path = entry === 0 ? '' : parent === '' ? this.#tree.names[entry] : `${parent}/${this.#tree.names[entry]}`
      if (this.#tree.kind[this.#tree.inode[entry]] === Kind.directory) paths.set(entry, path)
      this.#compareEntry(entry, path)
    }
    return this.#differences
  }

  #differ(path: string, what: string, ours: unknown, theirs: unknown): void {
    const shown = path.length > 200 ? `${path.slice(0, 90)}...${path.slice(-90)}` : path
    this.#differences.push(`${JSON.stringify(shown)}: ${what} is ${String(theirs)} instead of ${String(ours)}`)
  }

  #compareEntry(entry: number, path: string): void {
    const tree = this.#tree
    const inode = tree.inode[entry]
    const kind = tree.kind[inode]
    const bytes = Buffer.from(path === '' ? '.' : path, 'latin1')
    let stat: BigIntStats
    try {
      stat = lstatSync(bytes, { bigint: true })
    } catch (error) {
      this.#differ(path, 'it', 'there', (error as Error).message)
      return
    }
    const check = (what: string, ours: unknown, theirs: unknown) => {
      if (ours !== theirs) this.#differ(path, what, ours, theirs)
    }
    const known = this.#numbers.get(inode)
    if (known !== undefined) {
      check('inode of a hard link', known, stat.ino)
      return
    }
    if (this.#seenNumbers.has(stat.ino)) this.#differ(path, 'inode', 'its own', stat.ino)
    this.#numbers.set(inode, stat.ino)
    this.#seenNumbers.add(stat.ino)

    check('mode', (KIND_BITS[kind] | BigInt(tree.mode[inode])).toString(8), stat.mode.toString(8))
    check('uid', BigInt(tree.uid[inode]), stat.uid)
    check('gid', BigInt(tree.gid[inode]), stat.gid)
    const time = this.#options.time ?? ((seconds, nanoseconds) => BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds))
    const mtime = time(tree.mtimeSeconds[inode], tree.mtimeNanoseconds[inode])
    check('mtime', mtime, stat.mtimeNs)
    if (this.#options.allTimes === true) {
      check('ctime', mtime, stat.ctimeNs)
      check('atime', mtime, stat.atimeNs)
    }
    if (kind !== Kind.directory) check('link count', BigInt(this.#links[inode]), stat.nlink)
    const keeps = this.#options.keepsXattr ?? (() => true)
    check('extended attributes', describeXattrs(tree.xattrSets[tree.xattrSet[inode]].filter(({ name }) => keeps(name))), describeXattrs(readXattrs(bytes)))
    if (kind === Kind.directory) this.#compareNames(entry, path, bytes)
    if (kind === Kind.symlink) check('target', Buffer.from(tree.targets.get(inode)!).toString('latin1'), readlinkSync(bytes, { encoding: 'buffer' }).toString('latin1'))
    if (kind === Kind.character || kind === Kind.block) check('device', deviceNumber(tree.deviceMajor[inode], tree.deviceMinor[inode]), stat.rdev)
    if (kind === Kind.file) {
      check('size', BigInt(tree.sizeBytes[inode]), stat.size)
      this.#compareContent(inode, path, bytes)
    }
  }

  #compareNames(entry: number, path: string, bytes: Buffer): void {
    const tree = this.#tree
    const theirs = readdirSync(bytes, { encoding: 'buffer' }).map((name) => name.toString('latin1'))
    const first = tree.firstChild[entry]
    const ours = new Set(tree.names.slice(first, first + tree.childCount[entry]))
    if (entry === 0) for (const name of this.#options.extraNames ?? []) ours.add(name)
    if (theirs.length !== new Set(theirs).size) this.#differ(path, 'a name', 'listed once', 'listed twice')
    for (const name of theirs) {
      if (!ours.delete(name)) this.#differ(path, `the name ${JSON.stringify(name)}`, 'absent', 'there')
    }
    for (const name of ours) this.#differ(path, `the name ${JSON.stringify(name)}`, 'listed', 'missing')
  }

  /** Reads only where the filesystem says that there is data; and that must be where the tree has data, to the block. */
  #compareContent(inode: number, path: string, bytes: Buffer): void {
    const tree = this.#tree
    const size = tree.sizeBytes[inode]
    if (size === 0) return
    const fd = openSync(bytes, 'r')
    try {
      const parts = dataParts(fd, size)
      const expected = dataRuns(tree, inode)
      const describe = (runs: { offset: number; length: number }[]) => runs.map(({ offset, length }) => `${offset}+${length}`).join(' ')
      if (describe(parts) !== describe(expected)) {
        this.#differ(path, 'the map of its data', describe(expected).slice(0, 200), describe(parts).slice(0, 200))
        return
      }
      let offset = 0
      for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
        const length = tree.pieceBytes[piece]
        const ours = tree.pieceChunk[piece] === HOLE ? Buffer.alloc(Math.min(length, 2 * BLOCK_BYTES)) : this.#content(tree.pieceChunk[piece])
        if (!sameAt(fd, offset, ours)) this.#differ(path, `content at ${offset}`, 'as in the tree', 'different')
        if (tree.pieceChunk[piece] === HOLE && !sameAt(fd, offset + length - ours.length, ours)) this.#differ(path, `content before ${offset + length}`, 'zero', 'different')
        offset += length
      }
    } finally {
      closeSync(fd)
    }
  }
}

function sameAt(fd: number, offset: number, ours: Uint8Array): boolean {
  const theirs = Buffer.allocUnsafe(ours.length)
  return readSync(fd, theirs, 0, ours.length, offset) === ours.length && theirs.equals(ours)
}

/** Runs of blocks that hold data, cut at the end of the file. */
function dataRuns(tree: Tree, inode: number): { offset: number; length: number }[] {
  const runs: { offset: number; length: number }[] = []
  let offset = 0
  for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
    const start = Math.floor(offset / BLOCK_BYTES) * BLOCK_BYTES
    offset += tree.pieceBytes[piece]
    if (tree.pieceChunk[piece] === HOLE) continue
    const end = Math.min(Math.ceil(offset / BLOCK_BYTES) * BLOCK_BYTES, tree.sizeBytes[inode])
    const last = runs.at(-1)
    if (last !== undefined && last.offset + last.length >= start) last.length = end - last.offset
    else runs.push({ offset: start, length: end - start })
  }
  return runs
}

function describeXattrs(xattrs: readonly Xattr[]): string {
  return xattrs.map(({ name, value }) => `${name}=${value.length > 64 ? `${value.length} bytes ` : ''}${Buffer.from(value).toString('base64').slice(0, 100_000)}`).join(' ')
}

function deviceNumber(major: number, minor: number): bigint {
  const [high, low] = [BigInt(major), BigInt(minor)]
  return ((high & 0xfffn) << 8n) | (low & 0xffn) | ((low & 0xfff00n) << 12n)
}
