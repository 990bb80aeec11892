/**
 * The control protocol: how one `varve` process asks the one that owns a CVD's overlay to do something. HTTP on a unix socket,
 * `POST /METHOD` with a JSON object of parameters; docs/decisions/0019-control-socket.md. Not the HTTP API for people and agents.
 */
import type { ErrorCode } from '@varve/images/errors.ts'

/** What can be asked. */
export interface ControlMethods {
  /** Makes an immutable point of a CVD that this process serves. @throws VarveError NOT_FOUND, ALREADY_EXISTS, NAME_INVALID */
  snapshot: { params: { cvd: string; name?: string }; result: SnapshotAnswer }
  status: { params: Record<string, never>; result: StatusAnswer }
}

export type ControlMethod = keyof ControlMethods

export interface SnapshotAnswer {
  cvd: string
  /** The snapshot's name, given or chosen. */
  name: string
  [field: string]: unknown
}

export interface StatusAnswer {
  pid: number
  [field: string]: unknown
}

/** What the owning process does when asked. */
export interface ControlHandler {
  snapshot(cvd: string, name?: string): Promise<SnapshotAnswer>
  status(): Promise<StatusAnswer>
}

/** Body of an answer that is not 200. `code` is undefined for what is not a VarveError. */
export interface ControlErrorAnswer {
  error: { code?: ErrorCode; message: string }
}

/** Bytes of a request's body. */
export const CONTROL_REQUEST_BYTES_MAX = 64 * 1024
/** Bytes of an answer's body. */
export const CONTROL_ANSWER_BYTES_MAX = 4 * 1024 * 1024
/** Bytes of a CVD's or snapshot's name; the handler decides on its characters. */
export const CONTROL_NAME_BYTES_MAX = 255
