/**
 * Rates, by a clock of the test: what is let through is counted, never timed.
 */
import assert from 'node:assert/strict'
import test from 'node:test'
import { Priority } from '@varve/blockserver/stream/frames.ts'
import { RateBucket, type RateClock, RateLimits } from '@varve/blockserver/stream/rate-limits.ts'
import { hexOf } from './raw-agent.ts'
import { serveStreams } from './serve-streams.ts'

const KiB = 1024

class TestClock implements RateClock {
  minute = 0
  ms = 0
  dayMinute = () => this.minute
  nowMs = () => this.ms
}

/** Takes pieces as long as it is let; the bytes that it got. */
function drain({ bucket, urgent, bytes }: { bucket: { isFree(urgent: boolean): boolean; take(bytes: number): void }; urgent: boolean; bytes: number }): number {
  let taken = 0
  for (; bucket.isFree(urgent); taken += bytes) bucket.take(bytes)
  return taken
}

test('a bucket lets its rate through, however large the pieces are, and keeps half for misses', () => {
  const clock = new TestClock()
  const rate = 1000 * KiB
  const bucket = new RateBucket(() => rate, clock)
  const burst = rate / 4
  const first = drain({ bucket, urgent: false, bytes: 30 * KiB })
  assert.ok(first > burst / 2 && first <= burst / 2 + 30 * KiB, String(first))
  const misses = drain({ bucket, urgent: true, bytes: 10 * KiB })
  assert.ok(first + misses > burst - KiB && first + misses <= burst + 10 * KiB, String(misses))
  let taken = first + misses
  for (; clock.ms < 100_000; clock.ms += 7) taken += drain({ bucket, urgent: false, bytes: 1000 * KiB })
  const sent = taken / (rate * 100 + burst)
  assert.ok(sent > 0.98 && sent < 1.02, String(sent))
})

test('who waits is woken when something may be sent: misses first, then in turn', async () => {
  const bucket = new RateBucket(() => 10_000 * KiB, { dayMinute: () => 0, nowMs: () => performance.now() })
  drain({ bucket, urgent: true, bytes: 100 * KiB })
  const order: string[] = []
  await new Promise<void>((resolve) => {
    const wait = (name: string, urgent: boolean) => bucket.wait(urgent, () => {
      order.push(name)
      bucket.take(2500 * KiB)
      if (order.length === 4) resolve()
    })
    wait('one', false)
    wait('two', false)
    wait('miss', true)
    wait('three', false)
    const left = () => order.push('left')
    bucket.wait(false, left)
    bucket.forget(left)
    // The timers do not keep a process; this test is one.
    const keep = setInterval(() => { if (order.length === 4) clearInterval(keep) }, 10)
  })
  assert.deepEqual(order, ['miss', 'one', 'two', 'three'])
})

test('a site\'s bucket is shared by its agents, an agent\'s by its connections, and others have none', () => {
  const clock = new TestClock()
  const limits = new RateLimits({
    sites: [{ name: 'branch', clients: ['10.1.0.0/16', 'fd00::/8'] }],
    rates: [{ per: 'site', site: 'branch', bitsPerSecondMax: 8_000_000 }, { per: 'agent', bitsPerSecondMax: 80_000_000 }],
  }, clock)
  const wake = () => undefined
  using first = limits.bucketsOf('a', '10.1.2.3')
  using second = limits.bucketsOf('b', 'fd00::1')
  using elsewhere = limits.bucketsOf('b', '10.2.0.1')
  using again = limits.bucketsOf('b', undefined)
  first.take(1_000_000)
  assert.deepEqual([first, second, elsewhere, again].map((buckets) => buckets.admits(true, wake)), [false, false, true, true])
  again.take(10_000_000)
  assert.deepEqual([elsewhere, again].map((buckets) => buckets.admits(true, wake)), [false, false])
  clock.ms += 100_000
  assert.deepEqual([first, second, elsewhere, again].map((buckets) => buckets.admits(false, wake)), [true, true, true, true])
})

test('the time of the day says which rule holds, over midnight too', () => {
  const clock = new TestClock()
  const limits = new RateLimits({
    sites: [],
    rates: [{ per: 'agent', from: '08:00', to: '18:00', bitsPerSecondMax: 8000 }, { per: 'agent', from: '22:30', to: '06:00', bitsPerSecondMax: 8_000_000_000 }],
  }, clock)
  const letThrough = (hour: number, minute: number) => {
    using buckets = limits.bucketsOf('a', undefined)
    clock.minute = hour * 60 + minute
    let taken = 0
    while (buckets.admits(false, () => undefined) && taken < 1e9) {
      buckets.take(100_000)
      taken += 100_000
    }
    return taken
  }
  const small = 100_000
  // Half of what 8 Gbit/s are in a quarter of a second, and the piece with which it gets below that.
  const large = 125_100_000
  const all = 1e9
  assert.deepEqual(
    [[7, 59], [8, 0], [17, 59], [18, 0], [22, 29], [22, 30], [23, 59], [0, 0], [5, 59], [6, 0]].map(([hour, minute]) => letThrough(hour, minute)),
    [all, small, small, all, all, large, large, large, large, all],
  )
})

test('a stream keeps to its rate; misses overtake what waits for it, and a reload changes it', async () => {
  const clock = new TestClock()
  const bytes = 30 * KiB
  await using serving = await serveStreams({ rates: [{ per: 'agent', bitsPerSecondMax: 8 * 64 * KiB }], clock })
  const fill = serving.source.addChunks(300, bytes)
  const misses = serving.source.addChunks(2, bytes)
  using agent = await serving.open()
  agent.window(Number.MAX_SAFE_INTEGER)
  agent.get(Priority.FILL, fill)
  // Half of 64 KiB, and what begins in it.
  assert.deepEqual(await agent.chunks(2), hexOf(fill.slice(0, 2)))
  agent.get(Priority.MISS, misses)
  // The rest goes to a miss, and is overdrawn by it.
  assert.deepEqual(await agent.chunks(1), hexOf(misses.slice(0, 1)))
  await agent.settled()
  assert.deepEqual(serving.streams.figures().chunksSent, [1, 0, 2])
  // As much as the debt is, and a little: enough for a miss.
  clock.ms += 450
  assert.deepEqual(await agent.chunks(1), hexOf(misses.slice(1)))
  await agent.settled()
  assert.deepEqual(serving.streams.figures().chunksSent, [2, 0, 2])
  clock.ms += 1000
  assert.deepEqual(await agent.chunks(1), hexOf(fill.slice(2, 3)))
  await agent.settled()
  assert.deepEqual(serving.streams.figures().chunksSent, [2, 0, 3])
  serving.streams.reconfigure({ limits: { connectionsMax: 1, connectionsPerAgentMax: 1, handshakeMsMax: 1000, idleMsMax: 10_000 }, sites: [], rates: [] })
  assert.deepEqual(await agent.chunks(297), hexOf(fill.slice(3)))
})
