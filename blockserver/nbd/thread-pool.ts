/**
 * Thread pool: the threads of an NBD server. A connection goes to the thread that has the fewest; one that asks for an export which another
 * thread has open for itself goes on there. A thread that dies is replaced; its clients lose their connections, and others notice nothing.
 */
import { closeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import type { Logger } from 'pino'
import type { Arrival } from './connection-host.ts'
import type { NbdLimits } from './limits.ts'
import { NbdMetrics } from './metrics.ts'
import type { SendablePolicy } from './policy.ts'
import type { FromThread, ServerThreadData, ThreadExports, ToThread } from './thread-messages.ts'

/** A thread that dies is not replaced sooner than this after it was started. */
const RESTART_MS = 1000
/** How long after the end of draining a thread may still take to close its exports. */
const CLOSE_MS = 60_000

export interface ThreadPoolOptions {
  /** At least 1. */
  count: number
  exports: ThreadExports
  policy: SendablePolicy
  limits: NbdLimits
  log: Logger
  /** A connection has ended. */
  ended(id: number): void
  /** A thread has ended, in whatever way; its number may be given again from now on. */
  threadEnded?(thread: number): void
}

interface Member {
  worker: Worker
  startedMs: number
  /** Connections that it has. */
  connections: Set<number>
}

export class ThreadPool {
  readonly #options: ThreadPoolOptions
  readonly #members: Member[] = []
  /** Which thread has an exclusive export. */
  readonly #owners = new Map<string, number>()
  readonly #asked = new Map<number, (metrics: NbdMetrics | undefined) => void>()
  /** Counters of threads that have ended. */
  readonly #ended = new NbdMetrics()
  #policy: SendablePolicy
  #requests = 0
  #draining = false

  constructor(options: ThreadPoolOptions) {
    this.#options = options
    this.#policy = options.policy
    for (let thread = 0; thread < options.count; thread++) this.#start(thread)
  }

  /** For tests of what becomes of the others when one ends. */
  get workers(): Worker[] {
    return this.#members.map(({ worker }) => worker)
  }

  /** For connections that come from now on. */
  configure(policy: SendablePolicy): void {
    this.#policy = policy
    for (const { worker } of this.#members) tell(worker, { type: 'policy', policy })
  }

  /** Hands a connection to the thread with the fewest. */
  take(arrival: Arrival): void {
    let least = 0
    for (let thread = 1; thread < this.#members.length; thread++) {
      if (this.#members[thread].connections.size < this.#members[least].connections.size) least = thread
    }
    this.#hand(arrival, least)
  }

  /** Sums of all threads; what a thread that died had counted since it was last asked is lost. */
  async metrics(): Promise<NbdMetrics> {
    const sum = Object.assign(new NbdMetrics(), this.#ended)
    for (const metrics of await Promise.all(this.#members.map((member) => this.#ask(member)))) if (metrics !== undefined) add(sum, metrics)
    return sum
  }

  /** Ends all threads when their connections are closed and their exports durable. */
  async drain(drainMs: number): Promise<void> {
    this.#draining = true
    await Promise.all(this.#members.map(async ({ worker }) => {
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

  #start(thread: number): void {
    const { exports, limits, log } = this.#options
    const workerData: ServerThreadData = { thread, exports, policy: this.#policy, limits, logLevel: log.level }
    const worker = new Worker(new URL(import.meta.resolve('./server-thread.ts')), { workerData, name: `nbd-${thread}` })
    const member: Member = { worker, startedMs: performance.now(), connections: new Set() }
    this.#members[thread] = member
    worker.on('message', (message: FromThread) => this.#told(thread, message))
    worker.on('error', (error) => log.error({ err: error, thread }, 'a server thread failed'))
    worker.once('exit', (status) => this.#exited(thread, member, status))
  }

  #exited(thread: number, member: Member, status: number): void {
    for (const [name, owner] of this.#owners) if (owner === thread) this.#owners.delete(name)
    for (const id of member.connections) this.#options.ended(id)
    member.connections.clear()
    this.#options.threadEnded?.(thread)
    if (this.#draining) return
    this.#options.log.error({ thread, status }, 'a server thread ended; its connections are lost, and another takes its place')
    // What is handed to it until then is lost, and its clients come again.
    setTimeout(() => { if (!this.#draining) this.#start(thread) }, Math.max(0, member.startedMs + RESTART_MS - performance.now()))
  }

  #told(thread: number, message: FromThread): void {
    const member = this.#members[thread]
    switch (message.type) {
      case 'ended':
        member.connections.delete(message.id)
        this.#options.ended(message.id)
        return
      case 'moved':
        member.connections.delete(message.arrival.id)
        this.#hand(message.arrival, message.thread)
        return
      case 'acquire': {
        const owner = this.#owners.get(message.name) ?? thread
        this.#owners.set(message.name, owner)
        tell(member.worker, { type: 'owner', request: message.request, thread: owner })
        return
      }
      case 'release':
        if (this.#owners.get(message.name) === thread) this.#owners.delete(message.name)
        return
      case 'metrics':
        this.#asked.get(message.request)?.(message.metrics)
    }
  }

  #hand(arrival: Arrival, thread: number): void {
    const { worker, connections } = this.#members[thread]
    if (worker.threadId < 0 || this.#draining) {
      closeSync(arrival.fd)
      this.#options.ended(arrival.id)
      return
    }
    connections.add(arrival.id)
    tell(worker, { type: 'connection', arrival })
  }

  #ask({ worker }: Member): Promise<NbdMetrics | undefined> {
    if (worker.threadId < 0) return Promise.resolve(undefined)
    const request = ++this.#requests
    return new Promise<NbdMetrics | undefined>((resolve) => {
      const lost = () => resolve(undefined)
      worker.once('exit', lost)
      this.#asked.set(request, (metrics) => {
        worker.off('exit', lost)
        resolve(metrics)
      })
      tell(worker, { type: 'metrics', request })
    }).finally(() => this.#asked.delete(request))
  }
}

function tell(worker: Worker, message: ToThread): void {
  worker.postMessage(message)
}

function add(sum: NbdMetrics, metrics: NbdMetrics): void {
  for (const name of Object.keys(sum) as (keyof NbdMetrics)[]) sum[name] += metrics[name]
}
