/**
 * Disk content: reads what is to be stored of a disk, and has the workers store it: runs of files, cut along the file, and what is no file's,
 * cut at fixed places. The tree gets the chunks of the files, the map those of all.
 *
 * What the map says of a range is what was cut of the bytes that the disk gave for this range: it reads back whatever a filesystem claims.
 */
import { splitBlocks, windowStart } from '@varve/images/blockmap/block-cutter.ts'
import type { BlockMapBuilder } from '@varve/images/blockmap/block-map.ts'
import { FIXED_BYTES, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { isVarveError } from '@varve/images/errors.ts'
import type { VolumeFilesystem } from '@varve/images/filesystems/filesystem.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { BatchResult } from '../content-batch.ts'
import { RUN_FIXED } from '../content-batch.ts'
import { addChunks } from '../file-content.ts'
import type { FileContent } from '../file-content.ts'
import type { ImportContext } from '../import-context.ts'
import { NOWHERE } from './disk-files.ts'
import type { DiskPart } from './disk-files.ts'
import { CONTENT_CODES } from './open-volumes.ts'

/** A batch is handed over with so many bytes or pieces. */
const BATCH_BYTES = 4 << 20
const BATCH_PIECES = 1024

/** A run of a file. */
export interface FileRun {
  file: number
  /** In the builder. */
  inode: number
  parts: readonly DiskPart[]
  /** Bytes. */
  length: number
  fixed: boolean
  /** Of a file of more than one run: where they are collected, and the number of this one. */
  content: FileContent | undefined
  index: number
  /** For parts that stand nowhere on the disk. */
  filesystem: VolumeFilesystem
  id: number
  /** Bytes that follow the last part on the disk, and are no file's, and are read with it. */
  slackBytes: number
}

/** What is in a slot, from `at` on. */
type Piece = { at: number; length: number } & ({ run: FileRun } | { diskOffset: number })

export interface DiskContentOptions {
  disk: ReadableDisk
  builder: TreeBuilder
  map: BlockMapBuilder
}

export class DiskContent {
  /** Files whose content cannot be had, and why. */
  readonly unreadable = new Map<number, string>()
  readonly #context: ImportContext
  readonly #options: DiskContentOptions
  #slot: Uint8Array | undefined
  #filled = 0
  #pieces: Piece[] = []
  #reads: Promise<void>[] = []
  /** Batches whose reads are under way. */
  readonly #handingOver = new Set<Promise<void>>()
  #failure: unknown

  constructor(context: ImportContext, options: DiskContentOptions) {
    this.#context = context
    this.#options = options
  }

  /** Has a run of a file stored, SEGMENT_BYTES of it at most. */
  async addRun(run: FileRun): Promise<void> {
    const slackFits = run.length + run.slackBytes <= SEGMENT_BYTES
    const bytes = await this.#room(run.length + (slackFits ? run.slackBytes : 0))
    const at = this.#filled - bytes.length
    this.#pieces.push({ at, length: run.length, run })
    const start = run.parts[0].offset
    for (const [index, part] of run.parts.entries()) {
      const from = part.offset - start
      if (part.diskOffset === NOWHERE) {
        this.#await(this.#readElsewhere(run, bytes.subarray(from, from + part.length), part.offset))
        continue
      }
      const withSlack = index === run.parts.length - 1 && slackFits ? run.slackBytes : 0
      this.#read(bytes.subarray(from, from + part.length + withSlack), part.diskOffset)
      if (withSlack > 0) this.#pieces.push({ at: at + run.length, length: withSlack, diskOffset: part.diskOffset + part.length })
    }
    if (!slackFits) await this.addRange(run.parts.at(-1)!.diskOffset + run.parts.at(-1)!.length, run.slackBytes)
  }

  /** Has a range of the disk stored that is no file's. */
  async addRange(offset: number, length: number): Promise<void> {
    for (let at = offset; at < offset + length; ) {
      const end = Math.min(offset + length, windowStart(at) + BATCH_BYTES)
      const bytes = await this.#room(end - at)
      this.#pieces.push({ at: this.#filled - bytes.length, length: bytes.length, diskOffset: at })
      this.#read(bytes, at)
      at = end
    }
  }

  /** All is stored, and tree and map have it; chunks may not be durable yet. @throws what reading or storing failed with */
  async drain(): Promise<void> {
    this.#handOver()
    while (this.#handingOver.size > 0) await Promise.all(this.#handingOver)
    if (this.#failure !== undefined) throw this.#failure as Error
    await this.#context.pipeline.drain()
  }

  /** Memory for the next piece, in the slot at hand. */
  async #room(length: number): Promise<Uint8Array> {
    if (this.#slot !== undefined && (this.#filled >= BATCH_BYTES || this.#pieces.length >= BATCH_PIECES || this.#filled + length > this.#slot.length)) this.#handOver()
    if (this.#failure !== undefined) throw this.#failure as Error
    this.#slot ??= await this.#context.pipeline.slot()
    const from = this.#filled
    this.#filled += length
    return this.#slot.subarray(from, from + length)
  }

  #read(into: Uint8Array, offset: number): void {
    const pending = this.#options.disk.read(into, offset)
    if (pending !== undefined) this.#await(pending)
  }

  /** A failure is looked at when the batch is handed over, if it ever is. */
  #await(read: Promise<void>): void {
    read.catch(() => undefined)
    this.#reads.push(read)
  }

  async #readElsewhere({ file, filesystem, id }: FileRun, into: Uint8Array, offset: number): Promise<void> {
    try {
      await filesystem.read(id, into, offset)
    } catch (error) {
      if (!isVarveError(error, ...CONTENT_CODES)) throw error
      this.unreadable.set(file, error.message)
    }
  }

  /** Hands the slot over as soon as it is read; the next is filled meanwhile. */
  #handOver(): void {
    if (this.#slot === undefined) return
    const batch = { slot: this.#slot, pieces: this.#pieces }
    const reads = this.#reads
    this.#slot = undefined
    this.#filled = 0
    this.#pieces = []
    this.#reads = []
    if (reads.length === 0) {
      this.#submit(batch)
      return
    }
    const handingOver: Promise<void> = Promise.all(reads).then(() => this.#submit(batch)).catch((error: unknown) => void (this.#failure ??= error)).finally(() => this.#handingOver.delete(handingOver))
    this.#handingOver.add(handingOver)
  }

  #submit({ slot, pieces }: { slot: Uint8Array; pieces: readonly Piece[] }): void {
    const runs: Piece[] = []
    for (const piece of pieces) {
      if (!('run' in piece)) this.#addBlocks(slot, piece, runs)
      else if (!this.unreadable.has(piece.run.file)) runs.push(piece)
      else this.#addUnreadable(slot, piece, runs)
    }
    if (runs.length === 0) {
      this.#context.pipeline.giveBack(slot)
      return
    }
    this.#context.pipeline.submit({
      kind: 'bytes',
      count: runs.length,
      bytes: slot,
      starts: Uint32Array.from(runs, ({ at }) => at),
      lengths: Uint32Array.from(runs, ({ length }) => length),
      flags: Uint8Array.from(runs, (run) => ('run' in run && run.run.fixed ? RUN_FIXED : 0)),
    }, (result) => this.#take(runs, result))
  }

  /** What the disk has of a file that cannot be read as a whole is kept as what is no file's. */
  #addUnreadable(slot: Uint8Array, { at, run: { parts } }: Piece & { run: FileRun }, runs: Piece[]): void {
    for (const { offset, length, diskOffset, claimed } of parts) {
      if (diskOffset !== NOWHERE) this.#addBlocks(slot, { at: at + offset - parts[0].offset + claimed, length: length - claimed, diskOffset: diskOffset + claimed }, runs)
    }
  }

  /** Blocks that are not all zero, window by window: each run of them becomes one chunk. */
  #addBlocks(slot: Uint8Array, { at, length, diskOffset }: { at: number; length: number; diskOffset: number }, runs: Piece[]): void {
    const { map } = this.#options
    for (let from = 0; from < length; ) {
      const offset = diskOffset + from
      const end = Math.min(length, from + FIXED_BYTES - (offset - windowStart(offset)))
      const start = from
      splitBlocks(slot.subarray(at + start, at + end), offset, {
        data: (first, last) => runs.push({ at: at + start + first, length: last - first, diskOffset: offset + first }),
        zeroes: (first, last) => map.zero(offset + first, last - first),
      })
      from = end
    }
    this.#context.progress.add(0, length)
  }

  #take(runs: readonly Piece[], { chunkCounts, digests, chunkBytes }: BatchResult): void {
    const { map } = this.#options
    let first = 0
    for (const [index, stored] of runs.entries()) {
      const count = chunkCounts[index]
      if ('run' in stored) {
        this.#takeRun(stored.run, { digests, chunkBytes, first, count })
      } else {
        map.data(stored.diskOffset, stored.length, map.addChunk(digests.subarray(first * 32, first * 32 + 32), stored.length), 0)
      }
      first += count
    }
  }

  #takeRun(run: FileRun, { digests, chunkBytes, first, count }: { digests: Uint8Array; chunkBytes: Uint32Array; first: number; count: number }): void {
    const { builder, map } = this.#options
    const pieces = addChunks(builder, digests, chunkBytes, first, count)
    if (run.content !== undefined) run.content.setRun(run.index, pieces)
    else builder.setContent(run.inode, pieces.chunks, pieces.bytes)
    let part = 0
    let offset = run.parts[0].offset
    for (let index = first; index < first + count; index++) {
      const chunk = map.addChunk(digests.subarray(index * 32, index * 32 + 32), chunkBytes[index])
      const end = offset + chunkBytes[index]
      for (let at = offset; at < end; ) {
        const { offset: start, length, diskOffset, claimed } = run.parts[part]
        const stop = Math.min(end, start + length)
        const from = Math.max(at, start + claimed)
        if (diskOffset !== NOWHERE && from < stop) map.data(diskOffset + from - start, stop - from, chunk, from - offset)
        if (stop === start + length) part++
        at = stop
      }
      offset = end
    }
    this.#context.progress.add(0, run.length)
  }
}
