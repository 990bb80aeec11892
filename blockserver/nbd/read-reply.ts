/**
 * Replies to NBD_CMD_READ: the device reads straight to the place behind the header.
 * Each function returns undefined if the reply is complete, otherwise a promise; both ways of failing leave nothing behind.
 */
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import {
  NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, OFFSET_BYTES, OFFSET_HOLE_BYTES, SIMPLE_REPLY_BYTES, writeUint32, writeUint64,
} from './protocol.ts'
import { type Cookie, type ReplyQueue, writeSimpleHeader } from './reply-queue.ts'
import type { SlabPool } from './slab.ts'

/** For shorter reads a look at the extents costs more than sending zeroes. */
export const HOLE_READ_BYTES_MIN = 32 * 1024
/** A read of so much is sent from the device's own memory, where the device can show it. */
const VIEW_BYTES_MIN = 32 * 1024
/** A shorter run of zeroes is sent as data. */
const HOLE_BYTES_MIN = 4096
/** Extents that are looked at for one read; what is behind them is sent as data. */
const READ_EXTENTS_MAX = 64

/** Where replies are made. */
export interface ReplyPlace {
  device: BlockDevice
  slabs: SlabPool
  replies: ReplyQueue
}

/** A part of a read: `data` is sent, otherwise it is a hole. */
interface Part {
  offset: number
  length: number
  data: boolean
}

/** A simple reply, or one data chunk. @param length bytes, at least 1 */
export function readWhole(place: ReplyPlace, offset: number, length: number, cookie: Cookie): void | Promise<void> {
  const simple = place.replies.framing === 'simple'
  const headerBytes = simple ? SIMPLE_REPLY_BYTES : place.replies.chunkHeaderBytes + OFFSET_BYTES
  const view = length >= VIEW_BYTES_MIN && place.replies.takesViews ? place.device.view?.(offset, length) : undefined
  const { slab, from, to } = place.slabs.cut(view === undefined ? headerBytes + length : headerBytes)
  if (simple) writeSimpleHeader(slab.bytes, from, 0, cookie)
  else writeDataHeader(place.replies, slab.bytes, from, NBD_REPLY_FLAG_DONE, cookie, offset, length)
  if (view !== undefined) {
    place.replies.append(slab, from, to, 0)
    place.replies.appendView(view)
    return
  }
  let pending: void | Promise<void>
  try {
    pending = place.device.read(slab.bytes.subarray(from + headerBytes, to), offset)
  } catch (error) {
    place.slabs.release(slab, 1)
    throw error
  }
  if (pending === undefined) {
    place.replies.append(slab, from, to, 1)
    return
  }
  return pending.then(
    () => place.replies.append(slab, from, to, 1),
    (error: unknown) => {
      place.slabs.release(slab, 1)
      throw error
    },
  )
}

/** A reply in chunks that leaves out what the device knows to be zero. */
export function readSparse(place: ReplyPlace, offset: number, length: number, cookie: Cookie): void | Promise<void> {
  const parts = splitAtHoles(place.device, offset, length)
  if (parts.length === 1 && parts[0].data) return readWhole(place, offset, length, cookie)
  let replyBytes = parts.length * place.replies.chunkHeaderBytes
  for (const { data, length: partBytes } of parts) replyBytes += data ? OFFSET_BYTES + partBytes : OFFSET_HOLE_BYTES
  const { slab, from, to } = place.slabs.cut(replyBytes)
  const pending = writeParts(place, parts, slab.bytes, from, cookie)
  if (pending.length === 0) {
    place.replies.append(slab, from, to, 1)
    return
  }
  return Promise.allSettled(pending).then((results) => {
    const failed = results.find((result) => result.status === 'rejected')
    if (failed === undefined) {
      place.replies.append(slab, from, to, 1)
      return
    }
    place.slabs.release(slab, 1)
    throw failed.reason
  })
}

/** @returns the reads that are not complete; one that failed at once is among them, so that all are waited for before the memory is used again */
function writeParts({ device, replies }: ReplyPlace, parts: readonly Part[], bytes: Buffer, from: number, cookie: Cookie): Promise<void>[] {
  const pending: Promise<void>[] = []
  let at = from
  for (const [index, { offset, length, data }] of parts.entries()) {
    const flags = index === parts.length - 1 ? NBD_REPLY_FLAG_DONE : 0
    if (data) {
      writeDataHeader(replies, bytes, at, flags, cookie, offset, length)
      at += replies.chunkHeaderBytes + OFFSET_BYTES
      try {
        const read = device.read(bytes.subarray(at, at + length), offset)
        if (read !== undefined) pending.push(read)
      } catch (error) {
        pending.push(failed(error))
      }
      at += length
    } else {
      replies.writeChunkHeader(bytes, at, flags, NBD_REPLY_TYPE_OFFSET_HOLE, cookie, OFFSET_HOLE_BYTES)
      at += replies.chunkHeaderBytes
      writeUint64(bytes, at, offset)
      writeUint32(bytes, at + OFFSET_BYTES, length)
      at += OFFSET_HOLE_BYTES
    }
  }
  return pending
}

async function failed(error: unknown): Promise<void> {
  throw error
}

function splitAtHoles(device: BlockDevice, offset: number, length: number): Part[] {
  const parts: Part[] = []
  let at = offset
  const add = (partBytes: number, data: boolean) => {
    const last = parts.at(-1)
    if (last !== undefined && last.data === data) last.length += partBytes
    else parts.push({ offset: at, length: partBytes, data })
    at += partBytes
  }
  for (const extent of device.extents(offset, length, READ_EXTENTS_MAX)) add(extent.length, extent.type === 'data' || extent.length < HOLE_BYTES_MIN)
  if (at < offset + length) add(offset + length - at, true)
  return parts
}

function writeDataHeader(replies: ReplyQueue, bytes: Uint8Array, at: number, flags: number, cookie: Cookie, offset: number, length: number): void {
  replies.writeChunkHeader(bytes, at, flags, NBD_REPLY_TYPE_OFFSET_DATA, cookie, OFFSET_BYTES + length)
  writeUint64(bytes, at + replies.chunkHeaderBytes, offset)
}
