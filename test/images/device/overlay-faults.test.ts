/**
 * A disk that is full, or fails, at any call: the caller is told so by the right code, nothing that was acknowledged is lost, and the overlay goes on
 * when there is room again. After a sync that failed it does not, until it is opened again.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { OverlayFiles } from '@varve/images/device/overlay-files.ts'
import { Random, testSeed } from '../../random.ts'
import { OverlayHistory } from './overlay-history.ts'

const HISTORIES = Number(process.env.VARVE_CRASH_HISTORIES ?? 120)
const CUTS = 4
/** Calls that need room. */
const ROOM: (keyof OverlayFiles)[] = ['open', 'write', 'truncate', 'allocate', 'makeDirectory', 'rename']
const seed = testSeed()

async function runHistories(code: 'ENOSPC' | 'EIO'): Promise<void> {
  let failures = 0
  let fatal = 0
  for (let round = 0; round < HISTORIES; round++) {
    const random = new Random(seed + round)
    let history = await OverlayHistory.begin(random)
    try {
      for (let life = 0; life < 2; life++) {
        await history.run({ steps: 10 })
        const chance = random.pick([0.02, 0.1, 0.5])
        let isFatal = false
        const mayFail = (error: unknown): void => {
          const found = (error as { code?: string }).code
          // A close that fails while another failure is dealt with comes with it.
          if (error instanceof SuppressedError) return mayFail(error.suppressed)
          if (found === 'OVERLAY_FAILED' && code === 'EIO') isFatal = true
          // A snapshot above a generation that failed, by the map of before that was settled: another process cannot open it.
          else if (found !== code && !(found === 'OVERLAY_INVALID' && isFatal)) throw error
          failures++
        }
        for (let phase = 0; phase < 3; phase++) {
          history.files.fault = call => ((code === 'EIO' || ROOM.includes(call)) && random.chance(chance) ? Object.assign(new Error(`${code}: ${call}`), { code }) : undefined)
          await history.run({ steps: 15, mayFail })
          history.files.fault = () => undefined
          // There is room again.
          if (!isFatal) await history.run({ steps: 5 })
          if (!isFatal) await history.flush()
        }
        if (isFatal) fatal++
        if (random.chance(0.3)) await history.close().catch(mayFail)
        let next = history
        const isKilled = random.chance(0.5)
        for (let cut = 0; cut < CUTS; cut++) {
          const moment = cut === 0 ? history.files.moment : random.between(history.firstMoment, history.files.moment)
          next = await (isKilled ? history.kill(moment, { faulty: true }) : history.cut(moment))
        }
        history = next
      }
    } catch (error) {
      throw new Error(`history ${round} of seed ${seed} (VARVE_TEST_SEED=${seed + round} VARVE_CRASH_HISTORIES=1)`, { cause: error })
    }
  }
  assert.ok(failures > HISTORIES, `${failures} calls failed`)
  assert.ok(code === 'ENOSPC' ? fatal === 0 : fatal > 0 || HISTORIES < 10, `${fatal} overlays failed`)
}

test(`ENOSPC at any call loses nothing that was acknowledged (seed ${seed}, ${HISTORIES} histories)`, () => runHistories('ENOSPC'))
test(`EIO at any call loses nothing that was acknowledged (seed ${seed}, ${HISTORIES} histories)`, () => runHistories('EIO'))
