/**
 * The handshake phase: fixed newstyle negotiation, option after option, until one leads to the transmission phase.
 * Bytes: "Handshake" of the NBD specification. Nothing here is hot, so it reads as the specification does.
 */
import { isVarveError } from '@varve/images/errors.ts'
import { ExportElsewhere, type ExportProvider, type ServedExport } from './export.ts'
import type { HandshakeStream } from './handshake-stream.ts'
import { type NbdLimits, OPTIONS_MAX } from './limits.ts'
import { BASE_ALLOCATION, BASE_ALLOCATION_ID, listContexts, selectContexts } from './meta-context.ts'
import { OptionError, decodeString, parseInfo, parseMetaContext } from './option.ts'
import {
  CLIENT_FLAGS_BYTES, EXPORT_NAME_ZEROES_BYTES, GREETING_BYTES, IHAVEOPT, NBDMAGIC, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES, NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_INFO,
  NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_POLICY, NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN, NBD_REP_ERR_UNSUP, NBD_REP_INFO, NBD_REP_MAGIC, NBD_REP_META_CONTEXT, NBD_REP_SERVER, OPTION_HEADER_BYTES,
  OPTION_REPLY_HEADER_BYTES, readUint32, writeUint16, writeUint32, writeUint64,
} from './protocol.ts'
import { transmissionFlags } from './request.ts'

/** What the phase ends with, for the transmission phase. */
export interface Negotiated {
  served: ServedExport
  structured: boolean
  /** True if base:allocation was selected for this export. */
  allocation: boolean
}

export interface HandshakeOptions {
  provider: ExportProvider
  limits: NbdLimits
  /** True when the server is shutting down: options are answered by NBD_REP_ERR_SHUTDOWN. */
  stopping(): boolean
  /** An export could not be opened, for another reason than that there is none. */
  failed(error: unknown, name: string): void
}

/** How far negotiation has come when a connection goes to another thread. A value that threads can send. */
export interface HandshakeState {
  noZeroes: boolean
  structured: boolean
  allocationFor: string | undefined
  /** Bytes of the peer from the option on that asked for the export. */
  unread: Uint8Array
  /** Options, and milliseconds, that the peer may still take. */
  optionsLeft: number
  msLeft: number
}

/** The peer asked for an export that another thread has: the connection is to go there, and its negotiation goes on from `state`. */
export class HandshakeMoves extends Error {
  override name = 'HandshakeMoves'
  readonly thread: number
  /** Without what the stream holds, and the time. */
  readonly state: Omit<HandshakeState, 'msLeft'>

  constructor(thread: number, state: Omit<HandshakeState, 'msLeft'>) {
    super(`thread ${thread} has the export`)
    this.thread = thread
    this.state = state
  }
}

/** The peer broke the protocol, or asked for what cannot be answered by an error: the connection is to be closed. */
export class HandshakeBroken extends Error {
  override name = 'HandshakeBroken'
}

/** The preferred block size of the specification is at least this. */
const PREFERRED_BLOCK_BYTES_MIN = 512

/**
 * Negotiates with the peer.
 * @param resumed what another thread has negotiated with it
 * @returns undefined if the peer ended the session by NBD_OPT_ABORT
 * @throws HandshakeBroken, HandshakeMoves, and what the stream throws when it ends
 */
export async function handshake(stream: HandshakeStream, options: HandshakeOptions, resumed?: HandshakeState): Promise<Negotiated | undefined> {
  const haggling = new OptionHaggling(stream, options, resumed ?? { noZeroes: await greet(stream), structured: false, allocationFor: undefined })
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
async function greet(stream: HandshakeStream): Promise<boolean> {
  await stream.write(greeting())
  const flags = (await stream.read(CLIENT_FLAGS_BYTES)).readUInt32BE()
  if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) throw new HandshakeBroken(`unknown client flags ${flags}`)
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

class OptionHaggling {
  readonly #stream: HandshakeStream
  readonly #options: HandshakeOptions
  readonly #noZeroes: boolean
  #structured: boolean
  /** Name of the export for which base:allocation was selected last. */
  #allocationFor: string | undefined
  /** The export that was asked about last: it stays open, since the option that uses it most likely follows. */
  #opened: { name: string; served: ServedExport } | undefined

  constructor(stream: HandshakeStream, options: HandshakeOptions, { noZeroes, structured, allocationFor }: Pick<HandshakeState, 'noZeroes' | 'structured' | 'allocationFor'>) {
    this.#stream = stream
    this.#options = options
    this.#noZeroes = noZeroes
    this.#structured = structured
    this.#allocationFor = allocationFor
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
      await this.#stream.write(optionReply(option, NBD_REP_ERR_TOO_BIG, Buffer.from(`options have at most ${this.#options.limits.optionBytesMax} bytes here`)))
      return 'more'
    }
    const data = await this.#stream.read(length)
    try {
      return await (option === NBD_OPT_EXPORT_NAME ? this.#exportName(data) : this.#answer(option, data))
    } catch (error) {
      if (error instanceof ExportElsewhere) {
        const state = { noZeroes: this.#noZeroes, structured: this.#structured, allocationFor: this.#allocationFor }
        throw new HandshakeMoves(error.thread, { ...state, unread: Buffer.concat([header, data]), optionsLeft })
      }
      if (!(error instanceof OptionError)) throw error
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
    switch (option) {
      case NBD_OPT_LIST: return this.#list(data)
      case NBD_OPT_INFO: return this.#info(option, data)
      case NBD_OPT_GO: return this.#info(option, data)
      case NBD_OPT_STRUCTURED_REPLY: return this.#structuredReply(data)
      case NBD_OPT_LIST_META_CONTEXT: return this.#listMetaContext(data)
      case NBD_OPT_SET_META_CONTEXT: return this.#setMetaContext(data)
      default: throw new OptionError(NBD_REP_ERR_UNSUP, `option ${option} is not known here`)
    }
  }

  async #exportName(data: Buffer): Promise<Negotiated> {
    if (this.#options.stopping()) throw new HandshakeBroken('the server is shutting down')
    const name = await this.#orBroken(() => decodeString(data))
    const served = await this.#orBroken(() => this.#open(name))
    const reply = Buffer.alloc(10 + (this.#noZeroes ? 0 : EXPORT_NAME_ZEROES_BYTES))
    writeUint64(reply, 0, served.device.sizeBytes)
    writeUint16(reply, 8, transmissionFlags(served.device, this.#structured))
    return this.#enter(name, served, reply)
  }

  /** This option has no way to answer an error. */
  async #orBroken<T>(step: () => T | Promise<T>): Promise<T> {
    try {
      return await step()
    } catch (cause) {
      throw cause instanceof OptionError ? new HandshakeBroken(cause.message, { cause }) : cause
    }
  }

  async #list(data: Buffer): Promise<Outcome> {
    withoutData(data)
    const replies: Buffer[] = []
    for (const { name, description } of await this.#options.provider.list()) {
      const nameBytes = Buffer.from(name)
      replies.push(optionReply(NBD_OPT_LIST, NBD_REP_SERVER, Buffer.concat([uint32(nameBytes.length), nameBytes, Buffer.from(description)])))
    }
    replies.push(optionReply(NBD_OPT_LIST, NBD_REP_ACK))
    await this.#stream.write(Buffer.concat(replies))
    return 'more'
  }

  async #info(option: number, data: Buffer): Promise<Outcome> {
    const { name, requests } = parseInfo(data)
    const served = await this.#open(name)
    const reply = this.#infoReplies(option, served, requests)
    if (option === NBD_OPT_GO) return this.#enter(name, served, reply)
    await this.#stream.write(reply)
    return 'more'
  }

  #infoReplies(option: number, { name, description, device }: ServedExport, requests: readonly number[]): Buffer {
    const info = Buffer.alloc(12)
    writeUint16(info, 0, NBD_INFO_EXPORT)
    writeUint64(info, 2, device.sizeBytes)
    writeUint16(info, 10, transmissionFlags(device, this.#structured))
    const replies = [optionReply(option, NBD_REP_INFO, info)]
    if (requests.includes(NBD_INFO_NAME)) replies.push(optionReply(option, NBD_REP_INFO, Buffer.concat([uint16(NBD_INFO_NAME), Buffer.from(name)])))
    if (requests.includes(NBD_INFO_DESCRIPTION)) replies.push(optionReply(option, NBD_REP_INFO, Buffer.concat([uint16(NBD_INFO_DESCRIPTION), Buffer.from(description)])))
    if (requests.includes(NBD_INFO_BLOCK_SIZE)) {
      const { requestBytesMax } = this.#options.limits
      const sizes = Buffer.alloc(14)
      writeUint16(sizes, 0, NBD_INFO_BLOCK_SIZE)
      writeUint32(sizes, 2, 1)
      writeUint32(sizes, 6, Math.min(Math.max(device.blockBytes, PREFERRED_BLOCK_BYTES_MIN), requestBytesMax))
      writeUint32(sizes, 10, requestBytesMax)
      replies.push(optionReply(option, NBD_REP_INFO, sizes))
    }
    replies.push(optionReply(option, NBD_REP_ACK))
    return Buffer.concat(replies)
  }

  /** Sends the last reply of the phase. */
  async #enter(name: string, served: ServedExport, reply: Buffer): Promise<Negotiated> {
    await this.#stream.write(reply)
    this.#opened = undefined
    return { served, structured: this.#structured, allocation: this.#structured && this.#allocationFor === name }
  }

  async #structuredReply(data: Buffer): Promise<Outcome> {
    withoutData(data)
    this.#structured = true
    await this.#stream.write(optionReply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK))
    return 'more'
  }

  async #listMetaContext(data: Buffer): Promise<Outcome> {
    const { name, queries } = parseMetaContext(data)
    if (!this.#structured) throw new OptionError(NBD_REP_ERR_INVALID, 'structured replies come first')
    await this.#open(name)
    await this.#writeContexts(NBD_OPT_LIST_META_CONTEXT, listContexts(queries), 0)
    return 'more'
  }

  async #setMetaContext(data: Buffer): Promise<Outcome> {
    this.#allocationFor = undefined
    const { name, queries } = parseMetaContext(data)
    if (!this.#structured) throw new OptionError(NBD_REP_ERR_INVALID, 'structured replies come first')
    await this.#open(name)
    const contexts = selectContexts(queries)
    if (contexts.includes(BASE_ALLOCATION)) this.#allocationFor = name
    await this.#writeContexts(NBD_OPT_SET_META_CONTEXT, contexts, BASE_ALLOCATION_ID)
    return 'more'
  }

  #writeContexts(option: number, names: readonly string[], id: number): Promise<void> {
    const replies = names.map((name) => optionReply(option, NBD_REP_META_CONTEXT, Buffer.concat([uint32(id), Buffer.from(name)])))
    return this.#stream.write(Buffer.concat([...replies, optionReply(option, NBD_REP_ACK)]))
  }

  async #open(name: string): Promise<ServedExport> {
    if (this.#opened?.name === name) return this.#opened.served
    await this.release()
    try {
      const served = await this.#options.provider.open(name)
      this.#opened = { name, served }
      return served
    } catch (error) {
      if (error instanceof ExportElsewhere) throw error
      if (isVarveError(error, 'EXPORT_NOT_FOUND', 'NOT_FOUND', 'NAME_INVALID')) throw new OptionError(NBD_REP_ERR_UNKNOWN, `there is no export '${name.slice(0, 256)}'`)
      // What can be mended elsewhere, and is no secret: which CVD another server has.
      if (isVarveError(error, 'STORE_LOCKED')) throw new OptionError(NBD_REP_ERR_POLICY, error.message)
      this.#options.failed(error, name)
      throw new OptionError(NBD_REP_ERR_UNKNOWN, 'the export cannot be opened; the log of the server says why')
    }
  }
}

function withoutData(data: Buffer): void {
  if (data.length > 0) throw new OptionError(NBD_REP_ERR_INVALID, 'this option has no data')
}

function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(OPTION_REPLY_HEADER_BYTES)
  writeUint32(header, 0, NBD_REP_MAGIC[0])
  writeUint32(header, 4, NBD_REP_MAGIC[1])
  writeUint32(header, 8, option)
  writeUint32(header, 12, type)
  writeUint32(header, 16, data.length)
  return Buffer.concat([header, data])
}

function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  writeUint16(bytes, 0, value)
  return bytes
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  writeUint32(bytes, 0, value)
  return bytes
}
