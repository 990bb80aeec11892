/**
 * Writes an image out: sparse into a file, which has its name when it is whole and durable, or as a stream to standard output.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, linkSync, renameSync, rmSync } from 'node:fs'
import { once } from 'node:events'
import path from 'node:path'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { VarveError } from '@varve/images/errors.ts'
import { syncPath } from '@varve/images/store/sync-path.ts'

const COPY_BYTES = 1 << 20
/** Extents that are asked for at a time. */
const EXTENTS_AT_ONCE = 1024

export interface WriteImageOptions {
  /** Replaces a file that is there. */
  force?: boolean
  signal: AbortSignal
  /** @param done bytes, holes included */
  onProgress?: (done: number) => void
}

/** @returns bytes that were written @throws VarveError ALREADY_EXISTS; what the file system throws */
export async function writeImageFile(image: BlockDevice, file: string, { force = false, signal, onProgress }: WriteImageOptions): Promise<number> {
  const exists = (cause?: unknown): VarveError => new VarveError('ALREADY_EXISTS', `${file} exists; --force replaces it`, { cause })
  if (!force && existsSync(file)) throw exists()
  const temporary = `${file}.${randomBytes(6).toString('hex')}.part`
  let written = 0
  try {
    await using target = FileDevice.open({ path: temporary, createBytes: image.sizeBytes })
    const buffer = Buffer.allocUnsafeSlow(COPY_BYTES)
    for (let at = 0; at < image.sizeBytes; ) {
      for (const { offset, length, type } of image.extents(at, image.sizeBytes - at, EXTENTS_AT_ONCE)) {
        for (let from = offset; type === 'data' && from < offset + length; from += COPY_BYTES) {
          signal.throwIfAborted()
          const part = buffer.subarray(0, Math.min(COPY_BYTES, offset + length - from))
          await image.read(part, from)
          await target.write(part, from)
          written += part.length
          onProgress?.(from + part.length)
        }
        at = offset + length
      }
      onProgress?.(at)
      // Signals come through.
      await new Promise((resolve) => setImmediate(resolve))
    }
    await target.flush()
    if (force) {
      renameSync(temporary, file)
    } else {
      try {
        linkSync(temporary, file)
      } catch (error) {
        throw (error as NodeJS.ErrnoException).code === 'EEXIST' ? exists(error) : error
      }
    }
    syncPath(path.dirname(file))
  } finally {
    rmSync(temporary, { force: true })
  }
  return written
}

/** All bytes, in order. */
export async function writeImageStream(image: BlockDevice, stream: NodeJS.WritableStream, { signal, onProgress }: Omit<WriteImageOptions, 'force'>): Promise<number> {
  for (let at = 0; at < image.sizeBytes; at += COPY_BYTES) {
    signal.throwIfAborted()
    const part = Buffer.allocUnsafe(Math.min(COPY_BYTES, image.sizeBytes - at))
    await image.read(part, at)
    if (!stream.write(part)) await once(stream, 'drain', { signal })
    onProgress?.(at + part.length)
  }
  return image.sizeBytes
}
