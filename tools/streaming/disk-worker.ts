/**
 * DiskWorker: asks the thread of disk-thread.ts. It is started with the first question, or before; one that failed is started anew with the next.
 */
import { Worker } from 'node:worker_threads'
import type { Digest } from '@varve/images/chunk/digest.ts'
import { type ErrorCode, VarveError } from '@varve/images/errors.ts'
import type { DiskState, StateOptions } from './disk-states.ts'

export type DiskQuestion =
  | { type: 'state'; id: number; name: string; map: Digest | undefined }
  | { type: 'heat'; id: number; map: Digest; chunks: Uint32Array }
  | { type: 'abort'; id: number }
  | { type: 'end' }

export interface DiskAnswer {
  id: number
  state?: DiskState
  error?: { code?: ErrorCode; message: string }
}

interface Asked {
  resolve: (state: DiskState | undefined) => void
  reject: (error: Error) => void
}

export class DiskWorker implements AsyncDisposable {
  readonly #directory: string
  readonly #asked = new Map<number, Asked>()
  #thread: { worker: Worker; exited: Promise<void> } | undefined
  #lastId = 0
  #ended = false

  /** @param directory of the home */
  constructor(directory: string) {
    this.#directory = directory
  }

  /** Starts the thread, so that the first question need not wait for that. */
  prepare(): void {
    if (!this.#ended) this.#thread ??= this.#start()
  }

  /** As DiskStates.of. @throws what that throws, and the reason of `signal` */
  async state(name: string, { map, signal }: StateOptions): Promise<DiskState> {
    signal.throwIfAborted()
    const id = ++this.#lastId
    const abort = () => this.#thread?.worker.postMessage({ type: 'abort', id } satisfies DiskQuestion)
    signal.addEventListener('abort', abort, { once: true })
    try {
      return (await this.#ask({ type: 'state', id, name, map }))!
    } catch (error) {
      signal.throwIfAborted()
      throw error
    } finally {
      signal.removeEventListener('abort', abort)
    }
  }

  async recordHeat(map: Digest, chunks: Uint32Array): Promise<void> {
    await this.#ask({ type: 'heat', id: ++this.#lastId, map, chunks })
  }

  #ask(question: Extract<DiskQuestion, { id: number }>): Promise<DiskState | undefined> {
    if (this.#ended) return Promise.reject(new VarveError('CONNECTION_LOST', 'the server ends'))
    return new Promise((resolve, reject) => {
      this.#asked.set(question.id, { resolve, reject })
      this.prepare()
      this.#thread!.worker.postMessage(question)
    })
  }

  #start(): { worker: Worker; exited: Promise<void> } {
    const worker = new Worker(new URL(import.meta.resolve('./disk-thread.ts')), { workerData: this.#directory, name: 'stream-disks' })
    worker.on('message', ({ id, state, error }: DiskAnswer) => {
      const asked = this.#asked.get(id)
      this.#asked.delete(id)
      if (error === undefined) asked?.resolve(state)
      else asked?.reject(error.code === undefined ? new Error(error.message) : new VarveError(error.code, error.message))
    })
    let failure: Error | undefined
    worker.on('error', (error) => { failure = error as Error })
    const exited = new Promise<void>((resolve) => worker.once('exit', (status) => {
      if (this.#thread?.worker === worker) this.#thread = undefined
      for (const { reject } of this.#asked.values()) reject(failure ?? new Error(`the thread that looks at disks for streams ended with ${status}`))
      this.#asked.clear()
      resolve()
    }))
    return { worker, exited }
  }

  /** What was asked is given up. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true
    const thread = this.#thread
    thread?.worker.postMessage({ type: 'end' } satisfies DiskQuestion)
    await thread?.exited
  }
}
