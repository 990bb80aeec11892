/**
 * A process that imports, reads and removes roots while others collect. A root is a file in DIRECTORY/roots that lists digests.
 * Contents come from a small universe, so that most chunks exist already, or did until a collection took them: that is the race.
 * Arguments: directory, seed, rounds. Exits with 1 and a line if a chunk of a root is missing. collect.test.ts starts it.
 */
import { readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { digestToHex } from '@varve/images/chunk/digest.ts'
import { PackStore } from '@varve/images/store/pack-store.ts'
import { Random } from '../../random.ts'

const UNIVERSE = 200
const [directory, seed, rounds] = process.argv.slice(2)
const random = new Random(Number(seed))
const roots = join(directory, 'roots')
await using store = PackStore.open(join(directory, 'store'))

function content(number: number): Buffer {
  return new Random(number).bytes(2000 + number * 37)
}

/** As an importer does: lease, chunks, commit, root, end of the lease; with pauses in which a collection can do its worst. */
async function importRoot(name: string): Promise<void> {
  const lease = store.lease()
  const digests: string[] = []
  for (let batch = random.between(1, 3); batch > 0; batch--) {
    await using writer = store.writer()
    for (let chunk = random.between(1, 30); chunk > 0; chunk--) digests.push(digestToHex(writer.put(content(random.below(UNIVERSE)))))
    if (random.chance(0.5)) await delay(random.below(15))
    await writer.commit()
  }
  if (random.chance(0.5)) await delay(random.below(30))
  writeFileSync(join(directory, name), digests.join('\n'))
  renameSync(join(directory, name), join(roots, name))
  lease.release()
}

function readRoot(name: string): void {
  for (const digest of readFileSync(join(roots, name), 'latin1').split('\n')) store.get(Buffer.from(digest, 'hex'))
}

for (let round = 0; round < Number(rounds); round++) {
  const name = `${process.pid}-${round}`
  await importRoot(name)
  readRoot(name)
  if (random.chance(0.3)) await delay(random.below(20))
  // Roots of our own only: what others remove while we read it is not ours to expect.
  const own = readdirSync(roots).filter((file) => file.startsWith(`${process.pid}-`))
  for (const file of own) readRoot(file)
  while (own.length > 3) rmSync(join(roots, own.splice(random.below(own.length), 1)[0]))
}
