/**
 * What the catalog's roots reach: the chunks that collection keeps (collect.ts) and that a sound home has.
 * Roots are objects; trees and block maps among them name more chunks.
 */
import { BlockMap } from '../blockmap/block-map.ts'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import type { Digest } from '../chunk/digest.ts'
import { VarveError } from '../errors.ts'
import { decodeTree } from '../tree/tree-format.ts'
import type { Catalog, Root } from './catalog.ts'
import type { ChunkStore } from './chunk-store.ts'
import { getObject, objectChunks } from './object.ts'

/** The parts of a Home that are read; the store must not lose chunks meanwhile, but for those that nothing reaches. */
export interface RootedStore {
  catalog: Catalog
  store: ChunkStore
}

/**
 * Digests of all chunks that the roots of this moment reach. Those that several roots reach come several times.
 * One root's tree or map is in memory at a time.
 * @throws VarveError CHUNK_MISSING, CHUNK_CORRUPT, FORMAT_INVALID, LIMIT_EXCEEDED if an object cannot be read: nothing may be removed then
 */
export async function* reachableChunks({ catalog, store }: RootedStore, options: { signal?: AbortSignal } = {}): AsyncGenerator<Digest> {
  for (const root of await catalog.roots()) {
    options.signal?.throwIfAborted()
    yield* chunksOfRoot(store, root)
  }
}

async function* chunksOfRoot(store: ChunkStore, root: Root): AsyncGenerator<Digest> {
  yield* await objectChunks(store, root.digest)
  if (root.type === 'object') return
  const bytes = await getObject(store, root.digest)
  const { chunkDigests } = root.type === 'tree' ? decodeTree(bytes) : BlockMap.decode(bytes)
  for (let at = 0; at < chunkDigests.length; at += DIGEST_BYTES) yield chunkDigests.subarray(at, at + DIGEST_BYTES)
}

export interface RootReport {
  root: Root
  /** Chunks that it reaches; those that it names twice count twice. */
  chunks: number
  /** Of these, chunks that the store does not have. */
  chunksMissing: number
  /** Why the object itself cannot be read, if it cannot. */
  problem?: VarveError
}

/** Looks for every chunk of every root: which layers, CVDs and snapshots are whole. The contents of the chunks are for PackStore.verify. */
export async function* checkRoots({ catalog, store }: RootedStore, options: { signal?: AbortSignal } = {}): AsyncGenerator<RootReport> {
  for (const root of await catalog.roots()) {
    options.signal?.throwIfAborted()
    const report: RootReport = { root, chunks: 0, chunksMissing: 0 }
    try {
      for await (const digest of chunksOfRoot(store, root)) {
        report.chunks++
        if (!(await store.has(digest))) report.chunksMissing++
      }
    } catch (error) {
      if (!(error instanceof VarveError)) throw error
      report.problem = error
    }
    const isWhole = report.chunksMissing === 0 && report.problem === undefined
    if (isWhole || (await isRoot(catalog, root))) yield report
  }
}

/** False if it was removed while it was looked at, and its chunks with it. */
async function isRoot(catalog: Catalog, root: Root): Promise<boolean> {
  return (await catalog.roots()).some(({ type, digest }) => type === root.type && Buffer.compare(digest, root.digest) === 0)
}
