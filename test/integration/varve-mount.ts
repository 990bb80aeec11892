/**
 * `varve mount` as a process, in a directory of its own.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

const launcher = path.resolve(import.meta.dirname, '../../tools/varve')

export class VarveMount implements AsyncDisposable {
  readonly directory: string
  readonly process: ChildProcess
  /** Exit status, or the signal that ended it. */
  readonly exited: Promise<number | NodeJS.Signals>
  /** What it logged. */
  log = ''

  private constructor(directory: string, child: ChildProcess) {
    this.directory = directory
    this.process = child
    this.exited = new Promise((resolve) => child.on('exit', (status, signal) => resolve(status ?? signal!)))
    child.stderr!.on('data', (bytes: Buffer) => { this.log += bytes.toString() })
  }

  /** @param options.command what runs before the launcher, such as setpriv with its arguments */
  static async open(home: string, what: string, directory: string, { args = [], command = [] }: { args?: string[]; command?: string[] } = {}): Promise<VarveMount> {
    mkdirSync(directory, { recursive: true })
    const words = [...command, launcher, 'mount', what, directory, '--foreground', '--json', '--home', home, ...args]
    const child = spawn(words[0], words.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] })
    const mount = new VarveMount(directory, child)
    let said = ''
    await new Promise<void>((resolve, reject) => {
      child.on('error', reject)
      child.stdout.on('data', (bytes: Buffer) => {
        said += bytes.toString()
        try {
          const { error } = JSON.parse(said) as { error?: unknown }
          if (error === undefined) resolve()
        } catch {
          // There is more to come.
        }
      })
      void mount.exited.then((status) => reject(new Error(`varve mount ${what} ended with ${status}: ${said}${mount.log}`)))
    })
    return mount
  }

  get isMounted(): boolean {
    return isMounted(this.directory)
  }

  /** Unmounts it, as its users do. @returns how the process ended */
  async unmount(): Promise<number | NodeJS.Signals> {
    const { status, stderr } = spawnSync('umount', [this.directory], { encoding: 'utf8' })
    if (status !== 0) throw new Error(`umount ${this.directory}: ${stderr}`)
    return this.exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill('SIGTERM')
    await this.exited
    spawnSync('umount', ['-l', this.directory])
  }
}

export function isMounted(directory: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8').split('\n').some((line) => line.split(' ')[4] === directory)
}
