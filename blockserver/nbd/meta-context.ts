/**
 * Metadata contexts: `base:allocation` of every export, and those of its own. Queries of the handshake, and replies to NBD_CMD_BLOCK_STATUS.
 */
import type { BlockDevice, ExtentType } from '@varve/images/device/block-device.ts'
import type { ExportAbilities, MetaContext, StatusRun } from './export.ts'
import { STATUS_EXTENTS_MAX } from './limits.ts'
import {
  NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, NBD_STATE_HOLE, NBD_STATE_ZERO, readUint32, readUint64, writeUint32, writeUint64,
} from './protocol.ts'
import type { Cookie, ReplyQueue } from './reply-queue.ts'
import type { SlabPool } from './slab.ts'

export const BASE_ALLOCATION = 'base:allocation'

/** A context as NBD_OPT_SET_META_CONTEXT selected it. */
export interface SelectedContext extends MetaContext {
  readonly id: number
}

/** All contexts of an export; each one's place is its id, from 1. */
export function offeredContexts({ device, contexts = [] }: ExportAbilities): SelectedContext[] {
  return [allocationContext(device), ...contexts].map((context, index) => ({
    id: index + 1,
    name: context.name,
    extents: (offset, length, most) => context.extents(offset, length, most),
  }))
}

/** Those that NBD_OPT_LIST_META_CONTEXT shows for these queries; none means all, an empty leaf name all of a namespace. */
export function listedContexts(offered: readonly SelectedContext[], queries: readonly string[]): SelectedContext[] {
  return offered.filter(({ name }) => queries.length === 0 || queries.some((query) => query === name || query === `${name.slice(0, name.indexOf(':'))}:`))
}

/** Those that NBD_OPT_SET_META_CONTEXT selects; wildcards select nothing. */
export function selectedContexts(offered: readonly SelectedContext[], queries: readonly string[]): SelectedContext[] {
  return offered.filter(({ name }) => queries.includes(name))
}

const STATE: Record<ExtentType, number> = { data: 0, zero: NBD_STATE_ZERO, hole: NBD_STATE_HOLE | NBD_STATE_ZERO }

function allocationContext(device: BlockDevice): MetaContext {
  return {
    name: BASE_ALLOCATION,
    extents: (offset, length, most) => device.extents(offset, length, most).map((extent) => ({ length: extent.length, flags: STATE[extent.type] })),
  }
}

/** What the payload form of NBD_CMD_BLOCK_STATUS asks for. */
export interface StatusQuery {
  length: number
  contexts: SelectedContext[]
}

/** Bytes of the payload that asks for `count` contexts: a 64-bit length, and 32 bits for each. */
export function statusPayloadBytes(count: number): number {
  return 8 + 4 * count
}

/** @returns undefined if an id is unknown or comes twice */
export function parseStatusPayload(payload: Uint8Array, selected: readonly SelectedContext[]): StatusQuery | undefined {
  const contexts: SelectedContext[] = []
  for (let at = 8; at < payload.length; at += 4) {
    const context = selected.find(({ id }) => id === readUint32(payload, at))
    if (context === undefined || contexts.includes(context)) return undefined
    contexts.push(context)
  }
  return { length: readUint64(payload, 0), contexts }
}

/**
 * Appends the reply to NBD_CMD_BLOCK_STATUS: a chunk for each context.
 * @param query `offset`, `length`: bytes, inside the device, not empty; `one`: a single extent of each
 */
export function replyBlockStatus(query: { contexts: readonly SelectedContext[]; offset: number; length: number; one: boolean }, cookie: Cookie, slabs: SlabPool, replies: ReplyQueue): void {
  const most = query.one ? 1 : STATUS_EXTENTS_MAX
  // All before the first chunk: none may follow what is marked as the last.
  const statuses = query.contexts.map((context) => ({ id: context.id, runs: context.extents(query.offset, query.length, most) }))
  if (statuses.length === 0) replies.emptyChunk(cookie)
  for (const [index, { id, runs }] of statuses.entries()) appendStatus(id, runs, index === statuses.length - 1, cookie, slabs, replies)
}

function appendStatus(id: number, runs: readonly StatusRun[], last: boolean, cookie: Cookie, slabs: SlabPool, replies: ReplyQueue): void {
  const extended = replies.framing === 'extended'
  const payloadBytes = extended ? 8 + 16 * runs.length : 4 + 8 * runs.length
  const { slab: { bytes }, slab, from, to } = slabs.cut(replies.chunkHeaderBytes + payloadBytes)
  replies.writeChunkHeader(bytes, from, last ? NBD_REPLY_FLAG_DONE : 0, extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS, cookie, payloadBytes)
  let at = from + replies.chunkHeaderBytes
  writeUint32(bytes, at, id)
  at += 4
  if (extended) {
    writeUint32(bytes, at, runs.length)
    at += 4
  }
  for (const { length, flags } of runs) {
    if (extended) {
      writeUint64(bytes, at, length)
      writeUint64(bytes, at + 8, flags)
      at += 16
    } else {
      writeUint32(bytes, at, length)
      writeUint32(bytes, at + 4, flags)
      at += 8
    }
  }
  replies.append(slab, from, to, last ? 1 : 0)
}
