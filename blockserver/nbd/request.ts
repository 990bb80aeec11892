/**
 * What the specification says about a request before it is carried out: which flags a command knows, which ranges, which errors.
 */
import {
  type Framing, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EINVAL, NBD_EIO, NBD_ENOMEM, NBD_ENOSPC, NBD_EOVERFLOW, NBD_EPERM,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD, NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_HAS_FLAGS, NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO, NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA, NBD_FLAG_SEND_TRIM, NBD_FLAG_SEND_WRITE_ZEROES,
} from './protocol.ts'
import { isVarveError } from '@varve/images/errors.ts'

/** Flags that a command knows. FUA is accepted on every command ("Command flags"). */
const COMMAND_FLAGS: Readonly<Record<number, number | undefined>> = {
  [NBD_CMD_READ]: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
  [NBD_CMD_WRITE]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_DISC]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_FLUSH]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_TRIM]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_CACHE]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_WRITE_ZEROES]: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
  [NBD_CMD_BLOCK_STATUS]: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
}

export interface RequestRules {
  sizeBytes: number
  readOnly: boolean
  framing: Framing
  /** Metadata contexts that were selected. */
  contextCount: number
  /** Offsets and lengths are multiples of it; a power of two. */
  minimumBlockBytes: number
  requestBytesMax: number
}

/** All connections to an export share one device, so a flush on one covers all: CAN_MULTI_CONN always holds. */
export function transmissionFlags({ readOnly, framing, contextCount }: Pick<RequestRules, 'readOnly' | 'framing' | 'contextCount'>): number {
  let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE
  flags |= readOnly ? NBD_FLAG_READ_ONLY : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO
  if (framing !== 'simple') flags |= NBD_FLAG_SEND_DF
  if (framing === 'extended' && contextCount > 0) flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD
  return flags
}

/**
 * True if `length` bytes follow the header of the request: of a write always, of other commands if, with extended headers, a flag says so.
 * A write must have the flag too; those of qemu (10.0) do not, and have their payload all the same.
 */
export function hasPayload(framing: Framing, type: number, flags: number): boolean {
  return type === NBD_CMD_WRITE || (framing === 'extended' && (flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0)
}

/** The error that a request earns by itself, or 0. For the payload form of NBD_CMD_BLOCK_STATUS, `length` is that of the payload's own field. */
export function requestError(rules: RequestRules, type: number, flags: number, offset: number, length: number): number {
  const known = COMMAND_FLAGS[type]
  if (known === undefined || (flags & ~known & ~NBD_CMD_FLAG_PAYLOAD_LEN) !== 0 || !payloadFits(rules, type, flags)) return NBD_EINVAL
  if (type === NBD_CMD_FLUSH) return offset === 0 && length === 0 ? 0 : NBD_EINVAL
  const writes = type === NBD_CMD_WRITE || type === NBD_CMD_TRIM || type === NBD_CMD_WRITE_ZEROES
  if (writes && rules.readOnly) return NBD_EPERM
  if (offset + length > rules.sizeBytes) return type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL
  if (rules.minimumBlockBytes > 1 && (offset % rules.minimumBlockBytes !== 0 || length % rules.minimumBlockBytes !== 0)) return NBD_EINVAL
  if (type === NBD_CMD_BLOCK_STATUS) return rules.contextCount > 0 && length > 0 ? 0 : NBD_EINVAL
  if (type === NBD_CMD_READ && (flags & NBD_CMD_FLAG_DF) !== 0 && rules.framing === 'simple') return NBD_EINVAL
  if (length <= rules.requestBytesMax) return 0
  if (type === NBD_CMD_READ) return rules.framing === 'simple' ? NBD_EINVAL : NBD_EOVERFLOW
  if (type === NBD_CMD_WRITE) return NBD_EINVAL
  return type === NBD_CMD_CACHE ? NBD_EOVERFLOW : 0
}

/** With extended headers a write has the flag, block status may have it, and nothing else does; without them nobody has. */
function payloadFits({ framing }: RequestRules, type: number, flags: number): boolean {
  return (flags & NBD_CMD_FLAG_PAYLOAD_LEN) === 0 || (framing === 'extended' && (type === NBD_CMD_WRITE || type === NBD_CMD_BLOCK_STATUS))
}

/** The error value for what a device threw. */
export function deviceError(error: unknown): number {
  if (isVarveError(error, 'READ_ONLY')) return NBD_EPERM
  switch ((error as NodeJS.ErrnoException | undefined)?.code) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG': return NBD_ENOSPC
    case 'ENOMEM': return NBD_ENOMEM
    default: return NBD_EIO
  }
}
