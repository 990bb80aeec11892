/**
 * What the server has done since it was started. Counters only grow; a reader takes differences.
 */
export class NbdMetrics {
  connectionsAccepted = 0
  /** Over the limit, closed at once. */
  connectionsRefused = 0
  connectionsOpen = 0
  /** Connections that ended before the transmission phase, and not by NBD_OPT_ABORT. */
  handshakesFailed = 0
  /** Connections closed because the peer broke the protocol, or held memory without moving. */
  connectionsCut = 0
  requests = 0
  /** Payload of successful reads, zeroes included, and of writes. */
  bytesRead = 0
  bytesWritten = 0
  /** Requests answered by an error. */
  errors = 0
}
