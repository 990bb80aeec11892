/**
 * Data of options that have some: NBD_OPT_INFO, NBD_OPT_GO, and the two for metadata contexts. Bytes: "Option types" of the specification.
 * Every length is checked against what is there; what does not fit is an OptionError, answered and survived.
 */
import { INFO_REQUESTS_MAX, META_CONTEXT_QUERIES_MAX, STRING_BYTES_MAX } from './limits.ts'
import { NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG } from './protocol.ts'

/** An option that is answered by an error reply; the handshake goes on. */
export class OptionError extends Error {
  /** NBD_REP_ERR_... */
  readonly reply: number

  constructor(reply: number, message: string) {
    super(message)
    this.name = 'OptionError'
    this.reply = reply
  }
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** @throws OptionError unless the bytes are a string as the specification has it: UTF-8, no NUL, not too long */
export function decodeString(bytes: Uint8Array): string {
  if (bytes.length > STRING_BYTES_MAX) throw new OptionError(NBD_REP_ERR_TOO_BIG, `a string is longer than ${STRING_BYTES_MAX} bytes`)
  if (bytes.includes(0)) throw new OptionError(NBD_REP_ERR_INVALID, 'a string has a NUL in it')
  try {
    return UTF8.decode(bytes)
  } catch {
    throw new OptionError(NBD_REP_ERR_INVALID, 'a string is not UTF-8')
  }
}

export interface InfoRequest {
  name: string
  /** NBD_INFO_... */
  requests: number[]
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO. @throws OptionError */
export function parseInfo(data: Buffer): InfoRequest {
  const fields = new Fields(data)
  const name = fields.string()
  const count = fields.uint16()
  if (count > INFO_REQUESTS_MAX) throw new OptionError(NBD_REP_ERR_TOO_BIG, `more than ${INFO_REQUESTS_MAX} information requests`)
  const requests: number[] = []
  for (let index = 0; index < count; index++) requests.push(fields.uint16())
  fields.end()
  return { name, requests }
}

export interface MetaContextRequest {
  name: string
  queries: string[]
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. @throws OptionError */
export function parseMetaContext(data: Buffer): MetaContextRequest {
  const fields = new Fields(data)
  const name = fields.string()
  const count = fields.uint32()
  if (count > META_CONTEXT_QUERIES_MAX) throw new OptionError(NBD_REP_ERR_TOO_BIG, `more than ${META_CONTEXT_QUERIES_MAX} queries`)
  const queries: string[] = []
  for (let index = 0; index < count; index++) {
    const query = fields.string()
    if (!query.includes(':')) throw new OptionError(NBD_REP_ERR_INVALID, 'a query has no namespace')
    queries.push(query)
  }
  fields.end()
  return { name, queries }
}

class Fields {
  readonly #data: Buffer
  #at = 0

  constructor(data: Buffer) {
    this.#data = data
  }

  uint16(): number {
    return this.#data.readUInt16BE(this.#skip(2))
  }

  uint32(): number {
    return this.#data.readUInt32BE(this.#skip(4))
  }

  /** A string behind its length. */
  string(): string {
    const length = this.uint32()
    const from = this.#skip(length)
    return decodeString(this.#data.subarray(from, from + length))
  }

  end(): void {
    if (this.#at !== this.#data.length) throw new OptionError(NBD_REP_ERR_INVALID, 'bytes are left behind the last field')
  }

  #skip(bytes: number): number {
    const from = this.#at
    if (from + bytes > this.#data.length) throw new OptionError(NBD_REP_ERR_INVALID, 'a field reaches beyond the end of the option')
    this.#at = from + bytes
    return from
  }
}
