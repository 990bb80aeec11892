/** The roots of the tests of collection: files in DIRECTORY/roots that list digests. */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

/** Digests that the roots reach at this moment. */
export function* reachableFrom(directory: string): Generator<Buffer> {
  for (const name of readdirSync(join(directory, 'roots'))) {
    let text
    try {
      text = readFileSync(join(directory, 'roots', name), 'latin1')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') continue
      throw error
    }
    for (const digest of text.split('\n')) yield Buffer.from(digest, 'hex')
  }
}
