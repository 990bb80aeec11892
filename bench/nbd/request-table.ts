/**
 * Requests of a load, encoded before the clock starts. The specification: NetworkBlockDevice/nbd, doc/proto.md, "Request message".
 */
import { randomFillSync } from 'node:crypto'
import { NBD_CMD_FLAG_FUA, NBD_CMD_READ, NBD_CMD_WRITE, NBD_REQUEST_MAGIC, REQUEST_HEADER_BYTES } from '@varve/blockserver/nbd/protocol.ts'
import type { Load, LoadDisk, Span } from './load.ts'
import { Random } from '../../test/random.ts'

/** Requests of one connection: reads, which are small, and writes, which carry their payload. */
const READS_MAX = 1 << 16
const WRITES_MAX = 1 << 12
const WRITE_BYTES_MAX = 256 << 20

/**
 * Offsets of requests that a load may make, ascending.
 * @param options.everyBytes at most one in so many bytes
 */
export function eligibleOffsets(disk: LoadDisk, span: Span, options: Pick<Load, 'requestBytes' | 'everyBytes' | 'dataOnly'>): Float64Array {
  const { requestBytes, dataOnly } = options
  const everyBytes = Math.max(options.everyBytes, requestBytes)
  const offsets: number[] = []
  let extent = 0
  const end = Math.min(span.offset + span.length, disk.sizeBytes)
  for (let offset = Math.ceil(span.offset / everyBytes) * everyBytes; offset + requestBytes <= end; offset += everyBytes) {
    while (extent < disk.extents.length && disk.extents[extent] + disk.extents[extent + 1] <= offset) extent += 2
    let dataBytes = 0
    for (let at = extent; at < disk.extents.length && disk.extents[at] < offset + requestBytes; at += 2) {
      dataBytes += Math.min(offset + requestBytes, disk.extents[at] + disk.extents[at + 1]) - Math.max(offset, disk.extents[at])
    }
    if (!dataOnly || dataBytes * 8 >= requestBytes * 7) offsets.push(offset)
  }
  return Float64Array.from(offsets)
}

/**
 * One table for each connection; no two hold the same offset, and none holds one twice. Random payloads: a write that was lost is seen.
 * @param offsets as `eligibleOffsets` gives them @throws Error if they are too few
 */
export function requestTables(load: Load, offsets: Float64Array): { requests: SharedArrayBuffer; count: number }[] {
  const strideBytes = REQUEST_HEADER_BYTES + (load.command === 'write' ? load.requestBytes : 0)
  const countMax = load.command === 'write' ? Math.min(WRITES_MAX, WRITE_BYTES_MAX / load.requestBytes) : READS_MAX
  const perConnection = Math.floor(offsets.length / load.connections)
  const count = Math.min(countMax, perConnection)
  if (count < load.depth) throw new Error(`${offsets.length} places of ${load.requestBytes} bytes are too few for ${load.connections} connections with ${load.depth} requests in flight`)
  const random = new Random(load.seed)
  const order = load.order === 'random' ? shuffled(offsets, random) : offsets
  return Array.from({ length: load.connections }, (_, connection) => {
    const requests = new SharedArrayBuffer(count * strideBytes)
    const bytes = Buffer.from(requests)
    if (load.command === 'write') randomFillSync(bytes)
    for (let index = 0; index < count; index++) {
      const at = index * strideBytes
      bytes.writeUInt32BE(NBD_REQUEST_MAGIC, at)
      bytes.writeUInt16BE(load.fua ? NBD_CMD_FLAG_FUA : 0, at + 4)
      bytes.writeUInt16BE(load.command === 'write' ? NBD_CMD_WRITE : NBD_CMD_READ, at + 6)
      bytes.writeUInt32BE(0, at + 8)
      bytes.writeUInt32BE(index, at + 12)
      bytes.writeBigUInt64BE(BigInt(order[connection * perConnection + index]), at + 16)
      bytes.writeUInt32BE(load.requestBytes, at + 24)
    }
    return { requests, count }
  })
}

export function shuffled<Item>(items: Iterable<Item>, random: Random): Item[] {
  const order = [...items]
  for (let index = order.length - 1; index > 0; index--) {
    const other = random.below(index + 1)
    const item = order[index]
    order[index] = order[other]
    order[other] = item
  }
  return order
}
