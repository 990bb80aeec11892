/**
 * The client that is the same for all servers: a process of its own (load-process.ts).
 */
import { fork } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import path from 'node:path'
import type { Load, LoadFigures } from './load.ts'
import type { LoadAnswer } from './load-process.ts'

export class LoadGenerator implements Disposable {
  readonly #process: ChildProcess
  #failed: ((error: Error) => void) | undefined

  /** @param manifest file that describes the disks */
  constructor(manifest: string) {
    this.#process = fork(path.join(import.meta.dirname, 'load-process.ts'), [manifest], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
    this.#process.on('exit', (status, signal) => this.#failed?.(new Error(`the load generator ended with ${status ?? signal}`)))
  }

  /** One load after the other. @throws Error if a request fails, or what was read or written is not what it must be */
  run(load: Load): Promise<LoadFigures> {
    return new Promise((resolve, reject) => {
      this.#failed = reject
      this.#process.once('message', (answer: LoadAnswer) => {
        if ('figures' in answer) resolve(answer.figures)
        else reject(new Error(answer.error))
      })
      this.#process.send(load)
    })
  }

  [Symbol.dispose](): void {
    this.#process.kill()
  }
}
