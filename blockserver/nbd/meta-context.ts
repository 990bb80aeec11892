/**
 * Metadata contexts: `base:allocation`, the only one so far. Queries of the handshake, and replies to NBD_CMD_BLOCK_STATUS.
 */
import type { BlockDevice, ExtentType } from '@varve/images/device/block-device.ts'
import { STATUS_EXTENTS_MAX } from './limits.ts'
import {
  CHUNK_HEADER_BYTES, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_STATE_HOLE, NBD_STATE_ZERO, writeUint32,
} from './protocol.ts'
import { type Cookie, type ReplyQueue, writeChunkHeader } from './reply-queue.ts'
import type { SlabPool } from './slab.ts'

export const BASE_ALLOCATION = 'base:allocation'
export const BASE_ALLOCATION_ID = 1

/** Contexts that NBD_OPT_LIST_META_CONTEXT shows for these queries; none means all. */
export function listContexts(queries: readonly string[]): string[] {
  return queries.length === 0 || queries.some((query) => query === 'base:' || query === BASE_ALLOCATION) ? [BASE_ALLOCATION] : []
}

/** Contexts that NBD_OPT_SET_META_CONTEXT selects; wildcards select nothing. */
export function selectContexts(queries: readonly string[]): string[] {
  return queries.includes(BASE_ALLOCATION) ? [BASE_ALLOCATION] : []
}

const STATE: Record<ExtentType, number> = { data: 0, zero: NBD_STATE_ZERO, hole: NBD_STATE_HOLE | NBD_STATE_ZERO }

/**
 * Appends the reply to NBD_CMD_BLOCK_STATUS.
 * @param range bytes, inside the device, not empty
 */
export function replyBlockStatus(device: BlockDevice, range: { offset: number; length: number; one: boolean }, cookie: Cookie, slabs: SlabPool, replies: ReplyQueue): void {
  const extents = device.extents(range.offset, range.length, range.one ? 1 : STATUS_EXTENTS_MAX)
  const payloadBytes = 4 + 8 * extents.length
  const { slab, from, to } = slabs.cut(CHUNK_HEADER_BYTES + payloadBytes)
  writeChunkHeader(slab.bytes, from, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, cookie, payloadBytes)
  let at = from + CHUNK_HEADER_BYTES
  writeUint32(slab.bytes, at, BASE_ALLOCATION_ID)
  at += 4
  for (const { length, type } of extents) {
    writeUint32(slab.bytes, at, length)
    writeUint32(slab.bytes, at + 4, STATE[type])
    at += 8
  }
  replies.append(slab, from, to, 1)
}
