/**
 * The contents of files that mergers join: read from the store, joined, cut and put as new chunks.
 */
import { cutContent } from '@varve/images/chunk/cut.ts'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { SEGMENT_BYTES } from '@varve/images/chunk/limits.ts'
import { VarveError } from '@varve/images/errors.ts'
import type { ChunkStore, ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { HOLE } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { MergedContent } from './merge-columns.ts'
import type { SharedFile } from './merge-entries.ts'
import type { MergerContext, MergerInput } from './mergers/merger.ts'
import { printPath } from './print-path.ts'
import type { ReportBuilder } from './report.ts'
import { ABSENT } from './stack.ts'
import type { LayerInode, Stack, StackDirectory } from './stack.ts'

/** Bytes of one version of a file that is to be joined, at most. */
export const MERGED_FILE_BYTES_MAX = 64 << 20
/** Bytes of all distinct versions of one such file together, at most. */
export const MERGED_VERSIONS_BYTES_MAX = 256 << 20

export interface ContentOptions {
  layerNames: readonly string[]
  stack: Stack
  store: ChunkStore
  writer: ChunkWriter
  report: ReportBuilder
  signal?: AbortSignal
}

/**
 * Joins all shared files and adds their conflicts to the report.
 * @returns content by merged inode
 * @throws VarveError LIMIT_EXCEEDED, CHUNK_MISSING, CHUNK_CORRUPT, FORMAT_INVALID
 */
export async function mergeContents(trees: readonly Tree[], files: readonly SharedFile[], options: ContentOptions): Promise<Map<number, MergedContent>> {
  const contents = new Map<number, MergedContent>()
  for (const file of files) {
    const inputs = await readVersions(trees, file, options)
    const { bytes, conflicts } = file.merger.merge(inputs, contextOf(trees, file, options))
    for (const disagreement of conflicts) {
      file.reported.conflicts ??= []
      file.reported.conflicts.push(options.report.addConflict(file.path, disagreement))
    }
    contents.set(file.inode, putContent(options.writer, bytes))
  }
  return contents
}

function contextOf(trees: readonly Tree[], { path }: SharedFile, { stack, report, layerNames }: ContentOptions): MergerContext {
  const directories = new Map<string, StackDirectory | null>()
  return {
    decided: (subject, layers) => report.decided(path, subject, layers),
    layerName: (layer) => layerNames[layer],
    provider: (directoryPath, name) => {
      let directory = directories.get(directoryPath)
      if (directory === undefined) {
        directory = stack.directory(directoryPath, trees.length - 1)
        directories.set(directoryPath, directory)
      }
      return directory === null ? ABSENT : stack.lookIn(directory, name)
    },
  }
}

async function readVersions(trees: readonly Tree[], file: SharedFile, { store, signal }: ContentOptions): Promise<MergerInput[]> {
  const inputs: MergerInput[] = []
  const known = new Map<string, Uint8Array>()
  let total = 0
  for (const { layer, source } of file.versions) {
    const key = contentKey(trees[source.layer], source.inode)
    let bytes = known.get(key)
    if (bytes === undefined) {
      const sizeBytes = trees[source.layer].sizeBytes[source.inode]
      total += sizeBytes
      if (sizeBytes > MERGED_FILE_BYTES_MAX || total > MERGED_VERSIONS_BYTES_MAX) {
        throw new VarveError('LIMIT_EXCEEDED', `${printPath(file.path)} is too large to be merged: at most ${MERGED_FILE_BYTES_MAX} bytes a version and ${MERGED_VERSIONS_BYTES_MAX} in all layers`)
      }
      bytes = await readContent(trees, source, { store, signal })
      known.set(key, bytes)
    }
    inputs.push({ layer, bytes })
  }
  return inputs
}

function contentKey(tree: Tree, inode: number): string {
  const first = tree.firstPiece[inode]
  let key = ''
  for (let piece = first; piece < first + tree.pieceCount[inode]; piece++) {
    const chunk = tree.pieceChunk[piece]
    key += chunk === HOLE ? `hole ${tree.pieceBytes[piece]} ` : digestToHex(tree.chunkDigest(chunk))
  }
  return key
}

async function readContent(trees: readonly Tree[], { layer, inode }: LayerInode, { store, signal }: { store: ChunkStore; signal?: AbortSignal }): Promise<Uint8Array> {
  const tree = trees[layer]
  const bytes = new Uint8Array(tree.sizeBytes[inode])
  const first = tree.firstPiece[inode]
  let at = 0
  for (let piece = first; piece < first + tree.pieceCount[inode]; piece++) {
    const chunk = tree.pieceChunk[piece]
    const length = tree.pieceBytes[piece]
    if (chunk !== HOLE) {
      const content = await store.get(tree.chunkDigest(chunk), { signal })
      if (content.length !== length || at + length > bytes.length) {
        throw new VarveError('FORMAT_INVALID', `chunk ${digestToHex(tree.chunkDigest(chunk))} has ${content.length} bytes where its tree says ${length}; import the layer again`)
      }
      bytes.set(content, at)
    }
    at += length
  }
  return bytes
}

/** Cuts as an import does, so that the same content is the same chunks. */
function putContent(writer: ChunkWriter, bytes: Uint8Array): MergedContent {
  const content: MergedContent = { digests: [], bytes: [] }
  for (let segment = 0; segment < bytes.length; segment += SEGMENT_BYTES) {
    const part = bytes.subarray(segment, segment + SEGMENT_BYTES)
    let from = 0
    for (const end of cutContent(part)) {
      content.digests.push(writer.put(part.subarray(from, end)))
      content.bytes.push(end - from)
      from = end
    }
  }
  return content
}
