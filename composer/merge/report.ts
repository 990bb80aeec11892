/**
 * Report of a merge: what each layer wanted for a path, who won, and what a person has to decide.
 * For `varve compose --dry-run --json`; docs/merge.md explains it to users.
 */

/** Why the winner won. `merged by NAME`: a semantic merger joined the layers' files. */
export type MergeReason = 'last layer' | 'identical' | 'whiteout' | 'opaque directory' | 'replaces directory' | 'replaced by directory' | `merged by ${string}`

export interface MergeConflict {
  /** Stable name of the question, as decisions use it: `etc/passwd#alice`. */
  key: string
  /** The path that it is about, printed. */
  path: string
  /** What the layers disagree on, in one line. */
  detail: string
  /** Names of the layers that a decision may name, bottom first. */
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
  /** The layer whose entry, or whose deletion, stands. */
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
  /** All conflicts, the decided ones too. */
  conflicts: MergeConflict[]
  /** How many conflicts still need a decision; exit status 3 unless 0. */
  open: number
  /** Keys of decisions that fit no conflict: misspelt, or no longer needed. */
  unusedDecisions: string[]
}
