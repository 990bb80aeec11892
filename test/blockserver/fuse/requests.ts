/**
 * Requests as the kernel writes them, right or wrong as a test wants them.
 */
import { IN_HEADER_BYTES } from '@varve/blockserver/fuse/protocol.ts'

/** @param options.lengthBytes what the header says, if it is not true */
export function requestBytes({ opcode, nodeId = 1n, unique = 2n, body = Buffer.alloc(0), lengthBytes = IN_HEADER_BYTES + body.length }: { opcode: number; nodeId?: bigint; unique?: bigint; body?: Buffer; lengthBytes?: number }): Buffer {
  const header = Buffer.alloc(IN_HEADER_BYTES)
  header.writeUInt32LE(lengthBytes >>> 0, 0)
  header.writeUInt32LE(opcode >>> 0, 4)
  header.writeBigUInt64LE(unique, 8)
  header.writeBigUInt64LE(nodeId, 16)
  return Buffer.concat([header, body])
}

export function u64s(...values: (number | bigint)[]): Buffer {
  const bytes = Buffer.alloc(8 * values.length)
  values.forEach((value, index) => bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), 8 * index))
  return bytes
}

export function u32s(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length)
  values.forEach((value, index) => bytes.writeUInt32LE(value >>> 0, 4 * index))
  return bytes
}

export function name(text: string): Buffer {
  return Buffer.from(`${text}\0`, 'latin1')
}
