/**
 * What a load is and what it measured: the words between the bench (load-generator.ts), its process (load-process.ts) and the
 * threads of that (load-thread.ts), which hold one connection each.
 */

/** A disk that servers offer. */
export interface LoadDisk {
  /** Its bytes, in a file. */
  rawFile: string
  sizeBytes: number
  /** Where it holds data: offset, length, offset, length, ... in order. */
  extents: readonly number[]
}

/** A part of the disk. Every request of a load lies in it, at a multiple of its length. */
export interface Span {
  offset: number
  length: number
}

export interface Load {
  /** `unix:PATH` or `IPV4:PORT` */
  address: string
  exportName: string
  /** Layers of the disk: which of `Disks.byLayers` it is. */
  layers: number
  span: Span
  /** Only requests of which at least 7/8 are data. */
  dataOnly: boolean
  command: 'read' | 'write'
  /** Of writes. */
  fua: boolean
  order: 'sequential' | 'random'
  requestBytes: number
  /** No two requests within so many bytes, counted from 0; requestBytes if that is more. */
  everyBytes: number
  /** Requests in flight on each connection. */
  depth: number
  connections: number
  /** Time before the clock starts, ms. */
  leadMs: number
  /** Time on the clock, ms. */
  timedMs: number
  /** Ends when every offset was asked for once, if that comes before the time. */
  once: boolean
  seed: number
}

export interface LoadFigures {
  /** All that were made, those before and after the clock too. */
  sent: number
  requestsPerSecond: number
  bytesPerSecond: number
  /** From the write of a request to the read that brought the end of its reply. */
  p50Us: number
  p99Us: number
  /** Of the process that makes the load, user and system, per second of the load. */
  clientCpu: number
}

/** What a thread is handed. */
export interface ThreadLoad extends Omit<Load, 'layers' | 'span' | 'dataOnly' | 'everyBytes' | 'order' | 'connections' | 'seed'> {
  /** Encoded requests one after another, each with its payload; the cookie of each is its index. */
  requests: SharedArrayBuffer
  count: number
  rawFile: string
  /** Int32: [0] threads that are connected, [1] becomes 1 when they may start. */
  gate: SharedArrayBuffer
}

export interface ThreadFigures {
  sent: number
  /** On the clock. */
  requests: number
  seconds: number
  latenciesUs: Float32Array
}

/** A thread says `timed` when the clock has stopped, then `done` when it has checked what it read or wrote. */
export type ThreadMessage = { state: 'connected' } | { state: 'timed' } | { state: 'done'; figures: ThreadFigures } | { state: 'failed'; message: string }
