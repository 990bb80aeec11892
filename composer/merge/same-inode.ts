/** Comparing inodes of different layers, for reports and for contents that need not be merged. */
import { HOLE } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'

/** True if owner, mode, times and extended attributes are the same. */
export function sameMetadata(treeA: Tree, a: number, treeB: Tree, b: number): boolean {
  return (
    treeA.mode[a] === treeB.mode[b] &&
    treeA.uid[a] === treeB.uid[b] &&
    treeA.gid[a] === treeB.gid[b] &&
    treeA.mtimeSeconds[a] === treeB.mtimeSeconds[b] &&
    treeA.mtimeNanoseconds[a] === treeB.mtimeNanoseconds[b] &&
    sameXattrs(treeA, a, treeB, b)
  )
}

/** True if kind, device, symlink target and file content are the same; metadata may differ. */
export function sameContent(treeA: Tree, a: number, treeB: Tree, b: number): boolean {
  if (treeA.kind[a] !== treeB.kind[b] || treeA.sizeBytes[a] !== treeB.sizeBytes[b] || treeA.pieceCount[a] !== treeB.pieceCount[b]) return false
  if (treeA.deviceMajor[a] !== treeB.deviceMajor[b] || treeA.deviceMinor[a] !== treeB.deviceMinor[b]) return false
  if (!sameBytes(treeA.targets.get(a), treeB.targets.get(b))) return false
  for (let piece = 0; piece < treeA.pieceCount[a]; piece++) {
    const pieceA = treeA.firstPiece[a] + piece
    const pieceB = treeB.firstPiece[b] + piece
    const chunkA = treeA.pieceChunk[pieceA]
    const chunkB = treeB.pieceChunk[pieceB]
    if (treeA.pieceBytes[pieceA] !== treeB.pieceBytes[pieceB] || (chunkA === HOLE) !== (chunkB === HOLE)) return false
    if (chunkA !== HOLE && !sameBytes(treeA.chunkDigest(chunkA), treeB.chunkDigest(chunkB))) return false
  }
  return true
}

function sameXattrs(treeA: Tree, a: number, treeB: Tree, b: number): boolean {
  const setA = treeA.xattrSets[treeA.xattrSet[a]]
  const setB = treeB.xattrSets[treeB.xattrSet[b]]
  return setA.length === setB.length && setA.every(({ name, value }, index) => name === setB[index].name && sameBytes(value, setB[index].value))
}

function sameBytes(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  if (a === undefined || b === undefined) return a === b
  return a.length === b.length && Buffer.compare(a, b) === 0
}
