/**
 * PackAppender: writes records to packs of its own, in large writes, and makes them durable. It knows nothing of what is a
 * duplicate or visible; that is pack-writer.ts and collect.ts. Order of writes: docs/formats/pack.md#order-of-writes.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, fdatasync, ftruncateSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { compressInto } from '../chunk/codec.ts'
import type { CodecOptions } from '../chunk/codec.ts'
import type { Digest } from '../chunk/digest.ts'
import { PACK_BYTES_TARGET, PACK_HEADER_BYTES, PACK_ID_BYTES, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, encodePackHeader, encodeRecordHeader, packFileName } from './pack-format.ts'
import { syncPath } from './sync-path.ts'
import type { ChunkRow, PackIndex } from './pack-index.ts'

/** Bytes gathered before they are written. */
const WRITE_BYTES = 1 << 20

const fdatasyncAsync = promisify(fdatasync)

interface OpenPack {
  pack: number
  id: string
  fd: number
  /** Bytes written to the file. */
  bytes: number
  /** Up to here it is durable and in the index. */
  committedBytes: number
  /** A sync that runs already: the pack is full. */
  syncing?: Promise<void>
}

export class PackAppender {
  readonly #directory: string
  readonly #index: PackIndex
  readonly #lease: number
  readonly #buffer = Buffer.allocUnsafeSlow(WRITE_BYTES + RECORD_BYTES_MAX)
  #buffered = 0
  /** Bytes of all packs that it has begun, headers included. */
  bytesAppended = 0
  #current: OpenPack | undefined
  /** Full ones that are not committed yet. */
  #full: OpenPack[] = []

  constructor(directory: string, index: PackIndex, lease: number) {
    this.#directory = directory
    this.#index = index
    this.#lease = lease
  }

  /** Compresses `content` and appends it. */
  append(digest: Digest, content: Uint8Array, options: CodecOptions): ChunkRow {
    return this.#appendRecord(digest, content.length, (target) => compressInto(target, content, options))
  }

  /** Appends a payload as it is. */
  appendStored(row: Omit<ChunkRow, 'pack' | 'offset'>, payload: Uint8Array): ChunkRow {
    return this.#appendRecord(row.digest, row.raw, (target) => {
      target.set(payload)
      return { codec: row.codec, length: payload.length }
    })
  }

  #appendRecord(digest: Digest, raw: number, fill: (target: Buffer) => { codec: ChunkRow['codec']; length: number }): ChunkRow {
    const pack = this.#current ?? this.#startPack()
    const at = this.#buffered
    const { codec, length: stored } = fill(this.#buffer.subarray(at + RECORD_HEADER_BYTES))
    encodeRecordHeader(this.#buffer, at, { digest, codec, raw, stored })
    this.#buffered = at + RECORD_HEADER_BYTES + stored
    this.bytesAppended += RECORD_HEADER_BYTES + stored
    const row = { digest, pack: pack.pack, offset: pack.bytes + at, stored, raw, codec }
    if (pack.bytes + this.#buffered >= PACK_BYTES_TARGET) this.#finishPack(pack)
    else if (this.#buffered >= WRITE_BYTES) this.#flush(pack)
    return row
  }

  #startPack(): OpenPack {
    const id = randomBytes(PACK_ID_BYTES).toString('hex')
    const number = this.#index.addPack(id, this.#lease)
    const fd = openSync(join(this.#directory, packFileName(id)), 'wx')
    const pack: OpenPack = { pack: number, id, fd, bytes: 0, committedBytes: 0 }
    this.#current = pack
    writeFully(fd, encodePackHeader(id), 0)
    pack.bytes = PACK_HEADER_BYTES
    this.bytesAppended += PACK_HEADER_BYTES
    return pack
  }

  #flush(pack: OpenPack): void {
    writeFully(pack.fd, this.#buffer.subarray(0, this.#buffered), pack.bytes)
    pack.bytes += this.#buffered
    this.#buffered = 0
  }

  /** A full pack goes to the disk while the next one is filled. */
  #finishPack(pack: OpenPack): void {
    this.#flush(pack)
    this.#current = undefined
    this.#full.push(pack)
    pack.syncing = fdatasyncAsync(pack.fd)
    // Whoever syncs sees the error; until then it is not unhandled.
    pack.syncing.catch(() => {})
  }

  /**
   * Makes everything that was appended durable, names included.
   * @returns the packs that hold it, and the length up to which they are good, to be given to `committed` once the index says so
   */
  async sync(): Promise<{ pack: number; bytes: number }[]> {
    if (this.#current !== undefined && this.#buffered > 0) this.#flush(this.#current)
    const packs = [...this.#full]
    if (this.#current !== undefined && this.#current.bytes > this.#current.committedBytes) packs.push(this.#current)
    const synced = packs.map(({ pack, bytes }) => ({ pack, bytes }))
    if (packs.some((pack) => pack.committedBytes === 0)) syncPath(this.#directory)
    await Promise.all(packs.map((pack) => pack.syncing ?? fdatasyncAsync(pack.fd)))
    return synced
  }

  /** The index counts on these packs up to these lengths now; full ones of which it counts on everything are closed. */
  committed(packs: { pack: number; bytes: number }[]): void {
    const bytesOf = new Map(packs.map(({ pack, bytes }) => [pack, bytes]))
    for (const pack of this.#open()) pack.committedBytes = bytesOf.get(pack.pack) ?? pack.committedBytes
    // One that was filled up while it was synced holds records that the next commit counts on: sealed now, it would be cut short of them.
    for (const pack of this.#full) if (pack.committedBytes === pack.bytes) this.#seal(pack)
    this.#full = this.#full.filter((pack) => pack.committedBytes !== pack.bytes)
  }

  /** Drops what is not committed, and closes. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#full.map((pack) => pack.syncing ?? Promise.resolve()))
    this.#buffered = 0
    for (const pack of this.#open()) this.#seal(pack)
    this.#full = []
    this.#current = undefined
  }

  #open(): OpenPack[] {
    return this.#current === undefined ? this.#full : [...this.#full, this.#current]
  }

  #seal(pack: OpenPack): void {
    try {
      if (pack.committedBytes > 0 && pack.bytes > pack.committedBytes) ftruncateSync(pack.fd, pack.committedBytes)
      if (pack.committedBytes === 0) unlinkSync(join(this.#directory, packFileName(pack.id)))
    } finally {
      closeSync(pack.fd)
    }
    const statement = pack.committedBytes === 0 ? 'DELETE FROM packs WHERE pack = ?' : 'UPDATE packs SET lease = NULL WHERE pack = ?'
    this.#index.transientTransaction(() => this.#index.database.prepare(statement).run(pack.pack))
  }
}

function writeFully(fd: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, position + done)
}
