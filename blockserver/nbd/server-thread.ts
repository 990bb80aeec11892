/**
 * Server thread: serves the connections that the server hands to it, from exports that it opens by itself. Started by thread-pool.ts.
 * A thread that fails ends, and its connections with it; the others go on.
 */
import { parentPort, workerData } from 'node:worker_threads'
import type { Logger } from 'pino'
import { openLog } from '../log.ts'
import { ConnectionHost } from './connection-host.ts'
import { type ExportOwners, type ExportSource, SharedExports } from './export.ts'
import { receivedPolicy } from './policy.ts'
import type { FromThread, ServerThreadData, ThreadSettings, ToThread } from './thread-messages.ts'

/** What a module of exports gives to each thread. */
export interface ThreadSource extends AsyncDisposable {
  readonly source: ExportSource
  /** Counters of its own; those of all threads are added up. */
  figures?(): Record<string, number>
}

/** @param thread number of the thread, which one that takes its place has again */
export type OpenExports = (data: unknown, log: Logger, thread: number) => Promise<ThreadSource>

const port = parentPort!
const { thread, exports, settings: { limits, policy, logLevel } } = workerData as ServerThreadData

function tell(message: FromThread): void {
  port.postMessage(message)
}

class AskedOwners implements ExportOwners {
  readonly self = thread
  readonly #asked = new Map<number, (thread: number) => void>()
  #requests = 0

  acquire(name: string): Promise<number> {
    const request = ++this.#requests
    tell({ type: 'acquire', request, name })
    return new Promise((resolve) => this.#asked.set(request, resolve))
  }

  release(name: string): void {
    tell({ type: 'release', name })
  }

  answered(request: number, thread: number): void {
    this.#asked.get(request)?.(thread)
    this.#asked.delete(request)
  }
}

const log = openLog(logLevel, { thread })
const { openExports } = await import(exports.module) as { openExports: OpenExports }
const opened = await openExports(exports.data, log, thread)
const owners = new AskedOwners()
const host = new ConnectionHost({
  provider: new SharedExports(opened.source, owners),
  policy: receivedPolicy(policy),
  limits,
  log,
  ended: (id) => tell({ type: 'ended', id }),
  moved: (arrival, to) => tell({ type: 'moved', arrival, thread: to }),
})

function reconfigure({ limits, policy, logLevel }: ThreadSettings): void {
  log.level = logLevel
  host.reconfigure(limits, receivedPolicy(policy))
}

async function end(drainMs: number): Promise<void> {
  await host.drain(drainMs)
  await opened[Symbol.asyncDispose]()
  // Nothing keeps the thread any more.
  port.close()
}

port.on('message', (message: ToThread) => {
  if (message.type === 'connection') host.take(message.arrival)
  else if (message.type === 'owner') owners.answered(message.request, message.thread)
  else if (message.type === 'metrics') tell({ type: 'metrics', request: message.request, metrics: { ...host.metrics.snapshot(), source: opened.figures?.() ?? {} } })
  else if (message.type === 'reconfigure') reconfigure(message.settings)
  else end(message.drainMs).catch((error: unknown) => { throw error })
})
