/**
 * qemu-io that stays connected while the test does something else.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'

const PROMPT = /qemu-io> /g

export class QemuIo implements AsyncDisposable {
  readonly #process: ChildProcess
  readonly #exited: Promise<unknown>
  #output = ''

  private constructor(child: ChildProcess) {
    this.#process = child
    this.#exited = new Promise((resolve) => child.on('close', resolve))
    for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (bytes: Buffer) => (this.#output += bytes.toString()))
  }

  /** @param disk as on the command line of qemu-io, with its options */
  static async open(...disk: string[]): Promise<QemuIo> {
    const client = new QemuIo(spawn('qemu-io', disk, { stdio: 'pipe' }))
    await client.printed(PROMPT, 1)
    return client
  }

  /** Types a command, and waits until it is done; an aio command, until it is begun. @throws Error if a command fails, or qemu-io ends */
  async type(command: string): Promise<void> {
    const prompts = this.#count(PROMPT)
    this.#process.stdin!.write(`${command}\n`)
    await this.printed(PROMPT, prompts + 1)
  }

  /** Waits until what was printed has `count` places that match. @param pattern with the flag g */
  async printed(pattern: RegExp, count: number): Promise<void> {
    while (this.#count(pattern) < count) {
      const ended = await Promise.race([this.#exited.then(() => true), once(this.#process.stdout!, 'data').then(() => false)])
      if (ended) throw new Error(`qemu-io ended:\n${this.#output.slice(-4000)}`)
      if (/failed/.test(this.#output)) throw new Error(`a command of qemu-io failed:\n${this.#output.slice(-4000)}`)
    }
  }

  #count(pattern: RegExp): number {
    return this.#output.match(pattern)?.length ?? 0
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.stdin!.end()
    await this.#exited
  }
}
