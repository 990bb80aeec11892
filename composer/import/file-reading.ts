/**
 * File reading: has the workers read the regular files that a scan has found. Files are known by numbers; their runs go to the workers in batches,
 * in the order in which they were found, while the scan goes on.
 */
import { readSync } from 'node:fs'
import { SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { VarveError } from '@varve/images/errors.ts'
import { dataParts } from '@varve/images/native/libc.ts'
import { FileStatus, IDENTITY_WORDS, closeDescriptor, openToRead } from '@varve/images/native/scan.ts'
import { Column, ScratchColumn } from '@varve/images/tree/column.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { Workspace } from '@varve/images/tree/workspace.ts'
import { RUN_CHANGED, RUN_FIXED } from './content-batch.ts'
import type { BatchResult, FileBatch } from './content-batch.ts'
import { FileContent, addChunks, runsOf } from './file-content.ts'
import type { DataPart } from './file-content.ts'
import { IN_PLACE_MAGIC_BYTES, isUpdatedInPlace } from './in-place-formats.ts'
import type { ImportContext } from './import-context.ts'

/** A batch is full with so many bytes or runs. */
const BATCH_BYTES = 4 << 20
const BATCH_RUNS = 512
/** Of a sparse file, asked for at once: a file may have millions of them. */
const PARTS_AT_ONCE = 8192

/** Regular files that a scan has found; one row for each inode. */
export class ScannedFileTable {
  /** IDENTITY_WORDS words each. */
  readonly identities: ScratchColumn<Uint32Array>
  /** Entry in the builder: its first name. */
  readonly entries: Column<Uint32Array>
  readonly sizes: ScratchColumn<Float64Array>
  /** 1 if less is allocated than the size says. */
  readonly sparse: ScratchColumn<Uint8Array>

  constructor(space: Workspace) {
    this.identities = new ScratchColumn(space, new Uint32Array())
    this.entries = new Column(space, new Uint32Array())
    this.sizes = new ScratchColumn(space, new Float64Array())
    this.sparse = new ScratchColumn(space, new Uint8Array())
  }

  get count(): number {
    return this.entries.length
  }

  truncate(count: number): void {
    this.identities.truncate(count * IDENTITY_WORDS)
    for (const column of [this.entries, this.sizes, this.sparse]) column.truncate(count)
  }

  clear(): void {
    for (const column of [this.identities, this.entries, this.sizes, this.sparse]) column.clear()
  }
}

export interface ReadingOptions {
  files: ScannedFileTable
  builder: TreeBuilder
  /** Borrowed. */
  space: Workspace
  /** Path of a file, ended by NUL. */
  pathOf: (file: number) => Buffer
}

interface Run {
  file: number
  offset: number
  length: number
  flags: number
  /** Of a file of more than one run: where they are collected, and the number of this one. */
  content?: FileContent
  index: number
}

export class FileReading {
  readonly #context: ImportContext
  readonly #files: ScannedFileTable
  readonly #builder: TreeBuilder
  readonly #pathOf: (file: number) => Buffer
  /** Files to be read. */
  readonly #queue: ScratchColumn<Uint32Array>
  readonly #status = new FileStatus()
  readonly #identity = new Uint32Array(IDENTITY_WORDS)
  #next = 0
  #runs: Iterator<Run> | undefined
  #queuedBytes = 0
  /** Files that were not as the scan had found them when they were read. */
  readonly changed = new Set<number>()

  constructor(context: ImportContext, { files, builder, space, pathOf }: ReadingOptions) {
    this.#context = context
    this.#files = files
    this.#builder = builder
    this.#pathOf = pathOf
    this.#queue = new ScratchColumn(space, new Uint32Array())
  }

  /** Has a file read, which is not empty. */
  add(file: number): void {
    this.#queue.push(file)
    this.#queuedBytes += this.#files.sizes.get(file)
  }

  /** Files added so far. */
  get added(): number {
    return this.#queue.length
  }

  /** Forgets the files that were added last, before any of them was dispatched. */
  truncate(added: number): void {
    for (let at = added; at < this.#queue.length; at++) this.#queuedBytes -= this.#files.sizes.get(this.#queue.get(at))
    this.#queue.truncate(added)
  }

  clear(): void {
    this.#queue.clear()
  }

  /** Hands full batches to the workers as long as they have room. @param last not full ones too */
  dispatch(last: boolean): void {
    const { pipeline } = this.#context
    while (pipeline.hasRoom && this.#waits && (last || this.#queuedBytes >= BATCH_BYTES || this.#queue.length - this.#next >= BATCH_RUNS)) {
      const runs = this.#nextRuns()
      if (runs.length === 0) continue
      pipeline.submit(this.#batch(runs), (result) => this.#take(runs, result))
    }
  }

  /** Has all files read that were added. @throws what reading them failed with */
  async drain(): Promise<void> {
    while (this.#waits) {
      await this.#context.pipeline.room()
      this.dispatch(true)
    }
    await this.#context.pipeline.drain()
  }

  get #waits(): boolean {
    return this.#runs !== undefined || this.#next < this.#queue.length
  }

  #nextRuns(): Run[] {
    const runs: Run[] = []
    let bytes = 0
    while (bytes < BATCH_BYTES && runs.length < BATCH_RUNS) {
      if (this.#runs === undefined) {
        if (this.#next === this.#queue.length) break
        this.#runs = this.#runsOfFile(this.#queue.get(this.#next++))
      }
      const { value, done } = this.#runs.next()
      if (done === true) {
        this.#runs = undefined
      } else {
        runs.push(value)
        bytes += value.length
      }
    }
    this.#queuedBytes -= bytes
    return runs
  }

  *#runsOfFile(file: number): Generator<Run, undefined> {
    const sizeBytes = this.#files.sizes.get(file)
    const sparse = this.#files.sparse.get(file) === 1
    if (!sparse && sizeBytes <= SEGMENT_BYTES) {
      yield { file, offset: 0, length: sizeBytes, flags: 0, index: 0 }
      return
    }
    const content = new FileContent(this.#builder, this.#inodeOf(file), sizeBytes)
    let dataBytes = 0
    for (let from = 0, isWhole = false; !isWhole; ) {
      const plan = this.#plan(file, from)
      if (plan === undefined) return
      for (const run of runsOf(plan.parts, plan.fixed)) {
        dataBytes += run.length
        yield { file, ...run, flags: plan.fixed ? RUN_FIXED : 0, content, index: content.addRun(run) }
      }
      isWhole = plan.parts.length < PARTS_AT_ONCE
      if (!isWhole) from = endOf(plan.parts.at(-1)!)
    }
    content.planned()
    // Nobody reads holes, nor a file of nothing else: they are counted here.
    this.#context.progress.add(dataBytes === 0 ? 1 : 0, sizeBytes - dataBytes)
  }

  /** Parts with data, PARTS_AT_ONCE at most, and how they are to be cut; undefined if the file is not what it was, which counts as changed. */
  #plan(file: number, from: number): { parts: DataPart[]; fixed: boolean } | undefined {
    const sizeBytes = this.#files.sizes.get(file)
    const sparse = this.#files.sparse.get(file) === 1
    const fd = openToRead(this.#pathOf(file))
    if (fd < 0) {
      this.changed.add(file)
      return undefined
    }
    try {
      const start = Buffer.alloc(IN_PLACE_MAGIC_BYTES)
      const fixed = isUpdatedInPlace(start.subarray(0, readSync(fd, start, 0, IN_PLACE_MAGIC_BYTES, 0)))
      const parts = sparse ? dataParts(fd, sizeBytes, { from, partsMax: PARTS_AT_ONCE }) : [{ offset: 0, length: sizeBytes }]
      // Of holes, nobody else sees that they are not those of the file as it was found.
      if (this.#isUnchanged(fd, file)) return { parts, fixed }
      this.changed.add(file)
      return undefined
    } finally {
      closeDescriptor(fd)
    }
  }

  #isUnchanged(fd: number, file: number): boolean {
    this.#files.identities.read(file * IDENTITY_WORDS, this.#identity)
    return this.#status.ofDescriptor(fd) === 0 && this.#status.hasIdentity(this.#identity, 0)
  }

  #batch(runs: readonly Run[]): FileBatch {
    const paths = runs.map(({ file }) => this.#pathOf(file))
    const batch: FileBatch = {
      kind: 'files',
      count: runs.length,
      paths: Buffer.concat(paths),
      pathStarts: new Uint32Array(runs.length + 1),
      offsets: new Float64Array(runs.length),
      lengths: new Uint32Array(runs.length),
      flags: new Uint8Array(runs.length),
      identities: new Uint32Array(runs.length * IDENTITY_WORDS),
    }
    runs.forEach(({ file, offset, length, flags }, index) => {
      batch.pathStarts[index + 1] = batch.pathStarts[index] + paths[index].length
      batch.offsets[index] = offset
      batch.lengths[index] = length
      batch.flags[index] = flags
      for (let word = 0; word < IDENTITY_WORDS; word++) batch.identities[index * IDENTITY_WORDS + word] = this.#files.identities.get(file * IDENTITY_WORDS + word)
    })
    return batch
  }

  #inodeOf(file: number): number {
    return this.#builder.inodeOf(this.#files.entries.values[file])
  }

  #take(runs: readonly Run[], { chunkCounts, digests, chunkBytes }: BatchResult): void {
    let first = 0
    let files = 0
    let bytes = 0
    for (let index = 0; index < runs.length; index++) {
      const { file, length, content, index: run } = runs[index]
      if (chunkCounts[index] === RUN_CHANGED) {
        this.changed.add(file)
        continue
      }
      const pieces = addChunks(this.#builder, digests, chunkBytes, first, chunkCounts[index])
      first += chunkCounts[index]
      if (content !== undefined) content.setRun(run, pieces)
      else this.#builder.setContent(this.#inodeOf(file), pieces.chunks, pieces.bytes)
      if (run === 0) files++
      bytes += length
    }
    this.#context.progress.add(files, bytes)
    this.dispatch(false)
  }
}

function endOf({ offset, length }: DataPart): number {
  return offset + length
}

/** @param path in latin1 */
export function changed(path: string): VarveError {
  return new VarveError('SOURCE_CHANGED', `${path} changed while it was read; import again when it is quiet, or from a snapshot`)
}
