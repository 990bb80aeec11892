/**
 * Records requests to one export: ExportRecorder sums up all connections of one thread, RequestRecorder is what one connection calls.
 * The hot path pays two increments a request, and one reading of the clock for all requests that arrived together.
 */
import { LatencyHistogram, type LatencySnapshot, latencyCount } from '../latency-histogram.ts'
import { NBD_CMD_DISC } from './protocol.ts'

/** Names of commands by their number in the protocol. NBD_CMD_DISC is never answered: in its place are those that are not known. */
const COMMAND_NAMES = ['read', 'write', 'unknown', 'flush', 'trim', 'cache', 'write_zeroes', 'block_status']
const UNKNOWN_COMMAND = NBD_CMD_DISC

export interface CommandSnapshot {
  command: string
  /** Requests answered by an error; they are in `latency` too. */
  errors: number
  /** From when all of a request has arrived until its reply is made; if the device was done at once, until it was handed to the kernel. */
  latency: LatencySnapshot
}

export interface ExportSnapshot {
  name: string
  /** Connections that use it now. */
  connections: number
  requestsInFlight: number
  /** Payload of successful reads, zeroes included, and of successful writes. */
  bytesRead: number
  bytesWritten: number
  /** Commands that were answered at least once. */
  commands: CommandSnapshot[]
}

export class ExportRecorder {
  readonly name: string
  connections = 0
  /** All of which at least the header came. */
  requestsTaken = 0
  requestsEnded = 0
  bytesRead = 0
  bytesWritten = 0
  /** By command. */
  readonly errorCounts = new Float64Array(COMMAND_NAMES.length)
  readonly latencies = COMMAND_NAMES.map(() => new LatencyHistogram())

  constructor(name: string) {
    this.name = name
  }

  snapshot(): ExportSnapshot {
    const commands = COMMAND_NAMES.map((command, index) => ({ command, errors: this.errorCounts[index], latency: this.latencies[index].snapshot() }))
    return {
      name: this.name,
      connections: this.connections,
      requestsInFlight: this.requestsTaken - this.requestsEnded,
      bytesRead: this.bytesRead,
      bytesWritten: this.bytesWritten,
      commands: commands.filter(({ latency }) => latencyCount(latency) > 0),
    }
  }
}

/** `command` is always a number of the protocol, known or not. */
export class RequestRecorder {
  readonly export: ExportRecorder
  /** Requests answered at once whose replies are not out, by command. */
  readonly #atOnce = new Int32Array(COMMAND_NAMES.length)
  #batchMs = 0

  constructor(ofExport: ExportRecorder) {
    this.export = ofExport
  }

  /** What is started from now on arrived at `nowMs`, `performance.now()`. */
  begin(nowMs: number): void {
    this.#batchMs = nowMs
  }

  taken(): void {
    this.export.requestsTaken++
  }

  /** All of a request is there. It counts as answered at once, unless `later` says otherwise. */
  started(command: number): void {
    this.#atOnce[slotOf(command)]++
  }

  /** The device is not done with what was just started. @returns when it began, for `answered` */
  later(command: number): number {
    this.#atOnce[slotOf(command)]--
    return this.#batchMs
  }

  answered(command: number, beganMs: number): void {
    this.export.latencies[slotOf(command)].record(performance.now() - beganMs)
    this.export.requestsEnded++
  }

  /** The replies to all that was answered at once are out, since `nowMs`. */
  repliesOut(nowMs: number): void {
    const durationMs = nowMs - this.#batchMs
    for (let slot = 0; slot < this.#atOnce.length; slot++) {
      const count = this.#atOnce[slot]
      if (count === 0) continue
      this.#atOnce[slot] = 0
      this.export.latencies[slot].record(durationMs, count)
      this.export.requestsEnded += count
    }
  }

  /** A request is answered by an error. */
  failed(command: number): void {
    this.export.errorCounts[slotOf(command)]++
  }

  /** The connection ended before all of the request had arrived. */
  dropped(): void {
    this.export.requestsEnded++
  }
}

function slotOf(command: number): number {
  return command < COMMAND_NAMES.length ? command : UNKNOWN_COMMAND
}
