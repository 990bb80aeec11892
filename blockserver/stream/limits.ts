/**
 * What agents may ask of the stream server. What a frame may hold is in frames.ts.
 */
import type { LimitRange } from '../nbd/limits.ts'

/** Bytes of ours that wait for the socket; with more, nothing more is given to it, nor taken from it. A miss waits behind these at most. */
export const UNSENT_BYTES_MAX = 128 * 1024
/** Chunks of a connection that are read, or have been, before they can be sent. */
export const AHEAD_MAX = 4
/** Reads of one connection at one time, with those that nobody wants any more. */
export const READS_MAX = 16
/** Reads of all connections that are for no miss, at one time: one thread of the pool is left for those. */
export const BACKGROUND_READS_MAX = 3
/** Disks of one connection. */
export const DISKS_MAX = 16
/** Reports of one connection that wait to be recorded: one is at a time, over all connections. */
export const REPORTS_MAX = 16
/** JSON of AUTH or OPEN, bytes. */
export const JSON_BYTES_MAX = 4096
/** How long an agent may take to read why its connection ends. */
export const LINGER_MS = 5000
/** How often it is looked whether agents that are connected have been revoked. */
export const RECHECK_MS = 10_000

export interface StreamLimits {
  /** Connections at one time; more are refused. */
  connectionsMax: number
  /** Those of one agent; the oldest ends when one more comes, since it may be what an outage left. */
  connectionsPerAgentMax: number
  /** Until the agent has proven who it is. */
  handshakeMsMax: number
  /** A connection on which nothing moves for so long ends; an agent sends PING before. */
  idleMsMax: number
}

export const STREAM_LIMITS: Readonly<StreamLimits> = { connectionsMax: 1024, connectionsPerAgentMax: 4, handshakeMsMax: 10_000, idleMsMax: 120_000 }

const DAY_MS = 24 * 3600 * 1000

export const STREAM_LIMIT_RANGES: Readonly<Record<keyof StreamLimits, LimitRange>> = {
  connectionsMax: { min: 1, max: 1_000_000 },
  connectionsPerAgentMax: { min: 1, max: 1000 },
  handshakeMsMax: { min: 1, max: DAY_MS },
  idleMsMax: { min: 1, max: DAY_MS },
}
