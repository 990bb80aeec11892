/** Layers for tests, made from descriptions instead of directories. */
import { digestOf } from '@varve/images/chunk/digest.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'
import { putTree } from '@varve/images/store/stored-tree.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'

export interface FileSpec {
  /** Names with slashes, in UTF-8 text; directories on the way are made. */
  path: string
  content?: Uint8Array
  /** A symlink's. */
  target?: string
  mode?: number
  mtimeSeconds?: number
  xattrs?: Xattr[]
}

const PIECE_BYTES = 64 << 10

/** Puts the files' content and the tree into the store. @returns the digest of the layer's tree */
export async function putLayer(store: ChunkStore, files: readonly FileSpec[]): Promise<Digest> {
  await using writer = store.writer()
  const common = { uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 5 }
  const directory = { ...common, kind: Kind.directory, mode: 0o755 }
  const builder = new TreeBuilder(directory)
  const directories = new Map([['', 0]])
  for (const { path, content, target, mode, mtimeSeconds, xattrs } of files) {
    const names = path.split('/').map((name) => Buffer.from(name).toString('latin1'))
    let parent = 0
    for (let depth = 1; depth < names.length; depth++) {
      const key = names.slice(0, depth).join('/')
      let entry = directories.get(key)
      if (entry === undefined) {
        entry = builder.addEntry(parent, names[depth - 1], builder.addInode(directory))
        directories.set(key, entry)
      }
      parent = entry
    }
    const own = { ...common, mode: mode ?? 0o644, mtimeSeconds: mtimeSeconds ?? common.mtimeSeconds, xattrs }
    const inode = builder.addInode(target === undefined ? { ...own, kind: Kind.file } : { ...own, mode: 0o777, kind: Kind.symlink, target: Buffer.from(target) })
    const chunks: number[] = []
    const lengths: number[] = []
    for (let at = 0; at < (content?.length ?? 0); at += PIECE_BYTES) {
      const piece = content!.subarray(at, at + PIECE_BYTES)
      writer.put(piece)
      chunks.push(builder.addChunk(digestOf(piece), piece.length))
      lengths.push(piece.length)
    }
    if (chunks.length > 0) builder.setContent(inode, chunks, lengths)
    builder.addEntry(parent, names.at(-1)!, inode)
  }
  const { digest } = putTree(writer, builder)
  await writer.commit()
  return digest
}
