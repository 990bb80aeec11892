/**
 * The window on simulated lines: the line is full, and what waits on it is little.
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
