/**
 * What the server has done since it was started. Counters only grow; a reader takes differences.
 * Each thread that serves connections has one NbdMetrics of its own, and plain values of it (`snapshot`) go to whoever asks, who merges them.
 */
import { LatencyHistogram, type LatencySnapshot, addLatency, emptyLatency, latencyCount } from '../latency-histogram.ts'
import { ExportRecorder, type ExportSnapshot } from './export-recorder.ts'
import { EXPORTS_RECORDED_MAX } from './limits.ts'

/** Exports that were not used for long are counted together under this name, which is none that an export can have. */
export const OTHER_EXPORTS = '(other)'

/** What one thread did, or several together; a value that can be sent between threads. */
export interface MetricsSnapshot {
  /** Connections that ended before the transmission phase, and not by NBD_OPT_ABORT. */
  handshakesFailed: number
  /** Connections closed because the peer broke the protocol, or held memory without moving. */
  connectionsCut: number
  eventLoopDelay: LatencySnapshot
  /** Counters of what the exports come from. */
  source: Record<string, number>
  exports: ExportSnapshot[]
}

/** What the whole server did. */
export interface ServerSnapshot extends MetricsSnapshot {
  connectionsAccepted: number
  /** Over the limit, closed at once. */
  connectionsRefused: number
  connectionsOpen: number
  /** Requests that were answered or are in flight, and those of them that were answered by an error. */
  requests: number
  errors: number
}

export class NbdMetrics {
  handshakesFailed = 0
  connectionsCut = 0
  readonly eventLoopDelay = new LatencyHistogram()
  /** In the order in which they were last opened. */
  readonly #recorders = new Map<string, ExportRecorder>()
  readonly #others: ExportSnapshot = emptyExport(OTHER_EXPORTS)

  /** For a connection that begins to use an export, and gives the recorder back by `release`. @param name canonical */
  acquire(name: string): ExportRecorder {
    const recorder = this.#recorders.get(name) ?? new ExportRecorder(name)
    this.#recorders.delete(name)
    this.#recorders.set(name, recorder)
    recorder.connections++
    if (this.#recorders.size > EXPORTS_RECORDED_MAX) this.#forgetOne()
    return recorder
  }

  release(recorder: ExportRecorder): void {
    recorder.connections--
  }

  snapshot(): MetricsSnapshot {
    const { handshakesFailed, connectionsCut } = this
    const exports = [...this.#recorders.values().map((recorder) => recorder.snapshot())]
    if (this.#others.commands.length > 0) exports.push(mergeExports([this.#others])[0])
    return { handshakesFailed, connectionsCut, eventLoopDelay: this.eventLoopDelay.snapshot(), source: {}, exports }
  }

  /** The export that nobody uses and that was opened the longest time ago. */
  #forgetOne(): void {
    const unused = this.#recorders.values().find(({ connections }) => connections === 0)
    if (unused === undefined) return
    this.#recorders.delete(unused.name)
    addExport(this.#others, unused.snapshot())
  }
}

/** What several threads did, as if one had. */
export function mergeSnapshots(snapshots: readonly MetricsSnapshot[]): MetricsSnapshot {
  const sum: MetricsSnapshot = { handshakesFailed: 0, connectionsCut: 0, eventLoopDelay: emptyLatency(), source: {}, exports: mergeExports(snapshots.flatMap(({ exports }) => exports)) }
  for (const { handshakesFailed, connectionsCut, eventLoopDelay, source } of snapshots) {
    sum.handshakesFailed += handshakesFailed
    sum.connectionsCut += connectionsCut
    addLatency(sum.eventLoopDelay, eventLoopDelay)
    for (const [name, count] of Object.entries(source)) sum.source[name] = (sum.source[name] ?? 0) + count
  }
  return sum
}

/** What a thread leaves behind when it ends: its counters. */
export function withoutGauges(snapshot: MetricsSnapshot): MetricsSnapshot {
  return { ...snapshot, exports: snapshot.exports.map((one) => ({ ...one, connections: 0, requestsInFlight: 0 })) }
}

/** @param connections of the server */
export function serverSnapshot(threads: MetricsSnapshot, connections: Pick<ServerSnapshot, 'connectionsAccepted' | 'connectionsRefused' | 'connectionsOpen'>): ServerSnapshot {
  let requests = 0
  let errors = 0
  for (const { requestsInFlight, commands } of threads.exports) {
    requests += requestsInFlight
    for (const command of commands) {
      requests += latencyCount(command.latency)
      errors += command.errors
    }
  }
  return { ...threads, ...connections, requests, errors }
}

function mergeExports(snapshots: readonly ExportSnapshot[]): ExportSnapshot[] {
  const merged = new Map<string, ExportSnapshot>()
  for (const snapshot of snapshots) {
    const sum = merged.get(snapshot.name) ?? emptyExport(snapshot.name)
    merged.set(snapshot.name, sum)
    addExport(sum, snapshot)
  }
  return [...merged.values()]
}

function addExport(sum: ExportSnapshot, more: ExportSnapshot): void {
  for (const field of ['connections', 'requestsInFlight', 'bytesRead', 'bytesWritten'] as const) sum[field] += more[field]
  for (const { command, errors, latency } of more.commands) {
    let known = sum.commands.find((one) => one.command === command)
    if (known === undefined) sum.commands.push((known = { command, errors: 0, latency: emptyLatency() }))
    known.errors += errors
    addLatency(known.latency, latency)
  }
}

function emptyExport(name: string): ExportSnapshot {
  return { name, connections: 0, requestsInFlight: 0, bytesRead: 0, bytesWritten: 0, commands: [] }
}
