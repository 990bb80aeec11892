/**
 * The client's side of the handshake: TLS, framing, metadata contexts, and one export. Trusts no length that the server sends.
 */
import { VarveError } from '@varve/images/errors.ts'
import type { ClientStream, ClientTls } from './client-stream.ts'
import { BASE_ALLOCATION } from './meta-context.ts'
import {
  EXPORT_NAME_ZEROES_BYTES, type Framing, GREETING_BYTES, IHAVEOPT, NBDMAGIC, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_FLAG_FIXED_NEWSTYLE,
  NBD_INFO_BLOCK_SIZE, NBD_INFO_EXPORT, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_EXTENDED_HEADERS, NBD_OPT_GO, NBD_OPT_LIST, NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NBD_REP_ERR, NBD_REP_ERR_TLS_REQD, NBD_REP_ERR_UNSUP, NBD_REP_INFO, NBD_REP_MAGIC,
  NBD_REP_META_CONTEXT, NBD_REP_SERVER, OPTION_HEADER_BYTES, OPTION_REPLY_HEADER_BYTES, readUint32, readUint64, writeUint32,
} from './protocol.ts'

/** Data of one option reply that is accepted. */
const OPTION_REPLY_BYTES_MAX = 16 * 1024
/** Option replies of one option that are accepted. */
const OPTION_REPLIES_MAX = 100_000
const BLOCK_BYTES_MAX = 64 * 1024

export interface NegotiationOptions {
  /** Empty for the default export. */
  exportName?: string
  /** The most that is asked for; `extended` unless given. The server may do less. */
  framing?: Framing
  /** Metadata contexts that are wanted; `base:allocation` unless given. */
  contexts?: readonly string[]
  /** TLS or nothing; plain unless given. */
  tls?: ClientTls
}

export interface BlockSizes {
  /** Bytes; offsets and lengths are multiples of it. */
  minimum: number
  preferred: number
  /** Payload of one request. */
  maximum: number
}

export interface ClientNegotiated {
  sizeBytes: number
  /** Transmission flags. */
  flags: number
  framing: Framing
  /** Names of selected metadata contexts by id. */
  contexts: ReadonlyMap<number, string>
  blockSizes: BlockSizes | undefined
}

interface OptionReply {
  type: number
  data: Buffer
}

/** @throws VarveError EXPORT_NOT_FOUND, CREDENTIALS_INVALID, PROTOCOL_INVALID, CONNECTION_LOST */
export async function negotiate(stream: ClientStream, { exportName = '', framing: wanted = 'extended', contexts = [BASE_ALLOCATION], tls }: NegotiationOptions): Promise<ClientNegotiated> {
  const noZeroes = await greet(stream, tls)
  const framing = await agreeOnFraming(stream, wanted)
  const name = Buffer.from(exportName)
  const selected = framing === 'simple' || contexts.length === 0 ? new Map<number, string>() : await selectContexts(stream, name, contexts)
  const replies = await option(stream, NBD_OPT_GO, Buffer.concat([lengthBefore(name), Buffer.from([0, 1, 0, NBD_INFO_BLOCK_SIZE])]))
  const end = replies[replies.length - 1]
  if (end.type === NBD_REP_ERR_UNSUP && framing !== 'extended') return { ...(await enterByName(stream, name, noZeroes)), framing, contexts: selected, blockSizes: undefined }
  if (end.type !== NBD_REP_ACK) throw refusal('EXPORT_NOT_FOUND', `export '${exportName}'`, end)
  return { ...parseInfos(replies), framing, contexts: selected }
}

/** @throws VarveError CREDENTIALS_INVALID, PROTOCOL_INVALID, CONNECTION_LOST */
export async function listExports(stream: ClientStream, tls: ClientTls | undefined): Promise<{ name: string; description: string }[]> {
  await greet(stream, tls)
  const replies = await option(stream, NBD_OPT_LIST)
  const end = replies[replies.length - 1]
  if (end.type !== NBD_REP_ACK) throw refusal('PROTOCOL_INVALID', 'a list of its exports', end)
  abort(stream)
  return replies.filter(({ type }) => type === NBD_REP_SERVER).map(({ data }) => {
    const nameBytes = data.length < 4 ? Infinity : readUint32(data, 0)
    if (4 + nameBytes > data.length) throw invalid('a listed export has a name longer than its reply')
    return { name: data.toString('utf8', 4, 4 + nameBytes), description: data.toString('utf8', 4 + nameBytes) }
  })
}

/** Ends a session within the handshake; the connection can be closed then. */
export function abort(stream: ClientStream): void {
  stream.write([optionBytes(NBD_OPT_ABORT, Buffer.alloc(0))])
}

/** @returns true if NBD_OPT_EXPORT_NAME is answered without zeroes */
async function greet(stream: ClientStream, tls: ClientTls | undefined): Promise<boolean> {
  const greeting = await stream.read(GREETING_BYTES)
  const magic = [0, 4, 8, 12].map((at) => readUint32(greeting, at))
  if ([...NBDMAGIC, ...IHAVEOPT].some((value, index) => value !== magic[index])) throw invalid('the server does not speak newstyle NBD')
  const offered = greeting.readUInt16BE(16)
  if ((offered & NBD_FLAG_FIXED_NEWSTYLE) === 0) throw invalid('the server does not speak fixed newstyle NBD')
  stream.write([uint32(NBD_FLAG_C_FIXED_NEWSTYLE | (offered & NBD_FLAG_C_NO_ZEROES))])
  if (tls !== undefined) {
    const [reply] = await option(stream, NBD_OPT_STARTTLS)
    if (reply.type !== NBD_REP_ACK) throw refusal('CREDENTIALS_INVALID', 'TLS', reply)
    await stream.startTls(tls)
  }
  return (offered & NBD_FLAG_C_NO_ZEROES) !== 0
}

async function agreeOnFraming(stream: ClientStream, wanted: Framing): Promise<Framing> {
  const agrees = async (type: number) => (await option(stream, type)).at(-1)?.type === NBD_REP_ACK
  if (wanted === 'extended' && await agrees(NBD_OPT_EXTENDED_HEADERS)) return 'extended'
  if (wanted !== 'simple' && await agrees(NBD_OPT_STRUCTURED_REPLY)) return 'structured'
  return 'simple'
}

async function selectContexts(stream: ClientStream, exportName: Buffer, contexts: readonly string[]): Promise<Map<number, string>> {
  const queries = contexts.map((context) => lengthBefore(Buffer.from(context)))
  const replies = await option(stream, NBD_OPT_SET_META_CONTEXT, Buffer.concat([lengthBefore(exportName), uint32(queries.length), ...queries]))
  const selected = new Map<number, string>()
  // If it fails nothing is selected; GO tells why, if it matters.
  if (replies[replies.length - 1].type !== NBD_REP_ACK) return selected
  for (const { type, data } of replies) {
    if (type !== NBD_REP_META_CONTEXT) continue
    const name = data.toString('utf8', 4)
    if (data.length < 4 || selected.has(readUint32(data, 0)) || !contexts.includes(name)) throw invalid('the server selects metadata contexts that were not asked for, or one twice')
    selected.set(readUint32(data, 0), name)
  }
  return selected
}

/** For servers without NBD_OPT_GO. An export that does not exist ends the connection. */
async function enterByName(stream: ClientStream, name: Buffer, noZeroes: boolean): Promise<{ sizeBytes: number; flags: number }> {
  stream.write([optionBytes(NBD_OPT_EXPORT_NAME, name)])
  const reply = await stream.read(10)
  if (!noZeroes) await stream.read(EXPORT_NAME_ZEROES_BYTES)
  return { sizeBytes: checkedSize(reply, 0), flags: reply.readUInt16BE(8) }
}

function parseInfos(replies: readonly OptionReply[]): { sizeBytes: number; flags: number; blockSizes: BlockSizes | undefined } {
  const infos = replies.filter(({ type, data }) => type === NBD_REP_INFO && data.length >= 2)
  const about = infos.find(({ data }) => data.readUInt16BE() === NBD_INFO_EXPORT && data.length === 12)?.data
  if (about === undefined) throw invalid('the server accepts the export, and does not tell its size')
  const sizes = infos.find(({ data }) => data.readUInt16BE() === NBD_INFO_BLOCK_SIZE && data.length === 14)?.data
  return { sizeBytes: checkedSize(about, 2), flags: about.readUInt16BE(10), blockSizes: sizes === undefined ? undefined : checkedBlockSizes(sizes) }
}

function checkedSize(bytes: Buffer, at: number): number {
  const sizeBytes = readUint64(bytes, at)
  if (!Number.isSafeInteger(sizeBytes)) throw invalid('the export is larger than 2^53 bytes')
  return sizeBytes
}

function checkedBlockSizes(info: Buffer): BlockSizes {
  const [minimum, preferred, maximum] = [2, 6, 10].map((at) => readUint32(info, at))
  const powers = [minimum, preferred].every((value) => value > 0 && (value & (value - 1)) === 0)
  if (!powers || minimum > BLOCK_BYTES_MAX || preferred < minimum || maximum < minimum) throw invalid(`block sizes that make no sense: ${minimum}, ${preferred}, ${maximum}`)
  return { minimum, preferred, maximum }
}

/** Sends an option; all replies to it, at least one, the last an ACK or an error. */
async function option(stream: ClientStream, type: number, data: Buffer = Buffer.alloc(0)): Promise<OptionReply[]> {
  stream.write([optionBytes(type, data)])
  const replies: OptionReply[] = []
  while (replies.length < OPTION_REPLIES_MAX) {
    const header = await stream.read(OPTION_REPLY_HEADER_BYTES)
    if (readUint32(header, 0) !== NBD_REP_MAGIC[0] || readUint32(header, 4) !== NBD_REP_MAGIC[1] || readUint32(header, 8) !== type) throw invalid('not a reply to the option')
    const length = readUint32(header, 16)
    if (length > OPTION_REPLY_BYTES_MAX) throw invalid('a reply to an option is too long')
    const reply = { type: readUint32(header, 12), data: await stream.read(length) }
    if (reply.type === NBD_REP_ERR_TLS_REQD) throw refusal('CREDENTIALS_INVALID', 'a client without TLS', reply)
    replies.push(reply)
    if (reply.type === NBD_REP_ACK || reply.type >= NBD_REP_ERR) return replies
  }
  throw invalid('too many replies to an option')
}

function refusal(code: 'EXPORT_NOT_FOUND' | 'CREDENTIALS_INVALID' | 'PROTOCOL_INVALID', what: string, { type, data }: OptionReply): VarveError {
  return new VarveError(code, `the server refuses ${what}: ${data.toString()} (reply ${type - NBD_REP_ERR})`)
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
