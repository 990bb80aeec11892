/**
 * Report of a merge: what each layer wanted for a path, who won, and what a person has to decide.
 * For `varve compose --dry-run --json`; docs/merge.md explains it to users.
 */
import { printPath } from './print-path.ts'

/** Why the winner won. `merged by NAME`: a semantic merger joined the layers' files. */
export type MergeReason = 'last layer' | 'identical' | 'whiteout' | 'opaque directory' | 'replaces directory' | 'replaced by directory' | `merged by ${string}`

export interface MergeConflict {
  /** Stable name of the question, as decisions use it: `etc/passwd#alice`. */
  key: string
  /** The path that it is about, printed. */
  path: string
  /** What the layers disagree on, in one line. */
  detail: string
  /** Names of the layers that a decision may name, bottom first; none for a note. */
  choices: string[]
  /** False for a decided conflict, and for a note that asks nothing. */
  needsDecision: boolean
  /** The layer that was decided for, or null. */
  decision: string | null
}

export interface MergePath {
  /** Printed with printPath; '' is the root. */
  path: string
  /** The lowest layer that provides the path. */
  owner: string
  /** The layer whose entry, or whose deletion, stands; of a merged file the layer whose metadata stand. */
  winner: string
  /** The other layers that provide it, bottom first. */
  losers: string[]
  why: MergeReason
  conflicts?: MergeConflict[]
}

export interface MergeReport {
  /**
   * `report: 'all'`: every path that several layers provide (directories where their metadata differ), in the order of the tree.
   * `report: 'conflicts'`: those that have conflicts.
   */
  paths: MergePath[]
  /** All conflicts, the decided ones too, and notes. */
  conflicts: MergeConflict[]
  /** How many conflicts still need a decision; exit status 3 unless 0. */
  open: number
  /** Keys of decisions that fit no conflict: misspelt, or no longer needed. */
  unusedDecisions: string[]
}

/** What a conflict is about, before it is printed. */
export interface Disagreement {
  /** Part of the file that it is about (a name, `uid:1000`), bytes in latin1. */
  subject: string
  detail: string
  /** Places of the layers that may be decided for, bottom first; none for a note. */
  layers: readonly number[]
}

export class ReportBuilder {
  /** True if every path of several layers is asked for, not only conflicts. */
  readonly all: boolean
  readonly #layerNames: readonly string[]
  readonly #decisions: ReadonlyMap<string, string>
  readonly #paths: MergePath[] = []
  readonly #conflicts: MergeConflict[] = []
  readonly #usedDecisions = new Set<string>()

  constructor(layerNames: readonly string[], options: { all: boolean; decisions: ReadonlyMap<string, string> }) {
    this.#layerNames = layerNames
    this.all = options.all
    this.#decisions = options.decisions
  }

  /** The layer that was decided for, if it is one of `layers`; else -1. */
  decided(path: string, subject: string, layers: readonly number[]): number {
    const key = conflictKey(path, subject)
    const name = this.#decisions.get(key)
    if (name === undefined) return -1
    const layer = layers.findLast((place) => this.#layerNames[place] === name) ?? -1
    if (layer >= 0) this.#usedDecisions.add(key)
    return layer
  }

  /** @param path bytes in latin1 */
  addConflict(path: string, { subject, detail, layers }: Disagreement): MergeConflict {
    const layer = this.decided(path, subject, layers)
    const conflict: MergeConflict = {
      key: conflictKey(path, subject),
      path: printPath(path),
      detail,
      choices: layers.map((place) => this.#layerNames[place]),
      needsDecision: layers.length > 0 && layer < 0,
      decision: layer < 0 ? null : this.#layerNames[layer],
    }
    this.#conflicts.push(conflict)
    return conflict
  }

  /**
   * @param path bytes in latin1
   * @param layers places of all layers that provide it, in any order
   * @param winner place of the layer whose entry or deletion stands
   */
  addPath(path: string, layers: readonly number[], winner: number, why: MergeReason): MergePath {
    const sorted = [...layers].sort((a, b) => a - b)
    const added: MergePath = {
      path: printPath(path),
      owner: this.#layerNames[sorted[0] ?? winner],
      winner: this.#layerNames[winner],
      losers: sorted.filter((place) => place !== winner).map((place) => this.#layerNames[place]),
      why,
    }
    this.#paths.push(added)
    return added
  }

  build(): MergeReport {
    return {
      paths: this.all ? this.#paths : this.#paths.filter(({ conflicts }) => conflicts !== undefined),
      conflicts: this.#conflicts,
      open: this.#conflicts.filter(({ needsDecision }) => needsDecision).length,
      unusedDecisions: [...this.#decisions.keys()].filter((key) => !this.#usedDecisions.has(key)),
    }
  }
}

function conflictKey(path: string, subject: string): string {
  return `${printPath(path)}#${printPath(subject)}`
}
