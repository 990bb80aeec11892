/**
 * Server thread: serves the connections that the server hands to it, from exports that it opens by itself, or negotiates with them until they ask for an
 * export. Started by thread-pool.ts. A thread that fails ends, and its connections with it; the others go on.
 */
import { getPriority, setPriority } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import type { Logger } from 'pino'
import { openLog } from '../log.ts'
import { ConnectionHost } from './connection-host.ts'
import { type ExportNames, type ExportOwners, type ExportProvider, ExportsElsewhere, type ExportSource, SharedExports } from './export.ts'
import { receivedPolicy } from './policy.ts'
import type { FromThread, ServerThreadData, ThreadSettings, ToThread } from './thread-messages.ts'

/** What a module of exports gives to each thread. */
export interface ThreadSource extends AsyncDisposable {
  readonly source: ExportSource
  /** Counters of its own; those of all threads are added up. */
  figures?(): Record<string, number>
}

/** As OpenExports, for the thread that negotiates. */
export type OpenNames = (data: unknown, log: Logger) => Promise<AsyncDisposable & { readonly source: ExportNames }>

/** @param thread number of the thread, which one that takes its place has again */
export type OpenExports = (data: unknown, log: Logger, thread: number) => Promise<ThreadSource>

const port = parentPort!
const { thread, exports, settings: { limits, policy, logLevel } } = workerData as ServerThreadData

function tell(message: FromThread): void {
  port.postMessage(message)
}

/**
 * Strangers get what processor time those leave who have an export. Nice values, setpriority(2): on Linux they are a thread's own.
 */
const NEGOTIATION_NICENESS = 10
const NICENESS_MAX = 19

class AskedOwners implements ExportOwners {
  readonly self: number
  readonly #asked = new Map<number, (thread: number) => void>()
  #requests = 0

  constructor(self: number) {
    this.self = self
  }

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
const { openExports, openNames } = await import(exports.module) as { openExports: OpenExports; openNames: OpenNames }
const owners = thread === undefined ? undefined : new AskedOwners(thread)
const opened = new AsyncDisposableStack()
let provider: ExportProvider
let figures: ThreadSource['figures']
if (owners === undefined) {
  setPriority(Math.min(NICENESS_MAX, getPriority() + NEGOTIATION_NICENESS))
  provider = new ExportsElsewhere(opened.use(await openNames(exports.data, log)).source)
} else {
  const own = opened.use(await openExports(exports.data, log, owners.self))
  provider = new SharedExports(own.source, owners)
  figures = own.figures?.bind(own)
}
const host = new ConnectionHost({
  provider,
  negotiatesOnly: owners === undefined,
  policy: receivedPolicy(policy),
  limits,
  log,
  ended: (id) => tell({ type: 'ended', id }),
  moved: (arrival, to) => tell({ type: 'moved', arrival, to }),
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
  else if (message.type === 'owner') owners?.answered(message.request, message.thread)
  else if (message.type === 'metrics') tell({ type: 'metrics', request: message.request, metrics: { ...host.metrics.snapshot(), source: figures?.() ?? {} } })
  else if (message.type === 'reconfigure') reconfigure(message.settings)
  else end(message.drainMs).catch((error: unknown) => { throw error })
})
