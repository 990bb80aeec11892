/**
 * NBD client: one connection to one export, requests pipelined. NbdPool is several, which come back when they are lost.
 * Speaks extended headers, structured replies and metadata contexts where the server does. Trusts no length that the server sends.
 */
import { VarveError } from '@varve/images/errors.ts'
import { type BlockSizes, type ClientNegotiated, type NegotiationOptions, abort, listExports, negotiate } from './client-handshake.ts'
import { ClientStream, type ClientTls, type StreamOptions } from './client-stream.ts'
import type { StatusRun } from './export.ts'
import { BASE_ALLOCATION } from './meta-context.ts'
import {
  EXTENDED_HEADER_BYTES, type Framing, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES,
  NBD_ESHUTDOWN, NBD_EXTENDED_REPLY_MAGIC, NBD_EXTENDED_REQUEST_MAGIC, NBD_FLAG_BLOCK_STATUS_PAYLOAD, NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_READ_ONLY,
  NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, NBD_REPLY_TYPE_ERROR_BIT, NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, SIMPLE_REPLY_BYTES,
  STRUCTURED_HEADER_BYTES, errorName, readUint32, readUint64, requestHeaderBytes, writeUint16, writeUint32, writeUint64,
} from './protocol.ts'

/** Payload of one reply that is accepted besides data of a read: block status of 2^20 extents, or an error with its message. */
const CONTROL_BYTES_MAX = 8 + 16 * 2 ** 20
/** Length of a request without extended headers. */
const COMPACT_LENGTH_MAX = 0xffff_ffff
const READ_BYTES_MAX = 32 * 1024 * 1024

export type ConnectOptions = NegotiationOptions & StreamOptions

export interface WriteRequestOptions {
  fua?: boolean
}

export interface WriteZeroesRequestOptions extends WriteRequestOptions {
  noHole?: boolean
  fast?: boolean
}

export interface StatusRequestOptions {
  /** A single extent of each context. */
  one?: boolean
  /** Some of the contexts that were selected; all unless given. */
  contexts?: readonly string[]
}

/** The server answered a request by an error; the connection lives on. */
export class NbdRequestError extends Error {
  /** NBD_E... */
  readonly errno: number

  constructor(errno: number, request: string, message: string) {
    super(`${request}: ${errorName(errno)}${message === '' ? '' : ` (${message})`}`)
    this.name = 'NbdRequestError'
    this.errno = errno
  }
}

interface Request {
  type: number
  flags: number
  offset: number
  length: number
  payload?: Uint8Array
}

interface PendingRequest extends Request {
  /** Of NBD_CMD_READ: filled by the reply. */
  data: Buffer | undefined
  /** Bytes of `data` that have come. */
  coveredBytes: number
  /** Of NBD_CMD_BLOCK_STATUS. */
  statuses: Map<string, StatusRun[]>
  error: NbdRequestError | undefined
  resolve: (request: PendingRequest) => void
  reject: (error: Error) => void
}

export class NbdClient implements AsyncDisposable {
  readonly sizeBytes: number
  /** Transmission flags. */
  readonly flags: number
  readonly framing: Framing
  /** Metadata contexts that were selected. */
  readonly contexts: readonly string[]
  /** If the server tells. */
  readonly blockSizes: BlockSizes | undefined
  readonly #stream: ClientStream
  readonly #contextIds: ReadonlyMap<number, string>
  readonly #pending = new Map<number, PendingRequest>()
  #cookie = 0
  #ended: Error | undefined

  /** @throws VarveError ADDRESS_INVALID, EXPORT_NOT_FOUND, CREDENTIALS_INVALID, PROTOCOL_INVALID, CONNECTION_LOST, or what the socket throws */
  static async connect(address: string, options: ConnectOptions = {}): Promise<NbdClient> {
    const stream = await ClientStream.connect(address, options)
    try {
      return new NbdClient(stream, await negotiate(stream, options))
    } catch (error) {
      abort(stream)
      stream.destroy()
      throw error
    } finally {
      stream.connected()
    }
  }

  /** Names and descriptions of the exports of a server. @throws as `connect` */
  static async list(address: string, { tls, ...options }: StreamOptions & { tls?: ClientTls } = {}): Promise<{ name: string; description: string }[]> {
    const stream = await ClientStream.connect(address, options)
    try {
      return await listExports(stream, tls)
    } finally {
      stream.connected()
      stream.destroy()
    }
  }

  private constructor(stream: ClientStream, { sizeBytes, flags, framing, contexts, blockSizes }: ClientNegotiated) {
    this.#stream = stream
    this.sizeBytes = sizeBytes
    this.flags = flags
    this.framing = framing
    this.contexts = [...contexts.values()]
    this.#contextIds = contexts
    this.blockSizes = blockSizes
    this.#receive().catch((error: Error) => this.#fail(error))
  }

  get readOnly(): boolean {
    return (this.flags & NBD_FLAG_READ_ONLY) !== 0
  }

  get canMultiConnect(): boolean {
    return (this.flags & NBD_FLAG_CAN_MULTI_CONN) !== 0
  }

  /** Why no request can be made any more. */
  get ended(): Error | undefined {
    return this.#ended
  }

  /** @param options.whole asks the server not to split the reply @throws NbdRequestError */
  async read(offset: number, length: number, options: { whole?: boolean } = {}): Promise<Buffer> {
    const request = await this.#request({ type: NBD_CMD_READ, flags: options.whole === true ? NBD_CMD_FLAG_DF : 0, offset, length })
    return request.data ?? Buffer.alloc(0)
  }

  /** @throws NbdRequestError */
  async write(bytes: Uint8Array, offset: number, options: WriteRequestOptions = {}): Promise<void> {
    const payloadFlag = this.framing === 'extended' ? NBD_CMD_FLAG_PAYLOAD_LEN : 0
    await this.#request({ type: NBD_CMD_WRITE, flags: fuaFlag(options) | payloadFlag, offset, length: bytes.length, payload: bytes })
  }

  async flush(): Promise<void> {
    await this.#request({ type: NBD_CMD_FLUSH, flags: 0, offset: 0, length: 0 })
  }

  async trim(offset: number, length: number, options: WriteRequestOptions = {}): Promise<void> {
    await this.#request({ type: NBD_CMD_TRIM, flags: fuaFlag(options), offset, length })
  }

  async writeZeroes(offset: number, length: number, options: WriteZeroesRequestOptions = {}): Promise<void> {
    const flags = fuaFlag(options) | (options.noHole === true ? NBD_CMD_FLAG_NO_HOLE : 0) | (options.fast === true ? NBD_CMD_FLAG_FAST_ZERO : 0)
    await this.#request({ type: NBD_CMD_WRITE_ZEROES, flags, offset, length })
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.#request({ type: NBD_CMD_CACHE, flags: 0, offset, length })
  }

  /** Extents of each context from `offset` on; they may end before the range does, or behind it. @throws NbdRequestError */
  async blockStatus(offset: number, length: number, { one = false, contexts = this.contexts }: StatusRequestOptions = {}): Promise<Map<string, StatusRun[]>> {
    const flags = one ? NBD_CMD_FLAG_REQ_ONE : 0
    const ids = [...this.#contextIds].filter(([, name]) => contexts.includes(name)).map(([id]) => id)
    const filters = ids.length < this.#contextIds.size && (this.flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD) !== 0
    const { statuses } = await this.#request(filters ? filteredStatus({ type: NBD_CMD_BLOCK_STATUS, flags, offset, length }, ids) : { type: NBD_CMD_BLOCK_STATUS, flags, offset, length })
    if ([...statuses.keys()].length < (filters ? ids : this.contexts).length) throw invalid('the server leaves out the status of a metadata context')
    return new Map([...statuses].filter(([name]) => contexts.includes(name)))
  }

  /** Extents of `base:allocation`. */
  async allocation(offset: number, length: number, options: { one?: boolean } = {}): Promise<StatusRun[]> {
    return (await this.blockStatus(offset, length, { ...options, contexts: [BASE_ALLOCATION] })).get(BASE_ALLOCATION) ?? []
  }

  /** Says good-bye; what is in flight is still answered. */
  async disconnect(): Promise<void> {
    if (this.#ended !== undefined) return
    await Promise.allSettled([...this.#pending.values()].map((request) => new Promise<void>((resolve) => chain(request, resolve))))
    await this.#leave(lost('the connection was closed by this side'))
  }

  /** Closes at once; requests in flight fail. */
  destroy(): void {
    this.#stream.destroy()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.disconnect()
  }

  #request(request: Request): Promise<PendingRequest> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended)
    if (this.framing !== 'extended' && request.length > COMPACT_LENGTH_MAX) return Promise.reject(new RangeError(`a request of ${request.length} bytes needs extended headers`))
    const cookie = this.#cookie
    this.#cookie = (cookie + 1) % 2 ** 32
    return new Promise((resolve, reject) => {
      const { type, length, payload } = request
      const data = type === NBD_CMD_READ && length <= READ_BYTES_MAX ? Buffer.allocUnsafeSlow(length) : undefined
      this.#pending.set(cookie, { ...request, data, coveredBytes: 0, statuses: new Map(), error: undefined, resolve, reject })
      const header = requestBytes(this.framing, request, cookie)
      this.#stream.write(payload === undefined ? [header] : [header, payload])
    })
  }

  async #receive(): Promise<void> {
    for (;;) {
      const magic = readUint32(await this.#stream.read(4), 0)
      if (this.framing === 'extended') {
        if (magic !== NBD_EXTENDED_REPLY_MAGIC) throw invalid('a reply does not begin with the magic number of extended headers')
        await this.#chunk(EXTENDED_HEADER_BYTES)
      } else if (magic === NBD_SIMPLE_REPLY_MAGIC) await this.#simpleReply()
      else if (magic === NBD_STRUCTURED_REPLY_MAGIC && this.framing === 'structured') await this.#chunk(STRUCTURED_HEADER_BYTES)
      else throw invalid('a reply does not begin with its magic number')
    }
  }

  async #simpleReply(): Promise<void> {
    const header = await this.#stream.read(SIMPLE_REPLY_BYTES - 4)
    const { cookie, request } = this.#find(header, 4)
    const errno = readUint32(header, 0)
    if (this.framing === 'structured' && (request.type === NBD_CMD_READ || (request.type === NBD_CMD_BLOCK_STATUS && errno === 0))) {
      throw invalid('a simple reply to a request for data, where structured ones were agreed on')
    }
    if (errno !== 0) request.error = new NbdRequestError(errno, describe(request), '')
    else if (request.data !== undefined) {
      await this.#stream.readInto(request.data)
      request.coveredBytes = request.data.length
    }
    this.#done(cookie, request)
  }

  async #chunk(headerBytes: number): Promise<void> {
    const header = await this.#stream.read(headerBytes - 4)
    const flags = (header[0] << 8) | header[1]
    const type = (header[2] << 8) | header[3]
    const { cookie, request } = this.#find(header, 4)
    const extended = headerBytes === EXTENDED_HEADER_BYTES
    if (extended && readUint64(header, 12) !== request.offset) throw invalid('a reply repeats another offset than that of its request')
    const length = extended ? readUint64(header, 20) : readUint32(header, 12)
    const done = (flags & NBD_REPLY_FLAG_DONE) !== 0
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) await this.#dataChunk(request, length)
    else {
      if (length > CONTROL_BYTES_MAX) throw invalid(`a chunk of type ${type} has ${length} bytes`)
      this.#controlChunk(request, type, await this.#stream.read(length), done)
    }
    if (done) this.#done(cookie, request)
  }

  async #dataChunk(request: PendingRequest, length: number): Promise<void> {
    if (length < 9) throw invalid('a data chunk without data')
    const at = readUint64(await this.#stream.read(8), 0) - request.offset
    await this.#stream.readInto(partOf(request, at, length - 8))
    request.coveredBytes += length - 8
  }

  /** Chunks but data. */
  #controlChunk(request: PendingRequest, type: number, payload: Buffer, done: boolean): void {
    if ((type & NBD_REPLY_TYPE_ERROR_BIT) !== 0) takeError(request, payload)
    else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) takeHole(request, payload)
    else if (type === (this.framing === 'extended' ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS)) this.#takeStatus(request, payload)
    else if (type !== NBD_REPLY_TYPE_NONE || payload.length > 0 || !done) throw invalid(`an unknown or misplaced chunk of type ${type}`)
  }

  #takeStatus(request: PendingRequest, payload: Buffer): void {
    const extended = this.framing === 'extended'
    const [headBytes, runBytes] = extended ? [8, 16] : [4, 8]
    const count = (payload.length - headBytes) / runBytes
    const context = payload.length < 4 ? undefined : this.#contextIds.get(readUint32(payload, 0))
    if (count < 1 || !Number.isInteger(count) || (extended && readUint32(payload, 4) !== count)) throw invalid('a block status chunk has a wrong length')
    if (request.type !== NBD_CMD_BLOCK_STATUS || context === undefined || request.statuses.has(context)) throw invalid('a block status chunk that was not asked for')
    const runs: StatusRun[] = []
    for (let at = headBytes; at < payload.length; at += runBytes) {
      const run = extended ? { length: readUint64(payload, at), flags: readUint64(payload, at + 8) } : { length: readUint32(payload, at), flags: readUint32(payload, at + 4) }
      if (run.length === 0) throw invalid('an extent of no length')
      runs.push(run)
    }
    if ((request.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 && runs.length > 1) throw invalid('more than the one extent that was asked for')
    request.statuses.set(context, runs)
  }

  #find(bytes: Uint8Array, at: number): { cookie: number; request: PendingRequest } {
    const cookie = readUint32(bytes, at + 4)
    const request = readUint32(bytes, at) === 0 ? this.#pending.get(cookie) : undefined
    if (request === undefined) throw invalid('a reply to a request that was not sent')
    return { cookie, request }
  }

  #done(cookie: number, request: PendingRequest): void {
    this.#pending.delete(cookie)
    if (request.error === undefined && request.type === NBD_CMD_READ && request.coveredBytes !== request.length) {
      const error = invalid(`a read of ${request.length} bytes was answered by ${request.coveredBytes}`)
      request.reject(error)
      throw error
    }
    if (request.error === undefined) request.resolve(request)
    else request.reject(request.error)
    // "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect", after what is in flight is answered.
    if (request.error?.errno === NBD_ESHUTDOWN) this.#ended ??= lost('the server is shutting down')
    if (this.#ended !== undefined && this.#pending.size === 0) void this.#leave(this.#ended)
  }

  async #leave(reason: Error): Promise<void> {
    this.#ended ??= reason
    this.#stream.write([requestBytes(this.framing, { type: NBD_CMD_DISC, flags: 0, offset: 0, length: 0 }, 0)])
    await this.#stream.end()
  }

  #fail(error: Error): void {
    this.#ended ??= error
    this.#stream.destroy()
    for (const request of this.#pending.values()) request.reject(error)
    this.#pending.clear()
  }
}

function takeError(request: PendingRequest, payload: Buffer): void {
  if (payload.length < 6 || 6 + payload.readUInt16BE(4) > payload.length) throw invalid('an error chunk is too short')
  const errno = readUint32(payload, 0)
  if (errno === 0) throw invalid('an error chunk without an error')
  request.error ??= new NbdRequestError(errno, describe(request), payload.toString('utf8', 6, 6 + payload.readUInt16BE(4)))
}

function takeHole(request: PendingRequest, payload: Buffer): void {
  if (payload.length !== 12) throw invalid('a hole chunk is not of 12 bytes')
  const length = readUint32(payload, 8)
  partOf(request, readUint64(payload, 0) - request.offset, length).fill(0)
  request.coveredBytes += length
}

function partOf({ data, coveredBytes }: PendingRequest, at: number, length: number): Buffer {
  if (data === undefined || at < 0 || length < 1 || at + length > data.length || coveredBytes + length > data.length) throw invalid('a chunk is outside of its request')
  return data.subarray(at, at + length)
}

function chain(request: PendingRequest, settled: () => void): void {
  const { resolve, reject } = request
  request.resolve = (value) => { resolve(value); settled() }
  request.reject = (error) => { reject(error); settled() }
}

function fuaFlag({ fua }: WriteRequestOptions): number {
  return fua === true ? NBD_CMD_FLAG_FUA : 0
}

/** The payload form: the length moves into the payload, and the ids of the contexts follow it. */
function filteredStatus(request: Request, ids: readonly number[]): Request {
  const payload = Buffer.alloc(8 + 4 * ids.length)
  writeUint64(payload, 0, request.length)
  for (const [index, id] of ids.entries()) writeUint32(payload, 8 + 4 * index, id)
  return { ...request, flags: request.flags | NBD_CMD_FLAG_PAYLOAD_LEN, length: payload.length, payload }
}

function requestBytes(framing: Framing, { type, flags, offset, length }: Request, cookie: number): Buffer {
  const bytes = Buffer.alloc(requestHeaderBytes(framing))
  writeUint32(bytes, 0, framing === 'extended' ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)
  writeUint16(bytes, 4, flags)
  writeUint16(bytes, 6, type)
  writeUint32(bytes, 12, cookie)
  writeUint64(bytes, 16, offset)
  if (framing === 'extended') writeUint64(bytes, 24, length)
  else writeUint32(bytes, 24, length)
  return bytes
}

function describe({ type, offset, length }: Request): string {
  return `NBD command ${type} at ${offset}, ${length} bytes`
}

function invalid(message: string): VarveError {
  return new VarveError('PROTOCOL_INVALID', message)
}

function lost(message: string): VarveError {
  return new VarveError('CONNECTION_LOST', message)
}
