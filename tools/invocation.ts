/**
 * Invocation: one run of the command: its home, its output, its end.
 */
import type { Command } from 'commander'
import { defaultHomeDirectory, Home } from '@varve/images/store/home.ts'
import { VarveError } from '@varve/images/errors.ts'
import { describeError, ExitStatus, startProgress } from './terminal.ts'
import type { Progress } from './terminal.ts'

const ENDING_SIGNALS = ['SIGINT', 'SIGTERM'] as const

export interface GlobalOptions {
  home?: string
  json?: boolean
}

export class Invocation {
  readonly homeDirectory: string
  /** The home that the command line or the environment names. */
  readonly homeGiven: string | undefined
  readonly json: boolean
  /** Aborted by the first SIGINT or SIGTERM; the second, of either kind, ends the process. */
  readonly signal: AbortSignal
  #status: ExitStatus = ExitStatus.done
  #printed = false

  constructor(options: GlobalOptions) {
    this.homeGiven = options.home ?? (process.env.VARVE_HOME || undefined)
    this.homeDirectory = options.home ?? defaultHomeDirectory()
    this.json = options.json === true
    const controller = new AbortController()
    this.signal = controller.signal
    const end = (name: NodeJS.Signals) => {
      for (const one of ENDING_SIGNALS) process.off(one, end)
      controller.abort(new Error(`ended by ${name}`))
    }
    for (const name of ENDING_SIGNALS) process.on(name, end)
  }

  /** Opens the home; it is created on first use. */
  openHome(directory = this.homeDirectory): Promise<Home> {
    return Home.open(directory)
  }

  /** The result: `document` with --json, else `text`. Once for each run. */
  result(document: unknown, text: string): void {
    if (this.#printed) throw new Error('a run of the command prints one result')
    this.#printed = true
    process.stdout.write(this.json ? `${JSON.stringify(document, null, 2)}\n` : text === '' ? '' : `${text}\n`)
  }

  /** For people, on standard error. */
  note(text: string): void {
    if (!this.json) process.stderr.write(`${text}\n`)
  }

  async progress(label: string): Promise<Progress> {
    return this.json ? { update: () => {}, stop: () => {} } : startProgress(label)
  }

  /** Sets the exit status of a run that did its work, and has something to say by it. */
  finish(status: ExitStatus): void {
    this.#status = status
  }

  fail(error: unknown): void {
    const description = describeError(error)
    const aborted = this.signal.aborted && (error === this.signal.reason || (error as Error | undefined)?.name === 'AbortError')
    if (this.json && !this.#printed) process.stdout.write(`${JSON.stringify({ error: description }, null, 2)}\n`)
    else process.stderr.write(`varve: ${aborted ? (this.signal.reason as Error).message : `${description.message} [${description.code}]`}\n`)
    if (process.env.VARVE_TRACE !== undefined && error instanceof Error) process.stderr.write(`${error.stack}\n`)
    this.#status = error instanceof VarveError && error.code === 'COMPOSE_CONFLICT' ? ExitStatus.undecided : ExitStatus.failed
  }

  get status(): ExitStatus {
    return this.#status
  }
}

/** Makes a commander action of `body`: opens the invocation, and turns errors into one line and an exit status. */
export function action<A extends unknown[]>(body: (invocation: Invocation, ...args: A) => Promise<void>): (...args: [...A, Command]) => Promise<void> {
  return async (...args) => {
    const command = args.at(-1) as Command
    const invocation = new Invocation(command.optsWithGlobals<GlobalOptions>())
    try {
      await body(invocation, ...(args.slice(0, -1) as A))
    } catch (error) {
      invocation.fail(error)
    }
    process.exitCode = invocation.status
  }
}
