/**
 * Histograms of durations: buckets by a search, not by bits.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { LATENCY_BOUNDS_SECONDS, LatencyHistogram, addLatency, emptyLatency, latencyCount } from '@varve/blockserver/latency-histogram.ts'
import { Random, testSeed } from '../random.ts'

/** The first bucket whose bound is not below the duration. */
function searched(durationMs: number): number {
  const found = LATENCY_BOUNDS_SECONDS.findIndex((bound) => durationMs / 1000 <= bound)
  return found === -1 ? LATENCY_BOUNDS_SECONDS.length : found
}

function bucketOf(durationMs: number): number {
  const histogram = new LatencyHistogram()
  histogram.record(durationMs)
  return histogram.snapshot().counts.findIndex((count) => count === 1)
}

test('bounds grow by half at most, and each belongs to the bucket that it ends', () => {
  for (const [index, bound] of LATENCY_BOUNDS_SECONDS.entries()) {
    if (index > 0) assert.ok(bound > LATENCY_BOUNDS_SECONDS[index - 1] && bound <= LATENCY_BOUNDS_SECONDS[index - 1] * 1.5)
    assert.equal(bucketOf(bound * 1000 * (1 - 1e-9)), index)
    assert.equal(bucketOf(bound * 1000 * (1 + 1e-9)), index + 1)
  }
})

test('every duration is in the bucket that a search finds', () => {
  const seed = testSeed()
  const random = new Random(seed)
  for (let count = 0; count < 20_000; count++) {
    const durationMs = 10 ** (random.between(0, 90_000) / 10_000 - 4)
    assert.equal(bucketOf(durationMs), searched(durationMs), `${durationMs} ms, seed ${seed}`)
  }
  assert.equal(bucketOf(0), 0)
  assert.equal(bucketOf(-1), 0)
  assert.equal(bucketOf(1e12), LATENCY_BOUNDS_SECONDS.length)
})

test('what is added up has the counts and the time of all', () => {
  const one = new LatencyHistogram()
  one.record(1, 3)
  const other = new LatencyHistogram()
  other.record(1)
  other.record(20_000)
  const sum = emptyLatency()
  for (const histogram of [one, other]) addLatency(sum, histogram.snapshot())
  assert.equal(latencyCount(sum), 5)
  assert.equal(sum.sumSeconds, 20.004)
  assert.equal(sum.counts[searched(1)], 4)
})
