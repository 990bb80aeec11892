/**
 * The window on simulated lines: the line is full, and what waits on it is little; what the line holds is learned anew when it changes.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LineWindow } from '@varve/agent/stream/line-window.ts'
import { Random, testSeed } from '../../random.ts'

const PING_MS = 1000

interface Line {
  megabitsPerSecond: number
  roundTripMs: number
  chunkBytes: number
}

/** What happened on a line in some seconds: a sender that always has work, chunks one behind the other, grants and pings that take their way. */
function simulate({ megabitsPerSecond, roundTripMs, chunkBytes }: Line, random: Random, seconds: number): { used: number; queuedMsMedian: number; queuedMsMost: number; grants: number } {
  const window = new LineWindow()
  const bytesPerMs = (megabitsPerSecond * 1e6) / 8 / 1000
  const oneWayMs = roundTripMs / 2
  const endMs = seconds * 1000
  const settledMs = endMs / 2
  const events: { atMs: number; act: (nowMs: number) => void }[] = []
  const at = (atMs: number, act: (nowMs: number) => void): void => { events.push({ atMs, act }) }
  let [sent, granted, freeMs, delivered, grants] = [0, 0, 0, 0, 0]
  const queued: number[] = []
  const onLine = (nowMs: number, bytes: number, act: (nowMs: number) => void): void => {
    if (nowMs > settledMs) queued.push(Math.max(0, freeMs - nowMs))
    freeMs = Math.max(freeMs, nowMs) + bytes / bytesPerMs
    at(freeMs + oneWayMs, act)
  }
  const ping = (nowMs: number): void => {
    at(nowMs + oneWayMs, (arrivedMs) => onLine(arrivedMs, 13, (backMs) => window.noteRoundTrip(backMs - nowMs, backMs)))
  }
  const grant = (nowMs: number): void => {
    if (window.takePing(nowMs)) ping(nowMs)
    const bytes = window.grant(nowMs)
    if (bytes === undefined) return
    grants++
    at(nowMs + oneWayMs, (arrivedMs) => {
      granted = bytes
      while (sent < granted) {
        const size = random.between(1, 2 * chunkBytes)
        sent += size
        onLine(arrivedMs, size, (nowMs) => {
          if (nowMs > settledMs) delivered += size
          window.noteBytes(size, { waiting: true, nowMs })
          grant(nowMs)
        })
      }
    })
  }
  const pingEver = (nowMs: number): void => {
    ping(nowMs)
    at(nowMs + PING_MS, pingEver)
  }
  pingEver(0)
  grant(0)
  for (;;) {
    events.sort((a, b) => b.atMs - a.atMs)
    const next = events.pop()!
    if (next.atMs > endMs) break
    next.act(next.atMs)
  }
  queued.sort((a, b) => a - b)
  return { used: delivered / ((endMs - settledMs) * bytesPerMs), queuedMsMedian: queued[queued.length >>> 1], queuedMsMost: queued.at(-1)!, grants }
}

for (const [megabitsPerSecond, roundTripMs, seconds] of [[20, 80, 90], [20, 1, 90], [100, 20, 60], [1000, 80, 50], [2, 300, 200]]) {
  test(`a line of ${megabitsPerSecond} Mbit/s and ${roundTripMs} ms is used, and has no long queue`, () => {
    const seed = testSeed()
    const line = { megabitsPerSecond, roundTripMs, chunkBytes: 30_000 }
    const { used, queuedMsMedian, queuedMsMost, grants } = simulate(line, new Random(seed), seconds)
    const chunkMs = (line.chunkBytes * 8) / megabitsPerSecond / 1000
    const said = `seed ${seed}: ${(used * 100).toFixed(1)}% used, median queue ${queuedMsMedian.toFixed(1)} ms, most ${queuedMsMost.toFixed(1)} ms, ${grants} grants`
    assert.ok(used > 0.95, said)
    assert.ok(queuedMsMedian < roundTripMs / 2 + 6 * chunkMs, said)
    assert.ok(queuedMsMost < 2 * roundTripMs + 12 * chunkMs, said)
    process.stdout.write(`# ${said}\n`)
  })
}

/** A line that is always busy: what it carries and how long it is. A round trip is measured each second, and when the window asks for one. */
class BusyLine {
  readonly #window: LineWindow
  #nowMs = 0
  #answers: { atMs: number; sentMs: number }[] = []

  constructor(window: LineWindow) {
    this.#window = window
  }

  run({ forMs, bytesPerMs, roundTripMs }: { forMs: number; bytesPerMs: number; roundTripMs: number }): void {
    const window = this.#window
    for (const end = this.#nowMs + forMs; this.#nowMs < end; this.#nowMs++) {
      const now = this.#nowMs
      // What the window does not allow to be on its way is not carried.
      const bytes = Math.min(bytesPerMs, window.bytes(now) / roundTripMs)
      // What is on its way beyond what the line holds waits, and the answer behind it.
      const queuedMs = Math.max(0, window.bytes(now) / bytesPerMs - roundTripMs)
      window.noteBytes(bytes, { waiting: true, nowMs: now })
      window.grant(now)
      if (now % 1000 === 500 || window.takePing(now)) this.#answers.push({ sentMs: now, atMs: now + roundTripMs + queuedMs })
      for (const { sentMs } of this.#answers.filter(({ atMs }) => atMs <= now)) window.noteRoundTrip(now - sentMs, now)
      this.#answers = this.#answers.filter(({ atMs }) => atMs > now)
    }
  }
}

test('a line that has become longer is found to be so, and used to the full', () => {
  const window = new LineWindow()
  const line = new BusyLine(window)
  line.run({ forMs: 30_000, bytesPerMs: 12_500, roundTripMs: 20 })
  assert.ok(window.roundTripMs! < 30, `${window.roundTripMs} ms`)
  line.run({ forMs: 60_000, bytesPerMs: 12_500, roundTripMs: 80 })
  assert.ok(window.roundTripMs! >= 80, `${window.roundTripMs} ms`)
  line.run({ forMs: 5000, bytesPerMs: 12_500, roundTripMs: 80 })
  assert.ok(window.bytesPerSecond > 0.95 * 12_500_000, `${window.bytesPerSecond} bytes/s`)
})

test('a line that has become shorter is found to be so', () => {
  const window = new LineWindow()
  const line = new BusyLine(window)
  line.run({ forMs: 30_000, bytesPerMs: 2500, roundTripMs: 80 })
  line.run({ forMs: 60_000, bytesPerMs: 2500, roundTripMs: 20 })
  assert.ok(window.roundTripMs! < 30, `${window.roundTripMs} ms`)
})
