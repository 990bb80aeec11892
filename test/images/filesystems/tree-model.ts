/**
 * Model of what a tree built in memory holds, and a store with its chunks.
 */
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { BuiltTree } from './memory-tree.ts'
import { ContentDigest } from './model.ts'
import type { Model, ModelEntry } from './model.ts'

const PAGE_BYTES = 4096

export function modelOfTree({ tree, content }: BuiltTree): Model {
  const links = tree.linkCounts()
  return Array.from({ length: tree.entryCount }, (_, entry) => {
    const inode = tree.inode[entry]
    const kind = tree.kind[inode] as Kind
    const found: ModelEntry = {
      path: tree.path(entry), kind, mode: tree.mode[inode], uid: tree.uid[inode], gid: tree.gid[inode],
      modified: { seconds: tree.mtimeSeconds[inode], nanoseconds: tree.mtimeNanoseconds[inode] },
      inode: BigInt(inode), xattrs: tree.xattrSets[tree.xattrSet[inode]],
    }
    if (kind !== Kind.directory) found.links = links[inode]
    if (kind === Kind.character || kind === Kind.block) found.device = { major: tree.deviceMajor[inode], minor: tree.deviceMinor[inode] }
    const target = tree.targets.get(inode)
    if (target !== undefined) Object.assign(found, { target: Buffer.from(target).toString('latin1'), sizeBytes: target.length })
    if (kind === Kind.file) Object.assign(found, contentOf({ tree, content }, inode))
    return found
  })
}

/** The digest goes by pages: what is not whole ones is put together first. */
function contentOf({ tree, content }: BuiltTree, inode: number): Pick<ModelEntry, 'sizeBytes' | 'data' | 'contentDigest'> {
  const sizeBytes = tree.sizeBytes[inode]
  const data: { offset: number; length: number }[] = []
  const pages = new Map<number, Buffer>()
  for (let piece = tree.firstPiece[inode], at = 0; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; at += tree.pieceBytes[piece++]) {
    if (tree.pieceChunk[piece] === HOLE) continue
    const last = data.at(-1)
    if (last !== undefined && last.offset + last.length === at) last.length += tree.pieceBytes[piece]
    else data.push({ offset: at, length: tree.pieceBytes[piece] })
    const bytes = content(tree.pieceChunk[piece])
    for (let done = 0; done < bytes.length; ) {
      const page = Math.floor((at + done) / PAGE_BYTES)
      const within = at + done - page * PAGE_BYTES
      const buffer = pages.get(page) ?? Buffer.alloc(Math.min(PAGE_BYTES, sizeBytes - page * PAGE_BYTES))
      pages.set(page, buffer)
      done += Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).copy(buffer, within, done)
    }
  }
  const digest = new ContentDigest(sizeBytes)
  for (const [page, bytes] of [...pages].sort(([a], [b]) => a - b)) digest.add(page * PAGE_BYTES, bytes)
  return { sizeBytes, data, contentDigest: digest.digest() }
}

export async function storeOfTree({ tree, content }: BuiltTree): Promise<MemoryStore> {
  const store = new MemoryStore()
  await using writer = store.writer()
  for (let chunk = 0; chunk < tree.chunkCount; chunk++) writer.put(content(chunk))
  await writer.commit()
  return store
}
