/**
 * A server on a unix socket and a TCP port for the length of a test, and programs run against it.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { type Logger } from 'pino'
import { VarveError } from '@varve/images/errors.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import { type ExportAbilities, SharedExports } from '@varve/blockserver/nbd/export.ts'
import type { NbdLimits } from '@varve/blockserver/nbd/limits.ts'
import type { PolicyOptions } from '@varve/blockserver/nbd/policy.ts'
import { NbdServer } from '@varve/blockserver/nbd/server.ts'

/** What all of the disks can. */
export type Abilities = Omit<ExportAbilities, 'device'>

export interface ServeOptions extends Abilities, PolicyOptions {
  limits?: Partial<NbdLimits>
  /** Addresses besides one unix socket and one TCP port on 127.0.0.1. */
  addresses?: string[]
  log?: Logger
}

export interface Serving extends AsyncDisposable {
  server: NbdServer
  /** A directory for the test's files; removed at the end. */
  directory: string
  /** `unix:PATH` and `HOST:PORT`. */
  unix: string
  tcp: string
  /** As libnbd and qemu name an export. */
  uri(name: string, over?: 'unix' | 'tcp'): string
  close(): Promise<void>
}

/** Serves disks under names; the first one is the default export. The disks are the caller's. */
export async function serve(disks: Record<string, BlockDevice>, options: ServeOptions = {}): Promise<Serving> {
  const directory = mkdtempSync(path.join(tmpdir(), 'varve-nbd-'))
  const socket = path.join(directory, 'nbd.sock')
  const { limits, log, tls, access, defaultExport, addresses = [] } = options
  const server = await NbdServer.listen([`unix:${socket}`, '127.0.0.1:0', ...addresses], { provider: exportsOf(disks, options), limits, log, tls, access, defaultExport })
  const [unix, tcp] = server.addresses
  const close = async () => {
    await server.close({ drainMs: 2000 })
    rmSync(directory, { recursive: true, force: true })
  }
  const uri = (name: string, over: 'unix' | 'tcp' = 'unix') => over === 'unix' ? `nbd+unix:///${name}?socket=${socket}` : `nbd://${tcp}/${name}`
  return { server, directory, unix, tcp, uri, close, [Symbol.asyncDispose]: close }
}

export function exportsOf(disks: Record<string, BlockDevice>, { fastZeroes, contexts, minimumBlockBytes }: Abilities = {}): SharedExports {
  const names = Object.keys(disks)
  return new SharedExports({
    list: async () => names.map((name) => ({ name, description: `the disk ${name}` })),
    canonicalName(name) {
      if (name === '') return names[0]
      if (!names.includes(name)) throw new VarveError('EXPORT_NOT_FOUND', `no export '${name}'`)
      return name
    },
    open: async (name) => ({ name, description: `the disk ${name}`, device: disks[name], fastZeroes, contexts, minimumBlockBytes }),
  })
}

export interface ProgramResult {
  status: number | null
  stdout: string
  stderr: string
}

/** A program that hangs is killed after this; no test waits for less. */
const PROGRAM_MS_MAX = 120_000

/** Runs a program to its end, which is to be of status `expect`, 0 unless given, null if a signal ends it; the server under test runs in this process, so nothing may block. */
export function run(command: string, args: readonly string[], options: { input?: string; expect?: number | null } = {}): Promise<ProgramResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], timeout: PROGRAM_MS_MAX, killSignal: 'SIGKILL' })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => { stdout += text })
    child.stderr.setEncoding('utf8').on('data', (text: string) => { stderr += text })
    child.once('error', reject)
    child.once('close', (status, signal) => {
      if (status === (options.expect === undefined ? 0 : options.expect)) resolve({ status, stdout, stderr })
      else reject(new Error(`${command} ${args.join(' ')} ended with ${status ?? signal}\n${stdout.slice(-3000)}\n${stderr.slice(-3000)}`))
    })
    child.stdin.on('error', () => undefined)
    child.stdin.end(options.input ?? '')
  })
}
