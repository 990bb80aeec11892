/**
 * Line window: how many bytes of chunks may be on their way, so that the line is never idle and a miss finds next to no queue. It is what the line
 * holds, rate times round trip, and a little more; both are measured, as BBR does: the rate is the highest of the last rounds, the round trip the
 * shortest, for which the line is let run nearly empty now and then.
 */

/** Before anything is known. */
const BYTES_AT_FIRST = 256 << 10
const BYTES_MAX = 64 << 20
/** A chunk may be larger than what the line holds. */
const SLACK_BYTES = 64 << 10
const GAIN = 1.25
/** Until the rate does not grow any more. */
const GAIN_AT_FIRST = 2
const GROWTH = 1.2
const ROUNDS_WITHOUT_GROWTH = 3
/** Rates that are remembered, a round each. */
const ROUNDS = 10
const ROUND_MS_MIN = 20
const PROBE_EVERY_MS = 20_000
const PROBE_SHARE = 0.4

export class LineWindow {
  /** Bytes that came, and that may come, in all. */
  #received = 0
  #granted = 0
  #roundTripMs = Infinity
  /** Bytes per ms, of the last rounds. */
  readonly #rates: number[] = []
  #roundBegan: number | undefined
  #roundBytes = 0
  #roundWasFull = true
  #growing = true
  #best = 0
  #roundsWithoutGrowth = 0
  #probeAt = Infinity
  /** From when on the line has run nearly empty in a probe, and how long that lasts. */
  #emptyFrom = Infinity
  #probeUntil = 0
  #isRoundTripWanted = false

  get roundTripMs(): number | undefined {
    return Number.isFinite(this.#roundTripMs) ? this.#roundTripMs : undefined
  }

  /** Bytes per second that the line has shown to carry lately. */
  get bytesPerSecond(): number {
    return Math.max(0, ...this.#rates) * 1000
  }

  /** What may be on its way now, bytes. */
  bytes(nowMs: number): number {
    const rate = Math.max(0, ...this.#rates)
    const held = rate * (this.roundTripMs ?? 0)
    if (this.#growing) return Math.min(BYTES_MAX, Math.max(BYTES_AT_FIRST, held * GAIN_AT_FIRST + SLACK_BYTES))
    if (nowMs < this.#probeUntil) return Math.max(SLACK_BYTES, held * PROBE_SHARE)
    return Math.min(BYTES_MAX, Math.max(SLACK_BYTES * 2, held * GAIN + SLACK_BYTES))
  }

  noteRoundTrip(ms: number, nowMs: number): void {
    // Goes by when it was asked for: what a line answers that has become longer comes when the probe is over.
    const sentMs = nowMs - ms
    if (ms <= this.#roundTripMs || (sentMs >= this.#emptyFrom && sentMs < this.#probeUntil)) this.#roundTripMs = Math.max(ms, 0.05)
    if (this.#probeAt === Infinity) this.#probeAt = nowMs + PROBE_EVERY_MS
  }

  /** @param waiting true if more was asked for than has come: else the line may have been idle for want of work */
  noteBytes(bytes: number, { waiting, nowMs }: { waiting: boolean; nowMs: number }): void {
    this.#received += bytes
    this.#roundBytes += bytes
    if (!waiting) this.#roundWasFull = false
    if (this.#roundBegan === undefined) {
      this.#beginRound(nowMs)
      return
    }
    const elapsedMs = nowMs - this.#roundBegan
    if (elapsedMs < Math.max(ROUND_MS_MIN, this.roundTripMs ?? 0)) return
    this.#endRound(this.#roundBytes / elapsedMs)
    this.#beginRound(nowMs)
    if (!waiting) this.#roundBegan = undefined
    if (nowMs >= this.#probeAt && !this.#growing) {
      this.#emptyFrom = nowMs + (this.roundTripMs ?? 0)
      this.#probeUntil = this.#emptyFrom + (this.roundTripMs ?? 0) + ROUND_MS_MIN
      this.#isRoundTripWanted = true
      this.#probeAt = nowMs + PROBE_EVERY_MS
    }
  }

  /** True once in each probe, when the line has run nearly empty: a round trip that begins now says how long it is. */
  wantsRoundTrip(nowMs: number): boolean {
    if (!this.#isRoundTripWanted || nowMs < this.#emptyFrom) return false
    this.#isRoundTripWanted = false
    return nowMs < this.#probeUntil
  }

  /** What the sender is to be told: bytes in all. Undefined if it is not worth a message yet. */
  grant(nowMs: number): number | undefined {
    const window = this.bytes(nowMs)
    const granted = Math.floor(this.#received + window)
    if (granted - this.#granted < window / 2) return undefined
    this.#granted = granted
    return granted
  }

  /** Another connection begins: it counts anew. */
  restart(): void {
    this.#received = 0
    this.#granted = 0
    this.#roundBegan = undefined
  }

  #beginRound(nowMs: number): void {
    this.#roundBegan = nowMs
    this.#roundBytes = 0
    this.#roundWasFull = true
  }

  #endRound(rate: number): void {
    const best = Math.max(0, ...this.#rates)
    // A round that waited for work says only that the line carries at least so much.
    if (!this.#roundWasFull && rate < best) return
    this.#rates.push(rate)
    if (this.#rates.length > ROUNDS) this.#rates.shift()
    if (!this.#growing) return
    if (rate > this.#best * GROWTH) {
      this.#best = rate
      this.#roundsWithoutGrowth = 0
    } else if (this.#roundWasFull && ++this.#roundsWithoutGrowth >= ROUNDS_WITHOUT_GROWTH) this.#growing = false
  }
}
