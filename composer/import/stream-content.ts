/**
 * Stream content: has the workers store the content of files whose bytes come by in a stream, gathered in batches.
 */
import { CUT_BYTES_MAX, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { RUN_FIXED } from './content-batch.ts'
import type { BatchResult } from './content-batch.ts'
import { FileContent, addChunks, runsOf } from './file-content.ts'
import type { DataPart } from './file-content.ts'
import { IN_PLACE_MAGIC_BYTES, isUpdatedInPlace } from './in-place-formats.ts'
import type { ImportContext } from './import-context.ts'

/** A batch is handed over with so many bytes or runs. */
const BATCH_BYTES = 4 << 20
const BATCH_RUNS = 4096

/** Where the bytes of a file come from, its holes left out. */
export interface DataSource {
  peekData(length: number): Promise<Uint8Array>
  readData(target: Uint8Array): Promise<void>
}

interface Run {
  builder: TreeBuilder
  inode: number
  length: number
  flags: number
  content?: FileContent
  index: number
}

export class StreamContent {
  readonly #context: ImportContext
  #slot: Uint8Array | undefined
  #filled = 0
  #runs: Run[] = []

  constructor(context: ImportContext) {
    this.#context = context
  }

  /** Reads the content of a file and has it stored; the builder gets it by and by. */
  async add(builder: TreeBuilder, inode: number, file: { sizeBytes: number; parts: readonly DataPart[] }, source: DataSource): Promise<void> {
    const { sizeBytes, parts } = file
    if (parts.length === 0) {
      if (sizeBytes > 0) builder.setContent(inode, [HOLE], [sizeBytes])
      return
    }
    const isWhole = parts.length === 1 && parts[0].length === sizeBytes
    const fixed = sizeBytes > CUT_BYTES_MAX && parts[0].offset === 0 && isUpdatedInPlace(await source.peekData(IN_PLACE_MAGIC_BYTES))
    const content = isWhole && sizeBytes <= SEGMENT_BYTES ? undefined : new FileContent(inode, sizeBytes)
    for (const run of runsOf(parts, fixed)) {
      const bytes = await this.#room(run.length)
      await source.readData(bytes)
      this.#runs.push({ builder, inode, length: run.length, flags: fixed ? RUN_FIXED : 0, content, index: content?.addRun(run) ?? 0 })
    }
    content?.planned(builder)
  }

  /** Hands over what has been gathered. */
  flush(): void {
    if (this.#slot === undefined) return
    const runs = this.#runs
    const batch = { kind: 'bytes' as const, count: runs.length, bytes: this.#slot, lengths: Uint32Array.from(runs, (run) => run.length), flags: Uint8Array.from(runs, (run) => run.flags) }
    this.#slot = undefined
    this.#filled = 0
    this.#runs = []
    this.#context.pipeline.submit(batch, (result) => this.#take(runs, result))
  }

  /** Memory for the next run. */
  async #room(length: number): Promise<Uint8Array> {
    if (this.#slot !== undefined && (this.#filled >= BATCH_BYTES || this.#runs.length >= BATCH_RUNS || this.#filled + length > this.#slot.length)) this.flush()
    this.#slot ??= await this.#context.pipeline.slot()
    const bytes = this.#slot.subarray(this.#filled, this.#filled + length)
    this.#filled += length
    return bytes
  }

  #take(runs: readonly Run[], { chunkCounts, digests, chunkBytes }: BatchResult): void {
    let first = 0
    for (let index = 0; index < runs.length; index++) {
      const { builder, inode, content, index: run } = runs[index]
      const pieces = addChunks(builder, digests, chunkBytes, first, chunkCounts[index])
      first += chunkCounts[index]
      if (content === undefined) builder.setContent(inode, pieces.chunks, pieces.bytes)
      else content.setRun(run, pieces.chunks, pieces.bytes, builder)
    }
  }
}
