/**
 * Rate limits of streams: how many bits a second go to one agent, and to all agents of one site together, by time of day.
 */
import { clientMatcher } from '../nbd/access.ts'

/** A named list of addresses. */
export interface Site {
  name: string
  /** Each `ADDRESS` or `ADDRESS/BITS`. */
  clients: string[]
}

export const RATE_OWNERS = ['agent', 'site'] as const

/** The first that fits says how much an agent, or a site, gets. */
export interface RateRule {
  /** Whose rate it is: that of each agent, or the one that all agents of a site share. */
  per: (typeof RATE_OWNERS)[number]
  /** Name of the site that it is for; any, and for agents also none, unless given. */
  site?: string
  /** `HH:MM`, of the server's clock: from `from` until `to`, which may be on the next day. Always unless given. */
  from?: string
  to?: string
  bitsPerSecondMax: number
}

export interface RateSettings {
  sites: readonly Site[]
  rates: readonly RateRule[]
}

/** Time for which an idle bucket saves up. */
const BURST_MS = 250
/** A bucket holds at least this, so that a few chunks go out together at a low rate too. */
const BURST_BYTES_MIN = 64 * 1024
/** The part that is kept for misses. */
const RESERVE = 0.5
/** A bucket that is waited for looks at its rule at least so often. */
const WAIT_MS_MAX = 1000
const DAY_MINUTES = 24 * 60

/** Tells the time: of the day in minutes, and in milliseconds of a clock that only goes forward. */
export interface RateClock {
  dayMinute(): number
  nowMs(): number
}

export const SYSTEM_CLOCK: RateClock = {
  dayMinute: () => {
    const now = new Date()
    return now.getHours() * 60 + now.getMinutes()
  },
  nowMs: () => performance.now(),
}

/**
 * A token bucket, in bytes. What is taken may be more than there is; then it is waited until the debt is paid.
 * Misses take while anything is there, all else only above a reserve: so misses are served first, over all connections that share the bucket.
 */
export class RateBucket {
  readonly #bytesPerSecond: () => number | undefined
  readonly #clock: RateClock
  #level = Infinity
  #filledAtMs = 0
  readonly #urgent = new Set<() => void>()
  readonly #background = new Set<() => void>()
  #timer: NodeJS.Timeout | undefined

  constructor(bytesPerSecond: () => number | undefined, clock: RateClock) {
    this.#bytesPerSecond = bytesPerSecond
    this.#clock = clock
  }

  isFree(urgent: boolean): boolean {
    return this.#lackingBytes(urgent) <= 0
  }

  take(bytes: number): void {
    this.#refill()
    this.#level -= bytes
  }

  /** Calls `wake` once, when it is its turn: those with misses first, then in the order in which they came. */
  wait(urgent: boolean, wake: () => void): void {
    this.forget(wake)
    const waiting = urgent ? this.#urgent : this.#background
    waiting.add(wake)
    // A miss has less to wait for than what the timer may be set for.
    if (urgent && waiting.size === 1) {
      clearTimeout(this.#timer)
      this.#timer = undefined
    }
    this.#schedule()
  }

  forget(wake: () => void): void {
    this.#urgent.delete(wake)
    this.#background.delete(wake)
  }

  #schedule(): void {
    if (this.#timer !== undefined) return
    const urgent = this.#urgent.size > 0
    if (!urgent && this.#background.size === 0) return
    const rate = this.#bytesPerSecond() ?? Infinity
    const waitMs = Math.min(WAIT_MS_MAX, Math.ceil(Math.max(0, this.#lackingBytes(urgent)) / rate * 1000))
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      for (const [isUrgent, waiting] of [[true, this.#urgent], [false, this.#background]] as const) {
        while (waiting.size > 0 && this.isFree(isUrgent)) {
          const [wake] = waiting
          waiting.delete(wake)
          wake()
        }
      }
      this.#schedule()
    }, waitMs)
    this.#timer.unref()
  }

  /** How far the bucket is below where it must be. */
  #lackingBytes(urgent: boolean): number {
    const burst = this.#refill()
    // A level of zero is not enough: a bucket without anything would let everything through.
    return burst === undefined ? 0 : (urgent ? 1 : burst * RESERVE) - this.#level
  }

  /** @returns what the bucket holds when it is full; undefined if it has no bottom */
  #refill(): number | undefined {
    const rate = this.#bytesPerSecond()
    const nowMs = this.#clock.nowMs()
    const sinceMs = nowMs - this.#filledAtMs
    this.#filledAtMs = nowMs
    if (rate === undefined) {
      this.#level = Infinity
      return undefined
    }
    const burst = Math.max(BURST_BYTES_MIN, rate * BURST_MS / 1000)
    this.#level = Math.min(burst, this.#level + rate * sinceMs / 1000)
    return burst
  }
}

interface Rule {
  per: RateRule['per']
  site: string | undefined
  fits: (minute: number) => boolean
  bytesPerSecond: number
}

export class RateLimits {
  readonly #clock: RateClock
  readonly #sites: readonly { name: string; matches: (address: string) => boolean }[]
  readonly #rules: readonly Rule[]
  /** By agent and its site, or by site; those that nobody uses are forgotten. */
  readonly #buckets = new Map<string, { bucket: RateBucket; users: number }>()

  /** @throws VarveError ACCESS_INVALID */
  constructor({ sites, rates }: RateSettings, clock: RateClock = SYSTEM_CLOCK) {
    this.#clock = clock
    this.#sites = sites.map(({ name, clients }) => {
      const matchers = clients.map(clientMatcher)
      return { name, matches: (address) => matchers.some((matches) => matches({ address })) }
    })
    this.#rules = rates.map(({ per, site, from, to, bitsPerSecondMax }) => ({ per, site, fits: timeOfDay(from, to), bytesPerSecond: bitsPerSecondMax / 8 }))
  }

  /** Buckets that a connection shares with others, until it gives them back. @param address of the agent; undefined on a unix socket */
  bucketsOf(agent: string, address: string | undefined): RateBuckets {
    const site = address === undefined ? undefined : this.#sites.find(({ matches }) => matches(address))?.name
    const keys = [`agent ${agent} ${site ?? ''}`, ...(site === undefined ? [] : [`site ${site}`])]
    const buckets = keys.map((key, index) => this.#use(key, index === 0 ? 'agent' : 'site', site))
    return new RateBuckets(buckets, () => {
      for (const key of keys) {
        const entry = this.#buckets.get(key)!
        if (--entry.users === 0) this.#buckets.delete(key)
      }
    })
  }

  #use(key: string, per: RateRule['per'], site: string | undefined): RateBucket {
    let entry = this.#buckets.get(key)
    if (entry === undefined) {
      const rules = this.#rules.filter((rule) => rule.per === per && (rule.site === undefined || rule.site === site))
      const rate = (): number | undefined => {
        if (rules.length === 0) return undefined
        const minute = this.#clock.dayMinute()
        return rules.find(({ fits }) => fits(minute))?.bytesPerSecond
      }
      entry = { bucket: new RateBucket(rate, this.#clock), users: 0 }
      this.#buckets.set(key, entry)
    }
    entry.users++
    return entry.bucket
  }
}

/** All buckets that a connection takes from. */
export class RateBuckets implements Disposable {
  readonly #buckets: readonly RateBucket[]
  readonly #release: () => void
  #wake: (() => void) | undefined

  constructor(buckets: readonly RateBucket[], release: () => void) {
    this.#buckets = buckets
    this.#release = release
  }

  /** True if something may be sent; otherwise `wake` is called when that should be asked again. */
  admits(urgent: boolean, wake: () => void): boolean {
    this.#wake = wake
    const empty = this.#buckets.find((bucket) => !bucket.isFree(urgent))
    empty?.wait(urgent, wake)
    return empty === undefined
  }

  take(bytes: number): void {
    for (const bucket of this.#buckets) bucket.take(bytes)
  }

  [Symbol.dispose](): void {
    if (this.#wake !== undefined) for (const bucket of this.#buckets) bucket.forget(this.#wake)
    this.#release()
  }
}

const TIME = /^([01]\d|2[0-3]):([0-5]\d)$/

/** Minutes since midnight of `HH:MM`; undefined if it is none. */
export function parseDayMinute(text: string): number | undefined {
  const parts = TIME.exec(text)
  return parts === null ? undefined : Number(parts[1]) * 60 + Number(parts[2])
}

function timeOfDay(from: string | undefined, to: string | undefined): (minute: number) => boolean {
  const begin = from === undefined ? 0 : parseDayMinute(from)!
  const end = to === undefined ? DAY_MINUTES : parseDayMinute(to)!
  return begin < end ? (minute) => minute >= begin && minute < end : (minute) => minute >= begin || minute < end
}
