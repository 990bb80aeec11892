/**
 * Figures in the text format of Prometheus, version 0.0.4. Names and units follow its conventions: seconds, bytes, `_total` for counters.
 */
import type { ChunkCacheFigures } from '@varve/images/device/chunk-cache.ts'
import { LATENCY_BOUNDS_SECONDS, type LatencySnapshot, latencyCount } from '../latency-histogram.ts'
import type { ServerSnapshot } from '../nbd/metrics.ts'
import { PRIORITY_NAMES, type StreamFigures } from '../stream/metrics.ts'
import type { ProcessFigures } from './process-figures.ts'

export const PROMETHEUS_CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

export interface Figures {
  nbd: ServerSnapshot
  cache: ChunkCacheFigures
  stream: StreamFigures
  process: ProcessFigures
}

type Labels = Record<string, string>

export function renderPrometheus({ nbd, cache, stream, process }: Figures): string {
  const text = new Exposition()
  const { exports } = nbd
  const commands = exports.flatMap(({ name, commands }) => commands.map((figures) => ({ labels: { export: name, command: figures.command }, ...figures })))

  text.histograms('varve_nbd_request_duration_seconds', 'From when all of a request has arrived until its reply.', commands.map(({ labels, latency }) => [labels, latency]))
  text.counters('varve_nbd_request_errors_total', 'Requests answered by an error.', commands.map(({ labels, errors }) => [labels, errors]))
  text.counters('varve_nbd_read_bytes_total', 'Payload of successful reads, zeroes included.', exports.map(({ name, bytesRead }) => [{ export: name }, bytesRead]))
  text.counters('varve_nbd_written_bytes_total', 'Payload of successful writes.', exports.map(({ name, bytesWritten }) => [{ export: name }, bytesWritten]))
  text.gauges('varve_nbd_requests_in_flight', 'Requests that are not answered yet.', exports.map(({ name, requestsInFlight }) => [{ export: name }, requestsInFlight]))
  text.gauges('varve_nbd_export_connections', 'Connections that use the export.', exports.map(({ name, connections }) => [{ export: name }, connections]))

  text.gauge('varve_nbd_connections', 'Open connections, those in the handshake included.', nbd.connectionsOpen)
  text.counter('varve_nbd_connections_accepted_total', 'Connections accepted.', nbd.connectionsAccepted)
  text.counter('varve_nbd_connections_refused_total', 'Connections closed at once, since there were too many.', nbd.connectionsRefused)
  text.counter('varve_nbd_connections_cut_total', 'Connections closed because the peer broke the protocol, or held memory without moving.', nbd.connectionsCut)
  text.counter('varve_nbd_handshakes_failed_total', 'Connections that ended before they used an export, and not in order.', nbd.handshakesFailed)
  text.histograms('varve_event_loop_delay_seconds', 'How late timers are, of all threads that serve.', [[{}, nbd.eventLoopDelay]])

  text.counter('varve_chunk_cache_hits_total', 'Chunks that were in memory.', cache.hits)
  text.counter('varve_chunk_cache_misses_total', 'Chunks that had to be read.', cache.misses)
  text.gauge('varve_chunk_cache_max_bytes', 'Memory for chunks.', cache.bytesMax)

  text.gauge('varve_stream_connections', 'Open connections of agents, those in the handshake included.', stream.connections)
  text.counter('varve_stream_connections_accepted_total', 'Connections accepted.', stream.accepted)
  text.counter('varve_stream_connections_refused_total', 'Connections refused, since there were too many, or the server was ending.', stream.refused)
  text.counter('varve_stream_connections_cut_total', 'Connections closed because the agent broke the protocol, or a limit.', stream.cut)
  text.counter('varve_stream_auth_failures_total', 'Agents that did not prove who they are.', stream.authFailures)
  text.counters('varve_stream_sent_bytes_total', 'Payload of chunks, as stored, by the priority with which they went.', PRIORITY_NAMES.map((priority, index) => [{ priority }, stream.bytesSent[index]]))
  text.counters('varve_stream_sent_chunks_total', 'Chunks, by the priority with which they went.', PRIORITY_NAMES.map((priority, index) => [{ priority }, stream.chunksSent[index]]))
  text.counter('varve_stream_chunk_errors_total', 'Chunks that were asked for and could not be given.', stream.chunkErrors)
  text.histograms('varve_stream_miss_wait_seconds', 'From when a miss was asked for until it was given to the socket.', [[{}, stream.missWait]])

  text.counter('process_cpu_seconds_total', 'User and system time of all threads.', process.cpuSeconds)
  text.gauge('process_resident_memory_bytes', 'Resident memory.', process.residentBytes)
  text.gauge('process_start_time_seconds', 'When the process was started, since 1970.', process.startTimeSeconds)
  text.gauge('nodejs_heap_used_bytes', 'JavaScript objects of the main thread.', process.heapBytes)
  text.gauge('nodejs_external_memory_bytes', 'Buffers.', process.externalBytes)
  return text.toString()
}

/** Lines of the format: each metric with its HELP and TYPE, all of its series behind them. */
class Exposition {
  readonly #lines: string[] = []

  counter(name: string, help: string, value: number): void {
    this.counters(name, help, [[{}, value]])
  }

  counters(name: string, help: string, series: readonly (readonly [Labels, number])[]): void {
    this.#simple(name, help, 'counter', series)
  }

  gauge(name: string, help: string, value: number): void {
    this.gauges(name, help, [[{}, value]])
  }

  gauges(name: string, help: string, series: readonly (readonly [Labels, number])[]): void {
    this.#simple(name, help, 'gauge', series)
  }

  histograms(name: string, help: string, series: readonly (readonly [Labels, LatencySnapshot])[]): void {
    this.#head(name, help, 'histogram')
    for (const [labels, latency] of series) {
      let count = 0
      for (const [index, bound] of LATENCY_BOUNDS_SECONDS.entries()) {
        count += latency.counts[index]
        this.#sample(`${name}_bucket`, { ...labels, le: String(bound) }, count)
      }
      const total = latencyCount(latency)
      this.#sample(`${name}_bucket`, { ...labels, le: '+Inf' }, total)
      this.#sample(`${name}_sum`, labels, latency.sumSeconds)
      this.#sample(`${name}_count`, labels, total)
    }
  }

  toString(): string {
    return `${this.#lines.join('\n')}\n`
  }

  #simple(name: string, help: string, type: string, series: readonly (readonly [Labels, number])[]): void {
    this.#head(name, help, type)
    for (const [labels, value] of series) this.#sample(name, labels, value)
  }

  #head(name: string, help: string, type: string): void {
    this.#lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`)
  }

  #sample(name: string, labels: Labels, value: number): void {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escapeLabel(text)}"`)
    this.#lines.push(`${name}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}`)
  }
}

function escapeLabel(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}
