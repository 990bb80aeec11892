/**
 * A process that is there to be killed: puts chunks, commits, and prints the digests that a commit has acknowledged, one line each.
 * Arguments: directory of the store, seed. Not a test by itself; crash.test.ts starts it.
 */
import { writeSync } from 'node:fs'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random } from '../../random.ts'

const [directory, seed] = process.argv.slice(2)
const random = new Random(Number(seed))
writeSync(1, 'started\n')
const store = PackStore.open(directory)
writeSync(1, 'opened\n')
for (;;) {
  await using writer = store.writer({ codec: random.pick(['none', 'lz4', 'zstd']) })
  for (let commit = random.between(1, 4); commit > 0; commit--) {
    const digests = Array.from({ length: random.between(1, 40) }, () => {
      const bytes = random.bytes(random.chance(0.1) ? random.between(100_000, 1_000_000) : random.between(1, 30_000))
      if (random.chance(0.5)) bytes.fill(0x41, bytes.length >>> 1)
      return digestToHex(writer.put(bytes))
    })
    await writer.commit()
    writeSync(1, digests.map((digest) => `${digest}\n`).join(''))
  }
  // Left behind without a commit.
  if (random.chance(0.5)) writer.put(random.bytes(500_000))
}
