/**
 * What the stream server counts.
 */
import { LatencyHistogram, type LatencySnapshot } from '../latency-histogram.ts'
import type { Priority } from './frames.ts'

/** By the number of a priority. */
export const PRIORITY_NAMES = ['miss', 'boot', 'fill'] as const

export interface StreamFigures {
  /** Open, those in the handshake included. */
  connections: number
  accepted: number
  /** For there were too many, or the server was ending. */
  refused: number
  /** Agents that did not prove who they are. */
  authFailures: number
  /** Connections that ended because the agent broke the protocol, or a limit. */
  cut: number
  /** Payload of frames, and chunks, by priority. */
  bytesSent: readonly number[]
  chunksSent: readonly number[]
  /** Chunks that were asked for and could not be given. */
  chunkErrors: number
  /** From when a miss was asked for until it was given to the socket. */
  missWait: LatencySnapshot
}

export class StreamMetrics {
  accepted = 0
  refused = 0
  authFailures = 0
  cut = 0
  chunkErrors = 0
  readonly #bytesSent = [0, 0, 0]
  readonly #chunksSent = [0, 0, 0]
  readonly #missWait = new LatencyHistogram()

  sent(priority: Priority, bytes: number): void {
    this.#bytesSent[priority] += bytes
    this.#chunksSent[priority]++
  }

  missWaited(durationMs: number): void {
    this.#missWait.record(durationMs)
  }

  figures(connections: number): StreamFigures {
    const { accepted, refused, authFailures, cut, chunkErrors } = this
    return { connections, accepted, refused, authFailures, cut, chunkErrors, bytesSent: [...this.#bytesSent], chunksSent: [...this.#chunksSent], missWait: this.#missWait.snapshot() }
  }
}
