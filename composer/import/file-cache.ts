/**
 * File cache: what an earlier import of the same directory found in its files, by inode, size, ctime and mtime, so that unchanged files are not opened again.
 * It can be thrown away at any time: who finds it missing, damaged or of another version does without. Not a manifest: it has no names.
 * Bytes: docs/formats/import.md#file-cache
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { DIGEST_BYTES, digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { IDENTITY_WORDS } from '@varve/images/native/scan.ts'
import type { FileStatus, Filesystem } from '@varve/images/native/scan.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'

const MAGIC = 0x31634656
const HEADER_WORDS = 8
/** A file whose ctime is so near to the scan could change again without its ctime changing, seconds. */
const RACY_SECONDS = 2

/** Contents that the builder has, with the numbers that the builder gives. */
export interface CachedFile {
  chunks: number[]
  bytes: number[]
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

/** Columns of a cache, by file: identity, first piece, attribute set; by piece: chunk, bytes; by chunk: digest, bytes. */
interface Columns {
  identities: Uint32Array
  firstPiece: Uint32Array
  xattrSet: Uint32Array
  pieceChunk: Uint32Array
  pieceBytes: Float64Array
  chunkBytes: Uint32Array
  chunkDigests: Uint8Array
  xattrs: Xattr[][]
}

export class FileCache {
  readonly #columns: Columns | undefined
  readonly #slots: Int32Array
  readonly #builder: TreeBuilder
  /** By cached chunk: 1 if the store has it. */
  readonly #isPresent: Uint8Array
  /** By cached chunk: its number in the builder plus 1, or 0. */
  readonly #built: Uint32Array

  /** @param present says which chunks, 32 bytes each, the store has still: by digest 1 or 0 */
  constructor(file: string | undefined, builder: TreeBuilder, present: (digests: Uint8Array) => Uint8Array) {
    this.#columns = file === undefined ? undefined : read(file)
    this.#builder = builder
    const files = this.fileCount
    this.#slots = new Int32Array(files === 0 ? 1 : 2 ** Math.ceil(Math.log2(files * 2)))
    this.#isPresent = this.#columns === undefined ? new Uint8Array() : present(this.#columns.chunkDigests)
    this.#built = new Uint32Array(this.#isPresent.length)
    for (let at = 0; at < files; at++) {
      let slot = this.#slotOf(this.#columns!.identities[at * IDENTITY_WORDS])
      while (this.#slots[slot] !== 0) slot = (slot + 1) & (this.#slots.length - 1)
      this.#slots[slot] = at + 1
    }
  }

  /** Files that the cache knows. */
  get fileCount(): number {
    return this.#columns === undefined ? 0 : this.#columns.xattrSet.length
  }

  /** What the file with this status was found to hold, if it is unchanged and the store has all of it. */
  find(status: FileStatus): CachedFile | undefined {
    const columns = this.#columns
    if (columns === undefined) return undefined
    for (let slot = this.#slotOf(status.inodeLow); this.#slots[slot] !== 0; slot = (slot + 1) & (this.#slots.length - 1)) {
      const file = this.#slots[slot] - 1
      if (status.hasIdentity(columns.identities, file * IDENTITY_WORDS)) return this.#content(columns, file)
    }
    return undefined
  }

  #content(columns: Columns, file: number): CachedFile | undefined {
    const from = columns.firstPiece[file]
    const count = columns.firstPiece[file + 1] - from
    const chunks = new Array<number>(count)
    const bytes = new Array<number>(count)
    for (let index = 0; index < count; index++) {
      const chunk = columns.pieceChunk[from + index]
      bytes[index] = columns.pieceBytes[from + index]
      chunks[index] = chunk === HOLE ? HOLE : this.#chunk(columns, chunk)
      if (chunks[index] < 0) return undefined
    }
    return { chunks, bytes, xattrs: columns.xattrs[columns.xattrSet[file]] }
  }

  /** @returns its number in the builder, or -1 */
  #chunk(columns: Columns, chunk: number): number {
    if (this.#isPresent[chunk] === 0) return -1
    if (this.#built[chunk] === 0) {
      const digest = columns.chunkDigests.subarray(chunk * DIGEST_BYTES, (chunk + 1) * DIGEST_BYTES)
      this.#built[chunk] = this.#builder.addChunk(digest, columns.chunkBytes[chunk]) + 1
    }
    return this.#built[chunk] - 1
  }

  #slotOf(inodeLow: number): number {
    return (Math.imul(inodeLow, 0x9e3779b1) >>> 7) & (this.#slots.length - 1)
  }
}

export interface ScannedFiles {
  count: number
  /** By file, IDENTITY_WORDS words. */
  identities: Uint32Array
  /** By file: its inode in the builder. */
  inodes: ArrayLike<number>
}

/**
 * Keeps what was found for the next import.
 * @param scanStartMs when the scan began; files that changed just before it are left out
 */
export function writeFileCache(file: string, files: ScannedFiles, builder: TreeBuilder, scanStartMs: number): void {
  const bytes = encode(files, builder, Math.floor(scanStartMs / 1000) - RACY_SECONDS)
  const temporary = `${file}.${process.pid}`
  mkdirSync(path.dirname(file), { recursive: true })
  try {
    writeFileSync(temporary, bytes)
    renameSync(temporary, file)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

function encode(files: ScannedFiles, builder: TreeBuilder, racyFromSeconds: number): Uint8Array {
  const kept: number[] = []
  let pieces = 0
  for (let at = 0; at < files.count; at++) {
    const word = at * IDENTITY_WORDS
    const ctimeSeconds = (files.identities[word + 5] | 0) * 0x1_0000_0000 + files.identities[word + 4]
    if (ctimeSeconds >= racyFromSeconds) continue
    kept.push(at)
    pieces += builder.content(files.inodes[at]).chunks.length
  }
  const newChunk = new Map<number, number>()
  const chunks: number[] = []
  const setOf = new Map<readonly Xattr[], number>()
  const identities = new Uint32Array(kept.length * IDENTITY_WORDS)
  const firstPiece = new Uint32Array(kept.length + 1)
  const xattrSet = new Uint32Array(kept.length)
  const pieceChunk = new Uint32Array(pieces)
  const pieceBytes = new Float64Array(pieces)
  let piece = 0
  for (let row = 0; row < kept.length; row++) {
    const at = kept[row]
    identities.set(files.identities.subarray(at * IDENTITY_WORDS, (at + 1) * IDENTITY_WORDS), row * IDENTITY_WORDS)
    const xattrs = builder.xattrs(files.inodes[at])
    let set = setOf.get(xattrs)
    if (set === undefined) setOf.set(xattrs, (set = setOf.size))
    xattrSet[row] = set
    const content = builder.content(files.inodes[at])
    for (let index = 0; index < content.chunks.length; index++, piece++) {
      const old = content.chunks[index]
      let chunk = old
      if (old !== HOLE) {
        const known = newChunk.get(old)
        chunk = known ?? chunks.length
        if (known === undefined) {
          newChunk.set(old, chunk)
          chunks.push(old)
        }
      }
      pieceChunk[piece] = chunk
      pieceBytes[piece] = content.bytes[index]
    }
    firstPiece[row + 1] = piece
  }
  const xattrs = encodeXattrs([...setOf.keys()])
  const chunkBytes = new Uint32Array(chunks.length)
  const chunkDigests = new Uint8Array(chunks.length * DIGEST_BYTES)
  for (let index = 0; index < chunks.length; index++) {
    chunkBytes[index] = builder.chunkBytes(chunks[index])
    chunkDigests.set(builder.chunkDigest(chunks[index]), index * DIGEST_BYTES)
  }
  const header = new Uint32Array([MAGIC, kept.length, pieces, chunks.length, xattrs.length, setOf.size, 0, 0])
  const parts = [header, pieceBytes, identities, firstPiece, xattrSet, pieceChunk, chunkBytes, chunkDigests, xattrs].map((column) => new Uint8Array(column.buffer, column.byteOffset, column.byteLength))
  const body = Buffer.concat(parts)
  return Buffer.concat([body, digestOf(body)])
}

/** @returns undefined if it is not there, damaged, or of another version */
function read(file: string): Columns | undefined {
  let bytes: Buffer
  try {
    bytes = readFileSync(file)
  } catch {
    return undefined
  }
  const length = bytes.length - DIGEST_BYTES
  if (length < HEADER_WORDS * 4 || !digestMatches(bytes, length)) return undefined
  // A copy that starts at a multiple of eight, for the views.
  const buffer = bytes.byteOffset % 8 === 0 ? bytes : Buffer.from(new Uint8Array(bytes).buffer)
  const [magic, files, pieces, chunks, xattrBytes, sets] = new Uint32Array(buffer.buffer, buffer.byteOffset, HEADER_WORDS)
  const needed = HEADER_WORDS * 4 + pieces * 8 + files * IDENTITY_WORDS * 4 + (files + 1) * 4 + files * 4 + pieces * 4 + chunks * (4 + DIGEST_BYTES) + xattrBytes
  if (magic !== MAGIC || needed !== length) return undefined
  let at = buffer.byteOffset + HEADER_WORDS * 4
  const take = (count: number, elementBytes: number): [ArrayBuffer, number, number] => {
    const from = at
    at += count * elementBytes
    return [buffer.buffer as ArrayBuffer, from, count]
  }
  const pieceBytes = new Float64Array(...take(pieces, 8))
  const identities = new Uint32Array(...take(files * IDENTITY_WORDS, 4))
  const firstPiece = new Uint32Array(...take(files + 1, 4))
  const xattrSet = new Uint32Array(...take(files, 4))
  const pieceChunk = new Uint32Array(...take(pieces, 4))
  const chunkBytes = new Uint32Array(...take(chunks, 4))
  const chunkDigests = new Uint8Array(...take(chunks * DIGEST_BYTES, 1))
  const xattrs = decodeXattrs(new Uint8Array(...take(xattrBytes, 1)), sets)
  return { identities, firstPiece, xattrSet, pieceChunk, pieceBytes, chunkBytes, chunkDigests, xattrs }
}

/** What the digest covers was written by this module: behind it, numbers are not checked again. */
function digestMatches(bytes: Buffer, length: number): boolean {
  return Buffer.compare(digestOf(bytes.subarray(0, length)), bytes.subarray(length)) === 0
}

function encodeXattrs(sets: (readonly Xattr[])[]): Uint8Array {
  const parts: Uint8Array[] = []
  const number = (value: number): void => void parts.push(new Uint8Array(new Uint32Array([value]).buffer))
  for (const set of sets) {
    number(set.length)
    for (const { name, value } of set) {
      number(name.length)
      parts.push(Buffer.from(name, 'latin1'))
      number(value.length)
      parts.push(value)
    }
  }
  return Buffer.concat(parts)
}

function decodeXattrs(bytes: Uint8Array, count: number): Xattr[][] {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let at = 0
  const number = (): number => view.readUInt32LE((at += 4) - 4)
  const sets: Xattr[][] = []
  for (let index = 0; index < count; index++) {
    const set: Xattr[] = []
    for (let left = number(); left > 0; left--) {
      const nameBytes = number()
      const name = view.toString('latin1', at, at + nameBytes)
      at += nameBytes
      const valueBytes = number()
      set.push({ name, value: Uint8Array.prototype.slice.call(view, at, at + valueBytes) })
      at += valueBytes
    }
    sets.push(set)
  }
  return sets
}
