/**
 * The thread that finds out what disks show, and takes in how they are used, while the main thread sends chunks.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { isVarveError } from '@varve/images/errors.ts'
import { Home } from '@varve/images/store/home.ts'
import { recordHeat } from './boot-lists.ts'
import { DiskStates } from './disk-states.ts'
import type { DiskAnswer, DiskQuestion } from './disk-worker.ts'

const home = await Home.open(workerData as string)
const states = new DiskStates(home)
const asking = new Map<number, { aborted: AbortController; answered: Promise<void> }>()

parentPort!.on('message', (question: DiskQuestion) => {
  if (question.type === 'abort') asking.get(question.id)?.aborted.abort()
  else if (question.type === 'end') void end()
  else {
    const aborted = new AbortController()
    asking.set(question.id, { aborted, answered: answer(question, aborted.signal).finally(() => asking.delete(question.id)) })
  }
})

async function answer(question: Extract<DiskQuestion, { type: 'state' | 'heat' }>, signal: AbortSignal): Promise<void> {
  const { id } = question
  try {
    const state = question.type === 'state' ? await states.of(question.name, { map: question.map, signal }) : await recordHeat(home, question.map, question.chunks)
    tell({ id, state: state ?? undefined })
  } catch (error) {
    tell({ id, error: isVarveError(error) ? { code: error.code, message: error.message } : { message: String((error as Error).stack) } })
  }
}

/** When nothing is under way any more that uses the home. */
async function end(): Promise<void> {
  const under = [...asking.values()]
  for (const { aborted } of under) aborted.abort()
  await Promise.all(under.map(({ answered }) => answered))
  await home[Symbol.asyncDispose]()
  parentPort!.close()
}

function tell(told: DiskAnswer): void {
  parentPort!.postMessage(told)
}
