/**
 * File cache: what an earlier import of the same directory found in its files, by inode, size, ctime and mtime, so that unchanged files are not opened again.
 * It can be thrown away at any time: who finds it missing, damaged or of another version does without. Not a manifest: it has no names.
 * Bytes: docs/formats/import.md#file-cache
 */
import { closeSync, fstatSync, mkdirSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs'
import path from 'node:path'
import { DIGEST_BYTES, DigestStream, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { IDENTITY_WORDS } from '@varve/images/native/scan.ts'
import type { FileStatus, Filesystem } from '@varve/images/native/scan.ts'
import { VarveError } from '@varve/images/errors.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import { Column, ScratchColumn } from '@varve/images/tree/column.ts'
import type { TypedArray } from '@varve/images/tree/column.ts'
import { HASH_SECRET, SlotTable } from '@varve/images/tree/slot-table.ts'
import type { ContentWriter } from '@varve/images/tree/content-columns.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { decodedXattrs, encodedXattrs } from '@varve/images/tree/xattr-set.ts'
import type { ScannedFileTable } from './file-reading.ts'

const MAGIC = 0x32634656
const HEADER_WORDS = 8
/** Read at once to check the digest, and of chunks whose presence is asked for at once, bytes. */
const BLOCK_BYTES = 1 << 20
/** Of a column of a cache that is at hand, bytes. */
const STORED_BLOCK_BYTES = 16 << 10
/** A file whose ctime is so near to the scan could change again without its ctime changing, seconds. */
const RACY_SECONDS = 2

export interface CachedFile {
  /** Its number in the cache. */
  file: number
  xattrs: readonly Xattr[]
}

export interface FileCacheSource {
  /** `dir` or `overlay`: the same directory means something else. */
  kind: string
  /** Real path, raw bytes. */
  path: Uint8Array
  /** Device of the directory. */
  device: string
  /** Of the directory; undefined if it is not known. */
  filesystem: Filesystem | undefined
}

/**
 * Kinds of filesystems that set ctime by the clock at every change, and let nobody else set it: ext2 to ext4, xfs, btrfs, zfs, f2fs, bcachefs, tmpfs, overlayfs.
 * Others (FAT, FUSE) take it from mtime, which anybody may set back, or (squashfs, ISO 9660) have in it what the maker of an image liked.
 */
const CTIME_KEPT = new Set([0xef53, 0x58465342, 0x9123683e, 0x2fc12fc1, 0xf2f52010, 0xca451a4e, 0x01021994, 0x794c7630])

/** Where the cache of a source is kept; undefined if its filesystem does not show that a file has changed. */
export function fileCachePath(directory: string, { kind, path: root, device, filesystem }: FileCacheSource): string | undefined {
  if (filesystem === undefined || !CTIME_KEPT.has(filesystem.type)) return undefined
  // The device alone would not do: a disk that we composed has mtimes for ctimes, and another one may be mounted in its place.
  const key = Buffer.concat([Buffer.from(`${kind}\0${device}\0${filesystem.id}\0`), root])
  return path.join(directory, `import-${digestToHex(digestOf(key)).slice(0, 32)}`)
}

/** Columns of a cache, in the file: by file: identity, first piece, attribute set; by piece: chunk, bytes; by chunk: digest, bytes. */
class Columns {
  readonly fd: number
  readonly files: number
  readonly chunks: number
  readonly sets: number
  readonly identities: StoredColumn<Uint32Array>
  readonly firstPiece: StoredColumn<Uint32Array>
  readonly xattrSet: StoredColumn<Uint32Array>
  readonly pieceChunk: StoredColumn<Uint32Array>
  readonly pieceBytes: StoredColumn<Float64Array>
  readonly chunkBytes: StoredColumn<Uint32Array>
  readonly chunkDigests: StoredColumn<Uint8Array>
  readonly xattrs: StoredColumn<Uint8Array>

  private constructor(fd: number, header: Uint32Array) {
    const [, files, pieces, chunks, xattrBytes, sets] = header
    let at = HEADER_WORDS * 4
    const next = <T extends TypedArray>(empty: T, rows: number): StoredColumn<T> => {
      const column = new StoredColumn(fd, empty, { at, rows })
      at += rows * empty.BYTES_PER_ELEMENT
      return column
    }
    this.fd = fd
    this.files = files
    this.chunks = chunks
    this.sets = sets
    this.pieceBytes = next(new Float64Array(), pieces)
    this.identities = next(new Uint32Array(), files * IDENTITY_WORDS)
    this.firstPiece = next(new Uint32Array(), files + 1)
    this.xattrSet = next(new Uint32Array(), files)
    this.pieceChunk = next(new Uint32Array(), pieces)
    this.chunkBytes = next(new Uint32Array(), chunks)
    this.chunkDigests = next(new Uint8Array(), chunks * DIGEST_BYTES)
    this.xattrs = next(new Uint8Array(), xattrBytes)
  }

  /** @returns undefined if the cache is not there, damaged, or of another version */
  static open(file: string): Columns | undefined {
    let fd
    try {
      fd = openSync(file, 'r')
    } catch {
      return undefined
    }
    const header = checkedHeader(fd)
    if (header !== undefined) return new Columns(fd, header)
    closeSync(fd)
    return undefined
  }
}

/** @returns undefined for a file that is damaged or of another version */
function checkedHeader(fd: number): Uint32Array | undefined {
  const length = fstatSync(fd).size - DIGEST_BYTES
  if (length < HEADER_WORDS * 4) return undefined
  const header = new Uint32Array(HEADER_WORDS)
  if (!readFully(fd, new Uint8Array(header.buffer), 0)) return undefined
  const [magic, files, pieces, chunks, xattrBytes] = header
  const needed = HEADER_WORDS * 4 + pieces * 8 + files * IDENTITY_WORDS * 4 + (files + 1) * 4 + files * 4 + pieces * 4 + chunks * (4 + DIGEST_BYTES) + xattrBytes
  // What the digest covers was written by this module: behind it, numbers are not checked again.
  return magic === MAGIC && needed === length && digestMatches(fd, length) ? header : undefined
}

function digestMatches(fd: number, length: number): boolean {
  const digest = new DigestStream()
  const block = Buffer.allocUnsafeSlow(Math.min(BLOCK_BYTES, length))
  for (let at = 0; at < length; at += block.length) {
    const part = block.subarray(0, length - at)
    if (!readFully(fd, part, at)) return false
    digest.update(part)
  }
  const expected = Buffer.alloc(DIGEST_BYTES)
  return readFully(fd, expected, length) && Buffer.compare(digest.end(), expected) === 0
}

/** @returns false if the file ends before, or cannot be read */
function readFully(fd: number, target: Uint8Array, at: number): boolean {
  try {
    for (let done = 0; done < target.length; ) {
      const bytes = readSync(fd, target, done, target.length - done, at + done)
      if (bytes === 0) return false
      done += bytes
    }
    return true
  } catch {
    return false
  }
}

/** A column of the cache file, of which one block is at hand: files are mostly asked for in the order in which they were found before. */
class StoredColumn<T extends TypedArray> {
  readonly #fd: number
  readonly #at: number
  readonly #rows: number
  readonly #block: T
  #from = 0
  #end = 0

  constructor(fd: number, empty: T, { at, rows }: { at: number; rows: number }) {
    this.#fd = fd
    this.#at = at
    this.#rows = rows
    this.#block = new (empty.constructor as new (rows: number) => T)(STORED_BLOCK_BYTES / empty.BYTES_PER_ELEMENT)
  }

  get(row: number): number {
    if (row < this.#from || row >= this.#end) this.#read(row)
    return this.#block[row - this.#from]
  }

  /** A view that is valid until the next call. @param rows few: they fit the block */
  view(row: number, rows: number): T {
    if (row < this.#from || row + rows > this.#end) this.#read(row)
    return this.#block.subarray(row - this.#from, row - this.#from + rows) as T
  }

  /** Rows in a new array. */
  copy(row: number, rows: number): T {
    const copy = new (this.#block.constructor as new (rows: number) => T)(rows)
    this.#readInto(row, copy)
    return copy
  }

  /** All rows in their order, some at a time, each time a multiple of `width` of them. */
  *pieces(width: number): Generator<T> {
    const rowsMax = Math.floor(BLOCK_BYTES / this.#block.BYTES_PER_ELEMENT / width) * width
    for (let row = 0; row < this.#rows; row += rowsMax) yield this.copy(row, Math.min(rowsMax, this.#rows - row))
  }

  #read(row: number): void {
    const from = Math.max(0, Math.min(row, this.#rows - this.#block.length))
    this.#end = this.#from = from
    const block = this.#block.subarray(0, this.#rows - from) as T
    this.#readInto(from, block)
    this.#end = from + block.length
  }

  #readInto(row: number, rows: T): void {
    const bytes = new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength)
    if (!readFully(this.#fd, bytes, this.#at + row * rows.BYTES_PER_ELEMENT)) throw new VarveError('SOURCE_INVALID', 'the file cache of the directory cannot be read; remove the directory `cache` of the home')
  }
}

export class FileCache implements Disposable {
  readonly #columns: Columns | undefined
  readonly #builder: TreeBuilder
  /** By file: low bits of its inode number. */
  readonly #inodeLow: Column<Uint32Array>
  readonly #slots: SlotTable
  /** By cached chunk, a bit: the store has it. */
  readonly #present: Column<Uint8Array>
  /** By attribute set: where it starts. */
  readonly #setAt: Column<Uint32Array>
  #lastSet: { set: number; xattrs: Xattr[] } = { set: -1, xattrs: [] }
  #sought: FileStatus | undefined

  /**
   * @param space borrowed
   * @param present says which chunks, 32 bytes each, the store has still: by digest 1 or 0
   */
  constructor(file: string | undefined, builder: TreeBuilder, space: Workspace, present: (digests: Uint8Array) => Uint8Array) {
    this.#builder = builder
    this.#inodeLow = new Column(space, new Uint32Array())
    this.#present = new Column(space, new Uint8Array())
    this.#setAt = new Column(space, new Uint32Array())
    const inodeLow = this.#inodeLow
    this.#slots = new SlotTable(space, {
      get count() {
        return inodeLow.length
      },
      isEntered: () => true,
      hashOf: (row) => hashOf(inodeLow.values[row]),
      isSought: (row) => this.#isSought(row),
    })
    this.#columns = file === undefined ? undefined : Columns.open(file)
    if (this.#columns !== undefined) this.#index(this.#columns, present)
  }

  #index({ identities, chunkDigests, chunks, sets, xattrs }: Columns, present: (digests: Uint8Array) => Uint8Array): void {
    for (const rows of identities.pieces(IDENTITY_WORDS)) {
      for (let at = 0; at < rows.length; at += IDENTITY_WORDS) this.#slots.put(hashOf(rows[at]), this.#inodeLow.push(rows[at]))
    }
    this.#present.extend(Math.ceil(chunks / 8))
    let chunk = 0
    for (const digests of chunkDigests.pieces(DIGEST_BYTES)) {
      for (const isPresent of present(digests)) this.#present.values[chunk >>> 3] |= isPresent << (chunk++ & 7)
    }
    for (let set = 0, at = 0; set < sets; set++) {
      this.#setAt.push(at)
      at += 4 + wordAt(xattrs, at)
    }
  }

  /** Files that the cache knows. */
  get fileCount(): number {
    return this.#inodeLow.length
  }

  /** What the file with this status was found to hold, if it is unchanged and the store has all of it. */
  find(status: FileStatus): CachedFile | undefined {
    if (this.#columns === undefined) return undefined
    this.#sought = status
    const file = this.#slots.find(hashOf(status.inodeLow))
    return file < 0 || !this.#isPresent(this.#columns, file) ? undefined : { file, xattrs: this.#xattrs(this.#columns, this.#columns.xattrSet.get(file)) }
  }

  /** Adds the content of a file that was found to the builder. */
  writeContent({ file }: CachedFile, writer: ContentWriter): void {
    const { firstPiece, pieceChunk, pieceBytes, chunkDigests, chunkBytes } = this.#columns!
    const end = firstPiece.get(file + 1)
    for (let piece = firstPiece.get(file); piece < end; piece++) {
      const chunk = pieceChunk.get(piece)
      if (chunk === HOLE) writer.add(HOLE, pieceBytes.get(piece))
      else writer.add(this.#builder.addChunk(chunkDigests.view(chunk * DIGEST_BYTES, DIGEST_BYTES), chunkBytes.get(chunk)), pieceBytes.get(piece))
    }
    writer.end()
  }

  /** While the index is made, each row is a new one. */
  #isSought(row: number): boolean {
    if (this.#sought === undefined || this.#inodeLow.values[row] !== this.#sought.inodeLow) return false
    return this.#sought.hasIdentity(this.#columns!.identities.view(row * IDENTITY_WORDS, IDENTITY_WORDS), 0)
  }

  /** True if the store has all of a file. */
  #isPresent({ firstPiece, pieceChunk }: Columns, file: number): boolean {
    const end = firstPiece.get(file + 1)
    for (let piece = firstPiece.get(file); piece < end; piece++) {
      const chunk = pieceChunk.get(piece)
      if (chunk !== HOLE && ((this.#present.values[chunk >>> 3] >>> (chunk & 7)) & 1) === 0) return false
    }
    return true
  }

  #xattrs({ xattrs }: Columns, set: number): Xattr[] {
    if (set !== this.#lastSet.set) {
      const at = this.#setAt.values[set]
      this.#lastSet = { set, xattrs: decodedXattrs(xattrs.copy(at + 4, wordAt(xattrs, at))) }
    }
    return this.#lastSet.xattrs
  }

  /** Nothing can be asked of this afterwards: its memory is for others. */
  [Symbol.dispose](): void {
    this.#slots.clear()
    for (const column of [this.#inodeLow, this.#present, this.#setAt]) column.clear()
    if (this.#columns !== undefined) closeSync(this.#columns.fd)
  }
}

function hashOf(inodeLow: number): number {
  const value = Math.imul(inodeLow ^ HASH_SECRET, 0x9e3779b1)
  return Math.imul(value ^ (value >>> 15), 0x85ebca6b)
}

function wordAt(column: StoredColumn<Uint8Array>, at: number): number {
  return (column.get(at) | (column.get(at + 1) << 8) | (column.get(at + 2) << 16) | (column.get(at + 3) << 24)) >>> 0
}

export interface FoundFiles {
  files: ScannedFileTable
  builder: TreeBuilder
  /** Borrowed. */
  space: Workspace
  /** When the scan began; files that changed just before it are left out. */
  scanStartMs: number
}

/** Keeps what was found for the next import. */
export function writeFileCache(file: string, found: FoundFiles): void {
  const columns = columnsOf(found)
  const temporary = `${file}.${process.pid}`
  mkdirSync(path.dirname(file), { recursive: true })
  try {
    const fd = openSync(temporary, 'w')
    try {
      writePieces(fd, columns)
    } finally {
      closeSync(fd)
    }
    renameSync(temporary, file)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

/** The sections of a cache in their order. Chunks and attribute sets have the numbers that they have in the builder. */
function* columnsOf({ files, builder, space, scanStartMs }: FoundFiles): Generator<ArrayBufferView> {
  const racyFromSeconds = Math.floor(scanStartMs / 1000) - RACY_SECONDS
  const identities = new ScratchColumn(space, new Uint32Array())
  const firstPiece = new ScratchColumn(space, new Uint32Array())
  const xattrSet = new ScratchColumn(space, new Uint32Array())
  const pieceChunk = new ScratchColumn(space, new Uint32Array())
  const pieceBytes = new ScratchColumn(space, new Float64Array())
  const xattrs = new ScratchColumn(space, new Uint8Array())
  const identity = new Uint32Array(IDENTITY_WORDS)
  for (let at = 0; at < files.count; at++) {
    files.identities.read(at * IDENTITY_WORDS, identity)
    if ((identity[5] | 0) * 0x1_0000_0000 + identity[4] >= racyFromSeconds) continue
    const inode = builder.inodeOf(files.entries.values[at])
    identities.append(identity)
    firstPiece.push(pieceChunk.length)
    xattrSet.push(builder.xattrSet(inode))
    builder.forEachPiece(inode, (chunk, holeBytes) => {
      pieceChunk.push(chunk)
      pieceBytes.push(chunk === HOLE ? holeBytes : builder.chunkLengths.get(chunk))
    })
  }
  firstPiece.push(pieceChunk.length)
  for (let set = 0; set < builder.xattrSetCount; set++) {
    const bytes = encodedXattrs(builder.xattrs(set))
    xattrs.append(new Uint8Array(new Uint32Array([bytes.length]).buffer))
    xattrs.append(bytes)
  }
  yield new Uint32Array([MAGIC, xattrSet.length, pieceChunk.length, builder.chunkCount, xattrs.length, builder.xattrSetCount, 0, 0])
  for (const column of [pieceBytes, identities, firstPiece, xattrSet, pieceChunk, builder.chunkLengths, builder.chunkDigests, xattrs]) yield* column.pieces() as Iterable<ArrayBufferView>
  for (const column of [pieceBytes, identities, firstPiece, xattrSet, pieceChunk, xattrs]) column.clear()
}

/** Writes them, and their digest. */
function writePieces(fd: number, pieces: Iterable<ArrayBufferView>): void {
  const digest = new DigestStream()
  for (const { buffer, byteOffset, byteLength } of pieces) {
    const bytes = new Uint8Array(buffer, byteOffset, byteLength)
    digest.update(bytes)
    writeFully(fd, bytes)
  }
  writeFully(fd, digest.end())
}

function writeFully(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done)
}
