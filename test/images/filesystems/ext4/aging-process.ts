/**
 * A process that ages a mounted filesystem until it is told to stop (end of its standard input): the subject of journal.test.ts.
 * node aging-process.ts DIRECTORY SEED     prints a line when it has begun
 */
import { writeSync } from 'node:fs'
import { Random } from '../../../random.ts'
import { Aging } from './aging.ts'

const [directory, seed] = process.argv.slice(2)
let isStopped = false
process.stdin.on('end', () => (isStopped = true)).resume()
const aging = new Aging(directory, new Random(Number(seed)), { syncs: true, xattrs: true })
for (let step = 0; !isStopped; step++) {
  aging.step()
  if (step === 200) writeSync(1, 'begun\n')
  if (step % 8 === 0) await new Promise<void>((resolve) => { setImmediate(resolve) })
}
aging.close()
