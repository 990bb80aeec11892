/**
 * Replies to options: their bytes, and what NBD_OPT_INFO and NBD_OPT_GO tell of an export. "Option reply types" of the specification.
 */
import type { ServedExport } from './export.ts'
import {
  NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_REP_INFO, NBD_REP_MAGIC, NBD_REP_META_CONTEXT, NBD_REP_SERVER,
  OPTION_REPLY_HEADER_BYTES, writeUint16, writeUint32, writeUint64,
} from './protocol.ts'

/** The preferred block size of the specification is at least this. */
const PREFERRED_BLOCK_BYTES_MIN = 512

export function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(OPTION_REPLY_HEADER_BYTES)
  writeUint32(header, 0, NBD_REP_MAGIC[0])
  writeUint32(header, 4, NBD_REP_MAGIC[1])
  writeUint32(header, 8, option)
  writeUint32(header, 12, type)
  writeUint32(header, 16, data.length)
  return Buffer.concat([header, data])
}

/** One export of NBD_OPT_LIST. */
export function serverReply(option: number, { name, description }: { name: string; description: string }): Buffer {
  const nameBytes = Buffer.from(name)
  return optionReply(option, NBD_REP_SERVER, Buffer.concat([uint32(nameBytes.length), nameBytes, Buffer.from(description)]))
}

export function metaContextReply(option: number, { id, name }: { id: number; name: string }): Buffer {
  return optionReply(option, NBD_REP_META_CONTEXT, Buffer.concat([uint32(id), Buffer.from(name)]))
}

/**
 * What is told of an export: its size always, the rest if asked for.
 * @param options.requests NBD_INFO_...
 */
export function infoReplies(option: number, served: ServedExport, options: { flags: number; requests: readonly number[]; requestBytesMax: number }): Buffer[] {
  const { requests, flags, requestBytesMax } = options
  const info = Buffer.alloc(12)
  writeUint16(info, 0, NBD_INFO_EXPORT)
  writeUint64(info, 2, served.device.sizeBytes)
  writeUint16(info, 10, flags)
  const replies = [optionReply(option, NBD_REP_INFO, info)]
  if (requests.includes(NBD_INFO_NAME)) replies.push(textInfo(option, NBD_INFO_NAME, served.name))
  if (requests.includes(NBD_INFO_DESCRIPTION)) replies.push(textInfo(option, NBD_INFO_DESCRIPTION, served.description))
  if (requests.includes(NBD_INFO_BLOCK_SIZE)) replies.push(blockSizeReply(option, served, requestBytesMax))
  return replies
}

export function blockSizeReply(option: number, { device, minimumBlockBytes = 1 }: ServedExport, requestBytesMax: number): Buffer {
  const sizes = Buffer.alloc(14)
  writeUint16(sizes, 0, NBD_INFO_BLOCK_SIZE)
  writeUint32(sizes, 2, minimumBlockBytes)
  writeUint32(sizes, 6, Math.min(Math.max(device.blockBytes, minimumBlockBytes, PREFERRED_BLOCK_BYTES_MIN), requestBytesMax))
  writeUint32(sizes, 10, requestBytesMax)
  return optionReply(option, NBD_REP_INFO, sizes)
}

function textInfo(option: number, type: number, text: string): Buffer {
  const info = Buffer.alloc(2)
  writeUint16(info, 0, type)
  return optionReply(option, NBD_REP_INFO, Buffer.concat([info, Buffer.from(text)]))
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  writeUint32(bytes, 0, value)
  return bytes
}
