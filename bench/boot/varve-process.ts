/**
 * A varve command that runs until it is told to end, and prints one document: when it is ready, or when it ends.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const launcher = path.resolve(import.meta.dirname, '../../tools/varve')
const STDERR_CHARACTERS_MAX = 8000

export class VarveProcess implements AsyncDisposable {
  readonly #arguments: readonly string[]
  readonly #child: ChildProcess
  readonly #closed: Promise<void>
  readonly #document: Promise<unknown>
  #stderr = ''
  #ended = false

  constructor(args: readonly string[], environment: Record<string, string> = {}) {
    this.#arguments = args
    this.#child = spawn(launcher, [...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...environment } })
    this.#child.stderr!.on('data', (bytes: Buffer) => (this.#stderr = (this.#stderr + bytes.toString()).slice(-STDERR_CHARACTERS_MAX)))
    this.#closed = new Promise((resolve) => this.#child.on('close', () => {
      this.#ended = true
      resolve()
    }))
    let stdout = ''
    this.#document = new Promise((resolve) => this.#child.stdout!.on('data', (bytes: Buffer) => {
      stdout += bytes.toString()
      try {
        resolve(JSON.parse(stdout))
      } catch {
        // There is more to come.
      }
    }))
  }

  /** @throws Error with what it said if it ends before, or says that it failed */
  async document(): Promise<unknown> {
    const document = await Promise.race([this.#document, this.#closed])
    if (document === undefined || (document as { error?: unknown }).error !== undefined) throw new Error(`varve ${this.#arguments.join(' ')}: ${JSON.stringify(document)}\n${this.#stderr}`)
    return document
  }

  /** @throws Error if it ends meanwhile */
  async runsFor(ms: number): Promise<void> {
    await sleep(ms)
    if (this.#ended) await this.document()
  }

  /** Asks it to end. @returns its document */
  async end(): Promise<unknown> {
    this.#child.kill('SIGINT')
    await this.#closed
    return this.document()
  }

  /** No agent is waited for to make a disk durable that is thrown away. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#ended) this.#child.kill('SIGKILL')
    await this.#closed
  }
}
