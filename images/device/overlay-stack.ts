/**
 * OverlayStack: the writable disk of a CVD, over its block map, with a history of frozen generations. This is the device that a server holds.
 * A snapshot freezes the top overlay and puts a new one on it, at once and under load; settling turns a frozen one into chunks.
 * It knows nothing of catalogs: docs/formats/overlay.md#catalog says in which order theirs and these steps are taken.
 *
 *   top  generation 4   takes the writes
 *        generation 3   frozen by snapshot(), which returned 3
 *        generation 2   frozen
 *        lower          the block map: composed, or settled through generation 1
 */
import { randomBytes } from 'node:crypto'
import { dirname } from 'node:path'
import { digestOf, DIGEST_BYTES } from '../chunk/digest.ts'
import type { BlockMap } from '../blockmap/block-map.ts'
import { VarveError } from '../errors.ts'
import type { ChunkWriter } from '../store/chunk-store.ts'
import { checkRange } from './block-device.ts'
import type { BlockDevice, DeviceExtent, DeviceView, WriteOptions, WriteZeroesOptions } from './block-device.ts'
import { lockDirectory, OVERLAY_BLOCK_BYTES, OverlayDevice } from './overlay-device.ts'
import { localFiles } from './overlay-files.ts'
import type { OverlayFiles } from './overlay-files.ts'
import { OVERLAY_BYTES_MAX } from './overlay-journal.ts'
import { readStackFile, stackFileExists, writeStackFile } from './overlay-stack-file.ts'
import type { StackBase, StackFile } from './overlay-stack-file.ts'
import { settleOverlay } from './settle-overlay.ts'

export interface OverlayStackOptions {
  /** Holds the stack's file and a directory for each generation. */
  directory: string
  /** The disk of the block map below: borrowed, read-only. */
  lower: BlockDevice
  /** Digest of that block map, 32 bytes. */
  lowerDigest: Uint8Array
  /** In tests, something that cuts the power. */
  files?: OverlayFiles
}

interface StackParts {
  directory: string
  files: OverlayFiles
  lockFd: number
  file: StackFile
  frozen: OverlayDevice[]
  firstGeneration: number
  top: OverlayDevice
}

export class OverlayStack implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = OVERLAY_BLOCK_BYTES
  readonly readOnly = false
  readonly #directory: string
  readonly #files: OverlayFiles
  readonly #lockFd: number
  #file: StackFile
  /** Lowest first; generations #firstGeneration, ... */
  readonly #frozen: OverlayDevice[]
  #firstGeneration: number
  #top: OverlayDevice
  /** Those of #frozen that may hold what is not durable yet, with what their last commits said: a flush waits for them, or tries again. */
  readonly #freezing = new Map<OverlayDevice, Promise<void>>()
  /** Settled, and perhaps not durable: their files are open. */
  readonly #adopted: OverlayDevice[] = []
  /** Snapshots, adoptions and drops, one after another. */
  #change: Promise<unknown> = Promise.resolve()
  #closing: Promise<void> | undefined

  private constructor(parts: StackParts) {
    this.sizeBytes = parts.top.sizeBytes
    this.#directory = parts.directory
    this.#files = parts.files
    this.#lockFd = parts.lockFd
    this.#file = parts.file
    this.#frozen = parts.frozen
    this.#firstGeneration = parts.firstGeneration
    this.#top = parts.top
  }

  /** True if there is a stack in the directory. */
  static exists(directory: string, files: OverlayFiles = localFiles): boolean {
    return stackFileExists(files, directory)
  }

  /**
   * Opens the stack in a directory for its one owner, or makes one.
   * @throws VarveError STORE_LOCKED, OVERLAY_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED
   */
  static async open({ directory, lower, lowerDigest, files = localFiles }: OverlayStackOptions): Promise<OverlayStack> {
    if (lower.sizeBytes > OVERLAY_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `a disk of ${lower.sizeBytes} bytes is too large for an overlay, which holds ${OVERLAY_BYTES_MAX}`)
    files.makeDirectory(directory)
    const lockFd = lockDirectory(files, directory)
    const opened: OverlayDevice[] = []
    try {
      if (!stackFileExists(files, directory)) await createStack(files, directory, lower.sizeBytes, lowerDigest)
      const file = readStackFile(files, directory)
      // The lowest: that a generation was settled counts once the caller says so, by `drop`.
      const firstGeneration = Math.min(...generationsOver(file, directory, lowerDigest))
      await finishCreation(files, directory)
      const last = removeLeftovers(files, directory, file)
      // Names that a killed process has given may not be durable yet.
      await files.syncDirectory(directory)
      let below = lower
      for (let generation = firstGeneration; generation <= last; generation++) {
        below = await openGeneration({ files, directory, file, generation, lower: below, use: generation < last ? 'frozen' : 'top' })
        opened.push(below as OverlayDevice)
      }
      const top = opened.pop()
      if (top === undefined) throw new VarveError('OVERLAY_INVALID', `generation ${firstGeneration} of overlay ${directory} is missing`)
      return new OverlayStack({ directory, files, lockFd, file, frozen: opened, firstGeneration, top })
    } catch (error) {
      for (const overlay of opened.reverse()) await overlay[Symbol.asyncDispose]()
      files.close(lockFd)
      throw error
    }
  }

  /**
   * The disk as it was when `generation` was frozen, read-only; any process may open it, also while the stack has an owner.
   * @throws VarveError NOT_FOUND if there is no such frozen generation (any more); OVERLAY_INVALID
   */
  static async openFrozen({ directory, lower, lowerDigest, generation, files = localFiles }: OverlayStackOptions & { generation: number }): Promise<FrozenDisk> {
    if (!stackFileExists(files, directory)) throw new VarveError('NOT_FOUND', `there is no overlay in ${directory}`)
    const file = readStackFile(files, directory)
    const firstGeneration = Math.max(...generationsOver(file, directory, lowerDigest).filter(first => first <= generation))
    if (firstGeneration === -Infinity) throw new VarveError('NOT_FOUND', `generation ${generation} of overlay ${directory} is settled into the block map`)
    if (!files.exists(`${directory}/${generation + 1}`)) {
      throw new VarveError('NOT_FOUND', `generation ${generation} of overlay ${directory} is not a frozen one`)
    }
    const opened: OverlayDevice[] = []
    try {
      let below = lower
      for (let at = firstGeneration; at <= generation; at++) {
        below = await openGeneration({ files, directory, file, generation: at, lower: below, use: 'read' })
        opened.push(below as OverlayDevice)
      }
      return new FrozenDisk(opened)
    } catch (error) {
      for (const overlay of opened.reverse()) await overlay[Symbol.asyncDispose]()
      throw error
    }
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    return this.#top.read(into, offset)
  }

  view(offset: number, length: number): DeviceView | undefined {
    return this.#top.view(offset, length)
  }

  write(bytes: Uint8Array, offset: number, options?: WriteOptions): void | Promise<void> {
    return this.#top.write(bytes, offset, options)
  }

  trim(offset: number, length: number, options?: WriteOptions): void | Promise<void> {
    return this.#top.trim(offset, length, options)
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void | Promise<void> {
    return this.#top.writeZeroes(offset, length, options)
  }

  flush(): void | Promise<void> {
    const top = this.#top.flush()
    if (this.#freezing.size === 0) return top
    return Promise.all([this.#frozenDurable(), top]).then(() => {})
  }

  extents(offset: number, length: number, most?: number): DeviceExtent[] {
    return this.#top.extents(offset, length, most)
  }

  /**
   * What was changed since the block map that is below, by any generation: runs that cover the range in order, neighbours of one kind merged.
   * Stops early after `most` runs.
   */
  changedRuns(offset: number, length: number, most: number): { length: number; changed: boolean }[] {
    checkRange(this, offset, length)
    const overlays = [...this.#frozen, this.#top]
    const runs: { length: number; changed: boolean }[] = []
    const end = offset + length
    for (let at = offset; at < end;) {
      const own = overlays.map(overlay => overlay.ownRun(at, end))
      const changed = own.some(run => run.own)
      const stop = changed ? Math.max(...own.filter(run => run.own).map(run => run.end)) : Math.min(...own.map(run => run.end))
      const last = runs.at(-1)
      if (last?.changed === changed) last.length += stop - at
      else if (runs.length === most) break
      else runs.push({ length: stop - at, changed })
      at = stop
    }
    return runs
  }

  /** Frozen generations, lowest first; the top is the one after the last. */
  frozenGenerations(): number[] {
    return this.#frozen.map((_, index) => this.#firstGeneration + index)
  }

  /** The generation that takes the writes. */
  get topGeneration(): number {
    return this.#firstGeneration + this.#frozen.length
  }

  /**
   * Freezes what the disk shows at one moment of this call. Reads and writes go on meanwhile; none is lost, none is delayed.
   * @returns the generation that is now frozen, durable; the caller may now refer to it
   * @throws whatever kept the new generation from being made, or the old one from being durable: no flush succeeds before that one is
   */
  snapshot(): Promise<number> {
    return this.#inTurn(async () => {
      const generation = this.topGeneration
      const next = await this.#openNext(generation + 1)
      const frozen = this.#top
      try {
        this.#freezing.set(frozen, frozen.freeze(next))
      } catch (error) {
        await next[Symbol.asyncDispose]()
        throw error
      }
      this.#frozen.push(frozen)
      this.#top = next
      await this.#frozenDurable()
      return generation
    })
  }

  /**
   * Turns the lowest frozen generation into chunks.
   * @param lowerMap the map whose disk is now below
   * @param writer the caller commits it, and stores the map, before it calls `adopt`
   */
  async settle(lowerMap: BlockMap, writer: ChunkWriter, options: { signal?: AbortSignal } = {}): Promise<{ generation: number; map: BlockMap }> {
    const overlay = this.#frozen.at(0)
    if (overlay === undefined) throw new RangeError('there is no frozen generation to settle')
    const generation = this.#firstGeneration
    return { generation, map: await settleOverlay(lowerMap, overlay, writer, options) }
  }

  /**
   * Puts the settled map in the place of the lower disk and the lowest frozen generation, `generation`. From when this resolves, the stack opens over
   * either; its files stay until `drop`. The old lower disk is not used any more.
   */
  adopt({ generation, lower, lowerDigest }: { generation: number; lower: BlockDevice; lowerDigest: Uint8Array }): Promise<void> {
    return this.#inTurn(async () => {
      const overlay = this.#frozen.at(0)
      if (overlay === undefined || generation !== this.#firstGeneration) throw new RangeError(`generation ${generation} is not the lowest frozen one`)
      if (lower.sizeBytes !== this.sizeBytes) throw new RangeError(`a disk of ${lower.sizeBytes} bytes below an overlay of ${this.sizeBytes}`)
      const bases = this.#file.bases.filter(base => base.firstGeneration <= generation)
      await this.#writeFile([...bases, { lowerDigest, firstGeneration: generation + 1 }])
      const above = this.#frozen.at(1) ?? this.#top
      this.#frozen.shift()
      this.#firstGeneration = generation + 1
      await above.replaceLower(lower)
      // One that is not durable yet still has to be, until everybody opens the stack over the new map.
      if (this.#freezing.has(overlay)) this.#adopted.push(overlay)
      else await closeSettled(overlay)
    })
  }

  /** Forgets the maps that were below before the last `adopt`, and removes the files of the generations that it settled. Nothing may refer to them any more. */
  drop(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#writeFile(this.#file.bases.filter(base => base.firstGeneration === this.#firstGeneration))
      for (const overlay of this.#adopted.splice(0)) {
        this.#freezing.delete(overlay)
        await closeSettled(overlay)
      }
      removeLeftovers(this.#files, this.#directory, this.#file)
    })
  }

  /** Makes everything durable and gives up the stack. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#inTurn(async () => {
      try {
        // From the bottom: writes under way on a frozen overlay end on the top.
        const results = []
        for (const overlay of [...this.#adopted, ...this.#frozen, this.#top]) results.push(...await Promise.allSettled([overlay[Symbol.asyncDispose]()]))
        for (const result of results) if (result.status === 'rejected') throw result.reason
      } finally {
        this.#files.close(this.#lockFd)
      }
    })
    return this.#closing
  }

  /** Resolves when all that frozen generations hold is durable; a commit that has failed is tried again. */
  async #frozenDurable(): Promise<void> {
    await Promise.all([...this.#freezing].map(([overlay, commit]) => commit.catch(() => overlay.flush()).then(() => this.#freezing.delete(overlay))))
  }

  async #openNext(generation: number): Promise<OverlayDevice> {
    // An attempt that failed may have left one; it never took a write.
    removeGeneration(this.#files, this.#directory, generation)
    await createGeneration(this.#files, this.#directory, this.#file, generation)
    await publishGeneration(this.#files, this.#directory, generation)
    return openGeneration({ files: this.#files, directory: this.#directory, file: this.#file, generation, lower: this.#top, use: 'top' })
  }

  async #writeFile(bases: StackBase[]): Promise<void> {
    const file = { ...this.#file, bases }
    await writeStackFile(this.#files, this.#directory, file)
    this.#file = file
  }

  #inTurn<Result>(change: () => Promise<Result>): Promise<Result> {
    if (this.#closing !== undefined) throw new TypeError('the overlay is closed')
    const turn = this.#change.catch(() => {}).then(change)
    this.#change = turn
    return turn
  }
}

/** What it held is in the map: that one of its files cannot be closed, or made durable, does not undo what has happened. */
async function closeSettled(overlay: OverlayDevice): Promise<void> {
  await overlay[Symbol.asyncDispose]().catch(() => {})
}

/** A snapshot that is not settled yet: frozen overlays over a block map's disk. */
export class FrozenDisk implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = OVERLAY_BLOCK_BYTES
  readonly readOnly = true
  readonly #overlays: OverlayDevice[]
  readonly #top: OverlayDevice

  /** @param overlays lowest first; closed with this */
  constructor(overlays: OverlayDevice[]) {
    this.#overlays = overlays
    this.#top = overlays[overlays.length - 1]
    this.sizeBytes = this.#top.sizeBytes
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    return this.#top.read(into, offset)
  }

  view(offset: number, length: number): DeviceView | undefined {
    return this.#top.view(offset, length)
  }

  write(bytes: Uint8Array, offset: number): void | Promise<void> {
    return this.#top.write(bytes, offset)
  }

  trim(offset: number, length: number): void | Promise<void> {
    return this.#top.trim(offset, length)
  }

  writeZeroes(offset: number, length: number): void | Promise<void> {
    return this.#top.writeZeroes(offset, length)
  }

  flush(): void | Promise<void> {
    return this.#top.flush()
  }

  extents(offset: number, length: number, most?: number): DeviceExtent[] {
    return this.#top.extents(offset, length, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const overlay of this.#overlays.toReversed()) await overlay[Symbol.asyncDispose]()
  }
}

/** Names what lies below a generation: which stack, and its place in it. What is below the lowest is in the stack's file. */
function generationName(file: StackFile, generation: number): Uint8Array {
  return digestOf(Buffer.from(`${Buffer.from(file.id).toString('hex')}/${generation}`))
}

/** Makes an empty generation, not under its name yet. */
async function createGeneration(files: OverlayFiles, directory: string, file: StackFile, generation: number): Promise<void> {
  const fresh = `${directory}/${generation}.new`
  files.remove(fresh)
  await OverlayDevice.create({ files, directory: fresh, sizeBytes: file.sizeBytes, lowerDigest: generationName(file, generation) })
}

/** Gives a generation its name: from here on it is the top, and must never be missing. */
async function publishGeneration(files: OverlayFiles, directory: string, generation: number): Promise<void> {
  files.rename(`${directory}/${generation}.new`, `${directory}/${generation}`)
  await files.syncDirectory(directory)
}

/** Under its name, a generation is whole: the name goes first. */
function removeGeneration(files: OverlayFiles, directory: string, generation: number): void {
  if (!files.exists(`${directory}/${generation}`)) return
  files.remove(`${directory}/${generation}.old`)
  files.rename(`${directory}/${generation}`, `${directory}/${generation}.old`)
  files.remove(`${directory}/${generation}.old`)
}

/** @param use of one that is frozen, by the owner of the stack, or by anybody: what was not closed, only the owner makes whole */
async function openGeneration({ files, directory, file, generation, lower, use }: { files: OverlayFiles; directory: string; file: StackFile; generation: number; lower: BlockDevice; use: 'top' | 'frozen' | 'read' }): Promise<OverlayDevice> {
  const at = `${directory}/${generation}`
  if (!OverlayDevice.exists(at, files)) throw new VarveError('OVERLAY_INVALID', `the journal of ${at} is missing`)
  const options = { files, directory: at, lower, lowerDigest: generationName(file, generation) }
  if (use === 'frozen') await OverlayDevice.recover(options)
  return OverlayDevice.open({ ...options, readOnly: use !== 'top' })
}

/**
 * The first generation is made, then the stack's file, then the generation gets its name: so a name without the file,
 * and the file without either, are damage and not an interrupted creation.
 */
async function createStack(files: OverlayFiles, directory: string, sizeBytes: number, lowerDigest: Uint8Array): Promise<void> {
  if (generationsIn(files, directory).length > 0) throw new VarveError('OVERLAY_INVALID', `${directory} holds generations of an overlay, but its file 'stack' is missing`)
  await files.syncDirectory(dirname(directory))
  const file: StackFile = { id: randomBytes(DIGEST_BYTES), sizeBytes, bases: [{ lowerDigest, firstGeneration: 1 }] }
  await createGeneration(files, directory, file, 1)
  await writeStackFile(files, directory, file)
}

async function finishCreation(files: OverlayFiles, directory: string): Promise<void> {
  if (generationsIn(files, directory).length === 0 && files.exists(`${directory}/1.new`)) await publishGeneration(files, directory, 1)
}

/** Generations that lie on a map: one, or several if nothing was written in between. @throws VarveError OVERLAY_INVALID */
function generationsOver(file: StackFile, directory: string, lowerDigest: Uint8Array): number[] {
  const bases = file.bases.filter(candidate => Buffer.compare(candidate.lowerDigest, lowerDigest) === 0)
  if (bases.length > 0) return bases.map(base => base.firstGeneration)
  const names = file.bases.map(candidate => Buffer.from(candidate.lowerDigest).toString('hex')).join(' or ')
  throw new VarveError('OVERLAY_INVALID', `overlay ${directory} belongs on block map ${names}, not on ${Buffer.from(lowerDigest).toString('hex')}`)
}

/** Generations that are there, in order. */
function generationsIn(files: OverlayFiles, directory: string): number[] {
  return files.list(directory).filter(name => /^[1-9][0-9]{0,14}$/.test(name)).map(Number).sort((one, other) => one - other)
}

/** Removes generations that no base needs, and what interrupted steps have left. @returns the top generation */
function removeLeftovers(files: OverlayFiles, directory: string, file: StackFile): number {
  const first = Math.min(...file.bases.map(base => base.firstGeneration))
  const generations = generationsIn(files, directory)
  const kept = generations.filter(generation => generation >= first)
  for (const index of kept.length === 0 ? [0] : kept.keys()) {
    if (kept[index] !== first + index) throw new VarveError('OVERLAY_INVALID', `generation ${first + index} of overlay ${directory} is missing`)
  }
  for (const name of files.list(directory)) if (/^[0-9]+\.(new|old)$/.test(name)) files.remove(`${directory}/${name}`)
  for (const generation of generations) if (generation < first) removeGeneration(files, directory, generation)
  return first + kept.length - 1
}
