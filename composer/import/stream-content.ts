/**
 * Stream content: has the workers store the content of files whose bytes come by in a stream, gathered in batches.
 */
import { CUT_BYTES_MAX, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import type { SparseParts } from '@varve/images/formats/tar-sparse.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { RUN_FIXED } from './content-batch.ts'
import type { BatchResult } from './content-batch.ts'
import { FileContent, addChunks, runsOf } from './file-content.ts'
import { IN_PLACE_MAGIC_BYTES, isUpdatedInPlace } from './in-place-formats.ts'
import type { ImportContext } from './import-context.ts'

/** A batch is handed over with so many bytes or runs. */
const BATCH_BYTES = 4 << 20
const BATCH_RUNS = 1024

/** Where the bytes of a file come from, its holes left out. */
export interface DataSource {
  peekData(length: number): Promise<Uint8Array>
  readData(target: Uint8Array): Promise<void>
}

/** What is known of the runs of a batch until their results come. In columns: an object for each would be there too long to be cheap. */
class Runs {
  readonly inodes = new Uint32Array(BATCH_RUNS)
  readonly starts = new Uint32Array(BATCH_RUNS)
  readonly lengths = new Uint32Array(BATCH_RUNS)
  readonly flags = new Uint8Array(BATCH_RUNS)
  /** Of files of more than one run, by run: where they are collected, and the number of the run there. */
  readonly contents: (FileContent | undefined)[] = []
  readonly indexes: number[] = []
  count = 0
  bytes = 0
}

export class StreamContent {
  readonly #context: ImportContext
  readonly #builder: TreeBuilder
  #slot: Uint8Array | undefined
  #runs = new Runs()

  /** @param builder borrowed: of the inodes whose content comes */
  constructor(context: ImportContext, builder: TreeBuilder) {
    this.#context = context
    this.#builder = builder
  }

  /** Reads the content of a file and has it stored; the builder gets it by and by. */
  async add(inode: number, file: { sizeBytes: number; parts: SparseParts }, source: DataSource): Promise<void> {
    const { sizeBytes, parts } = file
    if (parts.count === 0) {
      if (sizeBytes > 0) this.#builder.setContent(inode, [HOLE], [sizeBytes])
      return
    }
    const first = parts.at(0)
    const isWhole = first.length === sizeBytes
    const fixed = sizeBytes > CUT_BYTES_MAX && first.offset === 0 && isUpdatedInPlace(await source.peekData(IN_PLACE_MAGIC_BYTES))
    const content = isWhole && sizeBytes <= SEGMENT_BYTES ? undefined : new FileContent(this.#builder, inode, sizeBytes)
    for (const run of runsOf(parts, fixed)) {
      const bytes = await this.#room(run.length)
      await source.readData(bytes)
      const runs = this.#runs
      runs.inodes[runs.count] = inode
      runs.starts[runs.count] = runs.bytes - run.length
      runs.lengths[runs.count] = run.length
      runs.flags[runs.count] = fixed ? RUN_FIXED : 0
      if (content !== undefined) {
        runs.contents[runs.count] = content
        runs.indexes[runs.count] = content.addRun(run)
      }
      runs.count++
    }
    content?.planned()
  }

  /** Hands over what has been gathered. */
  flush(): void {
    if (this.#slot === undefined) return
    const runs = this.#runs
    const { count, starts, lengths, flags } = runs
    const batch = { kind: 'bytes' as const, count, bytes: this.#slot, starts: starts.slice(0, count), lengths: lengths.slice(0, count), flags: flags.slice(0, count) }
    this.#slot = undefined
    this.#runs = new Runs()
    this.#context.pipeline.submit(batch, (result) => this.#take(runs, result))
  }

  /** Memory for the next run. */
  async #room(length: number): Promise<Uint8Array> {
    if (this.#slot !== undefined && (this.#runs.bytes >= BATCH_BYTES || this.#runs.count === BATCH_RUNS || this.#runs.bytes + length > this.#slot.length)) this.flush()
    this.#slot ??= await this.#context.pipeline.slot()
    const { bytes } = this.#runs
    this.#runs.bytes += length
    return this.#slot.subarray(bytes, bytes + length)
  }

  #take({ count, inodes, contents, indexes }: Runs, { chunkCounts, digests, chunkBytes }: BatchResult): void {
    let first = 0
    for (let run = 0; run < count; run++) {
      const pieces = addChunks(this.#builder, digests, chunkBytes, first, chunkCounts[run])
      first += chunkCounts[run]
      const content = contents[run]
      if (content === undefined) this.#builder.setContent(inodes[run], pieces.chunks, pieces.bytes)
      else content.setRun(indexes[run], pieces)
    }
  }
}
