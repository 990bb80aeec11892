/**
 * Many clients of one server that boot at once, in a process of their own, forked by storm.ts: agents that stream to targets, each with a
 * guest's replay on it, or replays straight on the server.
 */
import { openSync, readSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { enrol, makeAgentKey } from '@varve/agent/stream/enrol.ts'
import type { AgentIdentity } from '@varve/agent/stream/stream-connection.ts'
import { beginTarget, Streaming } from '@varve/agent/stream/streaming.ts'
import { NbdClient } from '@varve/blockserver/nbd/client.ts'
import { bootOf, readRecording } from './recording.ts'
import type { RecordedRead } from './recording.ts'
import { replay } from './replay.ts'

/** Of reads, one in so many is compared with the disk. */
const CHECK_EACH = 16

interface StormInit {
  recordingFile: string
  /** The disk that all of them have. */
  rawFile: string
}

export interface AgentStorm extends StormInit {
  kind: 'agents'
  /** `http://HOST:PORT` of the server, off the line: that they are known is no part of it. */
  serverUrl: string
  /** The same over the line. */
  lineUrl: string
  /** Good for all of them. */
  token: string
  /** For their targets. */
  directory: string
  /** One for each. */
  cvds: readonly string[]
}

export interface ClientStorm extends StormInit {
  kind: 'clients'
  address: string
  /** One for each. */
  exports: readonly string[]
}

export type Storm = AgentStorm | ClientStorm

export interface ClientBoot {
  /** From when all begin to its mark. */
  ms: number
  /** At its mark; of an agent. */
  receivedBytes: number
  misses: number
}

/** First that all is ready, then, when it was told to begin, its result. */
export type StormAnswer = { ready: true } | { boots: ClientBoot[] } | { error: string }

class Disk {
  readonly #fd: number
  #reads = 0

  constructor(file: string) {
    this.#fd = openSync(file, 'r')
  }

  /** Reads from a client, and compares now and then. */
  async read(client: NbdClient, { offset, length }: RecordedRead): Promise<void> {
    const bytes = await client.read(offset, length)
    if (this.#reads++ % CHECK_EACH !== 0) return
    const expected = Buffer.allocUnsafe(length)
    readSync(this.#fd, expected, 0, length, offset)
    if (!bytes.equals(expected)) throw new Error(`${length} bytes at ${offset} are not those of the disk`)
  }
}

async function prepare(storm: Storm): Promise<() => Promise<ClientBoot[]>> {
  const reads = bootOf(readRecording(storm.recordingFile))
  const disk = new Disk(storm.rawFile)
  if (storm.kind === 'clients') {
    const clients: NbdClient[] = []
    for (const exportName of storm.exports) clients.push(await NbdClient.connect(storm.address, { exportName }))
    return () => Promise.all(clients.map((client) => bootOne(reads, (read) => disk.read(client, read))))
  }
  const identities: AgentIdentity[] = []
  for (const name of storm.cvds) {
    const privateKey = makeAgentKey()
    identities.push({ privateKey, agent: await enrol({ url: new URL(storm.serverUrl) }, { token: storm.token, privateKey, name }) })
  }
  return () => Promise.all(identities.map((identity, index) => bootAgent(storm, { identity, index, reads, disk })))
}

async function bootOne(reads: readonly RecordedRead[], read: (read: RecordedRead) => Promise<void>): Promise<ClientBoot> {
  const startMs = performance.now()
  await replay(reads, { read })
  return { ms: performance.now() - startMs, receivedBytes: 0, misses: 0 }
}

/** As `varve agent stream` does. What fills the target after the mark is cut off. */
async function bootAgent(storm: AgentStorm, { identity, index, reads, disk }: { identity: AgentIdentity; index: number; reads: readonly RecordedRead[]; disk: Disk }): Promise<ClientBoot> {
  const startMs = performance.now()
  const cvd = storm.cvds[index]
  const log = pino({ level: 'silent' })
  const begun = await beginTarget({ cvd, path: path.join(storm.directory, cvd), server: { url: new URL(storm.lineUrl) }, identity, overwrite: false, log })
  await using streaming = await Streaming.start({ ...begun, cvd, nbd: [`unix:${path.join(storm.directory, `${cvd}.sock`)}`], log })
  await using client = await NbdClient.connect(streaming.nbdAddresses[0], { exportName: cvd })
  await replay(reads, { read: (read) => disk.read(client, read) })
  const ms = performance.now() - startMs
  const { receivedBytes, misses } = streaming.status().server
  return { ms, receivedBytes, misses }
}

function answer(told: StormAnswer): void {
  process.send!(told)
}

process.on('disconnect', () => process.exit())
process.once('message', (storm: Storm) => {
  const run = async (): Promise<void> => {
    const begin = await prepare(storm)
    const begun = new Promise((resolve) => process.once('message', resolve))
    answer({ ready: true })
    await begun
    // Let what was compiled and collected while preparing come to rest.
    await sleep(1000)
    answer({ boots: await begin() })
  }
  run().catch((error: Error) => answer({ error: String(error.stack) }))
})
