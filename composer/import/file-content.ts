/**
 * File content: in which runs the bytes of a file are stored, and the pieces of the tree that come of them.
 */
import { CUT_BYTES_MAX, FIXED_BYTES, SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
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

/** Collects the chunks of a file of more than one run, whose results come in any order. */
export class FileContent {
  readonly inode: number
  readonly sizeBytes: number
  readonly #starts: number[] = []
  readonly #lengths: number[] = []
  readonly #chunks: (number[] | undefined)[] = []
  readonly #chunkBytes: number[][] = []
  #missing = 0
  #planned = false

  constructor(inode: number, sizeBytes: number) {
    this.inode = inode
    this.sizeBytes = sizeBytes
  }

  /** Announces a run, in file order. @returns its number */
  addRun(run: DataPart): number {
    this.#starts.push(run.offset)
    this.#lengths.push(run.length)
    this.#chunks.push(undefined)
    this.#chunkBytes.push([])
    this.#missing++
    return this.#starts.length - 1
  }

  /** All runs are announced. */
  planned(builder: TreeBuilder): void {
    this.#planned = true
    this.#setIfComplete(builder)
  }

  /** Gives the chunks of a run; with the last of them the content goes to the builder. */
  setRun(run: number, chunks: number[], chunkBytes: number[], builder: TreeBuilder): void {
    this.#chunks[run] = chunks
    this.#chunkBytes[run] = chunkBytes
    this.#missing--
    this.#setIfComplete(builder)
  }

  #setIfComplete(builder: TreeBuilder): void {
    if (!this.#planned || this.#missing > 0) return
    const chunks: number[] = []
    const bytes: number[] = []
    let at = 0
    for (let run = 0; run < this.#starts.length; run++) {
      if (this.#starts[run] > at) {
        chunks.push(HOLE)
        bytes.push(this.#starts[run] - at)
      }
      for (const chunk of this.#chunks[run]!) chunks.push(chunk)
      for (const length of this.#chunkBytes[run]) bytes.push(length)
      at = this.#starts[run] + this.#lengths[run]
    }
    if (at < this.sizeBytes) {
      chunks.push(HOLE)
      bytes.push(this.sizeBytes - at)
    }
    builder.setContent(this.inode, chunks, bytes)
  }
}

/** Adds the chunks of one run of a result to the builder. @param first its first chunk in the result */
export function addChunks(builder: TreeBuilder, digests: Uint8Array, chunkBytes: Uint32Array, first: number, count: number): { chunks: number[]; bytes: number[] } {
  const chunks = new Array<number>(count)
  const bytes = new Array<number>(count)
  for (let index = 0; index < count; index++) {
    const at = first + index
    bytes[index] = chunkBytes[at]
    chunks[index] = builder.addChunk(digests.subarray(at * 32, at * 32 + 32), chunkBytes[at])
  }
  return { chunks, bytes }
}
