/** A process that collects again and again, for collect.test.ts. Arguments: directory (see collect-worker.ts). Prints a line for each collection. */
import { writeSync } from 'node:fs'
import { join } from 'node:path'
import { isVarveError } from '@varve/images/errors.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { reachableFrom } from './roots.ts'

const [directory] = process.argv.slice(2)
await using store = PackStore.open(join(directory, 'store'))
for (;;) {
  try {
    const report = await store.collect(() => reachableFrom(directory))
    writeSync(1, `${JSON.stringify(report)}\n`)
  } catch (error) {
    if (!isVarveError(error, 'STORE_LOCKED')) throw error
  }
  await new Promise(setImmediate)
}
