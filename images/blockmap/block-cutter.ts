/**
 * BlockCutter: turns bytes of a disk into chunks at fixed places, so that the same bytes at the same place give the same chunks
 * whoever wrote them: windows of FIXED_BYTES, aligned to the disk; in each window, every run of blocks that are not all zero is a chunk.
 */
import { FIXED_BYTES } from '../chunk/limits.ts'
import type { ChunkWriter } from '../store/chunk-store.ts'
import type { BlockMapBuilder } from './block-map.ts'

/** A block that is all zero is not stored. Bytes. */
export const BLOCK_BYTES = 4096

const ZEROES = Buffer.alloc(BLOCK_BYTES)

/** First byte of the window that holds the byte at `offset`. */
export function windowStart(offset: number): number {
  return offset - (offset % FIXED_BYTES)
}

/** Takes what was cut. */
export type CutSink = Pick<BlockMapBuilder, 'addChunk' | 'data' | 'zero'>

export class BlockCutter {
  readonly #builder: CutSink
  readonly #writer: ChunkWriter
  readonly #zeroes: 'leave' | 'mention'

  /** @param options.zeroes what becomes of blocks that are all zero: left unmentioned, or mentioned as ZERO */
  constructor(builder: CutSink, writer: ChunkWriter, { zeroes }: { zeroes: 'leave' | 'mention' }) {
    this.#builder = builder
    this.#writer = writer
    this.#zeroes = zeroes
  }

  /** Puts `bytes`, which lie at `offset` of the disk, inside one window. They may be used again afterwards. */
  put(bytes: Uint8Array, offset: number): void {
    splitBlocks(bytes, offset, {
      data: (from, to) => this.#putRun(bytes, from, to, offset),
      zeroes: (from, to) => this.#zeroes === 'mention' && this.#builder.zero(offset + from, to - from),
    })
  }

  #putRun(bytes: Uint8Array, from: number, to: number, offset: number): void {
    const digest = this.#writer.put(bytes.subarray(from, to))
    this.#builder.data(offset + from, to - from, this.#builder.addChunk(digest, to - from), 0)
  }
}

/** Told of in order; together they are all bytes. @param from @param to places in the bytes */
export interface BlockSplit {
  data(from: number, to: number): void
  zeroes(from: number, to: number): void
}

/** Splits bytes that lie at `offset` of a disk, inside one window, into runs of blocks that are not all zero, and blocks that are. */
export function splitBlocks(bytes: Uint8Array, offset: number, split: BlockSplit): void {
  let runStart = 0
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(bytes.length, at + BLOCK_BYTES - ((offset + at) % BLOCK_BYTES))
    if (isZero(bytes, at, end)) {
      if (at > runStart) split.data(runStart, at)
      split.zeroes(at, end)
      runStart = end
    }
    at = end
  }
  if (bytes.length > runStart) split.data(runStart, bytes.length)
}

export function isZero(bytes: Uint8Array, from: number, to: number): boolean {
  return bytes[from] === 0 && ZEROES.compare(bytes, from, to, 0, to - from) === 0
}
