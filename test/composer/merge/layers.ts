/** Small layers written by hand, and merged trees as text, for the tests of this folder. */
import { digestOf } from '@varve/images/chunk/digest.ts'
import { cutContent } from '@varve/images/chunk/cut.ts'
import { MemoryStore } from '@varve/images/store/memory-store.ts'
import type { ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { TreeBuilder } from '@varve/images/tree/tree-builder.ts'
import { HOLE, Kind } from '@varve/images/tree/tree.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { InodeInit } from '@varve/images/tree/tree-builder.ts'
import { mergeTrees } from '@varve/composer/merge/merge.ts'
import type { MergeLayer, MergeOptions, MergeResult } from '@varve/composer/merge/merge.ts'

/**
 * An entry of a layer: a string is a file's content; otherwise what it says.
 * `same` is another path of the layer that it shares its inode with; `link` a path of the layers below.
 */
export type EntrySpec = string | (Partial<Omit<InodeInit, 'kind' | 'target'>> & { dir?: true; content?: string | Uint8Array; symlink?: string; whiteout?: true; link?: string; same?: string; fifo?: true })

const DEFAULTS = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1000, mtimeNanoseconds: 0 }

/** By path, bytes in latin1. */
export type LayerSpec = Record<string, EntrySpec>

/** @param spec by path; directories that are not named are made. A path '' is the root. */
export function layerTree(spec: LayerSpec, writer?: ChunkWriter): Tree {
  const rootSpec = spec[''] as object | undefined
  const builder = new TreeBuilder({ ...DEFAULTS, mode: 0o755, ...rootSpec, kind: Kind.directory })
  const entries = new Map<string, number>([['', 0]])
  const inodes = new Map<string, number>()
  const directory = (path: string): number => {
    const known = entries.get(path)
    if (known !== undefined) return known
    const slash = path.lastIndexOf('/')
    const own = spec[path] as object | undefined
    const inode = builder.addInode({ ...DEFAULTS, mode: 0o755, ...own, kind: Kind.directory })
    const entry = builder.addEntry(directory(slash < 0 ? '' : path.slice(0, slash)), path.slice(slash + 1), inode)
    entries.set(path, entry)
    return entry
  }
  for (const [path, given] of Object.entries(spec)) {
    if (path === '') continue
    const entry = typeof given === 'string' ? { content: given } : given
    if (entry.dir === true) {
      directory(path)
      continue
    }
    const slash = path.lastIndexOf('/')
    const inode = entry.same !== undefined ? inodes.get(entry.same)! : builder.addInode({ ...DEFAULTS, ...entry, ...kindOf(entry) })
    inodes.set(path, inode)
    builder.addEntry(directory(slash < 0 ? '' : path.slice(0, slash)), path.slice(slash + 1), inode)
    if (entry.content !== undefined) setContent(builder, inode, Buffer.from(entry.content as string, 'latin1'), writer)
  }
  return builder.build()
}

function kindOf(entry: Exclude<EntrySpec, string>): { kind: Kind; target?: Uint8Array } {
  if (entry.symlink !== undefined) return { kind: Kind.symlink, target: Buffer.from(entry.symlink, 'latin1') }
  if (entry.link !== undefined) return { kind: Kind.link, target: Buffer.from(entry.link, 'latin1') }
  if (entry.whiteout === true) return { kind: Kind.whiteout }
  if (entry.fifo === true) return { kind: Kind.fifo }
  return { kind: Kind.file }
}

export function setContent(builder: TreeBuilder, inode: number, bytes: Uint8Array, writer?: ChunkWriter): void {
  const chunks: number[] = []
  const lengths: number[] = []
  let from = 0
  for (const end of cutContent(bytes)) {
    const part = bytes.subarray(from, end)
    chunks.push(builder.addChunk(writer === undefined ? digestOf(part) : writer.put(part), part.length))
    lengths.push(part.length)
    from = end
  }
  builder.setContent(inode, chunks, lengths)
}

export interface Merged extends MergeResult {
  store: MemoryStore
}

/** Merges layers of hand-written entries, named `layer@0`, `layer@1`, ... from the bottom. */
export async function mergeSpecs(specs: LayerSpec[], options: Partial<MergeOptions> = {}): Promise<Merged> {
  const store = new MemoryStore()
  const writer = store.writer()
  const layers = specs.map((spec, index): MergeLayer => ({ name: `layer@${index}`, kind: 'app', tree: layerTree(spec, writer) }))
  await writer.commit()
  const result = await mergeTrees(layers, { store, writer, ...options })
  await writer.commit()
  await writer[Symbol.asyncDispose]()
  return { ...result, store }
}

/** Content of a file of a merged tree, bytes in latin1. */
export function contentOf({ tree, store }: Pick<Merged, 'tree' | 'store'>, path: string): string {
  const inode = tree.inode[tree.find(path)]
  if (tree.kind[inode] !== Kind.file) throw new Error(`${path} is not a file`)
  let content = ''
  for (let piece = tree.firstPiece[inode]; piece < tree.firstPiece[inode] + tree.pieceCount[inode]; piece++) {
    const chunk = tree.pieceChunk[piece]
    content += chunk === HOLE ? '\0'.repeat(tree.pieceBytes[piece]) : Buffer.from(store.get(tree.chunkDigest(chunk))).toString('latin1')
  }
  return content
}

/** All paths but the root, in the order of the tree. */
export function paths(tree: Tree): string[] {
  return Array.from({ length: tree.entryCount - 1 }, (_, index) => tree.path(index + 1))
}
