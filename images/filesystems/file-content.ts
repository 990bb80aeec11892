/**
 * Content of a file of a Filesystem in pieces, in order.
 */
import type { FileNode, Filesystem } from './filesystem.ts'

/** Bytes that are read at a time. */
export const PIECE_BYTES = 1 << 20

export interface ContentPiece {
  /** From the start of the file. */
  offset: number
  /** Used again after the next piece was asked for. */
  bytes: Buffer
}

/** What is not a hole. @throws as Filesystem.read */
export async function* dataPieces(files: Filesystem, { id, sizeBytes }: FileNode): AsyncGenerator<ContentPiece> {
  const buffer = Buffer.allocUnsafe(Math.min(PIECE_BYTES, Math.max(1, sizeBytes)))
  for (const part of mergedExtents(await files.extents(id))) {
    const end = part.offset + part.length
    for (let at = part.offset; at < end; ) {
      const bytes = buffer.subarray(0, Math.min(buffer.length, end - at))
      await files.read(id, bytes, at)
      yield { offset: at, bytes }
      at += bytes.length
    }
  }
}

/** All bytes of `[offset, offset + length)`, holes as zeroes. @throws as Filesystem.read */
export async function* allPieces(files: Filesystem, { id }: FileNode, { offset, length }: { offset: number; length: number }): AsyncGenerator<Buffer> {
  const buffer = Buffer.allocUnsafe(Math.min(PIECE_BYTES, Math.max(1, length)))
  for (let at = offset; at < offset + length; ) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, offset + length - at))
    await files.read(id, bytes, at)
    yield bytes
    at += bytes.length
  }
}

/** Neighbouring extents as one, wherever they lie. */
export function mergedExtents(extents: readonly { fileOffset: number; length: number }[]): { offset: number; length: number }[] {
  const parts: { offset: number; length: number }[] = []
  for (const { fileOffset, length } of extents) {
    const last = parts.at(-1)
    if (last !== undefined && last.offset + last.length === fileOffset) last.length += length
    else parts.push({ offset: fileOffset, length })
  }
  return parts
}
