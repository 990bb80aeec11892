/**
 * Line window: how many bytes of chunks may be on their way, so that the line is never idle and a miss finds next to no queue. It is what the line
 * holds, rate times round trip, and a little more; both are measured, as BBR does (draft-cardwell-iccrg-bbr-congestion-control): the rate is the
 * highest of the last rounds, the round trip the shortest; since our own queue adds to that, the line is let run half empty now and then to measure it.
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
/** A round has several chunks: else it says little of the rate. */
const ROUND_MS_MIN = 100
const PROBE_EVERY_MS = 20_000
const PROBE_SHARE = 0.5
/** A grant is worth a message: so many of them for each window. */
const GRANTS_PER_WINDOW = 8

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
  /** While the line runs half empty: when our queue is gone from it, and when the probe ends in any case. */
  #probe: { drainedAt: number; until: number; isPinged: boolean } | undefined

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
    if (this.#isProbing(nowMs)) return Math.max(SLACK_BYTES / 2, held * PROBE_SHARE)
    return Math.min(BYTES_MAX, Math.max(SLACK_BYTES * 2, held * GAIN + SLACK_BYTES))
  }

  /** A ping has been answered after `ms`. */
  noteRoundTrip(ms: number, nowMs: number): void {
    const wasProbe = this.#probe !== undefined && nowMs - ms >= this.#probe.drainedAt
    if (ms < this.#roundTripMs || wasProbe) this.#roundTripMs = Math.max(ms, 0.05)
    if (wasProbe) this.#probe = undefined
    if (this.#probeAt === Infinity) this.#probeAt = nowMs + PROBE_EVERY_MS
  }

  /** True once when a ping would find the line without our queue. */
  takePing(nowMs: number): boolean {
    if (!this.#isProbing(nowMs) || this.#probe!.isPinged || nowMs < this.#probe!.drainedAt) return false
    this.#probe!.isPinged = true
    return true
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
    if (nowMs < this.#probeAt || this.#growing) return
    const roundTripMs = this.roundTripMs ?? 0
    this.#probeAt = nowMs + PROBE_EVERY_MS
    this.#probe = { drainedAt: nowMs + 2 * roundTripMs, until: nowMs + 6 * roundTripMs + ROUND_MS_MIN, isPinged: false }
  }

  /** What the sender is to be told: bytes in all. Undefined if it is not worth a message yet. */
  grant(nowMs: number): number | undefined {
    const window = this.bytes(nowMs)
    const granted = Math.floor(this.#received + window)
    if (granted - this.#granted < window / GRANTS_PER_WINDOW) return undefined
    this.#granted = granted
    return granted
  }

  /** Another connection begins: it counts anew. */
  restart(): void {
    this.#received = 0
    this.#granted = 0
    this.#roundBegan = undefined
    this.#probe = undefined
  }

  #isProbing(nowMs: number): boolean {
    if (this.#probe !== undefined && nowMs >= this.#probe.until) this.#probe = undefined
    return this.#probe !== undefined
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
