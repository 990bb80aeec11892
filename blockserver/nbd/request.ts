/**
 * What the specification says about a request before it is carried out: which flags a command knows, which ranges, which errors.
 */
import {
  NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EINVAL, NBD_EIO, NBD_ENOMEM, NBD_ENOSPC, NBD_EOVERFLOW, NBD_EPERM,
  NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_HAS_FLAGS, NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO, NBD_FLAG_SEND_FLUSH,
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
  structured: boolean
  /** True if base:allocation was selected. */
  allocation: boolean
  requestBytesMax: number
}

/** All connections to an export share one device, so a flush on one covers all: CAN_MULTI_CONN always holds. */
export function transmissionFlags(device: { readOnly: boolean }, structured: boolean): number {
  let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE
  flags |= device.readOnly ? NBD_FLAG_READ_ONLY : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO
  if (structured) flags |= NBD_FLAG_SEND_DF
  return flags
}

/** The error that a request earns by itself, or 0. */
export function requestError(rules: RequestRules, type: number, flags: number, offset: number, length: number): number {
  const known = COMMAND_FLAGS[type]
  if (known === undefined || (flags & ~known) !== 0) return NBD_EINVAL
  if (type === NBD_CMD_FLUSH) return offset === 0 && length === 0 ? 0 : NBD_EINVAL
  const writes = type === NBD_CMD_WRITE || type === NBD_CMD_TRIM || type === NBD_CMD_WRITE_ZEROES
  if (writes && rules.readOnly) return NBD_EPERM
  if (offset + length > rules.sizeBytes) return type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL
  if (type === NBD_CMD_BLOCK_STATUS) return rules.allocation && length > 0 ? 0 : NBD_EINVAL
  if (type === NBD_CMD_READ && (flags & NBD_CMD_FLAG_DF) !== 0 && !rules.structured) return NBD_EINVAL
  if (length <= rules.requestBytesMax) return 0
  if (type === NBD_CMD_READ) return rules.structured ? NBD_EOVERFLOW : NBD_EINVAL
  if (type === NBD_CMD_WRITE) return NBD_EINVAL
  return type === NBD_CMD_CACHE ? NBD_EOVERFLOW : 0
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
