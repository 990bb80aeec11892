/**
 * Kills and power cuts while a disk is streamed and written to, and while it becomes a plain disk: what was flushed is there, what was answered outlives a kill, and nothing shows a byte of another version.
 * VARVE_CRASH_HISTORIES: how many histories; a full run takes 1,000.
 */
import { test } from 'node:test'
import { Random, testSeed } from '../../random.ts'
import { TargetHistory } from './target-history.ts'

const HISTORIES = Number(process.env.VARVE_CRASH_HISTORIES ?? 50)
const MOMENTS = 12

const seed = testSeed()
test(`no write is lost while a disk streams, wherever it is killed or its power cut (seed ${seed}, ${HISTORIES} histories)`, async () => {
  for (let round = 0; round < HISTORIES; round++) {
    const random = new Random(seed + round)
    try {
      let history: TargetHistory | undefined = await TargetHistory.begin(random)
      for (let life = 0; life < 4 && history !== undefined; life++) {
        await history.run()
        if (random.chance(0.2)) await history.complete()
        if (random.chance(0.2)) await history.close()
        const [begin, last]: number[] = [history.firstMoment, history.files.moment]
        const isKilled = random.chance(0.5)
        let next: TargetHistory | undefined
        for (let at = 0; at < MOMENTS; at++) {
          const moment = at === 0 ? last : random.between(begin, last)
          next = await (isKilled ? history.kill(moment) : history.cut(moment))
        }
        history = next
      }
    } catch (error) {
      throw new Error(`history ${round} of seed ${seed} (VARVE_TEST_SEED=${seed + round} VARVE_CRASH_HISTORIES=1)`, { cause: error })
    }
  }
})
