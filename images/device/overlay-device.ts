/**
 * OverlayDevice: durable copy-on-write over another disk. Writes land in a sparse file of the disk's own layout; a journal says which blocks count.
 * What is below never changes. Files, order of writes, and why each crash is safe: docs/formats/overlay.md
 */
import { dirname } from 'node:path'
import { VarveError } from '../errors.ts'
import { appendExtent, checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, DeviceView, WriteOptions, WriteZeroesOptions } from './block-device.ts'
import { BlockState, ChangedRuns, OVERLAY_BLOCK_BYTES, OverlayBlocks } from './overlay-blocks.ts'
import { localFiles } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { Frame, OVERLAY_BYTES_MAX, OverlayJournal } from './overlay-journal.ts'

/** Changed runs that are held before a commit starts by itself, so that a guest that never flushes does not fill the memory. */
const CHANGED_RUNS_MAX = 1 << 20

export interface OverlayOptions {
  /** Holds the overlay's files; nothing else may be in it. */
  directory: string
  /** The disk below: borrowed, read-only, and the same at every opening. */
  lower: BlockDevice
  /** Names what `lower` shows, 32 bytes: the digest of its block map. Another one than at creation is refused. */
  lowerDigest: Uint8Array
  /** Opens an overlay that nobody writes to any more; takes no lock. */
  readOnly?: boolean
  /** In tests, something that cuts the power. */
  files?: OverlayFiles
}

interface OverlayParts {
  directory: string
  files: OverlayFiles
  lower: BlockDevice
  readOnly: boolean
  /** -1 if it is read-only. */
  lockFd: number
  dataFd: number
  blocks: OverlayBlocks
  journal: OverlayJournal
}

/** Content of the two blocks that a write may cover in part, as the disk below has it; fetched where the overlay has nothing. */
interface Edges {
  head?: Uint8Array
  tail?: Uint8Array
}
const NO_EDGES: Edges = {}

export class OverlayDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = OVERLAY_BLOCK_BYTES
  readonly #directory: string
  readonly #files: OverlayFiles
  readonly #lockFd: number
  readonly #dataFd: number
  readonly #blocks: OverlayBlocks
  readonly #journal: OverlayJournal
  readonly #changed = new ChangedRuns()
  #lower: BlockDevice
  #readOnly: boolean
  /** Takes the writes of an overlay that was frozen. */
  #successor: OverlayDevice | undefined

  /** Counts completed changes; those up to #durable are durable. */
  #changes = 0
  #durable = 0
  /** The commit under way, and the changes that it covers. */
  #commit: Promise<void> | undefined
  #commitCovers = 0
  /** Follows the commit under way: one for all who wait for it. */
  #nextCommit: Promise<void> | undefined
  #changedRunsMax = CHANGED_RUNS_MAX
  /** Why nothing more is accepted: after a failed sync nobody knows what is durable. */
  #failure: VarveError | undefined

  readonly #inFlight = new Set<Promise<unknown>>()
  #closing: Promise<void> | undefined

  private constructor(parts: OverlayParts) {
    this.sizeBytes = parts.journal.header.sizeBytes
    this.#directory = parts.directory
    this.#files = parts.files
    this.#lower = parts.lower
    this.#readOnly = parts.readOnly
    this.#lockFd = parts.lockFd
    this.#dataFd = parts.dataFd
    this.#blocks = parts.blocks
    this.#journal = parts.journal
  }

  /** True if there is an overlay in the directory; one whose creation was interrupted is none. */
  static exists(directory: string, files: OverlayFiles = localFiles): boolean {
    return OverlayJournal.exists(files, directory)
  }

  /**
   * Makes an overlay that shows all of what is below. It is there and durable when this resolves, or not at all.
   * @throws VarveError LIMIT_EXCEEDED for a disk that is too large, ALREADY_EXISTS
   */
  static async create({ directory, sizeBytes, lowerDigest, files = localFiles }: { directory: string; sizeBytes: number; lowerDigest: Uint8Array; files?: OverlayFiles }): Promise<void> {
    if (sizeBytes > OVERLAY_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a disk of ${sizeBytes} bytes is too large for an overlay, which holds ${OVERLAY_BYTES_MAX}`)
    if (OverlayJournal.exists(files, directory)) throw new VarveError('ALREADY_EXISTS', `there is an overlay in ${directory}`)
    files.makeDirectory(directory)
    await files.syncDirectory(dirname(directory))
    const fd = files.open(`${directory}/data`, 'create')
    try {
      files.truncate(fd, 0)
      files.truncate(fd, sizeBytes)
      await files.sync(fd)
    } finally {
      files.close(fd)
    }
    await OverlayJournal.create(files, directory, { sizeBytes, lower: lowerDigest })
  }

  /**
   * Opens the overlay in a directory. What it shows is durable when this resolves.
   * @throws VarveError NOT_FOUND, OVERLAY_INVALID, FORMAT_UNSUPPORTED, STORE_LOCKED if a process has it open for writing
   */
  static async open({ directory, lower, lowerDigest, readOnly = false, files = localFiles }: OverlayOptions): Promise<OverlayDevice> {
    if (!OverlayJournal.exists(files, directory)) throw new VarveError('NOT_FOUND', `there is no overlay in ${directory}`)
    const opened: number[] = []
    try {
      const lockFd = readOnly ? -1 : lockDirectory(files, directory)
      if (!readOnly) opened.push(lockFd)
      let blocks!: OverlayBlocks
      const journal = OverlayJournal.open(files, directory, {
        readOnly,
        visit: header => {
          blocks = new OverlayBlocks(Math.ceil(header.sizeBytes / OVERLAY_BLOCK_BYTES))
          return (first, count, state) => void blocks.set(first, count, state)
        },
      })
      try {
        checkLower(journal, { directory, lower, lowerDigest })
        const dataFd = openData(files, directory, { readOnly, sizeBytes: lower.sizeBytes })
        opened.push(dataFd)
        // What a killed process left in the cache of the system is shown from now on: a flush may not find it missing later.
        await Promise.all([files.sync(dataFd), journal.sync()])
        return new OverlayDevice({ directory, files, lower, readOnly, lockFd, dataFd, blocks, journal })
      } catch (error) {
        journal.close()
        throw error
      }
    } catch (error) {
      for (const fd of opened) files.close(fd)
      throw error
    }
  }

  get readOnly(): boolean {
    return this.#readOnly
  }

  /** Blocks that the overlay holds or has as zeroes: `visit` gets each run, in order. */
  forRuns(visit: (first: number, count: number, state: BlockState) => void): void {
    this.#blocks.forRuns(0, this.#blocks.blockCount, visit)
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    this.#check(offset, into.length)
    const end = offset + into.length
    const endBlock = Math.ceil(end / OVERLAY_BLOCK_BYTES)
    let awaited: Promise<void>[] | undefined
    try {
      for (let at = offset; at < end;) {
        const block = Math.floor(at / OVERLAY_BLOCK_BYTES)
        const state = this.#blocks.get(block)
        const stop = Math.min(end, this.#blocks.runEnd(block, endBlock) * OVERLAY_BLOCK_BYTES)
        const part = stop - at === into.length ? into : into.subarray(at - offset, stop - offset)
        if (state === BlockState.data) {
          this.#files.read(this.#dataFd, part, at)
        } else if (state === BlockState.zero) {
          part.fill(0)
        } else {
          const answer = this.#lower.read(part, at)
          if (answer !== undefined) (awaited ??= []).push(answer)
        }
        at = stop
      }
    } catch (error) {
      if (awaited === undefined) throw error
      awaited.push(Promise.reject(error instanceof Error ? error : new Error(String(error))))
    }
    // All of the overlay's own blocks were read at once, and what is below does not change: the read shows one moment.
    if (awaited !== undefined) return this.#track(allSettled(awaited))
  }

  view(offset: number, length: number): DeviceView | undefined {
    this.#check(offset, length)
    const block = Math.floor(offset / OVERLAY_BLOCK_BYTES)
    const endBlock = Math.ceil((offset + length) / OVERLAY_BLOCK_BYTES)
    const below = this.#blocks.get(block) === BlockState.below && this.#blocks.runEnd(block, endBlock) === endBlock
    return below ? this.#lower.view?.(offset, length) : undefined
  }

  write(bytes: Uint8Array, offset: number, options: WriteOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, bytes.length)
    const edges = this.#fetchEdges(offset, bytes.length)
    if (!(edges instanceof Promise)) return this.#write(bytes, offset, options, edges)
    return this.#track(edges.then(fetched => (
      this.#successor === undefined ? this.#write(bytes, offset, options, fetched) : this.#successor.write(bytes, offset, options)
    )))
  }

  trim(offset: number, length: number, options: WriteOptions = {}): void | Promise<void> {
    return this.writeZeroes(offset, length, options)
  }

  writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void | Promise<void> {
    this.#checkWritable(offset, length)
    const edges = this.#fetchEdges(offset, length)
    if (!(edges instanceof Promise)) return this.#zero(offset, length, options, edges)
    return this.#track(edges.then(fetched => (
      this.#successor === undefined ? this.#zero(offset, length, options, fetched) : this.#successor.writeZeroes(offset, length, options)
    )))
  }

  flush(): void | Promise<void> {
    this.#check(0, 0)
    return this.#flush()
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    this.#check(offset, length)
    const extents: DeviceExtent[] = []
    const end = offset + length
    const endBlock = Math.ceil(end / OVERLAY_BLOCK_BYTES)
    for (let at = offset; at < end && extents.length <= most;) {
      const block = Math.floor(at / OVERLAY_BLOCK_BYTES)
      const state = this.#blocks.get(block)
      const stop = Math.min(end, this.#blocks.runEnd(block, endBlock) * OVERLAY_BLOCK_BYTES)
      if (state === BlockState.below) {
        for (const below of this.#lower.extents(at, stop - at, most - extents.length + 2)) {
          appendExtent(extents, below.offset, below.length, below.type)
          at = below.offset + below.length
        }
      } else {
        appendExtent(extents, at, stop - at, state === BlockState.data ? 'data' : 'zero')
        at = stop
      }
    }
    return extents.slice(0, most)
  }

  /** Whether the block at `offset` is this overlay's own, or what is below shows, and how far that goes: at most to `end`. */
  ownRun(offset: number, end: number): { own: boolean; end: number } {
    const block = Math.floor(offset / OVERLAY_BLOCK_BYTES)
    const stop = this.#blocks.runEnd(block, Math.ceil(end / OVERLAY_BLOCK_BYTES)) * OVERLAY_BLOCK_BYTES
    return { own: this.#blocks.get(block) !== BlockState.below, end: Math.min(end, stop) }
  }

  /**
   * Takes no more writes from this moment on: those under way, and all that come, go to `successor`, whose lower disk this becomes.
   * @returns when all that was written is durable
   */
  freeze(successor: OverlayDevice): void | Promise<void> {
    this.#checkWritable(0, 0)
    this.#readOnly = true
    this.#successor = successor
    return this.#flush()
  }

  /** Puts another disk that shows the same bytes below; the old one may be closed once this returns. Calls under way end on the old one first. */
  async replaceLower(lower: BlockDevice): Promise<void> {
    if (lower.sizeBytes !== this.sizeBytes) throw new RangeError(`a disk of ${lower.sizeBytes} bytes below an overlay of ${this.sizeBytes}`)
    this.#lower = lower
    await Promise.allSettled(this.#inFlight)
  }

  /** Makes everything durable and gives up the overlay; calls under way end first. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    try {
      await Promise.allSettled(this.#inFlight)
      if (!this.#readOnly && this.#failure === undefined) {
        await this.#flush()
        // Seals the last commit: should it be damaged later, this frame tells that from a commit that was cut short.
        this.#journal.append(new Frame())
        await this.#journal.sync()
      } else {
        await Promise.allSettled([this.#commit, this.#nextCommit])
      }
    } finally {
      this.#journal.close()
      this.#files.close(this.#dataFd)
      if (this.#lockFd >= 0) this.#files.close(this.#lockFd)
    }
  }

  // Writing. Everything happens in one turn once the edges are there, so that calls take effect one after another.

  /** What is below the blocks that a write covers in part, where the overlay has nothing yet. */
  #fetchEdges(offset: number, length: number): Edges | Promise<Edges> {
    if (length === 0 || (offset % OVERLAY_BLOCK_BYTES === 0 && length % OVERLAY_BLOCK_BYTES === 0)) return NO_EDGES
    const end = offset + length
    const firstBlock = Math.floor(offset / OVERLAY_BLOCK_BYTES)
    const lastBlock = Math.floor((end - 1) / OVERLAY_BLOCK_BYTES)
    const headCut = offset > firstBlock * OVERLAY_BLOCK_BYTES || end < this.#endOf(firstBlock)
    const tailCut = lastBlock > firstBlock && end < this.#endOf(lastBlock)
    if (!headCut && !tailCut) return NO_EDGES
    const edges: Edges = {}
    const awaited: Promise<void>[] = []
    const fetch = (block: number): Uint8Array => {
      const start = block * OVERLAY_BLOCK_BYTES
      const bytes = new Uint8Array(this.#endOf(block) - start)
      const answer = this.#lower.read(bytes, start)
      if (answer !== undefined) awaited.push(answer)
      return bytes
    }
    try {
      if (headCut && this.#blocks.get(firstBlock) === BlockState.below) edges.head = fetch(firstBlock)
      if (tailCut && this.#blocks.get(lastBlock) === BlockState.below) edges.tail = fetch(lastBlock)
    } catch (error) {
      if (awaited.length === 0) throw error
      awaited.push(Promise.reject(error instanceof Error ? error : new Error(String(error))))
    }
    return awaited.length === 0 ? edges : allSettled(awaited).then(() => edges)
  }

  #write(bytes: Uint8Array, offset: number, options: WriteOptions, edges: Edges): void | Promise<void> {
    if (bytes.length > 0) {
      const end = offset + bytes.length
      const firstBlock = Math.floor(offset / OVERLAY_BLOCK_BYTES)
      const endBlock = Math.ceil(end / OVERLAY_BLOCK_BYTES)
      const from = this.#writeEdge(firstBlock, offset, end, bytes, edges.head) ? Math.min(end, this.#endOf(firstBlock)) : offset
      const to = from < end && this.#writeEdge(endBlock - 1, offset, end, bytes, edges.tail) ? (endBlock - 1) * OVERLAY_BLOCK_BYTES : end
      if (from < to) this.#files.write(this.#dataFd, to - from === bytes.length ? bytes : bytes.subarray(from - offset, to - offset), from)
      this.#setState(firstBlock, endBlock - firstBlock, BlockState.data)
    }
    return this.#changedNow(options)
  }

  /**
   * Writes a whole block of which offset .. end covers a part, with what it shows elsewhere.
   * @returns false if that is not needed: the block is covered whole, or lies in the data already
   */
  #writeEdge(block: number, offset: number, end: number, bytes: Uint8Array, lower: Uint8Array | undefined): boolean {
    const start = block * OVERLAY_BLOCK_BYTES
    const stop = this.#endOf(block)
    if (offset <= start && end >= stop) return false
    const state = this.#blocks.get(block)
    if (state === BlockState.data) return false
    const whole = state === BlockState.zero ? new Uint8Array(stop - start) : lower!
    const from = Math.max(offset, start)
    whole.set(bytes.subarray(from - offset, Math.min(end, stop) - offset), from - start)
    this.#files.write(this.#dataFd, whole, start)
    return true
  }

  #zero(offset: number, length: number, options: WriteZeroesOptions, edges: Edges): void | Promise<void> {
    const end = offset + length
    const firstWhole = Math.ceil(offset / OVERLAY_BLOCK_BYTES)
    const endWhole = end === this.sizeBytes ? this.#blocks.blockCount : Math.floor(end / OVERLAY_BLOCK_BYTES)
    if (firstWhole < endWhole) this.#zeroBlocks(firstWhole, endWhole, options.noHole ?? false)
    if (length > 0) {
      const head = Math.floor(offset / OVERLAY_BLOCK_BYTES)
      const tail = Math.floor((end - 1) / OVERLAY_BLOCK_BYTES)
      if (head < firstWhole) this.#zeroEdge(head, offset, Math.min(end, this.#endOf(head)), edges.head)
      if (tail >= endWhole && (tail > head || head >= firstWhole)) this.#zeroEdge(tail, Math.max(offset, tail * OVERLAY_BLOCK_BYTES), end, tail > head ? edges.tail : edges.head)
    }
    return this.#changedNow(options)
  }

  /** Zeroes a part of one block. */
  #zeroEdge(block: number, from: number, to: number, lower: Uint8Array | undefined): void {
    const start = block * OVERLAY_BLOCK_BYTES
    const state = this.#blocks.get(block)
    if (state === BlockState.zero) return
    if (state === BlockState.data) {
      this.#files.write(this.#dataFd, new Uint8Array(to - from), from)
    } else {
      const whole = lower!
      whole.fill(0, from - start, to - start)
      this.#files.write(this.#dataFd, whole, start)
      this.#setState(block, 1, BlockState.data)
    }
  }

  #zeroBlocks(first: number, end: number, noHole: boolean): void {
    const start = first * OVERLAY_BLOCK_BYTES
    const length = this.#endOf(end - 1) - start
    const hadData = this.#blocks.includes(first, end, BlockState.data)
    this.#setState(first, end - first, BlockState.zero)
    // Safe before the commit: whether a crash brings back the old state of the block or not, what is punched reads as zeroes, as was asked.
    if (noHole) this.#files.allocate(this.#dataFd, start, length)
    else if (hadData) this.#files.punch(this.#dataFd, start, length)
  }

  #setState(first: number, count: number, state: BlockState): void {
    if (this.#blocks.set(first, count, state)) this.#changed.add(first, count)
  }

  #changedNow(options: WriteOptions): void | Promise<void> {
    this.#changes++
    if (options.fua) return this.#flush()
    if (this.#changed.count > this.#changedRunsMax && this.#commit === undefined) {
      // If it fails, the flush that follows finds out: what failed is tried again, or refused for good.
      this.#start().catch(() => { this.#changedRunsMax *= 2 })
    }
  }

  // Commits. At most one is under way; all who come meanwhile wait for one that follows it.

  #flush(): void | Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    if (this.#durable === this.#changes) return
    if (this.#commit === undefined) return this.#start()
    if (this.#commitCovers === this.#changes) return this.#commit
    this.#nextCommit ??= this.#commit.catch(() => {}).then(() => {
      this.#nextCommit = undefined
      return this.#flush()
    })
    return this.#nextCommit
  }

  #start(): Promise<void> {
    this.#commitCovers = this.#changes
    this.#commit = this.#commitNow().finally(() => { this.#commit = undefined })
    return this.#commit
  }

  /** docs/formats/overlay.md#commit */
  async #commitNow(): Promise<void> {
    const covers = this.#changes
    const runs = this.#changed.take()
    const frame = new Frame()
    for (let index = 0; index < runs.length; index += 2) this.#blocks.forRuns(runs[index], runs[index + 1], (first, count, state) => frame.add(first, count, state))
    const whole = this.#journal.wantsRewrite ? new Frame() : undefined
    if (whole !== undefined) this.forRuns((first, count, state) => whole.add(first, count, state))
    await this.#sync(() => this.#files.sync(this.#dataFd))
    const rewritten = whole !== undefined && await this.#sync(() => this.#journal.rewrite(whole))
    if (!rewritten && frame.recordCount > 0) await this.#append(frame, runs)
    this.#durable = covers
  }

  async #append(frame: Frame, runs: Float64Array): Promise<void> {
    try {
      this.#journal.append(frame)
    } catch (error) {
      // The disk is full, say. Nothing was promised: the runs go with the next commit.
      this.#changed.putBack(runs)
      throw error
    }
    await this.#sync(() => this.#journal.sync())
  }

  async #sync<Result>(sync: () => Promise<Result>): Promise<Result> {
    try {
      return await sync()
    } catch (cause) {
      this.#failure = new VarveError('OVERLAY_FAILED', `overlay ${this.#directory} could not be made durable (${(cause as Error).message}); check the disk that it is on, and open it again`, { cause })
      throw this.#failure
    }
  }

  /** Where a block ends, bytes. */
  #endOf(block: number): number {
    return Math.min(this.sizeBytes, (block + 1) * OVERLAY_BLOCK_BYTES)
  }

  #track<Result>(call: Promise<Result>): Promise<Result> {
    const tracked = call.finally(() => this.#inFlight.delete(tracked))
    this.#inFlight.add(tracked)
    return tracked
  }

  #checkWritable(offset: number, length: number): void {
    this.#check(offset, length)
    if (this.#readOnly) throw new VarveError('READ_ONLY', `overlay ${this.#directory} is frozen`)
    if (this.#failure !== undefined) throw this.#failure
  }

  #check(offset: number, length: number): void {
    if (this.#closing !== undefined) throw new TypeError('the device is closed')
    checkRange(this, offset, length)
  }
}

/** Waits for all, so that nothing is written to buffers after the answer, and then fails as the first that failed. */
async function allSettled(calls: Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(calls)) if (result.status === 'rejected') throw result.reason
}

/**
 * Takes the lock of a directory for this process. @returns the descriptor that holds it
 * @throws VarveError STORE_LOCKED
 */
export function lockDirectory(files: OverlayFiles, directory: string): number {
  const fd = files.open(`${directory}/lock`, 'create')
  if (files.tryLock(fd)) {
    files.truncate(fd, 0)
    files.write(fd, Buffer.from(`${process.pid}\n`), 0)
    return fd
  }
  const holder = Buffer.alloc(Math.min(20, files.sizeBytes(fd)))
  files.read(fd, holder, 0)
  files.close(fd)
  throw new VarveError('STORE_LOCKED', `overlay ${directory} is in use by process ${holder.toString().trim() || '(not known)'}; stop it first`)
}

function checkLower(journal: OverlayJournal, { directory, lower, lowerDigest }: { directory: string; lower: BlockDevice; lowerDigest: Uint8Array }): void {
  const { sizeBytes, lower: expected } = journal.header
  if (Buffer.compare(expected, lowerDigest) !== 0) {
    throw new VarveError('OVERLAY_INVALID', `overlay ${directory} belongs on ${Buffer.from(expected).toString('hex')}, not on ${Buffer.from(lowerDigest).toString('hex')}`)
  }
  if (sizeBytes !== lower.sizeBytes) throw new VarveError('OVERLAY_INVALID', `overlay ${directory} is of a disk of ${sizeBytes} bytes, not ${lower.sizeBytes}`)
}

function openData(files: OverlayFiles, directory: string, { readOnly, sizeBytes }: { readOnly: boolean; sizeBytes: number }): number {
  const path = `${directory}/data`
  if (!files.exists(path)) throw new VarveError('OVERLAY_INVALID', `${path} is missing`)
  const fd = files.open(path, readOnly ? 'read' : 'write')
  const found = files.sizeBytes(fd)
  if (found !== sizeBytes) {
    files.close(fd)
    throw new VarveError('OVERLAY_INVALID', `${path} is ${found} bytes, not ${sizeBytes}`)
  }
  return fd
}
