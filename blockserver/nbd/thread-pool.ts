/**
 * Thread pool: the threads of an NBD server. One negotiates, with the processor time that the others leave: what strangers do costs those little who
 * have an export. A connection that asks for an export goes on in the thread that has it open for itself, else in the one with the fewest.
 * A thread that dies is replaced; its clients lose their connections, and others notice nothing.
 */
import { closeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import type { Logger } from 'pino'
import type { Arrival } from './connection-host.ts'
import type { NbdLimits } from './limits.ts'
import type { Destination } from './export.ts'
import { type MetricsSnapshot, NbdMetrics, mergeSnapshots, withoutGauges } from './metrics.ts'
import type { SendablePolicy } from './policy.ts'
import type { FromThread, ServerThreadData, ThreadExports, ThreadSettings, ToThread } from './thread-messages.ts'

/** A thread that dies is not replaced sooner than this after it was started. */
const RESTART_MS = 1000
/** How long after the end of draining a thread may still take to close its exports. */
const CLOSE_MS = 60_000

export interface ThreadPoolOptions {
  /** That serve, at least 1. */
  count: number
  exports: ThreadExports
  policy: SendablePolicy
  /** Memory for payloads is divided among the threads. */
  limits: NbdLimits
  log: Logger
  /** A connection has ended. */
  ended(id: number): void
  /** A thread that serves has ended, in whatever way; its number may be given again from now on. */
  threadEnded?(thread: number): void
}

interface Member {
  /** Undefined for the one that negotiates. */
  readonly thread: number | undefined
  worker: Worker
  startedMs: number
  /** Connections that it has. */
  connections: Set<number>
  /** When it was last asked. */
  metrics?: MetricsSnapshot
}

export class ThreadPool {
  readonly #options: ThreadPoolOptions
  readonly #negotiator: Member
  /** Those that serve. */
  readonly #members: Member[]
  /** Which thread has an exclusive export. */
  readonly #owners = new Map<string, number>()
  readonly #asked = new Map<number, (metrics: MetricsSnapshot) => void>()
  /** Counters of threads that have ended. */
  #ended = new NbdMetrics().snapshot()
  #policy: SendablePolicy
  #limits: NbdLimits
  #requests = 0
  #draining = false

  constructor(options: ThreadPoolOptions) {
    this.#options = options
    this.#policy = options.policy
    this.#limits = options.limits
    this.#members = Array.from({ length: options.count }, (_, thread) => this.#start(thread))
    this.#negotiator = this.#start(undefined)
  }

  /** Those that serve, then the one that negotiates: for tests of what becomes of the others when one ends. */
  get workers(): Worker[] {
    return this.#all.map(({ worker }) => worker)
  }

  get #all(): Member[] {
    return [...this.#members, this.#negotiator]
  }

  take(arrival: Arrival): void {
    this.#hand(arrival, this.#negotiator)
  }

  /** Sums of all threads; what a thread that died had counted since it was last asked is lost. */
  async metrics(): Promise<MetricsSnapshot> {
    const asked = await Promise.all(this.#all.map((member) => this.#ask(member)))
    return mergeSnapshots([this.#ended, ...asked.filter((metrics) => metrics !== undefined)])
  }

  /** The level of the log is taken over too, as it is now. */
  reconfigure(limits: NbdLimits, policy: SendablePolicy): void {
    this.#limits = limits
    this.#policy = policy
    for (const { worker } of this.#all) tell(worker, { type: 'reconfigure', settings: this.#threadSettings() })
  }

  /** Ends all threads when their connections are closed and their exports durable. */
  async drain(drainMs: number): Promise<void> {
    this.#draining = true
    await Promise.all(this.#all.map(async ({ worker }) => {
      if (worker.threadId < 0) return
      const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()))
      tell(worker, { type: 'drain', drainMs })
      const late = setTimeout(() => {
        this.#options.log.error('a server thread does not end')
        void worker.terminate()
      }, drainMs + CLOSE_MS)
      await ended
      clearTimeout(late)
    }))
  }

  #start(thread: number | undefined): Member {
    const member: Member = { thread, worker: this.#newWorker(thread), startedMs: performance.now(), connections: new Set() }
    this.#watch(member)
    return member
  }

  #newWorker(thread: number | undefined): Worker {
    const workerData: ServerThreadData = { thread, exports: this.#options.exports, settings: this.#threadSettings() }
    return new Worker(new URL(import.meta.resolve('./server-thread.ts')), { workerData, name: `nbd-${thread ?? 'negotiation'}` })
  }

  #watch(member: Member): void {
    const { worker, thread } = member
    worker.on('message', (message: FromThread) => this.#told(member, message))
    worker.on('error', (error) => this.#options.log.error({ err: error, thread }, 'a server thread failed'))
    worker.once('exit', (status) => this.#exited(member, status))
  }

  #threadSettings(): ThreadSettings {
    const { requestBytesMax, sharedBytesMax } = this.#limits
    const limits = { ...this.#limits, sharedBytesMax: Math.max(requestBytesMax, Math.floor(sharedBytesMax / this.#options.count)) }
    return { limits, policy: this.#policy, logLevel: this.#options.log.level }
  }

  #exited(member: Member, status: number): void {
    const { thread } = member
    for (const [name, owner] of this.#owners) if (owner === thread) this.#owners.delete(name)
    for (const id of member.connections) this.#options.ended(id)
    member.connections.clear()
    if (member.metrics !== undefined) this.#ended = mergeSnapshots([this.#ended, withoutGauges(member.metrics)])
    member.metrics = undefined
    if (thread !== undefined) this.#options.threadEnded?.(thread)
    if (this.#draining) return
    this.#options.log.error({ thread, status }, 'a server thread ended; its connections are lost, and another takes its place')
    // What is handed to it until then is lost, and its clients come again.
    setTimeout(() => {
      if (this.#draining) return
      member.worker = this.#newWorker(thread)
      member.startedMs = performance.now()
      this.#watch(member)
    }, Math.max(0, member.startedMs + RESTART_MS - performance.now()))
  }

  #told(member: Member, message: FromThread): void {
    switch (message.type) {
      case 'ended':
        member.connections.delete(message.id)
        this.#options.ended(message.id)
        return
      case 'moved':
        member.connections.delete(message.arrival.id)
        this.#hand(message.arrival, this.#find(message.to))
        return
      case 'acquire': {
        const owner = this.#owners.get(message.name) ?? member.thread!
        this.#owners.set(message.name, owner)
        tell(member.worker, { type: 'owner', request: message.request, thread: owner })
        return
      }
      case 'release':
        if (this.#owners.get(message.name) === member.thread) this.#owners.delete(message.name)
        return
      case 'metrics':
        this.#asked.get(message.request)?.(message.metrics)
    }
  }

  #find({ thread, exportName }: Destination): Member {
    const owner = thread ?? (exportName === undefined ? undefined : this.#owners.get(exportName))
    if (owner !== undefined) return this.#members[owner]
    return this.#members.reduce((least, member) => (member.connections.size < least.connections.size ? member : least))
  }

  #hand(arrival: Arrival, { worker, connections }: Member): void {
    if (worker.threadId < 0 || this.#draining) {
      closeSync(arrival.fd)
      this.#options.ended(arrival.id)
      return
    }
    connections.add(arrival.id)
    tell(worker, { type: 'connection', arrival })
  }

  #ask(member: Member): Promise<MetricsSnapshot | undefined> {
    const { worker } = member
    if (worker.threadId < 0) return Promise.resolve(undefined)
    const request = ++this.#requests
    return new Promise<MetricsSnapshot | undefined>((resolve) => {
      const lost = () => resolve(undefined)
      worker.once('exit', lost)
      this.#asked.set(request, (metrics) => {
        worker.off('exit', lost)
        member.metrics = metrics
        resolve(metrics)
      })
      tell(worker, { type: 'metrics', request })
    }).finally(() => this.#asked.delete(request))
  }
}

function tell(worker: Worker, message: ToThread): void {
  worker.postMessage(message)
}
