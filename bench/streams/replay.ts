/**
 * Replay: asks a disk for what a guest read, with the guest's think times. A read follows when all that the guest had been given before it
 * is there again, and so long after the last of that as it did when it was recorded. A slow answer delays what depended on it, and nothing is left out.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { RecordedRead } from './recording.ts'

/** A guest sees no answer earlier: reads that follow a read sooner were not caused by it. */
const ANSWER_MS = 0.25
/** A shorter wait is not worth a timer. */
const WAIT_MS_MIN = 1

export interface ReplayOptions {
  /** @param index of the read in the recording */
  read: (read: RecordedRead, index: number) => Promise<unknown>
  /** Ends it before its time. */
  signal?: AbortSignal
}

interface UnderWay {
  /** When the guest had its answer, in the recording. */
  answeredMs: number
  /** Resolves to when it had it now. */
  done: Promise<number>
}

/** @returns how many reads were made */
export async function replay(reads: readonly RecordedRead[], { read, signal }: ReplayOptions): Promise<number> {
  let underWay: UnderWay[] = []
  /** The last thing that happened, in the recording and now. */
  let [recordedMs, nowMs] = [0, performance.now()]
  for (const [index, recorded] of reads.entries()) {
    for (const { answeredMs, done } of underWay) {
      if (answeredMs > recorded.ms) continue
      // Only what came last counts; what was there early did not delay anything.
      nowMs = Math.max(nowMs, await done)
      recordedMs = Math.max(recordedMs, answeredMs)
    }
    underWay = underWay.filter(({ answeredMs }) => answeredMs > recorded.ms)
    const dueMs = nowMs + recorded.ms - recordedMs
    const waitMs = dueMs - performance.now()
    if (waitMs >= WAIT_MS_MIN) await sleep(waitMs, undefined, { signal }).catch(() => undefined)
    if (signal?.aborted) {
      await Promise.all(underWay.map(({ done }) => done))
      return index
    }
    nowMs = dueMs
    recordedMs = recorded.ms
    const done = read(recorded, index).then(() => performance.now())
    // Whoever waits for it hears of a failure.
    done.catch(() => undefined)
    underWay.push({ answeredMs: recorded.ms + ANSWER_MS, done })
  }
  await Promise.all(underWay.map(({ done }) => done))
  return reads.length
}
