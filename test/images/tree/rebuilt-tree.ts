/**
 * Trees that are in memory, put through a TreeBuilder again.
 */
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'

/** Bytes of a tree. */
export function encodeTree(tree: Tree): Buffer {
  return encoded(builderOf(tree))
}

/** Bytes of what a builder has collected. */
export function encoded(builder: TreeBuilder): Buffer {
  const pieces: Buffer[] = []
  builder.encode((bytes) => void pieces.push(Buffer.from(bytes)))
  return Buffer.concat(pieces)
}

/** The same tree through TreeBuilder, in another order of building: what the canonical columns must be. */
export function rebuilt(tree: Tree): Tree {
  return builderOf(tree).build()
}

function builderOf(tree: Tree): TreeBuilder {
  const initOf = (inode: number): InodeInit => ({
    kind: tree.kind[inode] as Kind,
    mode: tree.mode[inode],
    uid: tree.uid[inode],
    gid: tree.gid[inode],
    mtimeSeconds: tree.mtimeSeconds[inode],
    mtimeNanoseconds: tree.mtimeNanoseconds[inode],
    opaque: tree.opaque[inode] === 1,
    deviceMajor: tree.deviceMajor[inode],
    deviceMinor: tree.deviceMinor[inode],
    target: tree.targets.get(inode),
    xattrs: tree.xattrSets[tree.xattrSet[inode]],
  })
  const builder = new TreeBuilder(initOf(0))
  for (let inode = 1; inode < tree.inodeCount; inode++) builder.addInode(initOf(inode))
  for (let inode = tree.inodeCount - 1; inode >= 0; inode--) {
    const chunks: number[] = []
    const lengths: number[] = []
    for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
      const chunk = tree.pieceChunk[piece]
      chunks.push(chunk === HOLE ? HOLE : builder.addChunk(tree.chunkDigest(chunk), tree.chunkBytes[chunk]))
      lengths.push(tree.pieceBytes[piece])
    }
    if (tree.kind[inode] === Kind.file) builder.setContent(inode, chunks, lengths)
  }
  for (let entry = 1; entry < tree.entryCount; entry++) builder.addEntry(tree.parent[entry], tree.names[entry], tree.inode[entry])
  return builder
}
