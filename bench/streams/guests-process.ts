/**
 * The guests of a storm, forked by storm.ts: replays of one boot, each on an export of its own. Apart from servers and agents, whose
 * threads are not to wait for them. Messages: a GuestsInit, which is answered when all is ready; then `begin`; for each guest comes a GuestMark.
 */
import { openSync, readSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { bootOf, readRecording } from './recording.ts'
import type { RecordedRead } from './recording.ts'
import { replay } from './replay.ts'

export interface GuestsInit {
  recordingFile: string
  /** The disk that all exports show. */
  rawFile: string
  /** One for each guest. */
  exports: readonly { address: string; name: string }[]
}

/** A guest has booted. */
export interface GuestMark {
  guest: number
  /** Since all began. */
  ms: number
}

/** Of reads, one in so many is compared with the disk. */
const CHECK_EACH = 16
const CONNECT_RETRY_MS = 5

process.on('disconnect', () => process.exit())
process.once('message', (init: GuestsInit) => void run(init))

async function run({ recordingFile, rawFile, exports }: GuestsInit): Promise<void> {
  const reads = bootOf(readRecording(recordingFile))
  const disk = openSync(rawFile, 'r')
  const begun = new Promise((resolve) => process.once('message', resolve))
  process.send!('ready')
  await begun
  const startMs = performance.now()
  await Promise.all(exports.map(async (served, guest) => {
    const client = await connect(served)
    await replay(reads, {
      read: async (read, index) => {
        const bytes = await client.read(read.offset, read.length)
        if (index % CHECK_EACH === guest % CHECK_EACH) check(bytes, read, disk)
      },
    })
    process.send!({ guest, ms: performance.now() - startMs } satisfies GuestMark)
  }))
}

/** An agent serves its disk when it has the block map. */
async function connect({ address, name }: GuestsInit['exports'][number]): Promise<NbdClient> {
  for (;;) {
    try {
      return await NbdClient.connect(address, { exportName: name })
    } catch (error) {
      if (!['ENOENT', 'ECONNREFUSED'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
      await sleep(CONNECT_RETRY_MS)
    }
  }
}

function check(bytes: Buffer, { offset, length }: RecordedRead, disk: number): void {
  const expected = Buffer.allocUnsafe(length)
  readSync(disk, expected, 0, length, offset)
  if (!bytes.equals(expected)) throw new Error(`${length} bytes at ${offset} are not those of the disk`)
}
