/**
 * Merge: a stack of layers -> the one tree that they make together. Rules for users: docs/merge.md.
 * Names are merged in merge-entries.ts, inodes and chunks in merge-columns.ts, the contents of a few files by meaning in mergers/.
 */
import type { ChunkStore, ChunkWriter } from '@varve/images/store/chunk-store.ts'
import { Kind, Tree } from '@varve/images/tree/tree.ts'
import type { LayerKind } from '@varve/images/store/catalog.ts'
import { inodeColumns } from './merge-columns.ts'
import { mergeContents } from './merge-contents.ts'
import { MergeEntries } from './merge-entries.ts'
import { MERGERS } from './mergers/mergers.ts'
import { ReportBuilder } from './report.ts'
import type { MergeReport } from './report.ts'
import { Stack } from './stack.ts'

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
 * Merges by path, last layer wins.
 * @param layers bottom first, at least one
 * @throws VarveError LIMIT_EXCEEDED, CHUNK_MISSING, CHUNK_CORRUPT, FORMAT_INVALID. Conflicts are not errors: they are in the report.
 */
export async function mergeTrees(layers: readonly MergeLayer[], options: MergeOptions): Promise<MergeResult> {
  if (layers.length === 0) throw new RangeError('a merge takes at least one layer')
  options.signal?.throwIfAborted()
  const trees = layers.map(({ tree }) => tree)
  const layerNames = layers.map(({ name }) => name)
  const report = new ReportBuilder(layerNames, { all: options.report === 'all', decisions: options.decisions ?? new Map<string, string>() })
  if (trees.length === 1 && isPlain(trees[0])) return { tree: trees[0], report: report.build() }
  const stack = new Stack(trees)
  const entries = new MergeEntries(trees, { stack, mergers: MERGERS, report })
  const contents = await mergeContents(trees, entries.shared, { layerNames, stack, store: options.store, writer: options.writer, report, signal: options.signal })
  const tree = new Tree({ ...entries.entryColumns(), ...inodeColumns(trees, entries.inodeSources(), contents) })
  return { tree, report: report.build() }
}

/** True if the tree of one layer is merged as it is. */
function isPlain({ kind, opaque }: Tree): boolean {
  return !kind.includes(Kind.whiteout) && !kind.includes(Kind.link) && !opaque.includes(1)
}
