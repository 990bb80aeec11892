/**
 * Tar source: the tree of a tar archive, compressed or not, from a file or a stream.
 */
import { open } from 'node:fs/promises'
import { VarveError } from '@varve/images/errors.ts'
import { ByteStream } from '@varve/images/formats/byte-stream.ts'
import { decompressed } from '@varve/images/formats/compression.ts'
import { TarReader } from '@varve/images/formats/tar-reader.ts'
import { putTree } from '@varve/images/store/stored-tree.ts'
import type { StoredTree } from '@varve/images/store/stored-tree.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { ArchiveMembers, IMPLICIT_DIRECTORY } from './archive-members.ts'
import { workspace } from './import-context.ts'
import type { ImportContext } from './import-context.ts'
import { PathTree } from './path-tree.ts'
import { StreamContent } from './stream-content.ts'

const READ_BYTES = 1 << 20

/** @throws VarveError SOURCE_INVALID, SOURCE_UNSUPPORTED, FORMAT_INVALID, FORMAT_UNSUPPORTED, LIMIT_EXCEEDED, LIBRARY_MISSING */
export async function importTar(context: ImportContext, bytes: AsyncIterable<Uint8Array>): Promise<StoredTree> {
  using space = workspace(context)
  const builder = new TreeBuilder(IMPLICIT_DIRECTORY, space)
  const paths = new PathTree(builder, space, () => builder.addInode(IMPLICIT_DIRECTORY))
  const content = new StreamContent(context, builder)
  const source = new ByteStream(counted(context, bytes))
  try {
    const stream = await decompressed(source, { signal: context.signal, take: (bytes) => space.take(bytes) })
    const members = new ArchiveMembers(context, { builder, paths, content, space, whiteouts: 'plain' })
    await members.putAll(new TarReader(stream, { endRequired: true }))
    await drain(stream)
  } finally {
    await source.close()
  }
  content.flush()
  await context.pipeline.drain()
  paths.finish()
  return putTree(context.writer, builder)
}

/** Reads to the end what follows an archive: only there a compressed stream shows that it is whole, and whoever writes into a pipe wants to be read. */
export async function drain(stream: ByteStream): Promise<void> {
  for await (const rest of stream.rest()) void rest
}

export async function* counted({ progress, signal }: ImportContext, bytes: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
  for await (const chunk of bytes) {
    signal?.throwIfAborted()
    yield chunk
    progress.now.sourceBytes = (progress.now.sourceBytes ?? 0) + chunk.length
  }
}

/** Bytes of a file, in one buffer that is used again. @throws VarveError SOURCE_INVALID */
export async function* fileBytes(path: string, options: { onSize?: (sizeBytes: number) => void } = {}): AsyncGenerator<Uint8Array, void> {
  let file
  try {
    file = await open(path)
  } catch (cause) {
    throw unreadable(path, cause)
  }
  try {
    const { size } = await file.stat()
    if (size > 0) options.onSize?.(size)
    const buffer = Buffer.allocUnsafe(READ_BYTES)
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, READ_BYTES, null)
      if (bytesRead === 0) return
      yield buffer.subarray(0, bytesRead)
    }
  } catch (cause) {
    throw (cause as NodeJS.ErrnoException).syscall === 'read' ? unreadable(path, cause) : cause
  } finally {
    await file.close()
  }
}

/** Bytes of standard input; an abort ends the wait for them. */
export async function* standardInput(signal?: AbortSignal): AsyncGenerator<Uint8Array, void> {
  const { stdin } = process
  const stop = () => void stdin.destroy()
  signal?.addEventListener('abort', stop, { once: true })
  try {
    yield* stdin as AsyncIterable<Buffer>
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}

function unreadable(path: string, cause: unknown): VarveError {
  return new VarveError('SOURCE_INVALID', `${path} cannot be read: ${(cause as NodeJS.ErrnoException).code ?? (cause as Error).message}`, { cause })
}
