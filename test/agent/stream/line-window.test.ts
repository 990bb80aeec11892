/**
 * The window follows the line: what it holds is learned, and learned anew when it changes.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LineWindow } from '@varve/agent/stream/line-window.ts'

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
      if (now % 1000 === 500 || window.wantsRoundTrip(now)) this.#answers.push({ sentMs: now, atMs: now + roundTripMs + queuedMs })
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
