/**
 * A process that writes to a stack of overlays until it is killed: the subject of overlay-kill.test.ts.
 * node overlay-writer.ts DIRECTORY SEED FIRST     prints `answered N` for each call, `frozen G N` for a snapshot
 */
import { writeSync } from 'node:fs'
import { OverlayStack } from '@varve/images/device/overlay-stack.ts'
import { callAt, LOWER_DIGEST, lowerDisk } from './overlay-kill-calls.ts'
import { fillSector, SECTOR_BYTES } from './sector-history.ts'

const [directory, seed, first] = process.argv.slice(2)
const stack = await OverlayStack.open({ directory, lower: lowerDisk(), lowerDigest: LOWER_DIGEST })
writeSync(1, 'open\n')

let flushing: Promise<void> | undefined
for (let call = Number(first); ; call++) {
  const { sector, count, kind } = callAt(Number(seed), call)
  if (kind === 'zero') {
    await stack.writeZeroes(sector * SECTOR_BYTES, count * SECTOR_BYTES)
  } else {
    const bytes = new Uint8Array(count * SECTOR_BYTES)
    for (let at = 0; at < count; at++) fillSector(bytes, at, call)
    await stack.write(bytes, sector * SECTOR_BYTES)
  }
  writeSync(1, `answered ${call}\n`)
  if (kind === 'flush' && flushing === undefined) {
    flushing = Promise.resolve(stack.flush()).then(() => { flushing = undefined })
  }
  if (kind === 'snapshot') writeSync(1, `frozen ${await stack.snapshot()} ${call}\n`)
  // The event loop gets a turn now and then, as it does in a server.
  if (call % 16 === 0) await new Promise<void>(resolve => { setImmediate(resolve) })
}
