/**
 * File content: in which runs the bytes of a file are stored, and the pieces of the tree that come of them.
 */
import { CUT_BYTES_MAX, FIXED_BYTES, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
import type { ContentWriter } from '@varve/images/tree/content-columns.ts'
import type { TreeBuilder } from '@varve/images/tree/tree-builder.ts'

/** Part of a file that holds data, bytes; what lies between two parts is a hole. */
export interface DataPart {
  offset: number
  length: number
}

/**
 * Runs of a file: its data parts, divided at multiples of SEGMENT_BYTES in the file. The same file is divided in the same way
 * wherever it comes from.
 * @param fixed the file is cut at fixed places: runs start at multiples of FIXED_BYTES of the file where they can
 */
export function* runsOf(parts: Iterable<DataPart>, fixed: boolean): Generator<DataPart> {
  for (const part of parts) {
    let offset = part.offset
    const end = part.offset + part.length
    if (fixed && offset % FIXED_BYTES !== 0 && part.length > CUT_BYTES_MAX) {
      const aligned = Math.ceil(offset / FIXED_BYTES) * FIXED_BYTES
      yield { offset, length: aligned - offset }
      offset = aligned
    }
    while (offset < end) {
      const segmentEnd = Math.min((Math.floor(offset / SEGMENT_BYTES) + 1) * SEGMENT_BYTES, end)
      yield { offset, length: segmentEnd - offset }
      offset = segmentEnd
    }
  }
}

/** The chunks of a run. */
interface RunChunks {
  chunks: number[]
  bytes: number[]
}

/** Writes the content of a file of more than one run, whose results come in any order: those that come too early wait for the ones before. */
export class FileContent {
  readonly sizeBytes: number
  readonly #writer: ContentWriter
  /** By number of the run, of those that are announced and not written: where they are, and their chunks when they have come. */
  readonly #waiting = new Map<number, DataPart & { chunks?: RunChunks }>()
  #runs = 0
  #written = 0
  /** Bytes of the file that were written. */
  #end = 0
  #planned = false

  constructor(builder: TreeBuilder, inode: number, sizeBytes: number) {
    this.#writer = builder.contentWriter(inode)
    this.sizeBytes = sizeBytes
  }

  /** Announces a run, in file order. @returns its number */
  addRun({ offset, length }: DataPart): number {
    this.#waiting.set(this.#runs, { offset, length })
    return this.#runs++
  }

  /** All runs are announced. */
  planned(): void {
    this.#planned = true
    this.#write()
  }

  /** Gives the chunks of a run; with the last of them the content is complete. */
  setRun(run: number, chunks: RunChunks): void {
    this.#waiting.get(run)!.chunks = chunks
    this.#write()
  }

  #write(): void {
    for (let next = this.#waiting.get(this.#written); next?.chunks !== undefined; next = this.#waiting.get(this.#written)) {
      this.#waiting.delete(this.#written++)
      this.#writeHole(next.offset)
      const { chunks, bytes } = next.chunks
      for (let at = 0; at < chunks.length; at++) this.#writer.add(chunks[at], bytes[at])
      this.#end = next.offset + next.length
    }
    if (!this.#planned || this.#written < this.#runs) return
    this.#writeHole(this.sizeBytes)
    this.#writer.end()
  }

  #writeHole(end: number): void {
    if (end > this.#end) this.#writer.add(HOLE, end - this.#end)
  }
}

/** Adds the chunks of one run of a result to the builder. @param first its first chunk in the result */
export function addChunks(builder: TreeBuilder, digests: Uint8Array, chunkBytes: Uint32Array, first: number, count: number): RunChunks {
  const chunks = new Array<number>(count)
  const bytes = new Array<number>(count)
  for (let index = 0; index < count; index++) {
    const at = first + index
    bytes[index] = chunkBytes[at]
    chunks[index] = builder.addChunk(digests.subarray(at * 32, at * 32 + 32), chunkBytes[at])
  }
  return { chunks, bytes }
}
