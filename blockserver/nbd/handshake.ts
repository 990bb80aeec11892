/**
 * The handshake phase: fixed newstyle negotiation, option after option, until one leads to the transmission phase.
 * Bytes: "Handshake" of the NBD specification. Nothing here is hot, so it reads as the specification does.
 */
import { VarveError, isVarveError } from '@varve/images/errors.ts'
import type { Allowance } from './access.ts'
import { type Destination, Elsewhere, type ExportProvider, type ServedExport } from './export.ts'
import type { HandshakeStream } from './handshake-stream.ts'
import { type NbdLimits, OPTIONS_MAX } from './limits.ts'
import { type SelectedContext, listedContexts, offeredContexts, selectedContexts } from './meta-context.ts'
import { OptionError, decodeString, parseInfo, parseMetaContext } from './option.ts'
import { blockSizeReply, infoReplies, metaContextReply, optionReply, serverReply } from './option-reply.ts'
import {
  CLIENT_FLAGS_BYTES, EXPORT_NAME_ZEROES_BYTES, type Framing, GREETING_BYTES, IHAVEOPT, NBDMAGIC, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES, NBD_INFO_BLOCK_SIZE, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_EXTENDED_HEADERS, NBD_OPT_GO, NBD_OPT_INFO,
  NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_EXT_HEADER_REQD, NBD_REP_ERR_INVALID, NBD_REP_ERR_POLICY, NBD_REP_ERR_SHUTDOWN, NBD_REP_ERR_TLS_REQD, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP, OPTION_HEADER_BYTES, readUint32, writeUint16, writeUint32, writeUint64,
} from './protocol.ts'
import { transmissionFlags } from './request.ts'

/** What the phase ends with, for the transmission phase. */
export interface Negotiated {
  served: ServedExport
  /** True if this client may not write. */
  readOnly: boolean
  framing: Framing
  /** Metadata contexts that were selected for this export. */
  contexts: SelectedContext[]
}

export interface HandshakeOptions {
  provider: ExportProvider
  limits: NbdLimits
  /** True when the server is shutting down: options are answered by NBD_REP_ERR_SHUTDOWN. */
  stopping(): boolean
  /** An export could not be opened, for another reason than that there is none. */
  failed(error: unknown, name: string): void
  /** What the empty name stands for; unless given, the provider says. */
  defaultExport?: string
  /** What this client may do with the export of a canonical name. */
  access(name: string): Allowance
  tls: TlsNegotiation
}

/** TLS as far as the handshake knows it. */
export interface TlsNegotiation {
  /** `off`: there is none. `optional`: the client chooses. `required`: nothing goes without. */
  readonly mode: 'off' | 'optional' | 'required'
  /** True if what a client may see depends on who it is by TLS: then one without TLS is not told whether an export exists. */
  readonly reveals: boolean
  /** True once bytes go by TLS. */
  active(): boolean
  /** True where it does not begin: the connection goes to another thread for it. */
  readonly elsewhere: boolean
  /** All bytes from here on, both ways, go by TLS. Completes when the peer is known. @throws whatever kept TLS from being agreed on */
  start(): Promise<void>
}

/** Metadata contexts that were selected last. */
export interface SelectedNames {
  /** As the client names it. */
  exportName: string
  contexts: string[]
}

/** How far negotiation has come when a connection goes to another thread. A value that threads can send. */
export interface HandshakeState {
  noZeroes: boolean
  framing: Framing
  selected: SelectedNames | undefined
  /** Bytes of the peer from the option on that another thread is to answer. */
  unread: Uint8Array
  /** Options, and milliseconds, that the peer may still take. */
  optionsLeft: number
  msLeft: number
}

/** The peer asked for what another thread has: the connection is to go there, and its negotiation goes on from `state`. */
export class HandshakeMoves extends Error {
  override name = 'HandshakeMoves'
  readonly to: Destination
  /** Without what the stream holds, and the time. */
  readonly state: Omit<HandshakeState, 'msLeft'>

  constructor({ to, message }: Elsewhere, state: Omit<HandshakeState, 'msLeft'>) {
    super(message)
    this.to = to
    this.state = state
  }
}

/** The peer broke the protocol, or asked for what cannot be answered by an error: the connection is to be closed. */
export class HandshakeBroken extends Error {
  override name = 'HandshakeBroken'
}

/**
 * Negotiates with the peer.
 * @param resumed what another thread has negotiated with it
 * @returns undefined if the peer ended the session by NBD_OPT_ABORT
 * @throws HandshakeBroken, HandshakeMoves, and what the stream throws when it ends
 */
export async function handshake(stream: HandshakeStream, options: HandshakeOptions, resumed?: HandshakeState): Promise<Negotiated | undefined> {
  const haggling = new OptionHaggling(stream, options, resumed ?? { noZeroes: await greet(stream, options.tls), framing: 'simple', selected: undefined })
  if (resumed !== undefined) stream.receive(Buffer.from(resumed.unread))
  try {
    for (let left = resumed?.optionsLeft ?? OPTIONS_MAX; left > 0; left--) {
      const result = await haggling.next(left)
      if (result !== 'more') return result
    }
    throw new HandshakeBroken(`more than ${OPTIONS_MAX} options`)
  } finally {
    await haggling.release()
  }
}

/** @returns whether the peer wants no zeroes after the reply to NBD_OPT_EXPORT_NAME */
async function greet(stream: HandshakeStream, tls: TlsNegotiation): Promise<boolean> {
  await stream.write(greeting())
  const flags = (await stream.read(CLIENT_FLAGS_BYTES)).readUInt32BE()
  if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) throw new HandshakeBroken(`unknown client flags ${flags}`)
  if (tls.mode === 'required' && (flags & NBD_FLAG_C_FIXED_NEWSTYLE) === 0) throw new HandshakeBroken('TLS is required, and the client has no way to ask for it')
  return (flags & NBD_FLAG_C_NO_ZEROES) !== 0
}

function greeting(): Buffer {
  const bytes = Buffer.alloc(GREETING_BYTES)
  writeUint32(bytes, 0, NBDMAGIC[0])
  writeUint32(bytes, 4, NBDMAGIC[1])
  writeUint32(bytes, 8, IHAVEOPT[0])
  writeUint32(bytes, 12, IHAVEOPT[1])
  writeUint16(bytes, 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)
  return bytes
}

type Outcome = 'more' | Negotiated | undefined

interface OpenedExport {
  /** As the client named it. */
  name: string
  served: ServedExport
  readOnly: boolean
}

class OptionHaggling {
  readonly #stream: HandshakeStream
  readonly #options: HandshakeOptions
  readonly #noZeroes: boolean
  #framing: Framing
  #selected: SelectedNames | undefined
  /** The export that was asked about last: it stays open, since the option that uses it most likely follows. */
  #opened: OpenedExport | undefined

  constructor(stream: HandshakeStream, options: HandshakeOptions, { noZeroes, framing, selected }: Pick<HandshakeState, 'noZeroes' | 'framing' | 'selected'>) {
    this.#stream = stream
    this.#options = options
    this.#noZeroes = noZeroes
    this.#framing = framing
    this.#selected = selected
  }

  /** Lets go of the export that is open, unless the transmission phase has it. */
  async release(): Promise<void> {
    const opened = this.#opened
    this.#opened = undefined
    await opened?.served.release()
  }

  /** Reads and answers an option. @param optionsLeft with this one */
  async next(optionsLeft: number): Promise<Outcome> {
    const header = await this.#stream.read(OPTION_HEADER_BYTES)
    if (readUint32(header, 0) !== IHAVEOPT[0] || readUint32(header, 4) !== IHAVEOPT[1]) throw new HandshakeBroken('an option does not begin with its magic number')
    const option = readUint32(header, 8)
    const length = readUint32(header, 12)
    if (length > this.#options.limits.optionBytesMax) {
      if (option === NBD_OPT_EXPORT_NAME) throw new HandshakeBroken('the name of an export is too long')
      await this.#stream.skip(length)
      const reply = this.#tlsIsMissing() ? NBD_REP_ERR_TLS_REQD : NBD_REP_ERR_TOO_BIG
      await this.#stream.write(optionReply(option, reply, Buffer.from(`options have at most ${this.#options.limits.optionBytesMax} bytes here`)))
      return 'more'
    }
    const data = await this.#stream.read(length)
    try {
      return await (option === NBD_OPT_EXPORT_NAME ? this.#exportName(data) : this.#answer(option, data))
    } catch (error) {
      if (error instanceof Elsewhere) {
        const state = { noZeroes: this.#noZeroes, framing: this.#framing, selected: this.#selected }
        throw new HandshakeMoves(error, { ...state, unread: Buffer.concat([header, data]), optionsLeft })
      }
      if (!(error instanceof OptionError)) throw error
      // This option has no way to answer an error.
      if (option === NBD_OPT_EXPORT_NAME) throw new HandshakeBroken(error.message, { cause: error })
      await this.#stream.write(optionReply(option, error.reply, Buffer.from(error.message)))
      return 'more'
    }
  }

  async #answer(option: number, data: Buffer): Promise<Outcome> {
    if (option === NBD_OPT_ABORT) {
      await this.#stream.write(optionReply(option, NBD_REP_ACK))
      return undefined
    }
    if (this.#options.stopping()) throw new OptionError(NBD_REP_ERR_SHUTDOWN, 'the server is shutting down')
    if (option === NBD_OPT_STARTTLS) return this.#startTls(data)
    if (this.#tlsIsMissing()) throw new OptionError(NBD_REP_ERR_TLS_REQD, 'this server speaks TLS only')
    switch (option) {
      case NBD_OPT_LIST: return this.#list(data)
      case NBD_OPT_INFO: return this.#info(option, data)
      case NBD_OPT_GO: return this.#info(option, data)
      case NBD_OPT_STRUCTURED_REPLY: return this.#structuredReply(data)
      case NBD_OPT_EXTENDED_HEADERS: return this.#extendedHeaders(data)
      case NBD_OPT_LIST_META_CONTEXT: return this.#listMetaContext(data)
      case NBD_OPT_SET_META_CONTEXT: return this.#setMetaContext(data)
      default: throw new OptionError(NBD_REP_ERR_UNSUP, `option ${option} is not known here`)
    }
  }

  #tlsIsMissing(): boolean {
    const { tls } = this.#options
    return tls.mode === 'required' && !tls.active()
  }

  /** After the ACK there is no way back. What a client said before counts for nothing: someone in between may have said it. */
  async #startTls(data: Buffer): Promise<Outcome> {
    const { tls } = this.#options
    withoutData(data)
    if (tls.active()) throw new OptionError(NBD_REP_ERR_INVALID, 'TLS is active already')
    if (tls.mode === 'off') throw new OptionError(NBD_REP_ERR_POLICY, 'this server speaks no TLS')
    if (this.#stream.hasWaiting) throw new HandshakeBroken('bytes follow STARTTLS that are not TLS')
    if (tls.elsewhere) throw new Elsewhere({})
    await this.#stream.write(optionReply(NBD_OPT_STARTTLS, NBD_REP_ACK))
    this.#framing = 'simple'
    this.#selected = undefined
    await this.release()
    await tls.start()
    return 'more'
  }

  async #exportName(data: Buffer): Promise<Negotiated> {
    if (this.#options.stopping()) throw new OptionError(NBD_REP_ERR_SHUTDOWN, 'the server is shutting down')
    if (this.#tlsIsMissing()) throw new OptionError(NBD_REP_ERR_TLS_REQD, 'this server speaks TLS only')
    if (this.#framing === 'extended') throw new OptionError(NBD_REP_ERR_EXT_HEADER_REQD, 'after extended headers only NBD_OPT_GO leads on')
    const opened = await this.#open(decodeString(data))
    if (needsBlockSize(opened.served)) throw new OptionError(NBD_REP_ERR_BLOCK_SIZE_REQD, 'the client cannot know the block size of this export')
    const reply = Buffer.alloc(10 + (this.#noZeroes ? 0 : EXPORT_NAME_ZEROES_BYTES))
    writeUint64(reply, 0, opened.served.device.sizeBytes)
    writeUint16(reply, 8, this.#flags(opened))
    return this.#enter(opened, reply)
  }

  async #list(data: Buffer): Promise<Outcome> {
    withoutData(data)
    const shown = (await this.#options.provider.list()).filter(({ name }) => this.#options.access(name) !== 'deny')
    await this.#stream.write(Buffer.concat([...shown.map((about) => serverReply(NBD_OPT_LIST, about)), optionReply(NBD_OPT_LIST, NBD_REP_ACK)]))
    return 'more'
  }

  async #info(option: number, data: Buffer): Promise<Outcome> {
    const { name, requests } = parseInfo(data)
    const opened = await this.#open(name)
    const { requestBytesMax } = this.#options.limits
    if (needsBlockSize(opened.served) && !requests.includes(NBD_INFO_BLOCK_SIZE)) {
      await this.#stream.write(blockSizeReply(option, opened.served, requestBytesMax))
      throw new OptionError(NBD_REP_ERR_BLOCK_SIZE_REQD, `ask for the block size: requests to this export are multiples of ${opened.served.minimumBlockBytes} bytes`)
    }
    const replies = infoReplies(option, opened.served, { flags: this.#flags(opened), requests, requestBytesMax })
    const reply = Buffer.concat([...replies, optionReply(option, NBD_REP_ACK)])
    if (option === NBD_OPT_GO) return this.#enter(opened, reply)
    await this.#stream.write(reply)
    return 'more'
  }

  /** Sends the last reply of the phase. */
  async #enter(opened: OpenedExport, reply: Buffer): Promise<Negotiated> {
    await this.#stream.write(reply)
    this.#opened = undefined
    const { served, readOnly } = opened
    return { served, readOnly, framing: this.#framing, contexts: this.#contexts(opened) }
  }

  /** What was selected for this export, by name: the device may have been closed and opened again since. */
  #contexts({ name, served }: OpenedExport): SelectedContext[] {
    if (this.#framing === 'simple' || this.#selected?.exportName !== name) return []
    return selectedContexts(offeredContexts(served), this.#selected.contexts)
  }

  #flags(opened: OpenedExport): number {
    return transmissionFlags({ readOnly: opened.readOnly, framing: this.#framing, contextCount: this.#contexts(opened).length })
  }

  async #structuredReply(data: Buffer): Promise<Outcome> {
    withoutData(data)
    if (this.#framing === 'extended') throw new OptionError(NBD_REP_ERR_EXT_HEADER_REQD, 'extended headers are agreed on already')
    this.#framing = 'structured'
    await this.#stream.write(optionReply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK))
    return 'more'
  }

  async #extendedHeaders(data: Buffer): Promise<Outcome> {
    withoutData(data)
    this.#framing = 'extended'
    await this.#stream.write(optionReply(NBD_OPT_EXTENDED_HEADERS, NBD_REP_ACK))
    return 'more'
  }

  async #listMetaContext(data: Buffer): Promise<Outcome> {
    const { offered, queries } = await this.#parseMetaContext(data)
    const replies = listedContexts(offered, queries).map(({ name }) => metaContextReply(NBD_OPT_LIST_META_CONTEXT, { id: 0, name }))
    await this.#stream.write(Buffer.concat([...replies, optionReply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK)]))
    return 'more'
  }

  async #setMetaContext(data: Buffer): Promise<Outcome> {
    this.#selected = undefined
    const { exportName, offered, queries } = await this.#parseMetaContext(data)
    const selected = selectedContexts(offered, queries)
    this.#selected = { exportName, contexts: selected.map(({ name }) => name) }
    const replies = selected.map((context) => metaContextReply(NBD_OPT_SET_META_CONTEXT, context))
    await this.#stream.write(Buffer.concat([...replies, optionReply(NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK)]))
    return 'more'
  }

  async #parseMetaContext(data: Buffer): Promise<{ exportName: string; offered: SelectedContext[]; queries: string[] }> {
    const { name, queries } = parseMetaContext(data)
    if (this.#framing === 'simple') throw new OptionError(NBD_REP_ERR_INVALID, 'structured replies or extended headers come first')
    const { served } = await this.#open(name)
    return { exportName: name, offered: offeredContexts(served), queries }
  }

  async #open(name: string): Promise<OpenedExport> {
    if (this.#opened?.name === name) return this.#opened
    await this.release()
    const { provider, defaultExport = '' } = this.#options
    try {
      const canonical = await provider.canonicalName(name === '' ? defaultExport : name)
      const allowance = this.#options.access(canonical)
      if (allowance === 'deny') throw new VarveError('EXPORT_NOT_FOUND', 'this client may not know of it')
      const served = await provider.open(canonical)
      this.#opened = { name, served, readOnly: served.device.readOnly || allowance === 'read-only' }
      return this.#opened
    } catch (error) {
      if (error instanceof Elsewhere) throw error
      if (isVarveError(error, 'EXPORT_NOT_FOUND', 'NOT_FOUND', 'NAME_INVALID')) throw this.#notFound(name)
      // What can be mended elsewhere, and is no secret: which CVD another server has.
      if (isVarveError(error, 'STORE_LOCKED')) throw new OptionError(NBD_REP_ERR_POLICY, error.message)
      this.#options.failed(error, name)
      throw new OptionError(NBD_REP_ERR_UNKNOWN, 'the export cannot be opened; the log of the server says why')
    }
  }

  /** The same for what does not exist and for what this client may not know of. */
  #notFound(name: string): OptionError {
    const { tls } = this.#options
    if (tls.reveals && tls.mode === 'optional' && !tls.active()) return new OptionError(NBD_REP_ERR_TLS_REQD, `there is no export '${name.slice(0, 256)}', or it is served by TLS only`)
    return new OptionError(NBD_REP_ERR_UNKNOWN, `there is no export '${name.slice(0, 256)}'`)
  }
}

function needsBlockSize({ minimumBlockBytes = 1 }: ServedExport): boolean {
  return minimumBlockBytes > 1
}

function withoutData(data: Buffer): void {
  if (data.length > 0) throw new OptionError(NBD_REP_ERR_INVALID, 'this option has no data')
}
