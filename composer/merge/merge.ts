/**
 * Merge: a stack of layers -> the one tree that they make together.
 */
import type { ChunkStore, ChunkWriter } from '@varve/images/store/chunk-store.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import type { LayerKind } from '../recipe.ts'
import type { MergeReport } from './report.ts'

export interface MergeLayer {
  /** `app@3`: in reports and decisions. */
  name: string
  kind: LayerKind
  tree: Tree
}

export interface MergeOptions {
  /** Where the contents of files that are merged by meaning are read. */
  store: ChunkStore
  /** Takes the merged contents. The caller commits it before anything refers to the tree, or disposes it after a dry run. */
  writer: ChunkWriter
  /** Conflict key to the name of the layer that is right. */
  decisions?: ReadonlyMap<string, string>
  /** How much to tell; default `conflicts`. */
  report?: 'conflicts' | 'all'
  signal?: AbortSignal
}

export interface MergeResult {
  /** Canonical; without whiteouts, opaque flags and links to paths. */
  tree: Tree
  report: MergeReport
}

/**
 * Merges by path, last layer wins; docs/merge.md has the rules.
 * @param layers bottom first, at least one
 * @throws VarveError LIMIT_EXCEEDED, CHUNK_MISSING, CHUNK_CORRUPT. Conflicts are not errors: they are in the report.
 */
export async function mergeTrees(layers: readonly MergeLayer[], options: MergeOptions): Promise<MergeResult> {
  throw new Error(`not yet: ${layers.length} ${options.report}`)
}
