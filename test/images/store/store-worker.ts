/** A thread or process that puts chunks 0 .. COUNT - 1 of a universe in an order of its own, for pack-store.test.ts. Arguments or workerData: directory, seed, count. */
import { workerData } from 'node:worker_threads'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random } from '../../random.ts'

const [directory, seed, count] = (workerData as string[] | null) ?? process.argv.slice(2)
const random = new Random(Number(seed))
const numbers = Array.from({ length: Number(count) }, (_, index) => index)
for (let index = numbers.length - 1; index > 0; index--) {
  const other = random.below(index + 1)
  ;[numbers[index], numbers[other]] = [numbers[other], numbers[index]]
}
await using store = PackStore.open(directory)
await using writer = store.writer()
for (const number of numbers) {
  writer.put(new Random(number).bytes(500 + number))
  if (random.chance(0.02)) await writer.commit()
}
await writer.commit()
