/**
 * Every error that a user of Varve can meet, by code. docs/errors.md lists the same codes; a test compares the two.
 * A caller's bug is a RangeError or TypeError instead, and never reaches a user.
 */

export const ERROR_CODES = [
  // chunks, packs, index
  'CHUNK_MISSING',
  'CHUNK_CORRUPT',
  'PACK_INVALID',
  'INDEX_INVALID',
  'STORE_LOCKED',
  'HOME_INVALID',
  'LIBRARY_MISSING',
  // formats
  'FORMAT_INVALID',
  'FORMAT_UNSUPPORTED',
  'LIMIT_EXCEEDED',
  // import
  'SOURCE_INVALID',
  'SOURCE_CHANGED',
  'SOURCE_UNSUPPORTED',
  // catalog
  'NAME_INVALID',
  'NOT_FOUND',
  'ALREADY_EXISTS',
  'IN_USE',
  // compose
  'COMPOSE_CONFLICT',
  'DISK_TOO_SMALL',
  'BOOT_MISSING',
  // devices and serving
  'READ_ONLY',
  'OVERLAY_INVALID',
  'OVERLAY_FAILED',
  'EXPORT_NOT_FOUND',
  'ADDRESS_INVALID',
  'CREDENTIALS_INVALID',
  'ACCESS_INVALID',
  'CONFIG_INVALID',
  // streaming
  'TARGET_INVALID',
  'TARGET_FAILED',
  'TOKEN_INVALID',
  'AUTH_FAILED',
  'PROTOCOL_INVALID',
  'CONNECTION_LOST',
  // mounts
  'MOUNT_FAILED',
] as const

export type ErrorCode = (typeof ERROR_CODES)[number]

export class VarveError extends Error {
  readonly code: ErrorCode

  /** @param message says what, where and what to do, in one line */
  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.name = 'VarveError'
    this.code = code
  }
}

/** True if `error` is a VarveError, with one of `codes` if any are given. */
export function isVarveError(error: unknown, ...codes: ErrorCode[]): error is VarveError {
  return error instanceof VarveError && (codes.length === 0 || codes.includes(error.code))
}
