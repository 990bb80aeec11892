/**
 * Import context: what the reader of a source is given to work with, and the progress that it reports.
 */
import type { PackWriter } from '@varve/images/store/pack-writer.ts'
import { Workspace } from '@varve/images/tree/workspace.ts'
import type { ContentPipeline } from './content-pipeline.ts'

export interface ImportProgress {
  /** Files found and, if they had to be, stored so far. */
  files: number
  /** Bytes of those files. */
  bytes: number
  /** Of the whole source, once that is known. */
  filesTotal?: number
  bytesTotal?: number
  /** Of a stream whose content is not known before its end: bytes read of it, and its length. */
  sourceBytes?: number
  sourceBytesTotal?: number
}

/** Progress reports come at most so often. */
const PROGRESS_INTERVAL_MS = 100

/** Counts, and tells it ten times a second at most. */
export class Progress {
  readonly now: ImportProgress = { files: 0, bytes: 0 }
  readonly #report: ((progress: ImportProgress) => void) | undefined
  #reportedMs = 0

  constructor(report?: (progress: ImportProgress) => void) {
    this.#report = report
  }

  add(files: number, bytes: number): void {
    this.now.files += files
    this.now.bytes += bytes
    this.tell()
  }

  /** @param last reports whenever the report before was */
  tell(last = false): void {
    if (this.#report === undefined) return
    const nowMs = performance.now()
    if (!last && nowMs - this.#reportedMs < PROGRESS_INTERVAL_MS) return
    this.#reportedMs = nowMs
    this.#report({ ...this.now })
  }
}

export interface ImportContext {
  pipeline: ContentPipeline
  /** Of the importing thread: takes trees; what its `has` finds stays until the import is done. */
  writer: PackWriter
  progress: Progress
  signal?: AbortSignal
  /** What the columns of trees may take of memory. */
  columnsBytesMax: number
  /** Where scratch files are, which have no name once they are open. */
  scratchDirectory: string
  /** Where file caches are kept; without one, all files are read. */
  cacheDirectory?: string
}

/** For the columns of one tree. @param without bytes that are wanted for others */
export function workspace({ scratchDirectory, columnsBytesMax }: ImportContext, without = 0): Workspace {
  return new Workspace({ directory: scratchDirectory, bytesMax: columnsBytesMax - without })
}

/** Lets messages, timers and signals through: long work in the importing thread calls it every few milliseconds. */
export function breathe(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
