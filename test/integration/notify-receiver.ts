/**
 * A service manager's end of $NOTIFY_SOCKET: a real datagram socket, which Node does not have, held by Python.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'

const PROGRAM = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = sys.argv[1]
s.bind('\\0' + name[1:] if name.startswith('@') else name)
print('bound', flush=True)
while True: print(json.dumps(s.recv(65536).decode()), flush=True)
`

export class NotifyReceiver implements AsyncDisposable {
  readonly #process: ChildProcess
  readonly #exited: Promise<unknown>
  /** One for each datagram, in order: its assignments. */
  readonly messages: Record<string, string>[] = []
  #waiting: (() => void)[] = []

  /** @param socket path, or `@NAME` of the abstract namespace */
  static async bind(socket: string): Promise<NotifyReceiver> {
    const child = spawn('/usr/bin/python3', ['-c', PROGRAM, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
    const lines = createInterface(child.stdout)
    await once(lines, 'line')
    const receiver = new NotifyReceiver(child)
    lines.on('line', (line) => receiver.#receive(JSON.parse(line) as string))
    return receiver
  }

  private constructor(child: ChildProcess) {
    this.#process = child
    this.#exited = once(child, 'exit')
  }

  /** Resolves with the first message at or after `from` that fits. */
  async until(fits: (message: Record<string, string>) => boolean, from = 0): Promise<Record<string, string>> {
    for (;;) {
      const found = this.messages.slice(from).find(fits)
      if (found !== undefined) return found
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  #receive(text: string): void {
    this.messages.push(Object.fromEntries(text.split('\n').map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)])))
    for (const wake of this.#waiting.splice(0)) wake()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill('SIGKILL')
    await this.#exited
  }
}
