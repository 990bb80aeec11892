/**
 * Merger: joins the versions that several layers have of one file, by meaning. Each format is one file of this folder, listed in mergers.ts.
 * A merger is pure: the same inputs and decisions give the same bytes.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { Disagreement } from '../report.ts'

export interface MergerInput {
  /** Place of the layer in the stack, 0 is the bottom. */
  layer: number
  bytes: Uint8Array
}

export interface MergerContext {
  /** The layer, one of `layers`, that was decided for in the conflict about `subject` (bytes in latin1), or -1. */
  decided(subject: string, layers: readonly number[]): number
  /** Name of a layer, for details. */
  layerName(layer: number): string
  /** Topmost layer whose own tree provides `name` in the directory at `path`; ABSENT, or DELETED where a layer above all providers deletes it. */
  provider(path: string, name: string): number
}

export interface MergerResult {
  bytes: Uint8Array
  /** In the order of the file; decided ones too. Entries without layers are notes. */
  conflicts: Disagreement[]
}

export interface Merger {
  /** Stands in reports as `merged by NAME`. */
  readonly name: string
  /** Paths that it joins, without a leading slash. */
  readonly paths: readonly string[]
  /**
   * @param inputs bottom first, at least two; any bytes
   * @throws VarveError LIMIT_EXCEEDED
   */
  merge(inputs: readonly MergerInput[], context: MergerContext): MergerResult
}

/** Lines, or packages, or names in lists, of all inputs of one file together, at most. */
export const MERGE_LINES_MAX = 1_000_000

/** Lines without their ends, bytes in latin1; a last line without an end counts. @throws VarveError LIMIT_EXCEEDED */
export function linesOf(inputs: readonly MergerInput[]): { layer: number; lines: string[] }[] {
  let count = 0
  return inputs.map(({ layer, bytes }) => {
    const lines: string[] = []
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
    for (let at = 0; at < text.length; ) {
      if (++count > MERGE_LINES_MAX) throw new VarveError('LIMIT_EXCEEDED', `files to be merged have more than ${MERGE_LINES_MAX} lines`)
      const end = text.indexOf('\n', at)
      lines.push(text.slice(at, end < 0 ? text.length : end))
      at = end < 0 ? text.length : end + 1
    }
    return { layer, lines }
  })
}

/** The file of the given lines. */
export function fileOf(lines: readonly string[]): Uint8Array {
  return lines.length === 0 ? new Uint8Array(0) : Buffer.from(lines.join('\n') + '\n', 'latin1')
}
