/**
 * What one client, and all together, may ask of the server. Defaults; each can be set when the server is started.
 */

/** Bytes of a name of an export or of a metadata context: "string length limit" of the specification. */
export const STRING_BYTES_MAX = 4096
/** Bytes that are read from a socket at once. One buffer of this size serves all connections of an event loop. */
export const RECEIVE_BUFFER_BYTES = 128 * 1024
/** Extents in one reply to NBD_CMD_BLOCK_STATUS; a client asks again from where the reply ends. */
export const STATUS_EXTENTS_MAX = 8192
/** Queries in one NBD_OPT_SET_META_CONTEXT or NBD_OPT_LIST_META_CONTEXT. */
export const META_CONTEXT_QUERIES_MAX = 128
/** Information requests in one NBD_OPT_INFO or NBD_OPT_GO. */
export const INFO_REQUESTS_MAX = 1024
/** Options in one handshake: a client needs fewer than ten. */
export const OPTIONS_MAX = 1024

/** Exports whose requests are counted each by itself; those that were not used for longest are counted together. */
export const EXPORTS_RECORDED_MAX = 1000

export interface NbdLimits {
  /** Connections at one time; more are closed at once. */
  connectionsMax: number
  /** Those of them that come from one IP address. Clients of unix sockets count in all only. */
  connectionsPerPeerMax: number
  /** From accept to the transmission phase, without the time in which exports are opened. */
  handshakeMsMax: number
  /** A connection that asks for nothing, and takes none of its replies, for so long is closed; 0: never. Peers that are gone are noticed otherwise too. */
  idleMsMax: number
  /** Data of one option; more is skipped and answered by NBD_REP_ERR_TOO_BIG. */
  optionBytesMax: number
  /** Requests of one connection between their arrival and the moment when their reply is with the kernel. */
  inFlightRequestsMax: number
  /** Payload of these requests, both ways. One request is always admitted. */
  inFlightBytesMax: number
  /** Replies that a connection's peer has not read; above this no further request of it is taken up. */
  unsentBytesMax: number
  /** Payload of one request: the maximum payload size that is advertised. A multiple of 64 KiB, at least 1 MiB. */
  requestBytesMax: number
  /** Payload of all connections together, without the part that each of them may always use (`ownBytes`). */
  sharedBytesMax: number
  /** Payload that a connection may always hold, whatever others do. */
  ownBytes: number
  /** A connection that holds shared memory, does not move for so long, and lets another one wait for memory is closed. */
  stalledMsMax: number
}

export const NBD_LIMITS: Readonly<NbdLimits> = {
  connectionsMax: 4096,
  connectionsPerPeerMax: 1024,
  handshakeMsMax: 10_000,
  idleMsMax: 0,
  optionBytesMax: 64 * 1024,
  inFlightRequestsMax: 256,
  inFlightBytesMax: 64 * 1024 * 1024,
  unsentBytesMax: 2 * 1024 * 1024,
  requestBytesMax: 32 * 1024 * 1024,
  sharedBytesMax: 512 * 1024 * 1024,
  ownBytes: 1024 * 1024,
  stalledMsMax: 10_000,
}

export interface LimitRange {
  min: number
  max: number
  multipleOf?: number
}

const GIBI = 1024 ** 3
const DAY_MS = 24 * 3600 * 1000

/** What each limit may be set to. Besides, `sharedBytesMax` holds at least one request. */
export const NBD_LIMIT_RANGES: Readonly<Record<keyof NbdLimits, LimitRange>> = {
  connectionsMax: { min: 1, max: 1_000_000 },
  connectionsPerPeerMax: { min: 1, max: 1_000_000 },
  handshakeMsMax: { min: 1, max: DAY_MS },
  idleMsMax: { min: 0, max: 365 * DAY_MS },
  optionBytesMax: { min: 1, max: 16 * 1024 * 1024 },
  inFlightRequestsMax: { min: 1, max: 1_000_000 },
  inFlightBytesMax: { min: 0, max: 1024 * GIBI },
  unsentBytesMax: { min: 0, max: 1024 * GIBI },
  requestBytesMax: { min: 1024 * 1024, max: GIBI, multipleOf: 65536 },
  sharedBytesMax: { min: 1024 * 1024, max: 1024 * GIBI },
  ownBytes: { min: 0, max: GIBI },
  stalledMsMax: { min: 1, max: DAY_MS },
}
