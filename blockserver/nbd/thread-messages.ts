/**
 * What an NBD server and its threads tell each other.
 */
import type { Arrival } from './connection-host.ts'
import type { Destination } from './export.ts'
import type { NbdLimits } from './limits.ts'
import type { MetricsSnapshot } from './metrics.ts'
import type { SendablePolicy } from './policy.ts'

/** Where a thread has its exports from. */
export interface ThreadExports {
  /** URL of a module that exports `openExports: OpenExports` and `openNames: OpenNames`. */
  module: string
  /** For these functions; a value that threads can send. */
  data: unknown
}

/** What may change while a thread serves. */
export interface ThreadSettings {
  limits: NbdLimits
  policy: SendablePolicy
  logLevel: string
}

/** What a server thread is started with. */
export interface ServerThreadData {
  /** Number of the thread in its server, from 0; undefined for the one that negotiates. */
  thread: number | undefined
  exports: ThreadExports
  settings: ThreadSettings
}

export type ToThread =
  | { type: 'connection'; arrival: Arrival }
  /** Answer to `acquire`. */
  | { type: 'owner'; request: number; thread: number }
  | { type: 'metrics'; request: number }
  | { type: 'reconfigure'; settings: ThreadSettings }
  | { type: 'drain'; drainMs: number }

export type FromThread =
  | { type: 'ended'; id: number }
  | { type: 'moved'; arrival: Arrival; to: Destination }
  | { type: 'acquire'; request: number; name: string }
  | { type: 'release'; name: string }
  | { type: 'metrics'; request: number; metrics: MetricsSnapshot }
