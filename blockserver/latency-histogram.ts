/**
 * LatencyHistogram: how often something took how long, in buckets whose width grows with the duration: two for each power of two,
 * so that a bucket's bounds differ by half at most. Recording costs a few nanoseconds and allocates nothing.
 */

/** Powers of two of a microsecond: the first bucket ends at 4 us, the last bound is 16.8 s; what is longer has no bound. */
const SHORTEST_EXPONENT = 2
const LONGEST_EXPONENT = 24

/** Upper bounds of all buckets but the last, seconds, each belonging to its bucket. */
export const LATENCY_BOUNDS_SECONDS: readonly number[] = boundsSeconds()
const BUCKETS = LATENCY_BOUNDS_SECONDS.length + 1

export interface LatencySnapshot {
  /** Not cumulative; one more than LATENCY_BOUNDS_SECONDS. */
  counts: Float64Array
  sumSeconds: number
}

export class LatencyHistogram {
  readonly #counts = new Float64Array(BUCKETS)
  #sumMs = 0

  /** @param count how many took `durationMs` each */
  record(durationMs: number, count = 1): void {
    this.#counts[bucketOf(durationMs)] += count
    this.#sumMs += durationMs * count
  }

  /** A copy that can be sent to another thread. */
  snapshot(): LatencySnapshot {
    return { counts: this.#counts.slice(), sumSeconds: this.#sumMs / 1000 }
  }
}

export function emptyLatency(): LatencySnapshot {
  return { counts: new Float64Array(BUCKETS), sumSeconds: 0 }
}

/** Adds `more` to `sum`. */
export function addLatency(sum: LatencySnapshot, more: LatencySnapshot): void {
  for (let bucket = 0; bucket < BUCKETS; bucket++) sum.counts[bucket] += more.counts[bucket]
  sum.sumSeconds += more.sumSeconds
}

export function latencyCount({ counts }: LatencySnapshot): number {
  return counts.reduce((sum, count) => sum + count, 0)
}

function bucketOf(durationMs: number): number {
  // Bounds belong to the bucket below them: 6 us is in the bucket that ends there.
  const microseconds = Math.ceil(durationMs * 1000) - 1
  if (!(microseconds >= 1 << SHORTEST_EXPONENT)) return 0
  if (microseconds >= 1 << LONGEST_EXPONENT) return BUCKETS - 1
  const exponent = 31 - Math.clz32(microseconds)
  const upperHalf = (microseconds >> (exponent - 1)) & 1
  return 1 + (exponent - SHORTEST_EXPONENT) * 2 + upperHalf
}

function boundsSeconds(): number[] {
  const bounds = [2 ** SHORTEST_EXPONENT / 1e6]
  for (let exponent = SHORTEST_EXPONENT; exponent < LONGEST_EXPONENT; exponent++) bounds.push((1.5 * 2 ** exponent) / 1e6, (2 * 2 ** exponent) / 1e6)
  return bounds
}
