/**
 * The columns of a merged tree by inode, piece, chunk and attribute set, gathered from the layers' own columns
 * in the order in which the merged entries use them: canonical without sorting.
 */
import { VarveError } from '@varve/images/errors.ts'
import { CONTENT_BYTES_MAX } from '@varve/images/tree/limits.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree, Xattr } from '@varve/images/tree/tree.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { DigestTable } from './digest-table.ts'

/** Where each merged inode comes from, in order. */
export interface InodeSources {
  count: number
  layer: Uint32Array
  inode: Uint32Array
}

/** Content that no layer has. */
export interface MergedContent {
  digests: Digest[]
  bytes: number[]
}

/**
 * @param trees bottom first
 * @param contents by merged inode: replaces the content of its source
 * @throws VarveError LIMIT_EXCEEDED, FORMAT_INVALID
 */
export function inodeColumns(trees: readonly Tree[], sources: InodeSources, contents: ReadonlyMap<number, MergedContent>) {
  const { count } = sources
  const columns = {
    kind: new Uint8Array(count),
    mode: new Uint16Array(count),
    uid: new Uint32Array(count),
    gid: new Uint32Array(count),
    mtimeSeconds: new Float64Array(count),
    mtimeNanoseconds: new Uint32Array(count),
    opaque: new Uint8Array(count),
    deviceMajor: new Uint32Array(count),
    deviceMinor: new Uint32Array(count),
    targets: new Map<number, Uint8Array>(),
  }
  for (let index = 0; index < count; index++) {
    const tree = trees[sources.layer[index]]
    const inode = sources.inode[index]
    columns.kind[index] = tree.kind[inode]
    columns.mode[index] = tree.mode[inode]
    columns.uid[index] = tree.uid[inode]
    columns.gid[index] = tree.gid[inode]
    columns.mtimeSeconds[index] = tree.mtimeSeconds[inode]
    columns.mtimeNanoseconds[index] = tree.mtimeNanoseconds[inode]
    columns.deviceMajor[index] = tree.deviceMajor[inode]
    columns.deviceMinor[index] = tree.deviceMinor[inode]
    if (tree.kind[inode] === Kind.symlink) columns.targets.set(index, tree.targets.get(inode)!)
  }
  return { ...columns, ...xattrColumns(trees, sources), ...contentColumns(trees, sources, contents) }
}

function xattrColumns(trees: readonly Tree[], { count, layer, inode }: InodeSources) {
  const xattrSet = new Uint32Array(count)
  const xattrSets: Xattr[][] = [[]]
  const setByKey = new Map<string, number>()
  /** By layer: merged number + 1 of each of its sets, 0 where not yet known. */
  const renumbered = trees.map((tree) => new Uint32Array(tree.xattrSets.length))
  for (let index = 0; index < count; index++) {
    const set = trees[layer[index]].xattrSet[inode[index]]
    if (set === 0) continue
    const known = renumbered[layer[index]]
    if (known[set] === 0) {
      const xattrs = trees[layer[index]].xattrSets[set]
      const key = xattrs.map(({ name, value }) => `${name}\0${value.length}\0${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('latin1')}`).join('\0')
      let merged = setByKey.get(key)
      if (merged === undefined) {
        merged = xattrSets.push(xattrs) - 1
        setByKey.set(key, merged)
      }
      known[set] = merged + 1
    }
    xattrSet[index] = known[set] - 1
  }
  return { xattrSet, xattrSets }
}

function contentColumns(trees: readonly Tree[], { count, layer, inode }: InodeSources, contents: ReadonlyMap<number, MergedContent>) {
  let pieces = 0
  for (let index = 0; index < count; index++) pieces += trees[layer[index]].pieceCount[inode[index]]
  for (const [index, { digests }] of contents) pieces += digests.length - trees[layer[index]].pieceCount[inode[index]]
  const sizeBytes = new Float64Array(count)
  const firstPiece = new Uint32Array(count)
  const pieceCount = new Uint32Array(count)
  const pieceChunk = new Uint32Array(pieces)
  const pieceBytes = new Float64Array(pieces)
  const chunks = new DigestTable(pieces)
  /** By layer: merged number + 1 of each of its chunks, 0 where not yet known. */
  const renumbered = trees.map((tree) => new Uint32Array(tree.chunkCount))
  let piece = 0
  let totalBytes = 0
  for (let index = 0; index < count; index++) {
    firstPiece[index] = piece
    const content = contents.get(index)
    if (content !== undefined) {
      pieceCount[index] = content.digests.length
      for (let at = 0; at < content.digests.length; at++, piece++) {
        pieceChunk[piece] = chunks.add(content.digests[at], 0, content.bytes[at])
        pieceBytes[piece] = content.bytes[at]
        sizeBytes[index] += content.bytes[at]
      }
      totalBytes += sizeBytes[index]
      continue
    }
    const tree = trees[layer[index]]
    const known = renumbered[layer[index]]
    const from = tree.firstPiece[inode[index]]
    pieceCount[index] = tree.pieceCount[inode[index]]
    sizeBytes[index] = tree.sizeBytes[inode[index]]
    totalBytes += sizeBytes[index]
    for (let at = from; at < from + pieceCount[index]; at++, piece++) {
      const chunk = tree.pieceChunk[at]
      pieceBytes[piece] = tree.pieceBytes[at]
      if (chunk === HOLE) {
        pieceChunk[piece] = HOLE
        continue
      }
      if (known[chunk] === 0) known[chunk] = chunks.add(tree.chunkDigests, chunk * 32, tree.chunkBytes[chunk]) + 1
      pieceChunk[piece] = known[chunk] - 1
    }
  }
  if (totalBytes > CONTENT_BYTES_MAX) throw new VarveError('LIMIT_EXCEEDED', `the files of all layers are together larger than ${CONTENT_BYTES_MAX} bytes`)
  return { sizeBytes, firstPiece, pieceCount, pieceChunk, pieceBytes, chunkDigests: chunks.digests(), chunkBytes: chunks.bytes() }
}
