/**
 * How late the timers of an event loop are: what each of its connections has to wait for besides its own work.
 */
import type { LatencyHistogram } from './latency-histogram.ts'

/** Often enough to meet every longer stall; an idle process is hardly woken by it. */
const SAMPLE_MS = 100

/** Records into `histogram` until it is disposed of; does not keep the process running. */
export function watchEventLoopDelay(histogram: LatencyHistogram): Disposable {
  let dueMs = performance.now() + SAMPLE_MS
  const timer = setInterval(() => {
    const nowMs = performance.now()
    // Timers count whole milliseconds and may be early by a part of one.
    histogram.record(Math.max(0, nowMs - dueMs))
    dueMs = nowMs + SAMPLE_MS
  }, SAMPLE_MS).unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }
}
