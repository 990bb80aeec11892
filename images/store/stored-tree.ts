/**
 * Stored trees: a tree goes from its builder into the store piece by piece, and is never in memory as a whole.
 */
import type { Digest } from '../chunk/digest.ts'
import type { EncodedTree, TreeBuilder } from '../tree/tree-builder.ts'
import type { ChunkWriter } from './chunk-store.ts'
import { ObjectWriter } from './object.ts'

export interface StoredTree extends EncodedTree {
  /** Of the tree as an object. */
  digest: Digest
}

/**
 * Stores a tree, whose builder is spent afterwards. Visible and durable once the writer commits.
 * @throws as TreeBuilder.encode
 */
export function putTree(writer: ChunkWriter, builder: TreeBuilder): StoredTree {
  const object = new ObjectWriter(writer)
  const tree = builder.encode((bytes) => object.write(bytes))
  return { ...tree, digest: object.end() }
}
