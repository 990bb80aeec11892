/**
 * What a failure is to the programs that use a mount: an error of the system.
 */
import koffi from 'koffi'
import { VarveError } from '@varve/images/errors.ts'
import type { ErrorCode } from '@varve/images/errors.ts'

export const { EPERM, ENOENT, EINTR, EIO, EAGAIN, ENOTDIR, EINVAL, ENOSPC, EROFS, ERANGE, ENOSYS, ENODATA, EOPNOTSUPP, ESTALE, ENXIO, ETIMEDOUT } = koffi.os.errno

const OF_CODE: Partial<Record<ErrorCode, number>> = { READ_ONLY: EROFS, NOT_FOUND: ENOENT, PROTOCOL_INVALID: EINVAL }

/** A refusal that is an answer and no failure. */
export class Refusal extends Error {
  readonly errno: number

  constructor(errno: number) {
    super(`errno ${errno}`)
    this.errno = errno
  }
}

/** EIO for all that nobody but the administrator can mend; ESTALE for a file that was never shown, as RangeError says of ids. */
export function errnoOf(error: unknown): number {
  if (error instanceof Refusal) return error.errno
  if (error instanceof VarveError) return OF_CODE[error.code] ?? EIO
  if (error instanceof RangeError) return ESTALE
  return (error as NodeJS.ErrnoException).code === 'ENOSPC' ? ENOSPC : EIO
}
