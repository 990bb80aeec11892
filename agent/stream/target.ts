/**
 * Target: the disk that a stream fills, a file or a block device, with what is known of each of its blocks kept behind the end of the disk.
 * Each block goes where the finished disk has it; once it is complete and closed, it is a plain disk. Bytes and order of writes: docs/formats/target.md
 * It knows no chunks' contents and no network: streamed-disk.ts does.
 */
import { BlockMap, HOLE, ZERO } from '@varve/images/blockmap/block-map.ts'
import { digestOf, DIGEST_BYTES } from '@varve/images/chunk/digest.ts'
import { localFiles } from '@varve/images/device/overlay-files.ts'
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import { OBJECT_BYTES_MAX } from '@varve/images/store/object.ts'

export const BLOCK_BYTES = 4096
/** One page of state says of so many blocks whether they are there (first half), and whether the guest wrote them (second half). */
const PAGE_BYTES = 4096
const HALF_BYTES = PAGE_BYTES / 2
const PAGE_BLOCKS = HALF_BYTES * 8
const MAGIC = Buffer.from('VARVTGT1', 'latin1')
const VERSION = 1
/** What the owner keeps in the target for itself, JSON, bytes. */
const NOTE_BYTES = 64 << 10
const RECENT_MAGIC = Buffer.from('VARVTGTR', 'latin1')
/** Magic, incarnation, and 1 if there are suspects that this life has not cleared. */
const RECENT_HEADER_BYTES = RECENT_MAGIC.length + DIGEST_BYTES + 1
/** In place of an incarnation: everything is in the durable pages; and: nobody knows. */
const CLEAN = Buffer.alloc(DIGEST_BYTES)
const UNKNOWN = Buffer.alloc(DIGEST_BYTES, 0xff)
const ZEROES = new Uint8Array(1 << 20)
const BLANK_BYTES = 1 << 20
/** Largest disk: its state takes a 16384th of it in memory. */
export const TARGET_DISK_BYTES_MAX = 2 ** 44

/** Places in the target, bytes. */
interface Places {
  diskBytes: number
  mapBytes: number
  pages: number
  note: number
  map: number
  durable: number
  recentHeader: number
  recent: number
  /** The first block of the disk until it is complete; and a block of zeroes. */
  held: number
  spare: number
  superblocks: readonly [number, number]
}

interface Superblock extends Places {
  phase: number
  mapDigest: Uint8Array
}

const FILLING = 0
const COMPLETE = 1

export interface TargetInit {
  path: string
  /** Of the disk that it will be. */
  map: BlockMap
  /** Is kept with it: what the owner needs to go on. At most 64 KiB as JSON. */
  note: object
  /** Whatever the target holds may be lost. Without it, only a target that looks blank is taken. */
  overwrite?: boolean
  files?: OverlayFiles
}

export class Target implements AsyncDisposable {
  readonly path: string
  readonly map: BlockMap
  readonly blockCount: number
  readonly #files: OverlayFiles
  readonly #fd: number
  readonly #places: Places
  /** What the owner keeps here. */
  readonly note: object
  /** Pages of state as they are now. */
  readonly #state: Uint8Array
  /** Blocks that the last life left without saying whether the guest has written them since: 1 bit each. Undefined: none. */
  #suspect: Uint8Array | undefined
  /** Pages that differ from the durable ones: by what the guest did, and by what was filled. */
  readonly #guestPages = new Set<number>()
  readonly #fillPages = new Set<number>()
  /** State is kept for a process that follows in the same running system, which this names. Undefined: it cannot be. */
  readonly #incarnation: Uint8Array | undefined
  #present = 0
  #givesBack: boolean | undefined
  #commit: Promise<void> | undefined
  #nextCommit: Promise<void> | undefined
  #failure: VarveError | undefined
  /** The disk's first block is where it belongs, beside where it is held. */
  #isBootable = false
  #plain = false
  #closed = false

  private constructor(parts: { path: string; files: OverlayFiles; fd: number; places: Places; map: BlockMap; note: object; state: Uint8Array; suspect?: Uint8Array; incarnation: Uint8Array | undefined }) {
    this.path = parts.path
    this.#files = parts.files
    this.#fd = parts.fd
    this.#places = parts.places
    this.map = parts.map
    this.note = parts.note
    this.#state = parts.state
    this.#suspect = parts.suspect
    this.#incarnation = parts.incarnation
    this.blockCount = blocksOf(parts.map.sizeBytes)
    for (let page = 0; page < parts.places.pages; page++) this.#present += countBits(this.#state.subarray(page * PAGE_BYTES, page * PAGE_BYTES + HALF_BYTES))
  }

  /**
   * Begins a target: nothing of the disk is there, but the holes of a new file.
   * @throws VarveError TARGET_INVALID if it is too small, or not blank; STORE_LOCKED
   */
  static async create({ path, map, note, overwrite = false, files = localFiles }: TargetInit): Promise<Target> {
    const fd = openTarget(files, path, 'create')
    try {
      takeLock(files, fd, path)
      if (map.sizeBytes > TARGET_DISK_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a disk of ${map.sizeBytes} bytes; at most ${TARGET_DISK_BYTES_MAX} are streamed`)
      const isDevice = files.isDevice(fd)
      const encoded = map.encode()
      const size = files.sizeBytes(fd)
      const places = placesIn(isDevice ? size : undefined, map.sizeBytes, encoded.length)
      if (isDevice && places.note < up(map.sizeBytes)) {
        throw new VarveError('TARGET_INVALID', `${path} has ${size} bytes; the disk has ${map.sizeBytes}, and while it fills ${size - places.note} more are needed`)
      }
      if (!overwrite && !isBlank(files, fd, size)) throw new VarveError('TARGET_INVALID', `${path} is not blank; --overwrite gives up what it holds`)
      if (isDevice) forgetNote(files, fd, path)
      else {
        files.truncate(fd, 0)
        files.truncate(fd, places.superblocks[1] + BLOCK_BYTES)
      }
      const state = new Uint8Array(places.pages * PAGE_BYTES)
      if (!isDevice) setZeroBlocks(state, map)
      const incarnation = files.incarnation(fd)
      // An earlier target's, if there is one, must not be found before this one is whole.
      for (const place of places.superblocks) files.write(fd, ZEROES.subarray(0, BLOCK_BYTES), place)
      // Nor does it boot before it is whole.
      files.write(fd, ZEROES.subarray(0, Math.min(BLOCK_BYTES, map.sizeBytes)), 0)
      await files.sync(fd)
      files.write(fd, noteBytes(note), places.note)
      files.write(fd, encoded, places.map)
      files.write(fd, state, places.durable)
      files.write(fd, state, places.recent)
      files.write(fd, recentHeader(incarnation ?? UNKNOWN), places.recentHeader)
      files.write(fd, ZEROES.subarray(0, 2 * BLOCK_BYTES), places.held)
      await files.sync(fd)
      await writeSuperblocks(files, fd, places, { phase: FILLING, mapDigest: digestOf(encoded) })
      if (!isDevice) await files.syncDirectory(directoryOf(path))
      return new Target({ path, files, fd, places, map, note, state, incarnation })
    } catch (error) {
      files.close(fd)
      throw error
    }
  }

  /**
   * Opens a target that was begun. One that was complete, and only not yet a plain disk, is made one.
   * @returns undefined if the path holds none, or none any more
   * @throws VarveError TARGET_INVALID if it is damaged; FORMAT_UNSUPPORTED, STORE_LOCKED
   */
  static async open(path: string, { files = localFiles }: { files?: OverlayFiles } = {}): Promise<Target | 'complete' | undefined> {
    if (!files.exists(path)) return undefined
    const fd = openTarget(files, path, 'write')
    try {
      takeLock(files, fd, path)
      const places = readSuperblocks(files, fd, path)
      if (places?.phase === COMPLETE) await removeState(files, fd, places)
      if (places?.phase === FILLING) return await Target.#openAt(path, files, fd, places)
      files.close(fd)
      return places === undefined ? undefined : 'complete'
    } catch (error) {
      files.close(fd)
      throw error
    }
  }

  static async #openAt(path: string, files: OverlayFiles, fd: number, places: Superblock): Promise<Target> {
    const { mapDigest } = places
    const encoded = readAt(files, fd, places.map, places.mapBytes)
    if (Buffer.compare(digestOf(encoded), mapDigest) !== 0) throw new VarveError('TARGET_INVALID', `${path}: the block map that it keeps is damaged; begin again with --overwrite`)
    const map = BlockMap.decode(encoded)
    const note = parseNote(readAt(files, fd, places.note, NOTE_BYTES), path)
    const state = readAt(files, fd, places.durable, places.pages * PAGE_BYTES)
    const header = readAt(files, fd, places.recentHeader, RECENT_HEADER_BYTES)
    const last = header.subarray(RECENT_MAGIC.length, RECENT_MAGIC.length + DIGEST_BYTES)
    const incarnation = files.incarnation(fd)
    const isClean = last.equals(CLEAN)
    const isSameLife = !isClean && incarnation !== undefined && last.equals(incarnation)
    if (isSameLife) files.read(fd, state, places.recent)
    const hasSuspects = isSameLife ? header[RECENT_HEADER_BYTES - 1] !== 0 : !isClean
    const suspect = hasSuspects ? suspects(state, places.pages) : undefined
    const target = new Target({ path, files, fd, places, map, note, state, suspect, incarnation })
    if (isSameLife) {
      for (let page = 0; page < places.pages; page++) target.#guestPages.add(page)
    } else {
      files.write(fd, state, places.recent)
      files.write(fd, recentHeader(incarnation ?? UNKNOWN, hasSuspects), places.recentHeader)
      // From here on a power cut leaves no target that says it is clean.
      await files.sync(fd)
    }
    return target
  }

  get presentBlocks(): number {
    return this.#present
  }

  get isComplete(): boolean {
    return this.#present === this.blockCount
  }

  /** Why nothing more is accepted: after a failed sync nobody knows what is durable. */
  get failure(): VarveError | undefined {
    return this.#failure
  }

  isPresent(block: number): boolean {
    const within = block % PAGE_BLOCKS
    return (this.#state[((block - within) / PAGE_BLOCKS) * PAGE_BYTES + (within >>> 3)] & (1 << (within & 7))) !== 0
  }

  isWritten(block: number): boolean {
    const within = block % PAGE_BLOCKS
    return (this.#state[((block - within) / PAGE_BLOCKS) * PAGE_BYTES + HALF_BYTES + (within >>> 3)] & (1 << (within & 7))) !== 0
  }

  /** Where the run of blocks ends, up to `end`, that the guest wrote, or did not, as `block`. */
  runOfWritten(block: number, end: number): number {
    const value = this.isWritten(block)
    const full = value ? 0xff : 0
    for (let at = block; at < end;) {
      const within = at % PAGE_BLOCKS
      if ((within & 7) === 0 && at + 8 <= end && this.#state[((at - within) / PAGE_BLOCKS) * PAGE_BYTES + HALF_BYTES + (within >>> 3)] === full) at += 8
      else if (this.isWritten(at) === value) at++
      else return at
    }
    return end
  }

  /** True if its content may be what the guest wrote in an earlier life and nobody was told that it stays. */
  isSuspect(block: number): boolean {
    return this.#suspect !== undefined && (this.#suspect[block >>> 3] & (1 << (block & 7))) !== 0
  }

  get hasSuspects(): boolean {
    return this.#suspect !== undefined
  }

  /** True if blocks from `first` up to `end` can be read as they are. */
  isReadable(first: number, end: number): boolean {
    if (this.#present === this.blockCount && this.#suspect === undefined) return true
    for (let block = first; block < end; block++) if (!this.isPresent(block) || this.isSuspect(block)) return false
    return true
  }

  /** Its content has been found to be right. */
  clear(first: number, end: number): void {
    if (this.#suspect === undefined) return
    for (let block = first; block < end; block++) this.#suspect[block >>> 3] &= ~(1 << (block & 7))
  }

  /** Nothing is suspect any more: every block has been looked at. */
  clearAll(): void {
    if (this.#suspect === undefined) return
    this.#suspect = undefined
    if (this.#incarnation !== undefined) this.#files.write(this.#fd, recentHeader(this.#incarnation), this.#places.recentHeader)
  }

  /** A block whose content was found to be wrong is to come again. It is not one that the guest has written. */
  lose(block: number): void {
    if (!this.isPresent(block)) return
    const within = block % PAGE_BLOCKS
    const page = (block - within) / PAGE_BLOCKS
    const at = page * PAGE_BYTES + (within >>> 3)
    this.#state[at] &= ~(1 << (within & 7))
    this.#present--
    this.clear(block, block + 1)
    this.#fillPages.add(page)
    this.#keep(at, at + 1)
  }

  /** As it lies there, whatever it is. */
  readRaw(into: Uint8Array, offset: number): void {
    const held = this.#heldBytes(offset, into.length)
    if (held > 0) this.#files.read(this.#fd, into.subarray(0, held), this.#places.held + offset)
    if (held < into.length) this.#files.read(this.#fd, into.subarray(held), offset + held)
  }

  /** True if space that is not needed can be given back without writing to all of it. */
  givesBack(): boolean {
    return (this.#givesBack ??= this.#files.punch(this.#fd, this.#places.spare, BLOCK_BYTES))
  }

  /** Content of blocks that are not there; they are whole, but at the end of the disk. */
  install(bytes: Uint8Array, first: number): void {
    this.#checkUsable()
    this.#write(bytes, first * BLOCK_BYTES)
    this.#mark(first, first + blocksOf(bytes.length), false)
  }

  /** Zeroes, as `install`. */
  installZeroes(first: number, end: number): void {
    this.#checkUsable()
    this.#zero(first * BLOCK_BYTES, Math.min(end * BLOCK_BYTES, this.map.sizeBytes))
    this.#mark(first, end, false)
  }

  /** Of the guest: whole blocks, or parts of blocks that are readable. */
  write(bytes: Uint8Array, offset: number): void {
    this.#checkUsable()
    const [first, end] = [Math.floor(offset / BLOCK_BYTES), blocksOf(offset + bytes.length)]
    this.#markPresentAsWritten(first, end)
    this.#write(bytes, offset)
    this.#mark(first, end, true)
  }

  /** Of the guest, as `write`. @param options.allocated the space is not to be given back */
  writeZeroes(offset: number, length: number, { allocated = false }: { allocated?: boolean } = {}): void {
    this.#checkUsable()
    const [first, end] = [Math.floor(offset / BLOCK_BYTES), blocksOf(offset + length)]
    this.#markPresentAsWritten(first, end)
    if (allocated) this.#writeZeroes(offset, offset + length)
    else this.#zero(offset, offset + length)
    this.#mark(first, end, true)
  }

  /** What the guest wrote is durable when this resolves. With `all`, what was filled too. */
  flush({ all = false }: { all?: boolean } = {}): Promise<void> {
    if (all) for (const page of this.#fillPages) this.#guestPages.add(page)
    // One that is about to begin covers this one too; one that is under way may not.
    this.#nextCommit ??= (this.#commit ?? Promise.resolve()).then(() => {
      this.#nextCommit = undefined
      const commit = this.#commitNow()
      this.#commit = commit.catch(() => {})
      return commit
    })
    return this.#nextCommit
  }

  /** Everything is there and right. What the target knows of its blocks is of no use any more, and not kept: from now on it is a plain disk, but for what lies behind it. */
  async complete(): Promise<void> {
    if (!this.isComplete || this.hasSuspects) throw new RangeError('the disk is not complete')
    if (this.#plain) return
    this.#makeBootable()
    await this.flush({ all: true })
    await writeSuperblocks(this.#files, this.#fd, this.#places, { phase: COMPLETE, mapDigest: digestOf(this.map.encode()) })
    this.#plain = true
    // It holds a key, nobody needs it any more, and a machine that runs from this disk may be switched off without ever closing it.
    this.#files.write(this.#fd, ZEROES.subarray(0, NOTE_BYTES), this.#places.note)
    await this.#files.sync(this.#fd)
  }

  /** Makes everything durable, and lets another process have it. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    try {
      if (this.#failure === undefined) {
        await this.flush({ all: true })
        if (this.#plain) await removeState(this.#files, this.#fd, this.#places)
        else if (!this.hasSuspects) {
          this.#files.write(this.#fd, recentHeader(CLEAN), this.#places.recentHeader)
          await this.#files.sync(this.#fd)
        }
      }
    } finally {
      this.#close()
    }
  }

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#files.close(this.#fd)
  }

  async #commitNow(): Promise<void> {
    this.#checkUsable()
    const pages = [...this.#guestPages]
    // As they are now: what is written later may not be durable when these are.
    const copies = pages.map((page) => this.#state.slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES))
    for (const page of pages) {
      this.#guestPages.delete(page)
      this.#fillPages.delete(page)
    }
    try {
      await this.#files.sync(this.#fd)
      if (pages.length === 0) return
      for (const [index, page] of pages.entries()) this.#files.write(this.#fd, copies[index], this.#places.durable + page * PAGE_BYTES)
      await this.#files.sync(this.#fd)
    } catch (cause) {
      this.#failure = new VarveError('TARGET_FAILED', `${this.path} does not make writes durable: ${(cause as Error).message}`, { cause })
      // What the disk did not take is called clean in the cache: it may be gone from there.
      this.#files.write(this.#fd, recentHeader(UNKNOWN, true), this.#places.recentHeader)
      throw this.#failure
    }
  }

  /** Blocks that are there are called written before they are: a process that dies between leaves none that is taken for the disk's own and is not. */
  #markPresentAsWritten(first: number, end: number): void {
    if (this.#plain) return
    for (let block = first; block < end; block++) {
      if (!this.isPresent(block)) continue
      let stop = block + 1
      while (stop < end && this.isPresent(stop)) stop++
      this.#mark(block, stop, true)
      block = stop - 1
    }
  }

  #mark(first: number, end: number, written: boolean): void {
    if (this.#plain) return
    this.clear(first, end)
    for (let block = first; block < end;) {
      const from = block % PAGE_BLOCKS
      const page = (block - from) / PAGE_BLOCKS
      const to = Math.min(PAGE_BLOCKS, from + end - block)
      const at = page * PAGE_BYTES
      // In this order: what is there and not called written is taken for the disk's own.
      if (written && setBits(this.#state.subarray(at + HALF_BYTES, at + PAGE_BYTES), from, to) > 0) {
        this.#keep(at + HALF_BYTES + (from >>> 3), at + HALF_BYTES + ((to + 7) >>> 3))
        this.#guestPages.add(page)
      }
      const added = setBits(this.#state.subarray(at, at + HALF_BYTES), from, to)
      if (added > 0) {
        this.#present += added
        this.#keep(at + (from >>> 3), at + ((to + 7) >>> 3))
        const pages = written ? this.#guestPages : this.#fillPages
        pages.add(page)
      }
      block += to - from
    }
  }

  /** For a process that follows this one in the same running system: in its cache, not on the disk. */
  #keep(from: number, to: number): void {
    if (this.#incarnation === undefined) return
    this.#files.write(this.#fd, this.#state.subarray(from, to), this.#places.recent + from)
  }

  /** From here on the first block is written in both of its places: which of them counts is not known before the superblocks are durable. */
  #makeBootable(): void {
    const first = Buffer.alloc(this.#heldBytes(0, BLOCK_BYTES))
    this.readRaw(first, 0)
    this.#files.write(this.#fd, first, 0)
    this.#isBootable = true
  }

  /** How many of the bytes at `offset` are held elsewhere. */
  #heldBytes(offset: number, length: number): number {
    return this.#plain ? 0 : Math.max(0, Math.min(BLOCK_BYTES, this.map.sizeBytes, offset + length) - offset)
  }

  #write(bytes: Uint8Array, offset: number): void {
    const held = this.#heldBytes(offset, bytes.length)
    if (held > 0) this.#files.write(this.#fd, bytes.subarray(0, held), this.#places.held + offset)
    const from = this.#isBootable ? 0 : held
    if (from < bytes.length) this.#files.write(this.#fd, bytes.subarray(from), offset + from)
  }

  #zero(start: number, end: number): void {
    const held = this.#heldBytes(start, end - start)
    if (held > 0) this.#write(ZEROES.subarray(0, held), start)
    const offset = start + held
    const from = Math.min(end, Math.ceil(offset / BLOCK_BYTES) * BLOCK_BYTES)
    const to = Math.max(from, end - (end % BLOCK_BYTES))
    const punched = to > from && this.#files.punch(this.#fd, from, to - from)
    this.#writeZeroes(offset, punched ? from : to)
    this.#writeZeroes(to, end)
  }

  #writeZeroes(offset: number, end: number): void {
    for (let at = offset; at < end; at += ZEROES.length) this.#write(ZEROES.subarray(0, Math.min(ZEROES.length, end - at)), at)
  }

  #checkUsable(): void {
    if (this.#closed) throw new TypeError('the target is closed')
    if (this.#failure !== undefined) throw this.#failure
  }
}

export function blocksOf(bytes: number): number {
  return Math.ceil(bytes / BLOCK_BYTES)
}

function up(bytes: number): number {
  return blocksOf(bytes) * BLOCK_BYTES
}

/** Bytes behind the disk that a target needs while it fills. */
export function stateBytes(diskBytes: number, mapBytes: number): number {
  const pages = Math.ceil(blocksOf(diskBytes) / PAGE_BLOCKS)
  return NOTE_BYTES + up(mapBytes) + pages * PAGE_BYTES + BLOCK_BYTES + pages * PAGE_BYTES + 4 * BLOCK_BYTES
}

/** The state ends where the target does. @param targetBytes undefined: a file, which is made as long as it must be */
function placesIn(targetBytes: number | undefined, diskBytes: number, mapBytes: number): Places {
  const pages = Math.ceil(blocksOf(diskBytes) / PAGE_BLOCKS)
  const bytes = stateBytes(diskBytes, mapBytes)
  const note = targetBytes === undefined ? up(diskBytes) : targetBytes - (targetBytes % BLOCK_BYTES) - bytes
  const map = note + NOTE_BYTES
  const durable = map + up(mapBytes)
  const recentHeader = durable + pages * PAGE_BYTES
  const recent = recentHeader + BLOCK_BYTES
  const held = recent + pages * PAGE_BYTES
  const spare = held + BLOCK_BYTES
  const superblock = spare + BLOCK_BYTES
  return { diskBytes, mapBytes, pages, note, map, durable, recentHeader, recent, held, spare, superblocks: [superblock, superblock + BLOCK_BYTES] }
}

async function writeSuperblocks(files: OverlayFiles, fd: number, places: Places, { phase, mapDigest }: { phase: number; mapDigest: Uint8Array }): Promise<void> {
  const bytes = Buffer.alloc(BLOCK_BYTES)
  MAGIC.copy(bytes)
  bytes.writeUInt32LE(VERSION, 8)
  bytes[12] = phase
  bytes.writeBigUInt64LE(BigInt(places.diskBytes), 16)
  bytes.writeBigUInt64LE(BigInt(places.mapBytes), 24)
  bytes.set(mapDigest, 32)
  bytes.set(digestOf(bytes.subarray(0, 64)), 64)
  for (const place of places.superblocks) {
    files.write(fd, bytes, place)
    await files.sync(fd)
  }
}

/** @throws VarveError FORMAT_UNSUPPORTED, TARGET_INVALID */
function readSuperblocks(files: OverlayFiles, fd: number, path: string): Superblock | undefined {
  const size = files.sizeBytes(fd) - (files.sizeBytes(fd) % BLOCK_BYTES)
  for (const place of [size - BLOCK_BYTES, size - 2 * BLOCK_BYTES]) {
    if (place < 0) return undefined
    const bytes = readAt(files, fd, place, 96)
    if (!bytes.subarray(0, MAGIC.length).equals(MAGIC) || Buffer.compare(digestOf(bytes.subarray(0, 64)), bytes.subarray(64)) !== 0) continue
    const version = bytes.readUInt32LE(8)
    if (version !== VERSION) throw new VarveError('FORMAT_UNSUPPORTED', `${path} was begun by another Varve (version ${version}); go on with that one`)
    const [diskBytes, mapBytes] = [Number(bytes.readBigUInt64LE(16)), Number(bytes.readBigUInt64LE(24))]
    const isSane = diskBytes <= TARGET_DISK_BYTES_MAX && mapBytes <= OBJECT_BYTES_MAX
    const places = isSane ? placesIn(size, diskBytes, mapBytes) : undefined
    if (places === undefined || places.note < up(diskBytes)) throw new VarveError('TARGET_INVALID', `${path}: what it says of itself does not fit it`)
    return { ...places, phase: bytes[12], mapDigest: bytes.subarray(32, 64) }
  }
  return undefined
}

/** What is left is the disk. */
async function removeState(files: OverlayFiles, fd: number, { superblocks, note, diskBytes }: Places): Promise<void> {
  if (files.isDevice(fd)) {
    // First the note: it holds a key.
    for (const [offset, length] of [[note, NOTE_BYTES], [superblocks[0], BLOCK_BYTES], [superblocks[1], BLOCK_BYTES]]) {
      files.write(fd, ZEROES.subarray(0, length), offset)
      await files.sync(fd)
    }
  } else {
    files.truncate(fd, diskBytes)
    await files.sync(fd)
  }
}

function recentHeader(incarnation: Uint8Array, hasSuspects = false): Buffer {
  return Buffer.concat([RECENT_MAGIC, incarnation, Buffer.from([Number(hasSuspects)])])
}

/** Length, digest, JSON. */
function noteBytes(note: object): Buffer {
  const text = Buffer.from(JSON.stringify(note))
  if (text.length > NOTE_BYTES - 4 - DIGEST_BYTES) throw new RangeError(`a note of ${text.length} bytes`)
  const bytes = Buffer.alloc(4 + DIGEST_BYTES + text.length)
  bytes.writeUInt32LE(text.length, 0)
  bytes.set(digestOf(text), 4)
  bytes.set(text, 4 + DIGEST_BYTES)
  return bytes
}

/** Nothing, where it is damaged: whoever opens the target is asked again. */
function parseNote(bytes: Buffer, path: string): object {
  const length = bytes.readUInt32LE(0)
  const text = bytes.subarray(4 + DIGEST_BYTES, 4 + DIGEST_BYTES + length)
  if (text.length !== length || Buffer.compare(digestOf(text), bytes.subarray(4, 4 + DIGEST_BYTES)) !== 0) return {}
  try {
    return JSON.parse(text.toString()) as object
  } catch (cause) {
    throw new VarveError('TARGET_INVALID', `${path}: the note that it keeps is not JSON`, { cause })
  }
}

function readAt(files: OverlayFiles, fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  files.read(fd, bytes, offset)
  return bytes
}

/** An earlier target's note holds a key, and may lie where the new one has something else, or nothing. */
function forgetNote(files: OverlayFiles, fd: number, path: string): void {
  try {
    const places = readSuperblocks(files, fd, path)
    if (places !== undefined) files.write(fd, ZEROES.subarray(0, NOTE_BYTES), places.note)
  } catch (error) {
    // Nothing that can be read is there.
    if (!isVarveError(error)) throw error
  }
}

/** Zeroes at its beginning and at its end. */
function isBlank(files: OverlayFiles, fd: number, size: number): boolean {
  const length = Math.min(size, BLANK_BYTES)
  return [0, size - length].every((offset) => readAt(files, fd, offset, length).every((byte) => byte === 0))
}

/** @throws VarveError STORE_LOCKED */
function openTarget(files: OverlayFiles, path: string, mode: 'create' | 'write'): number {
  try {
    return files.open(path, mode)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EBUSY') throw cause
    throw new VarveError('STORE_LOCKED', `${path} is in use: it, or a partition of it, is mounted, or part of another device`, { cause })
  }
}

function takeLock(files: OverlayFiles, fd: number, path: string): void {
  if (!files.tryLock(fd)) throw new VarveError('STORE_LOCKED', `${path} is in use by another process`)
}

function directoryOf(path: string): string {
  const slash = path.lastIndexOf('/')
  return slash < 0 ? '.' : path.slice(0, slash) || '/'
}

/** Blocks that are there from the beginning, in a new file: those of zeroes alone. */
function setZeroBlocks(state: Uint8Array, map: BlockMap): void {
  for (let index = 0; index < map.extentCount;) {
    const from = map.starts[index]
    let end = index
    while (end < map.extentCount && (map.refs[end] === HOLE || map.refs[end] === ZERO)) end++
    if (end === index) {
      index++
      continue
    }
    const to = map.endOf(end - 1)
    const [first, stop] = [blocksOf(from), to === map.sizeBytes ? blocksOf(to) : Math.floor(to / BLOCK_BYTES)]
    for (let block = first; block < stop;) {
      const within = block % PAGE_BLOCKS
      const page = (block - within) / PAGE_BLOCKS
      const until = Math.min(PAGE_BLOCKS, within + stop - block)
      setBits(state.subarray(page * PAGE_BYTES, page * PAGE_BYTES + HALF_BYTES), within, until)
      block += until - within
    }
    index = end
  }
}

/** Blocks that are there and were not written, in one bitmap. */
function suspects(state: Uint8Array, pages: number): Uint8Array {
  const bits = new Uint8Array(pages * HALF_BYTES)
  for (let page = 0; page < pages; page++) {
    const at = page * PAGE_BYTES
    for (let index = 0; index < HALF_BYTES; index++) bits[page * HALF_BYTES + index] = state[at + index] & ~state[at + HALF_BYTES + index]
  }
  return bits
}

/** @returns how many were not set */
function setBits(bits: Uint8Array, from: number, to: number): number {
  let added = 0
  for (let bit = from; bit < to;) {
    const byte = bit >>> 3
    const stop = Math.min(to, (byte + 1) << 3)
    const mask = (0xff << (bit & 7)) & (0xff >>> (((byte + 1) << 3) - stop))
    added += POPULATION[mask & ~bits[byte]]
    bits[byte] |= mask
    bit = stop
  }
  return added
}

const POPULATION = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll('0', '').length)

function countBits(bits: Uint8Array): number {
  let sum = 0
  for (let index = 0; index < bits.length; index++) sum += POPULATION[bits[index]]
  return sum
}
