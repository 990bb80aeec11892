/**
 * One agent of a storm, forked by storm.ts: a process as `varve agent stream` is, whose code is loaded and which is known to the server before
 * the clock starts. Messages: an AgentInit, which is answered when all is ready; `begin`, not answered; `figures`, answered by AgentFigures.
 */
import { pino } from 'pino'
import { enrol, makeAgentKey } from '@varve/agent/stream/enrol.ts'
import { beginTarget, Streaming } from '@varve/agent/stream/streaming.ts'

export interface AgentInit {
  cvd: string
  /** File that becomes its disk. */
  target: string
  /** Unix socket on which it is served. */
  socket: string
  /** `http://HOST:PORT` of the server, off the line: becoming known is no part of a boot. */
  serverUrl: string
  /** The same over the line. */
  lineUrl: string
  token: string
}

export interface AgentFigures {
  receivedBytes: number
  misses: number
}

process.on('disconnect', () => process.exit())
process.once('message', (init: AgentInit) => void run(init))

async function run({ cvd, target: path, socket, serverUrl, lineUrl, token }: AgentInit): Promise<void> {
  const privateKey = makeAgentKey()
  const identity = { privateKey, agent: await enrol({ url: new URL(serverUrl) }, { token, privateKey, name: cvd }) }
  const log = pino({ level: 'silent' })
  const begun = new Promise((resolve) => process.once('message', resolve))
  process.send!('ready')
  await begun
  const target = await beginTarget({ cvd, path, server: { url: new URL(lineUrl) }, identity, overwrite: false, log })
  const streaming = await Streaming.start({ ...target, cvd, nbd: [`unix:${socket}`], log })
  process.on('message', () => {
    const { receivedBytes, misses } = streaming.status().server
    process.send!({ receivedBytes, misses } satisfies AgentFigures)
  })
}
