/**
 * NBD client: one connection to one export, requests pipelined. For tests and tools; qemu and libnbd are the clients of the world.
 * Speaks NBD_OPT_GO, structured replies and base:allocation where the server does. Trusts no length that the server sends.
 */
import net from 'node:net'
import { VarveError } from '@varve/images/errors.ts'
import { formatAddress, parseAddress } from '../listen-address.ts'
import { BASE_ALLOCATION } from './meta-context.ts'
import {
  CHUNK_HEADER_BYTES, GREETING_BYTES, IHAVEOPT, NBDMAGIC, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_READ_ONLY, NBD_INFO_BLOCK_SIZE, NBD_INFO_EXPORT, NBD_OPT_ABORT, NBD_OPT_GO,
  NBD_OPT_LIST, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STRUCTURED_REPLY, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR_BIT,
  NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REP_ACK, NBD_REP_ERR, NBD_REP_INFO, NBD_REP_MAGIC, NBD_REP_META_CONTEXT,
  NBD_REP_SERVER, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, OPTION_HEADER_BYTES, OPTION_REPLY_HEADER_BYTES, REQUEST_HEADER_BYTES,
  SIMPLE_REPLY_BYTES, errorName, readUint32, readUint64, writeUint16, writeUint32, writeUint64,
} from './protocol.ts'

/** Payload of one reply that is accepted besides data of a read: block status of 2^20 extents, or an error with its message. */
const CONTROL_BYTES_MAX = 4 + 8 * 2 ** 20
/** Data of one option reply that is accepted. */
const OPTION_REPLY_BYTES_MAX = 16 * 1024
/** Option replies of one option that are accepted. */
const OPTION_REPLIES_MAX = 100_000
const REQUEST_BYTES_MAX = 32 * 1024 * 1024
const CONNECT_MS_MAX = 10_000

export interface ConnectOptions {
  /** Empty for the default export. */
  exportName?: string
  /** Default true. */
  structured?: boolean
  /** For connecting and the handshake together; 10 s unless given. */
  connectMsMax?: number
  /** Destroys the connection, at any time. */
  signal?: AbortSignal
}

export interface WriteRequestOptions {
  fua?: boolean
}

export interface WriteZeroesRequestOptions extends WriteRequestOptions {
  noHole?: boolean
  fast?: boolean
}

export interface StatusExtent {
  length: number
  /** NBD_STATE_HOLE, NBD_STATE_ZERO */
  flags: number
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

interface PendingRequest {
  description: string
  offset: number
  /** Of NBD_CMD_READ: filled by the reply. */
  data: Buffer | undefined
  /** Bytes of `data` that have come. */
  coveredBytes: number
  extents: StatusExtent[]
  error: NbdRequestError | undefined
  resolve: (request: PendingRequest) => void
  reject: (error: Error) => void
}

export class NbdClient implements AsyncDisposable {
  readonly sizeBytes: number
  /** Transmission flags. */
  readonly flags: number
  readonly structured: boolean
  readonly allocation: boolean
  /** Minimum and preferred block size and maximum payload, if the server tells. */
  readonly blockSizes: readonly [number, number, number] | undefined
  readonly #stream: ClientStream
  readonly #pending = new Map<number, PendingRequest>()
  #cookie = 0
  #ended: Error | undefined

  /** @throws VarveError ADDRESS_INVALID, EXPORT_NOT_FOUND, PROTOCOL_INVALID, or what the socket throws */
  static async connect(address: string, options: ConnectOptions = {}): Promise<NbdClient> {
    const stream = await ClientStream.connect(address, options)
    try {
      return new NbdClient(stream, await negotiate(stream, options))
    } catch (error) {
      stream.destroy()
      throw error
    } finally {
      stream.connected()
    }
  }

  /** Names and descriptions of the exports of a server. */
  static async list(address: string): Promise<{ name: string; description: string }[]> {
    const stream = await ClientStream.connect(address)
    try {
      await greet(stream)
      const replies = await option(stream, NBD_OPT_LIST, Buffer.alloc(0))
      stream.write([optionBytes(NBD_OPT_ABORT, Buffer.alloc(0))])
      return replies.filter(({ type }) => type === NBD_REP_SERVER).map(({ data }) => {
        const nameBytes = data.length < 4 ? Infinity : readUint32(data, 0)
        if (4 + nameBytes > data.length) throw invalid('a listed export has a name longer than its reply')
        return { name: data.toString('utf8', 4, 4 + nameBytes), description: data.toString('utf8', 4 + nameBytes) }
      })
    } finally {
      stream.connected()
      stream.destroy()
    }
  }

  private constructor(stream: ClientStream, negotiated: Negotiated) {
    this.#stream = stream
    this.sizeBytes = negotiated.sizeBytes
    this.flags = negotiated.flags
    this.structured = negotiated.structured
    this.allocation = negotiated.allocation
    this.blockSizes = negotiated.blockSizes
    this.#receive().catch((error: Error) => this.#fail(error))
  }

  get readOnly(): boolean {
    return (this.flags & NBD_FLAG_READ_ONLY) !== 0
  }

  /** @param options.whole asks the server not to split the reply @throws NbdRequestError */
  async read(offset: number, length: number, options: { whole?: boolean } = {}): Promise<Buffer> {
    const request = await this.#request(NBD_CMD_READ, options.whole === true ? NBD_CMD_FLAG_DF : 0, offset, length)
    return request.data ?? Buffer.alloc(0)
  }

  /** @throws NbdRequestError */
  async write(bytes: Uint8Array, offset: number, options: WriteRequestOptions = {}): Promise<void> {
    await this.#request(NBD_CMD_WRITE, fuaFlag(options), offset, bytes.length, bytes)
  }

  async flush(): Promise<void> {
    await this.#request(NBD_CMD_FLUSH, 0, 0, 0)
  }

  async trim(offset: number, length: number, options: WriteRequestOptions = {}): Promise<void> {
    await this.#request(NBD_CMD_TRIM, fuaFlag(options), offset, length)
  }

  async writeZeroes(offset: number, length: number, options: WriteZeroesRequestOptions = {}): Promise<void> {
    const flags = fuaFlag(options) | (options.noHole === true ? NBD_CMD_FLAG_NO_HOLE : 0) | (options.fast === true ? NBD_CMD_FLAG_FAST_ZERO : 0)
    await this.#request(NBD_CMD_WRITE_ZEROES, flags, offset, length)
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.#request(NBD_CMD_CACHE, 0, offset, length)
  }

  /** Extents from `offset` on; they may end before the range does. */
  async blockStatus(offset: number, length: number, options: { one?: boolean } = {}): Promise<StatusExtent[]> {
    return (await this.#request(NBD_CMD_BLOCK_STATUS, options.one === true ? NBD_CMD_FLAG_REQ_ONE : 0, offset, length)).extents
  }

  /** Says good-bye; what is in flight is still answered. */
  async disconnect(): Promise<void> {
    if (this.#ended !== undefined) return
    await Promise.allSettled([...this.#pending.values()].map((request) => new Promise<void>((resolve) => chain(request, resolve))))
    this.#ended ??= invalid('the connection was closed by this side')
    this.#stream.write([requestBytes(NBD_CMD_DISC, 0, 0, 0, 0)])
    await this.#stream.end()
  }

  /** Closes at once; requests in flight fail. */
  destroy(): void {
    this.#stream.destroy()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.disconnect()
  }

  #request(type: number, flags: number, offset: number, length: number, payload?: Uint8Array): Promise<PendingRequest> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended)
    const cookie = this.#cookie
    this.#cookie = (cookie + 1) % 2 ** 32
    return new Promise((resolve, reject) => {
      const description = `NBD command ${type} at ${offset}, ${length} bytes`
      const data = type === NBD_CMD_READ && length <= REQUEST_BYTES_MAX ? Buffer.allocUnsafeSlow(length) : undefined
      this.#pending.set(cookie, { description, offset, data, coveredBytes: 0, extents: [], error: undefined, resolve, reject })
      const header = requestBytes(type, flags, cookie, offset, length)
      this.#stream.write(payload === undefined ? [header] : [header, payload])
    })
  }

  async #receive(): Promise<void> {
    for (;;) {
      const magic = readUint32(await this.#stream.read(4), 0)
      if (magic === NBD_SIMPLE_REPLY_MAGIC) await this.#simpleReply()
      else if (magic === NBD_STRUCTURED_REPLY_MAGIC && this.structured) await this.#chunk()
      else throw invalid('a reply does not begin with its magic number')
    }
  }

  async #simpleReply(): Promise<void> {
    const header = await this.#stream.read(SIMPLE_REPLY_BYTES - 4)
    const { cookie, request } = this.#find(header, 4)
    const errno = readUint32(header, 0)
    if (errno !== 0) request.error = new NbdRequestError(errno, request.description, '')
    else if (request.data !== undefined) {
      if (this.structured) throw invalid('a simple reply to a read, where structured ones were agreed on')
      await this.#stream.readInto(request.data)
      request.coveredBytes = request.data.length
    }
    this.#done(cookie, request)
  }

  async #chunk(): Promise<void> {
    const header = await this.#stream.read(CHUNK_HEADER_BYTES - 4)
    const flags = (header[0] << 8) | header[1]
    const type = (header[2] << 8) | header[3]
    const { cookie, request } = this.#find(header, 4)
    const length = readUint32(header, 12)
    if (type === NBD_REPLY_TYPE_OFFSET_DATA) await this.#dataChunk(request, length)
    else {
      if (length > CONTROL_BYTES_MAX) throw invalid(`a chunk of type ${type} has ${length} bytes`)
      takeChunk(request, type, await this.#stream.read(length))
    }
    if ((flags & NBD_REPLY_FLAG_DONE) !== 0) this.#done(cookie, request)
  }

  async #dataChunk(request: PendingRequest, length: number): Promise<void> {
    if (length < 9) throw invalid('a data chunk without data')
    const at = readUint64(await this.#stream.read(8), 0) - request.offset
    await this.#stream.readInto(partOf(request, at, length - 8))
    request.coveredBytes += length - 8
  }

  #find(bytes: Uint8Array, at: number): { cookie: number; request: PendingRequest } {
    const cookie = readUint32(bytes, at + 4)
    const request = readUint32(bytes, at) === 0 ? this.#pending.get(cookie) : undefined
    if (request === undefined) throw invalid('a reply to a request that was not sent')
    return { cookie, request }
  }

  #done(cookie: number, request: PendingRequest): void {
    this.#pending.delete(cookie)
    if (request.error !== undefined) request.reject(request.error)
    else if (request.data !== undefined && request.coveredBytes !== request.data.length) {
      throw invalid(`a read of ${request.data.length} bytes was answered by ${request.coveredBytes}`)
    } else request.resolve(request)
  }

  #fail(error: Error): void {
    this.#ended ??= error
    this.#stream.destroy()
    for (const request of this.#pending.values()) request.reject(error)
    this.#pending.clear()
  }
}

/** Content chunks but data, and errors. */
function takeChunk(request: PendingRequest, type: number, payload: Buffer): void {
  if ((type & NBD_REPLY_TYPE_ERROR_BIT) !== 0) {
    if (payload.length < 6 || 6 + payload.readUInt16BE(4) > payload.length) throw invalid('an error chunk is too short')
    request.error ??= new NbdRequestError(readUint32(payload, 0), request.description, payload.toString('utf8', 6, 6 + payload.readUInt16BE(4)))
  } else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) {
    if (payload.length !== 12) throw invalid('a hole chunk is not of 12 bytes')
    const length = readUint32(payload, 8)
    partOf(request, readUint64(payload, 0) - request.offset, length).fill(0)
    request.coveredBytes += length
  } else if (type === NBD_REPLY_TYPE_BLOCK_STATUS) {
    if (payload.length < 12 || payload.length % 8 !== 4) throw invalid('a block status chunk has a wrong length')
    for (let at = 4; at < payload.length; at += 8) request.extents.push({ length: readUint32(payload, at), flags: readUint32(payload, at + 4) })
  } else if (type !== NBD_REPLY_TYPE_NONE || payload.length > 0) throw invalid(`an unknown chunk of type ${type}`)
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

function requestBytes(type: number, flags: number, cookie: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(REQUEST_HEADER_BYTES)
  writeUint32(bytes, 0, NBD_REQUEST_MAGIC)
  writeUint16(bytes, 4, flags)
  writeUint16(bytes, 6, type)
  writeUint32(bytes, 12, cookie)
  writeUint64(bytes, 16, offset)
  writeUint32(bytes, 24, length)
  return bytes
}

// ---- handshake

interface Negotiated {
  sizeBytes: number
  flags: number
  structured: boolean
  allocation: boolean
  blockSizes: readonly [number, number, number] | undefined
}

interface OptionReply {
  type: number
  data: Buffer
}

async function greet(stream: ClientStream): Promise<void> {
  const greeting = await stream.read(GREETING_BYTES)
  const magic = [0, 4, 8, 12].map((at) => readUint32(greeting, at))
  if ([...NBDMAGIC, ...IHAVEOPT].some((value, index) => value !== magic[index])) throw invalid('the server does not speak newstyle NBD')
  if ((greeting.readUInt16BE(16) & NBD_FLAG_FIXED_NEWSTYLE) === 0) throw invalid('the server does not speak fixed newstyle NBD')
  const flags = Buffer.alloc(4)
  writeUint32(flags, 0, NBD_FLAG_C_FIXED_NEWSTYLE | (greeting.readUInt16BE(16) & NBD_FLAG_C_NO_ZEROES))
  stream.write([flags])
}

async function negotiate(stream: ClientStream, { exportName = '', structured: wanted = true }: ConnectOptions): Promise<Negotiated> {
  await greet(stream)
  const structured = wanted && !isError(await option(stream, NBD_OPT_STRUCTURED_REPLY, Buffer.alloc(0)))
  const name = Buffer.from(exportName)
  const allocation = structured && (await option(stream, NBD_OPT_SET_META_CONTEXT, Buffer.concat([lengthBefore(name), uint32(1), lengthBefore(Buffer.from(BASE_ALLOCATION))])))
    .some(({ type, data }) => type === NBD_REP_META_CONTEXT && data.toString('utf8', 4) === BASE_ALLOCATION)
  const replies = await option(stream, NBD_OPT_GO, Buffer.concat([lengthBefore(name), Buffer.from([0, 1, 0, NBD_INFO_BLOCK_SIZE])]))
  if (isError(replies)) {
    const { type, data } = replies[replies.length - 1]
    throw new VarveError('EXPORT_NOT_FOUND', `the server refuses export '${exportName}': ${data.toString()} (reply ${type - NBD_REP_ERR})`)
  }
  const infos = replies.filter(({ type, data }) => type === NBD_REP_INFO && data.length >= 2)
  const about = infos.find(({ data }) => data.readUInt16BE() === NBD_INFO_EXPORT && data.length === 12)?.data
  if (about === undefined) throw invalid('the server accepts the export, and does not tell its size')
  const sizeBytes = readUint64(about, 2)
  if (!Number.isSafeInteger(sizeBytes)) throw invalid('the export is larger than 2^53 bytes')
  const sizes = infos.find(({ data }) => data.readUInt16BE() === NBD_INFO_BLOCK_SIZE && data.length === 14)?.data
  const blockSizes = sizes === undefined ? undefined : [readUint32(sizes, 2), readUint32(sizes, 6), readUint32(sizes, 10)] as const
  return { sizeBytes, flags: about.readUInt16BE(10), structured, allocation, blockSizes }
}

/** Sends an option; all replies to it, the last one an ACK or an error. */
async function option(stream: ClientStream, type: number, data: Buffer): Promise<OptionReply[]> {
  stream.write([optionBytes(type, data)])
  const replies: OptionReply[] = []
  while (replies.length < OPTION_REPLIES_MAX) {
    const header = await stream.read(OPTION_REPLY_HEADER_BYTES)
    if (readUint32(header, 0) !== NBD_REP_MAGIC[0] || readUint32(header, 4) !== NBD_REP_MAGIC[1] || readUint32(header, 8) !== type) throw invalid('not a reply to the option')
    const length = readUint32(header, 16)
    if (length > OPTION_REPLY_BYTES_MAX) throw invalid('a reply to an option is too long')
    const reply = { type: readUint32(header, 12), data: await stream.read(length) }
    replies.push(reply)
    if (reply.type === NBD_REP_ACK || reply.type >= NBD_REP_ERR) return replies
  }
  throw invalid('too many replies to an option')
}

function isError(replies: readonly OptionReply[]): boolean {
  return replies[replies.length - 1].type >= NBD_REP_ERR
}

function optionBytes(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(OPTION_HEADER_BYTES + data.length)
  writeUint32(bytes, 0, IHAVEOPT[0])
  writeUint32(bytes, 4, IHAVEOPT[1])
  writeUint32(bytes, 8, type)
  writeUint32(bytes, 12, data.length)
  bytes.set(data, OPTION_HEADER_BYTES)
  return bytes
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  writeUint32(bytes, 0, value)
  return bytes
}

function lengthBefore(bytes: Buffer): Buffer {
  return Buffer.concat([uint32(bytes.length), bytes])
}

function invalid(message: string): VarveError {
  return new VarveError('PROTOCOL_INVALID', message)
}

// ---- bytes

/** The socket, read in exact numbers of bytes. */
class ClientStream {
  readonly #socket: net.Socket
  #ended: Error | undefined
  #wake: (() => void) | undefined
  readonly #timer: NodeJS.Timeout

  static connect(address: string, { connectMsMax = CONNECT_MS_MAX, signal }: ConnectOptions = {}): Promise<ClientStream> {
    const target = parseAddress(address)
    return new Promise((resolve, reject) => {
      const socket = net.connect({ ...target, signal } as net.NetConnectOpts)
      const timer = setTimeout(() => socket.destroy(invalid(`${formatAddress(target)}: not connected within ${connectMsMax} ms`)), connectMsMax)
      socket.once('error', (error) => {
        clearTimeout(timer)
        reject(error)
      })
      socket.once('connect', () => resolve(new ClientStream(socket, formatAddress(target), timer)))
    })
  }

  private constructor(socket: net.Socket, address: string, timer: NodeJS.Timeout) {
    this.#socket = socket
    this.#timer = timer
    socket.setNoDelay(true)
    socket.on('readable', () => this.#wake?.())
    const ended = (cause?: Error) => {
      this.#ended ??= new VarveError('PROTOCOL_INVALID', `${address}: the server closed the connection`, { cause })
      this.#wake?.()
    }
    socket.once('error', ended)
    socket.once('end', () => ended())
    socket.once('close', () => ended())
  }

  /** The handshake is over, and with it its time. */
  connected(): void {
    clearTimeout(this.#timer)
  }

  write(parts: readonly Uint8Array[]): void {
    this.#socket.cork()
    for (const part of parts) this.#socket.write(part)
    this.#socket.uncork()
  }

  async read(count: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(count)
    await this.readInto(bytes)
    return bytes
  }

  /** Fills all of `into`. */
  async readInto(into: Buffer): Promise<void> {
    for (let filled = 0; filled < into.length;) {
      const wanted = Math.min(into.length - filled, this.#socket.readableLength)
      const bytes = wanted === 0 ? null : this.#socket.read(wanted) as Buffer | null
      if (bytes !== null) {
        bytes.copy(into, filled)
        filled += bytes.length
        continue
      }
      if (this.#ended !== undefined) throw this.#ended
      this.#socket.read(0)
      await new Promise<void>((resolve) => { this.#wake = resolve })
      this.#wake = undefined
    }
  }

  end(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#socket.closed) {
        resolve()
        return
      }
      this.#socket.once('close', () => resolve())
      this.#socket.end()
      this.#socket.resume()
    })
  }

  destroy(): void {
    this.#socket.destroy()
  }
}
