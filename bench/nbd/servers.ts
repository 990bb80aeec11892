/**
 * The servers that are measured, each a process of its own, started as its manual page says and ended by its process id.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

export type Transport = 'unix' | 'tcp'

const START_MS_MAX = 60_000
const POLL_MS = 20
/** USER_HZ of Linux, which is 100 wherever Node runs. */
const CLOCK_TICKS = 100
const launcher = path.resolve(import.meta.dirname, '../../tools/varve')
let started = 0

export interface ServerAddresses {
  unix?: string
  tcp?: string
}

interface StartOptions {
  addresses: ServerAddresses
  logFile: string
  /** Of a server that leaves the foreground, and writes its process id here. */
  pidFile?: string
}

export class Server implements AsyncDisposable {
  readonly #process: ChildProcess
  readonly #options: StartOptions
  readonly #exited: Promise<void>

  private constructor(child: ChildProcess, options: StartOptions) {
    this.#process = child
    this.#options = options
    this.#exited = new Promise((resolve) => {
      child.on('exit', () => resolve())
      child.on('error', () => resolve())
    })
  }

  /** Resolves when it accepts connections on all addresses. */
  static async start(command: string, args: string[], options: StartOptions): Promise<Server> {
    const log = openSync(options.logFile, 'w')
    const child = spawn(command, args, { stdio: ['ignore', log, log] })
    closeSync(log)
    const server = new Server(child, options)
    const failed = server.#exited.then(() => child.exitCode !== 0 || options.pidFile === undefined)
    try {
      for (const address of Object.values(options.addresses) as string[]) await accepts(address, failed)
    } catch (cause) {
      await server[Symbol.asyncDispose]()
      throw new Error(`${command} ${args.join(' ')}\n${readFileSync(options.logFile, 'utf8').slice(-2000)}`, { cause })
    }
    return server
  }

  /** User and system time that it and its children have used, seconds, in steps of a clock tick. Children of connections that ended are waited for. */
  async cpuSeconds(): Promise<number> {
    const { pidFile } = this.#options
    if (pidFile === undefined) return processCpuTicks(this.#process.pid!) / CLOCK_TICKS
    const pid = Number(readFileSync(pidFile, 'utf8'))
    while (children(pid).length > 0) await sleep(POLL_MS)
    return processCpuTicks(pid) / CLOCK_TICKS
  }

  address(transport: Transport): string {
    const address = this.#options.addresses[transport]
    if (address === undefined) throw new Error(`this server does not listen on ${transport}`)
    return address
  }

  uri(transport: Transport, exportName: string): string {
    return transport === 'unix' ? `nbd+unix:///${exportName}?socket=${this.address('unix').slice('unix:'.length)}` : `nbd://${this.address('tcp')}/${exportName}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { addresses, pidFile } = this.#options
    if (this.#process.exitCode === null) this.#process.kill('SIGTERM')
    await this.#exited
    if (pidFile !== undefined && existsSync(pidFile)) await endProcess(Number(readFileSync(pidFile, 'utf8')))
    if (addresses.unix !== undefined) rmSync(addresses.unix.slice('unix:'.length), { force: true })
  }
}

/** utime, stime, and those of children that were waited for (cutime, cstime): fields 14 to 17 of proc_pid_stat(5); and the same of children that run. */
function processCpuTicks(pid: number): number {
  const text = procText(`${pid}/stat`)
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ').slice(11, 15)
  return children(pid).reduce((sum, child) => sum + processCpuTicks(child), fields.reduce((sum, field) => sum + Number(field), 0))
}

function children(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((task) => procText(`${pid}/task/${task}/children`).split(' ').filter((child) => child !== '').map(Number))
}

/** Empty if the process or thread has ended meanwhile. */
function procText(file: string): string {
  try {
    return readFileSync(path.join('/proc', file), 'latin1')
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code!)) return ''
    throw error
  }
}

async function endProcess(pid: number): Promise<void> {
  process.kill(pid, 'SIGTERM')
  while (existsSync(`/proc/${pid}`)) await sleep(POLL_MS)
}

/** @param failed becomes true when the server will never listen */
async function accepts(address: string, failed: Promise<boolean>): Promise<void> {
  const target = address.startsWith('unix:') ? { path: address.slice('unix:'.length) } : { host: address.split(':')[0], port: Number(address.split(':')[1]) }
  let ended = false
  void failed.then((value) => (ended = value))
  for (const until = Date.now() + START_MS_MAX; ; await sleep(POLL_MS)) {
    const socket = net.connect(target)
    const error = await new Promise<Error | undefined>((resolve) => {
      socket.once('connect', () => resolve(undefined))
      socket.once('error', resolve)
    })
    socket.destroy()
    if (error === undefined) return
    if (ended || Date.now() > until) throw new Error(`nothing listens on ${address}`, { cause: error })
  }
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as net.AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}

function socketFile(directory: string): string {
  return path.join(directory, `s${started++}.sock`)
}

/** `varve serve`, on both transports. VARVE_BENCH_SERVE holds further arguments of it. */
export async function startVarve(home: string, directory: string): Promise<Server> {
  const unix = `unix:${socketFile(directory)}`
  const tcp = `127.0.0.1:${await freePort()}`
  const more = (process.env.VARVE_BENCH_SERVE ?? '').split(' ').filter((word) => word !== '')
  return Server.start(launcher, ['serve', '--nbd', unix, tcp, '--http', 'off', '--home', home, '--json', ...more], { addresses: { unix, tcp }, logFile: path.join(directory, 'varve.log') })
}

export interface PeerOptions {
  transport: Transport
  /** Of sockets and logs. */
  directory: string
  readOnly: boolean
}

/** @param plugin the plugin and its parameters */
export async function startNbdkit(plugin: string[], { transport, directory, readOnly }: PeerOptions): Promise<Server> {
  const { addresses, socket, port } = await place(transport, directory)
  const where = transport === 'unix' ? ['-U', socket] : ['-i', '127.0.0.1', '-p', port]
  return Server.start('nbdkit', ['-f', ...where, ...(readOnly ? ['-r'] : []), ...plugin], { addresses, logFile: path.join(directory, 'nbdkit.log') })
}

export async function startQemuNbd(image: string, format: 'raw' | 'qcow2', { transport, directory, readOnly }: PeerOptions): Promise<Server> {
  const { addresses, socket, port } = await place(transport, directory)
  const where = transport === 'unix' ? ['-k', socket] : ['-b', '127.0.0.1', '-p', port]
  return Server.start('qemu-nbd', ['-t', '--shared=16', '-f', format, ...(readOnly ? ['-r'] : []), ...where, image], { addresses, logFile: path.join(directory, 'qemu-nbd.log') })
}

/** Its export is named `disk`. */
export async function startNbdServer(image: string, { transport, directory, readOnly }: PeerOptions): Promise<Server> {
  const { addresses, socket, port } = await place(transport, directory)
  const configuration = path.join(directory, `nbd-server-${port}.conf`)
  // It listens on TCP in any case.
  const lines = ['[generic]', 'listenaddr = 127.0.0.1', `port = ${port}`, ...(transport === 'unix' ? [`unixsock = ${socket}`] : []), '[disk]', `exportname = ${image}`, `readonly = ${readOnly}`, 'flush = true', 'fua = true']
  writeFileSync(configuration, `${lines.join('\n')}\n`)
  const pidFile = `${configuration}.pid`
  return Server.start('nbd-server', ['-C', configuration, '-p', pidFile], { addresses, logFile: path.join(directory, 'nbd-server.log'), pidFile })
}

async function place(transport: Transport, directory: string): Promise<{ addresses: ServerAddresses; socket: string; port: string }> {
  const socket = socketFile(directory)
  const port = String(await freePort())
  return { addresses: transport === 'unix' ? { unix: `unix:${socket}` } : { tcp: `127.0.0.1:${port}` }, socket, port }
}
