/**
 * `varve agent stream`, `varve restore` and `varve agent status`: the endpoint's side of streaming.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { enrol, fingerprintOf, makeAgentKey } from '@varve/agent/stream/enrol.ts'
import { ChunkFetcher } from '@varve/agent/stream/chunk-fetcher.ts'
import { parseServerUrl } from '@varve/agent/stream/server-socket.ts'
import type { ServerAddress } from '@varve/agent/stream/server-socket.ts'
import type { AgentIdentity } from '@varve/agent/stream/stream-connection.ts'
import { beginTarget, MISS_MS_MAX, Streaming } from '@varve/agent/stream/streaming.ts'
import type { StreamingOptions, StreamNote, StreamStatus } from '@varve/agent/stream/streaming.ts'
import { Target } from '@varve/agent/stream/target.ts'
import { controlRequest } from '@varve/blockserver/control/client.ts'
import { ControlServer } from '@varve/blockserver/control/server.ts'
import { openLog } from '@varve/blockserver/log.ts'
import { digestOf, digestToHex } from '@varve/images/chunk/digest.ts'
import { isVarveError, VarveError } from '@varve/images/errors.ts'
import type { Logger } from 'pino'
import { action } from '../invocation.ts'
import type { Invocation } from '../invocation.ts'
import { Notifier } from '../service/notifier.ts'
import { LOG_LEVELS } from '../service/settings.ts'
import { formatBytes, formatDuration } from '../terminal.ts'

const NBD_DEFAULT = '127.0.0.1:10809'
/** A disk that nobody uses, and that is complete or cannot be, needs no agent: asked this often. */
const LET_GO_MS = 1000
const PROGRESS_MS = 250
const MISS_MS_LONGEST = 24 * 3600 * 1000

interface StreamOptions {
  to: string
  nbd: string[]
  from?: string
  token?: string
  identity?: string
  ca?: string
  overwrite?: boolean
  restart?: boolean
  seed: string[]
  missMs: number
  logLevel: (typeof LOG_LEVELS)[number]
}

export function addAgentStreamCommands(agent: Command): void {
  withStreamOptions(agent.command('stream').argument('<cvd>', 'CVD or CVD@SNAPSHOT of the server'))
    .description('stream a CVD to a disk of this machine, and serve it meanwhile; ends when the disk is complete and nobody uses it')
    .option('--nbd <address...>', `where the disk is served: HOST:PORT or unix:PATH (default: ${NBD_DEFAULT})`, [])
    .action(action((invocation, cvd: string, options: StreamOptions) => stream(invocation, cvd, { ...options, nbd: options.nbd.length > 0 ? options.nbd : [NBD_DEFAULT] })))

  agent.command('status').argument('[target]').description('what the agents of this machine stream, or one of them').action(action(async (invocation, target: string | undefined) => {
    if (target !== undefined && !existsSync(target)) throw new VarveError('NOT_FOUND', `there is no ${target}`)
    const sockets = target === undefined ? statusSockets() : [statusSocket(target)]
    const answers = (await Promise.all(sockets.map((socket) => controlRequest(socket, 'status', {})))).filter((answer) => answer !== undefined) as unknown as (StreamStatus & { pid: number })[]
    if (target !== undefined && answers.length === 0) throw new VarveError('NOT_FOUND', `no agent streams to ${target}`)
    invocation.result(target === undefined ? answers : answers[0], answers.map(statusText).join('\n'))
  }))
}

/** `varve restore`: the same, by another name, for who wants the disk and need not use it before it is whole. */
export function addRestoreCommand(program: Command): void {
  withStreamOptions(program.command('restore').argument('<cvd>', 'CVD or CVD@SNAPSHOT of the server'))
    .description('bring a CVD to a file or disk of this machine; with --stream it can be used meanwhile, as with varve agent stream')
    .option('--stream', 'serve the disk while it comes')
    .option('--nbd <address...>', `with --stream, where: HOST:PORT or unix:PATH (default: ${NBD_DEFAULT})`, [])
    .action(action((invocation, cvd: string, options: StreamOptions & { stream?: boolean }) => stream(invocation, cvd, { ...options, nbd: options.stream !== true ? [] : options.nbd.length > 0 ? options.nbd : [NBD_DEFAULT] })))
}

function withStreamOptions(command: Command): Command {
  return command
    .requiredOption('--to <path>', 'file or block device that becomes the disk')
    .option('--from <url>', 'the server: http://HOST:PORT or https://HOST:PORT; a target that was begun knows it')
    .option('--token <token>', 'makes this machine known to the server; needed once')
    .option('--identity <file>', 'where this machine keeps its key (default: in the state directory of the user)')
    .option('--ca <file>', 'PEM: who signs the certificate of the server')
    .option('--seed <path...>', 'directory, disk image or device of this machine that may hold parts of the disk', [])
    .option('--overwrite', 'give up what the target holds, unless it was begun for this CVD')
    .option('--restart', 'give up what the target holds, also what was begun for this CVD and written since')
    .addOption(new Option('--miss-ms <milliseconds>', 'how long a read waits for the server before it fails').argParser(milliseconds).default(MISS_MS_MAX))
    .addOption(new Option('--log-level <level>', 'how much is logged').choices(LOG_LEVELS).default('warn'))
}

async function stream(invocation: Invocation, cvd: string, options: StreamOptions): Promise<void> {
  const log = openLog(options.logLevel)
  using notifier = new Notifier(log)
  await using streaming = await open(cvd, options, invocation, log)
  await using _control = await listenForStatus(streaming, options.to, log)
  const { target, diskBytes, presentBytes } = streaming.status()
  const served = streaming.nbdAddresses
  const summary = `${cvd} comes to ${target}${served.length === 0 ? '' : `, served on ${served.join(', ')}`}`
  invocation.result({ cvd, target, nbd: served, diskBytes, presentBytes, pid: process.pid }, summary)
  notifier.ready(summary)
  await untilItCanGo(streaming, invocation)
  notifier.stopping('making everything durable')
}

function milliseconds(text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1 || value > MISS_MS_LONGEST) throw new InvalidArgumentError(`a whole number from 1 to ${MISS_MS_LONGEST}`)
  return value
}

async function open(cvd: string, options: StreamOptions, invocation: Invocation, log: Logger): Promise<Streaming> {
  const opened = await openTarget(cvd, options, invocation, log)
  return Streaming.start({ ...opened, cvd, nbd: options.nbd, missMsMax: options.missMs, seeds: options.seed, log })
}

async function openTarget(cvd: string, options: StreamOptions, invocation: Invocation, log: Logger): Promise<Pick<StreamingOptions, 'target' | 'fetcher' | 'objects'>> {
  const found = await targetToGoOnWith(cvd, options)
  if (found === undefined) {
    const { server, identity } = await identify(options, invocation)
    return beginTarget({ cvd, path: options.to, server, identity, overwrite: options.overwrite === true || options.restart === true, log, signal: invocation.signal })
  }
  try {
    const note = found.note as Partial<StreamNote>
    const address = serverOf(options, note)
    const identity = await identityOf(note, options, invocation)
    return { target: found, fetcher: new ChunkFetcher({ address, identity, disk: note.open ?? cvd, map: note.map, log }) }
  } catch (error) {
    await found[Symbol.asyncDispose]()
    throw error
  }
}

/** What was begun for the same CVD has what was written since, and is gone on with, whatever may be overwritten: a command that is repeated loses nothing. */
async function targetToGoOnWith(cvd: string, { to, overwrite, restart }: StreamOptions): Promise<Target | undefined> {
  if (restart) return undefined
  try {
    const found = await Target.open(to)
    if (found === undefined) return undefined
    if (found === 'complete') throw new VarveError('ALREADY_EXISTS', `${to} is complete: it is a plain disk, and needs no agent; --overwrite gives it up`)
    const { cvd: of } = found.note as Partial<StreamNote>
    if (of === undefined || of === cvd) return found
    await found[Symbol.asyncDispose]()
    throw new VarveError('TARGET_INVALID', `${to} was begun for ${of}; --overwrite gives up what it holds`)
  } catch (error) {
    if (overwrite && isVarveError(error, 'ALREADY_EXISTS', 'TARGET_INVALID', 'FORMAT_INVALID', 'FORMAT_UNSUPPORTED', 'LIMIT_EXCEEDED')) return undefined
    throw error
  }
}

/** A token that is given again, as on a command line that a machine boots with, was used up when the target was begun. */
async function identityOf({ agent, privateKey }: Partial<StreamNote>, options: StreamOptions, invocation: Invocation): Promise<AgentIdentity> {
  const noted = agent === undefined || privateKey === undefined ? undefined : { agent, privateKey: createPrivateKey(privateKey) }
  if (noted !== undefined && options.token === undefined) return noted
  try {
    return (await identify(options, invocation)).identity
  } catch (error) {
    if (noted !== undefined && isVarveError(error, 'TOKEN_INVALID', 'CONNECTION_LOST')) return noted
    throw error
  }
}

/** @throws VarveError ADDRESS_INVALID, CREDENTIALS_INVALID, TOKEN_INVALID */
function serverOf({ from, ca, token }: StreamOptions, note: Partial<StreamNote> = {}): ServerAddress {
  const text = from ?? note.url
  if (text === undefined) throw new VarveError('ADDRESS_INVALID', 'no server is known; name it with --from')
  const url = parseServerUrl(text)
  const fingerprint = (token === undefined ? undefined : fingerprintOf(token)) ?? (note.fingerprint === undefined ? undefined : Buffer.from(note.fingerprint, 'hex'))
  if (fingerprint !== undefined && url.protocol === 'http:') throw new VarveError('CREDENTIALS_INVALID', `${text} is not https, and the server was said to have a certificate`)
  return { url, ca: ca === undefined ? note.ca : readCertificates(ca), fingerprint }
}

function readCertificates(file: string): string {
  try {
    const pem = readFileSync(file, 'utf8')
    new X509Certificate(pem)
    return pem
  } catch (cause) {
    throw new VarveError('CREDENTIALS_INVALID', `${file} cannot be read as a certificate: ${(cause as Error).message}`, { cause })
  }
}

/** Who this machine is: as it was made known before, or is now by a token. */
async function identify(options: StreamOptions, { signal }: Invocation): Promise<{ server: ServerAddress; identity: AgentIdentity }> {
  const file = options.identity ?? path.join(process.env.XDG_STATE_HOME ?? path.join(os.homedir(), '.local/state'), 'varve/agent.json')
  const known = readIdentity(file)
  const server = serverOf(options, { fingerprint: known?.fingerprint })
  const ofServer = known?.url === server.url.href ? known : undefined
  if (options.token === undefined) {
    if (ofServer?.agent === undefined) throw new VarveError('TOKEN_INVALID', `this machine is not known to ${server.url.origin}; varve agent token on the server prints what --token takes`)
    return { server, identity: { agent: ofServer.agent, privateKey: createPrivateKey(ofServer.privateKey) } }
  }
  // The key is kept before it is used: a token is good for it alone.
  const privateKey = ofServer === undefined ? makeAgentKey() : createPrivateKey(ofServer.privateKey)
  const kept: KeptIdentity = { url: server.url.href, privateKey: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string, fingerprint: server.fingerprint?.toString('hex'), agent: ofServer?.agent }
  writeIdentity(file, kept)
  const agent = await enrol(server, { token: options.token, privateKey, name: os.hostname().replace(/[^A-Za-z0-9._-]/g, '-').replace(/^[^A-Za-z0-9]+/, '').slice(0, 100) || 'agent', signal })
  writeIdentity(file, { ...kept, agent })
  return { server, identity: { agent, privateKey } }
}

interface KeptIdentity {
  url: string
  privateKey: string
  fingerprint?: string
  /** Unless the server has not answered yet. */
  agent?: string
}

function readIdentity(file: string): KeptIdentity | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as KeptIdentity
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new VarveError('CREDENTIALS_INVALID', `the identity of this machine cannot be read from ${file}: ${(cause as Error).message}`, { cause })
  }
}

function writeIdentity(file: string, identity: KeptIdentity): void {
  mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 })
  writeFileSync(`${file}.new`, JSON.stringify(identity), { mode: 0o600, flush: true })
  renameSync(`${file}.new`, file)
}

/** Until the disk is complete, or cannot be, and nobody is connected, or the agent is told to end. @throws VarveError TARGET_FAILED */
async function untilItCanGo(streaming: Streaming, invocation: Invocation): Promise<void> {
  const { signal } = invocation
  const progress = await invocation.progress('streaming')
  const timer = setInterval(() => {
    const { diskBytes, lackingBytes, phase } = streaming.status()
    progress.update(diskBytes - lackingBytes, diskBytes, phase)
  }, PROGRESS_MS)
  try {
    const told = new Promise<void>((resolve) => {
      if (signal.aborted) resolve()
      signal.addEventListener('abort', () => resolve(), { once: true })
    })
    const status = await Promise.race([streaming.ended, told])
    // Also where the fill has failed: a guest that runs from what has come would lose all of it.
    while (!signal.aborted && (await streaming.connections()) > 0) await Promise.race([new Promise((resolve) => setTimeout(resolve, LET_GO_MS)), told])
    if (status?.phase === 'failed') throw new VarveError('TARGET_FAILED', status.error ?? 'the disk cannot be completed')
  } finally {
    clearInterval(timer)
    progress.stop()
  }
}

function statusText({ cvd, target, phase, error, diskBytes, presentBytes, etaSeconds, server }: StreamStatus): string {
  const eta = etaSeconds === null || etaSeconds === 0 ? '' : `, ${formatDuration(etaSeconds * 1000)} left`
  const line = server.connected ? `${formatBytes(server.lineBytesPerSecond)}/s` : `not connected: ${server.lastError ?? 'not yet'}`
  return `${cvd} -> ${target}: ${error ?? phase}, ${formatBytes(presentBytes)} of ${formatBytes(diskBytes)}${eta}, ${line}, ${server.misses} misses`
}

async function listenForStatus(streaming: Streaming, target: string, log: Logger): Promise<AsyncDisposable> {
  const socket = statusSocket(target)
  mkdirSync(path.dirname(socket), { recursive: true, mode: 0o700 })
  // Whoever has the target's lock may remove what a dead agent left.
  rmSync(socket, { force: true })
  const handler = {
    status: async () => ({ pid: process.pid, ...streaming.status() }),
    snapshot: () => { throw new VarveError('NOT_FOUND', 'an agent makes no snapshots') },
  }
  const server = await ControlServer.listen(socket, { handler, log })
  return {
    [Symbol.asyncDispose]: async () => {
      await server.close()
      rmSync(socket, { force: true })
    },
  }
}

function statusDirectory(): string {
  const user = process.getuid!()
  return process.env.XDG_RUNTIME_DIR === undefined ? (user === 0 ? '/run/varve-agent' : path.join(os.tmpdir(), `varve-agent-${user}`)) : path.join(process.env.XDG_RUNTIME_DIR, 'varve-agent')
}

function statusSocket(target: string): string {
  return path.join(statusDirectory(), `${digestToHex(digestOf(Buffer.from(realpathSync(target)))).slice(0, 16)}.sock`)
}

function statusSockets(): string[] {
  try {
    return readdirSync(statusDirectory()).filter((name) => name.endsWith('.sock')).map((name) => path.join(statusDirectory(), name))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}
