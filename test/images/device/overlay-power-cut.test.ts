/**
 * Power cuts: a stack of overlays is written to, flushed, frozen, settled; every file operation is logged; then the log is cut at random moments,
 * and of what was not durable any part may be there. Each time the stack opens, shows what was flushed, and goes on. Or the process is killed at such a
 * moment, and the system lives: then everything that was answered is there.
 */
import { test } from 'node:test'
import { Random, testSeed } from '../../random.ts'
import { OverlayHistory } from './overlay-history.ts'

const HISTORIES = Number(process.env.VARVE_CRASH_HISTORIES ?? 120)
const CUTS = 12
/** Of so many histories one is cut at every moment, the others at some. */
const EACH_MOMENT = 20

const seed = testSeed()
test(`after a power cut everything flushed is there, after a kill everything answered, snapshots are what they were, and nothing is garbage (seed ${seed}, ${HISTORIES} histories)`, async () => {
  for (let round = 0; round < HISTORIES; round++) {
    const random = new Random(seed + round)
    const each = random.below(EACH_MOMENT) === 0
    let history = await OverlayHistory.begin(random)
    try {
      for (let life = 0; life < 3; life++) {
        // A log that cannot be written to, as on a full disk: what would go there goes the other way.
        const logless = random.chance(0.3) ? random.pick([0.2, 1]) : 0
        history.files.fault = (call, path) => (call === 'write' && path.endsWith('/log') && random.chance(logless) ? Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' }) : undefined)
        await history.run()
        if (random.chance(0.3)) await history.close()
        const [begin, last] = [history.firstMoment, history.files.moment]
        const moments = each ? Array.from({ length: last - begin + 1 }, (_, at) => begin + at) : Array.from({ length: CUTS }, (_, cut) => (cut === 0 ? last : random.between(begin, last)))
        let next = history
        const isKilled = random.chance(0.5)
        for (const moment of moments) next = await (isKilled ? history.kill(moment) : history.cut(moment))
        history = next
      }
    } catch (error) {
      throw new Error(`history ${round} of seed ${seed} (VARVE_TEST_SEED=${seed + round} VARVE_CRASH_HISTORIES=1)`, { cause: error })
    }
  }
})
