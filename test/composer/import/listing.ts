/**
 * Listings of a directory and of a tree, one line an entry, with all that a tree holds; for comparing the two.
 * The directory is read with Node's own calls and getfattr, not with what is under test.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, lstatSync, openSync, readSync, readdirSync, readlinkSync } from 'node:fs'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { PackStore } from '@varve/images/store/pack-store.ts'
import { dataParts } from '@varve/images/native/libc.ts'

export interface ListingOptions {
  /** Lists where the holes of files are. */
  holes?: boolean
  /** Names that begin so are not listed. */
  xattrsExcept?: readonly string[]
}

const KIND_NAMES = new Map<number, string>(Object.entries(Kind).map(([name, kind]) => [kind, name]))

/** Fails with the first lines that differ: whole listings would fill the screen. */
export function assertSameLines(actual: readonly string[], expected: readonly string[], message = ''): void {
  const known = new Set(expected)
  const found = new Set(actual)
  const differing = [...actual.filter((line) => !known.has(line)).map((line) => `+ ${line}`), ...expected.filter((line) => !found.has(line)).map((line) => `- ${line}`)]
  assert.deepEqual(differing.slice(0, 10).map((line) => line.slice(0, 400)), [], message)
  assert.equal(actual.length, expected.length, message)
}

/** Lines of a tree by path (in latin1), sorted. */
export function listTree(tree: Tree, store: PackStore, options: ListingOptions = {}): string[] {
  const links = tree.linkCounts()
  const first = new Map<number, string>()
  const paths = Array.from({ length: tree.entryCount }, (_, entry) => tree.path(entry))
  for (const [entry, path] of paths.entries()) {
    const known = first.get(tree.inode[entry])
    if (known === undefined || path < known) first.set(tree.inode[entry], path)
  }
  return paths
    .map((path, entry) => {
      const inode = tree.inode[entry]
      const kind = tree.kind[inode] as Kind
      const fields = [path, KIND_NAMES.get(kind)!, tree.mode[inode].toString(8), `${tree.uid[inode]}:${tree.gid[inode]}`]
      fields.push(String(BigInt(tree.mtimeSeconds[inode]) * 1_000_000_000n + BigInt(tree.mtimeNanoseconds[inode])))
      if (tree.opaque[inode] === 1) fields.push('opaque')
      if (kind === Kind.symlink || kind === Kind.link) fields.push(`-> ${Buffer.from(tree.targets.get(inode)!).toString('latin1')}`)
      if (kind === Kind.character || kind === Kind.block) fields.push(`${tree.deviceMajor[inode]}:${tree.deviceMinor[inode]}`)
      if (kind === Kind.file) fields.push(...fileOfTree(tree, store, inode, options))
      if (links[inode] > 1) fields.push(`= ${first.get(inode)!}`)
      for (const { name, value } of tree.xattrSets[tree.xattrSet[inode]]) if (!isExcepted(name, options)) fields.push(`${name}=${Buffer.from(value).toString('hex')}`)
      return fields.join(' | ')
    })
    .sort()
}

function fileOfTree(tree: Tree, store: PackStore, inode: number, options: ListingOptions): string[] {
  const hash = createHash('sha256')
  const holes: string[] = []
  let at = 0
  for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
    const length = tree.pieceBytes[piece]
    if (tree.pieceChunk[piece] === HOLE) {
      holes.push(`${at}+${length}`)
      hash.update(`hole ${length}`)
    } else {
      hash.update(store.get(tree.chunkDigest(tree.pieceChunk[piece])))
    }
    at += length
  }
  if (options.holes !== true && holes.length > 0) return [String(tree.sizeBytes[inode]), 'sparse']
  return [String(tree.sizeBytes[inode]), hash.digest('hex'), ...holes]
}

/** Lines of a directory by path (in latin1), sorted. */
export function listDirectory(root: string, options: ListingOptions = {}): string[] {
  const xattrs = xattrsBelow(root)
  const entries: { path: string; line: string[]; key?: string }[] = []
  const visit = (path: string) => {
    const absolute = Buffer.from(path === '' ? root : `${root}/${path}`, 'latin1')
    const stat = lstatSync(absolute, { bigint: true })
    const kind = kindOf(stat)
    const line = [path, kind, (stat.mode & 0o7777n).toString(8), `${stat.uid}:${stat.gid}`, String(stat.mtimeNs)]
    if (kind === 'symlink') line.push(`-> ${readlinkSync(absolute, 'buffer').toString('latin1')}`)
    if (kind === 'character' || kind === 'block') line.push(`${major(stat.rdev)}:${minor(stat.rdev)}`)
    if (kind === 'file') line.push(...fileOfDirectory(absolute, stat, options))
    entries.push({ path, line, key: kind !== 'directory' && stat.nlink > 1n ? `${stat.dev}:${stat.ino}` : undefined })
    if (kind === 'directory') for (const name of readdirSync(absolute, { encoding: 'buffer' })) visit(path === '' ? name.toString('latin1') : `${path}/${name.toString('latin1')}`)
  }
  visit('')
  const first = new Map<string, { path: string; count: number }>()
  for (const { path, key } of entries) {
    if (key === undefined) continue
    const known = first.get(key) ?? { path, count: 0 }
    first.set(key, { path: path < known.path ? path : known.path, count: known.count + 1 })
  }
  return entries
    .map(({ path, line, key }) => {
      const group = key === undefined ? undefined : first.get(key)
      if (group !== undefined && group.count > 1) line.push(`= ${group.path}`)
      for (const [name, value] of xattrs.get(path) ?? []) if (!isExcepted(name, options)) line.push(`${name}=${value}`)
      return line.join(' | ')
    })
    .sort()
}

function fileOfDirectory(path: Buffer, stat: { size: bigint }, options: ListingOptions): string[] {
  const size = Number(stat.size)
  const fd = openSync(path, 'r')
  try {
    // Not by the count of blocks: a block of attributes hides a hole in it.
    const parts = dataParts(fd, size)
    const isWhole = size === 0 || (parts.length === 1 && parts[0].length === size)
    if (options.holes !== true && !isWhole) return [String(size), 'sparse']
    const hash = createHash('sha256')
    const holes: string[] = []
    let at = 0
    const hole = (end: number) => {
      if (end === at) return
      holes.push(`${at}+${end - at}`)
      hash.update(`hole ${end - at}`)
      at = end
    }
    const buffer = Buffer.alloc(1 << 20)
    for (const { offset, length } of parts) {
      hole(offset)
      while (at < offset + length) {
        const bytes = readSync(fd, buffer, 0, Math.min(buffer.length, offset + length - at), at)
        hash.update(buffer.subarray(0, bytes))
        at += bytes
      }
    }
    hole(size)
    return [String(size), hash.digest('hex'), ...holes]
  } finally {
    closeSync(fd)
  }
}

function kindOf(stat: { isFile(): boolean; isDirectory(): boolean; isSymbolicLink(): boolean; isCharacterDevice(): boolean; isBlockDevice(): boolean; isFIFO(): boolean }): string {
  if (stat.isFile()) return 'file'
  if (stat.isDirectory()) return 'directory'
  if (stat.isSymbolicLink()) return 'symlink'
  if (stat.isCharacterDevice()) return 'character'
  if (stat.isBlockDevice()) return 'block'
  return stat.isFIFO() ? 'fifo' : 'socket'
}

function major(device: bigint): bigint {
  return ((device >> 8n) & 0xfffn) | ((device >> 32n) & 0xfffff000n)
}

function minor(device: bigint): bigint {
  return (device & 0xffn) | ((device >> 12n) & 0xffffff00n)
}

/** Attributes by path: name and value in hexadecimal, sorted by name. */
function xattrsBelow(root: string): Map<string, [string, string][]> {
  const text = execFileSync('getfattr', ['-R', '-P', '-h', '-d', '-m', '-', '-e', 'hex', '--absolute-names', root], { maxBuffer: 1 << 30, stdio: ['ignore', 'pipe', 'ignore'] }).toString('latin1')
  const found = new Map<string, [string, string][]>()
  let at: [string, string][] = []
  for (const line of text.split('\n')) {
    if (line.startsWith('# file: ')) {
      const path = unescaped(line.slice(8)).slice(root.length).replace(/^\//, '')
      found.set(path, (at = []))
    } else if (line !== '') {
      const equals = line.indexOf('=0x')
      if (equals < 0) at.push([unescaped(line.replace(/=$/, '').replace(/=""$/, '')), ''])
      else at.push([unescaped(line.slice(0, equals)), line.slice(equals + 3)])
    }
  }
  for (const list of found.values()) list.sort(([a], [b]) => (a < b ? -1 : 1))
  return found
}

function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
}

function isExcepted(name: string, { xattrsExcept = [] }: ListingOptions): boolean {
  return xattrsExcept.some((start) => name.startsWith(start))
}
