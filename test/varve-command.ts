/**
 * Runs the varve command as a user does: in a process of its own, in a home of its own.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

const launcher = path.resolve(import.meta.dirname, '../tools/varve')

export interface CommandResult {
  status: number
  /** The document that --json printed. */
  json: any
  stderr: string
}

/** A directory that is removed with all it holds when it is disposed of. */
export class ScratchDirectory implements Disposable {
  readonly path: string

  constructor(name: string) {
    this.path = mkdtempSync(path.join(tmpdir(), `varve-${name}-`))
  }

  join(...names: string[]): string {
    return path.join(this.path, ...names)
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

/** `varve ARGS --json --home HOME`. @throws Error with what it printed if it ends with another status than `expect` */
export function varve(home: string, args: string[], options: { expect?: number; input?: Buffer } = {}): CommandResult {
  const { status, stdout, stderr } = spawnSync(launcher, [...args, '--json', '--home', home], { input: options.input, encoding: 'utf8', maxBuffer: 1 << 30 })
  if (status !== (options.expect ?? 0)) throw new Error(`varve ${args.join(' ')} ended with ${status}\n${stdout.slice(-2000)}\n${stderr.slice(-2000)}`)
  return { status, json: stdout === '' ? undefined : JSON.parse(stdout), stderr }
}

/** `varve serve` in the background. */
export class VarveServer implements AsyncDisposable {
  readonly process: ChildProcess
  /** The document that it printed when it was ready. */
  readonly document: any
  /** Exit status, or the signal that ended it. */
  readonly exited: Promise<number | NodeJS.Signals>

  private constructor(child: ChildProcess, document: unknown, exited: Promise<number | NodeJS.Signals>) {
    this.process = child
    this.document = document
    this.exited = exited
  }

  /** Where it serves NBD: a port 0 is replaced by the one that was chosen. */
  get addresses(): readonly string[] {
    return this.document.nbd
  }

  /** Resolves when it accepts connections. @param address as for --nbd */
  static async start(home: string, address: string, options: { args?: string[]; env?: Record<string, string>; onLog?: (text: string) => void } = {}): Promise<VarveServer> {
    const args = ['serve', '--nbd', address, '--json', '--home', home, ...(options.args ?? ['--http', 'off'])]
    const child = spawn(launcher, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...options.env } })
    const exited = new Promise<number | NodeJS.Signals>((resolve) => child.on('exit', (status, signal) => resolve(status ?? signal!)))
    let stdout = ''
    let stderr = ''
    child.stderr.on('data', (bytes: Buffer) => {
      options.onLog?.(bytes.toString())
      stderr = (stderr + bytes.toString()).slice(-8000)
    })
    const document = await new Promise<unknown>((resolve, reject) => {
      child.stdout.on('data', (bytes: Buffer) => {
        stdout += bytes.toString()
        try {
          resolve(JSON.parse(stdout))
        } catch {
          // There is more to come.
        }
      })
      void exited.then((status) => reject(new Error(`varve serve ended with ${status}\n${stdout}\n${stderr}`)))
    })
    return new VarveServer(child, document, exited)
  }

  /** Asks it to end, and waits. @returns exit status, or the signal that ended it */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | NodeJS.Signals> {
    this.process.kill(signal)
    return this.exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.process.exitCode === null && this.process.signalCode === null) await this.stop('SIGKILL')
  }
}
