/**
 * Numbers of the NBD protocol, under the names that its specification gives them (NetworkBlockDevice/nbd, doc/proto.md; extended headers: the same
 * file in branch extension-ext-header). Only those that Varve sends or understands, or must recognize to refuse.
 */

/** 64-bit magic numbers, as pairs of 32 bits: high, low. */
export const NBDMAGIC = [0x4e42444d, 0x41474943] as const
export const IHAVEOPT = [0x49484156, 0x454f5054] as const
export const NBD_REP_MAGIC = [0x0003e889, 0x045565a9] as const

export const NBD_REQUEST_MAGIC = 0x25609513
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c

/** Bytes of the fixed parts of messages. */
export const GREETING_BYTES = 18
export const CLIENT_FLAGS_BYTES = 4
export const OPTION_HEADER_BYTES = 16
export const OPTION_REPLY_HEADER_BYTES = 20
export const REQUEST_HEADER_BYTES = 28
export const SIMPLE_REPLY_BYTES = 16
export const STRUCTURED_HEADER_BYTES = 20
/** Of requests and replies alike. */
export const EXTENDED_HEADER_BYTES = 32
/** Payload of NBD_REPLY_TYPE_OFFSET_DATA before the data: the offset. */
export const OFFSET_BYTES = 8
/** Payload of NBD_REPLY_TYPE_OFFSET_HOLE. */
export const OFFSET_HOLE_BYTES = 12
/** Zeroes that end the reply to NBD_OPT_EXPORT_NAME, unless NO_ZEROES is negotiated. */
export const EXPORT_NAME_ZEROES_BYTES = 124

// Handshake flags, and the client's answer
export const NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
export const NBD_FLAG_NO_ZEROES = 1 << 1
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
export const NBD_FLAG_C_NO_ZEROES = 1 << 1

// Transmission flags
export const NBD_FLAG_HAS_FLAGS = 1 << 0
export const NBD_FLAG_READ_ONLY = 1 << 1
export const NBD_FLAG_SEND_FLUSH = 1 << 2
export const NBD_FLAG_SEND_FUA = 1 << 3
export const NBD_FLAG_ROTATIONAL = 1 << 4
export const NBD_FLAG_SEND_TRIM = 1 << 5
export const NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
export const NBD_FLAG_SEND_DF = 1 << 7
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8
export const NBD_FLAG_SEND_CACHE = 1 << 10
export const NBD_FLAG_SEND_FAST_ZERO = 1 << 11
export const NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12

// Options
export const NBD_OPT_EXPORT_NAME = 1
export const NBD_OPT_ABORT = 2
export const NBD_OPT_LIST = 3
export const NBD_OPT_STARTTLS = 5
export const NBD_OPT_INFO = 6
export const NBD_OPT_GO = 7
export const NBD_OPT_STRUCTURED_REPLY = 8
export const NBD_OPT_LIST_META_CONTEXT = 9
export const NBD_OPT_SET_META_CONTEXT = 10
export const NBD_OPT_EXTENDED_HEADERS = 11

// Option replies; errors have bit 31 set
export const NBD_REP_ACK = 1
export const NBD_REP_SERVER = 2
export const NBD_REP_INFO = 3
export const NBD_REP_META_CONTEXT = 4
export const NBD_REP_ERR = 0x8000_0000
export const NBD_REP_ERR_UNSUP = 0x8000_0001
export const NBD_REP_ERR_POLICY = 0x8000_0002
export const NBD_REP_ERR_INVALID = 0x8000_0003
export const NBD_REP_ERR_TLS_REQD = 0x8000_0005
export const NBD_REP_ERR_UNKNOWN = 0x8000_0006
export const NBD_REP_ERR_SHUTDOWN = 0x8000_0007
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x8000_0008
export const NBD_REP_ERR_TOO_BIG = 0x8000_0009
export const NBD_REP_ERR_EXT_HEADER_REQD = 0x8000_000a

// Information about an export
export const NBD_INFO_EXPORT = 0
export const NBD_INFO_NAME = 1
export const NBD_INFO_DESCRIPTION = 2
export const NBD_INFO_BLOCK_SIZE = 3

// Commands
export const NBD_CMD_READ = 0
export const NBD_CMD_WRITE = 1
export const NBD_CMD_DISC = 2
export const NBD_CMD_FLUSH = 3
export const NBD_CMD_TRIM = 4
export const NBD_CMD_CACHE = 5
export const NBD_CMD_WRITE_ZEROES = 6
export const NBD_CMD_BLOCK_STATUS = 7

// Command flags
export const NBD_CMD_FLAG_FUA = 1 << 0
export const NBD_CMD_FLAG_NO_HOLE = 1 << 1
export const NBD_CMD_FLAG_DF = 1 << 2
export const NBD_CMD_FLAG_REQ_ONE = 1 << 3
export const NBD_CMD_FLAG_FAST_ZERO = 1 << 4
export const NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5

// Structured replies; errors have bit 15 set
export const NBD_REPLY_FLAG_DONE = 1 << 0
export const NBD_REPLY_TYPE_NONE = 0
export const NBD_REPLY_TYPE_OFFSET_DATA = 1
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5
export const NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
export const NBD_REPLY_TYPE_ERROR_BIT = 1 << 15
export const NBD_REPLY_TYPE_ERROR = (1 << 15) + 1
export const NBD_REPLY_TYPE_ERROR_OFFSET = (1 << 15) + 2

// States of base:allocation
export const NBD_STATE_HOLE = 1 << 0
export const NBD_STATE_ZERO = 1 << 1

// Error values
export const NBD_EPERM = 1
export const NBD_EIO = 5
export const NBD_ENOMEM = 12
export const NBD_EINVAL = 22
export const NBD_ENOSPC = 28
export const NBD_EOVERFLOW = 75
export const NBD_ENOTSUP = 95
export const NBD_ESHUTDOWN = 108

/**
 * How requests and replies are framed after the handshake. `simple`: 28 byte requests, 16 byte replies. `structured`: replies to reads, errors and block
 * status come in chunks. `extended`: 32 byte headers both ways, 64-bit lengths, all replies in chunks.
 */
export type Framing = 'simple' | 'structured' | 'extended'

/** Bytes of the header of a request. */
export function requestHeaderBytes(framing: Framing): number {
  return framing === 'extended' ? EXTENDED_HEADER_BYTES : REQUEST_HEADER_BYTES
}

/** Name of an error value as the specification has it, for logs and messages. */
export function errorName(errno: number): string {
  switch (errno) {
    case NBD_EPERM: return 'EPERM'
    case NBD_EIO: return 'EIO'
    case NBD_ENOMEM: return 'ENOMEM'
    case NBD_EINVAL: return 'EINVAL'
    case NBD_ENOSPC: return 'ENOSPC'
    case NBD_EOVERFLOW: return 'EOVERFLOW'
    case NBD_ENOTSUP: return 'ENOTSUP'
    case NBD_ESHUTDOWN: return 'ESHUTDOWN'
    default: return `error ${errno}`
  }
}

/** 32 bits, big-endian, by hand: several times as fast as Buffer's checked methods. The caller knows that they are there. */
export function readUint32(bytes: Uint8Array, at: number): number {
  return ((bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3]) >>> 0
}

export function writeUint32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24
  bytes[at + 1] = value >>> 16
  bytes[at + 2] = value >>> 8
  bytes[at + 3] = value
}

export function writeUint16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8
  bytes[at + 1] = value
}

/** 64 bits, big-endian. Above 2^53 the result is rounded, and so outside of every device. */
export function readUint64(bytes: Uint8Array, at: number): number {
  return readUint32(bytes, at) * 0x1_0000_0000 + readUint32(bytes, at + 4)
}

/** @param value below 2^53 */
export function writeUint64(bytes: Uint8Array, at: number, value: number): void {
  writeUint32(bytes, at, Math.floor(value / 0x1_0000_0000))
  writeUint32(bytes, at + 4, value % 0x1_0000_0000)
}
