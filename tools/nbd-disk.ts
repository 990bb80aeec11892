/**
 * Disks of NBD servers as sources: opened by their URI, and read once. URIs: doc/uri.md of the NBD protocol.
 */
import { BASE_ALLOCATION } from '@varve/blockserver/nbd/meta-context.ts'
import { NbdPool } from '@varve/blockserver/nbd/pool.ts'
import { RangesBuilder } from '@varve/images/blockmap/ranges.ts'
import type { Ranges } from '@varve/images/blockmap/ranges.ts'
import { appendExtent, checkRange } from '@varve/images/device/block-device.ts'
import type { DeviceExtent, ReadableDisk } from '@varve/images/device/block-device.ts'
import { VarveError } from '@varve/images/errors.ts'

/** Of which the status is asked for at a time, bytes. */
const STATUS_BYTES = 2 ** 30
/** Extents that are kept of one disk. */
const EXTENTS_MAX = 1 << 24
const ZERO_FLAG = 2
const DIRTY_FLAG = 1
const DEFAULT_PORT = 10809

export interface NbdDisk extends ReadableDisk, AsyncDisposable {
  /** What the bitmap that was asked for says has changed. */
  readonly changed: Ranges | undefined
}

export interface OpenNbdDiskOptions {
  /** Of a bitmap of changes, as qemu-nbd and libvirt offer it (`qemu:dirty-bitmap:NAME`), or a metadata context by its whole name. */
  bitmap?: string
  signal?: AbortSignal
}

/** @throws VarveError SOURCE_INVALID, NOT_FOUND (the bitmap), EXPORT_NOT_FOUND, CREDENTIALS_INVALID, CONNECTION_LOST, PROTOCOL_INVALID */
export async function openNbdDisk(uri: string, { bitmap, signal }: OpenNbdDiskOptions = {}): Promise<NbdDisk> {
  const { address, exportName, isSecure } = parseNbdUri(uri)
  const context = bitmap === undefined ? undefined : bitmap.includes(':') ? bitmap : `qemu:dirty-bitmap:${bitmap}`
  const contexts = [BASE_ALLOCATION, ...(context === undefined ? [] : [context])]
  const pool = await NbdPool.connect(address, { exportName, contexts, signal, ...(isSecure ? { tls: {} } : {}) })
  try {
    if (context !== undefined && !pool.contexts.includes(context)) throw new VarveError('NOT_FOUND', `the server offers no bitmap ${context} for this export`)
    const allocation = pool.contexts.includes(BASE_ALLOCATION) ? await statusOf(pool, BASE_ALLOCATION, (flags) => (flags & ZERO_FLAG) !== 0 ? 'hole' : 'data') : undefined
    const dirty = context === undefined ? undefined : await statusOf(pool, context, (flags) => (flags & DIRTY_FLAG) !== 0 ? 'data' : 'hole')
    return { sizeBytes: pool.sizeBytes, changed: dirty && dataOf(dirty), read: (into, offset) => read(pool, into, offset), extents: allocation && extentsOf(allocation, pool.sizeBytes), [Symbol.asyncDispose]: () => pool.close() }
  } catch (error) {
    await pool.close()
    throw error
  }
}

/** `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`; with `nbds` for TLS. @throws VarveError SOURCE_INVALID */
export function parseNbdUri(text: string): { address: string; exportName: string; isSecure: boolean } {
  const refuse = (): VarveError => new VarveError('SOURCE_INVALID', `${JSON.stringify(text)} is not the URI of an NBD export; give nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH`)
  const uri = URL.canParse(text) ? new URL(text) : undefined
  const [, secure, unix] = /^nbd(s?)(\+unix)?:$/.exec(uri?.protocol ?? '') ?? []
  if (uri === undefined || secure === undefined) throw refuse()
  const exportName = decoded(uri.pathname.replace(/^\//, ''))
  if (exportName === undefined) throw refuse()
  const socket = uri.searchParams.get('socket')
  if (unix !== undefined && socket !== null) return { address: `unix:${socket}`, exportName, isSecure: secure === 's' }
  if (unix !== undefined || uri.hostname === '') throw refuse()
  return { address: `${uri.hostname}:${uri.port || DEFAULT_PORT}`, exportName, isSecure: secure === 's' }
}

/** @returns undefined for what is not percent-encoded UTF-8 */
function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

async function read(pool: NbdPool, into: Uint8Array, offset: number): Promise<void> {
  const unit = pool.minimumBlockBytes
  const from = offset - (offset % unit)
  const to = Math.min(Math.ceil((offset + into.length) / unit) * unit, pool.sizeBytes)
  const bytes = await pool.read(from, to - from)
  into.set(bytes.subarray(offset - from, offset - from + into.length))
}

/** Extents of the whole disk in one context. */
async function statusOf(pool: NbdPool, context: string, typeOf: (flags: number) => DeviceExtent['type']): Promise<DeviceExtent[]> {
  const extents: DeviceExtent[] = []
  for (let at = 0; at < pool.sizeBytes; ) {
    const runs = (await pool.blockStatus(at, Math.min(STATUS_BYTES, pool.sizeBytes - at), { contexts: [context] })).get(context) ?? []
    if (runs.length === 0) throw new VarveError('PROTOCOL_INVALID', `the server says nothing of ${context} at ${at}`)
    for (const { length, flags } of runs) {
      appendExtent(extents, at, Math.min(length, pool.sizeBytes - at), typeOf(flags))
      at = Math.min(at + length, pool.sizeBytes)
    }
    if (extents.length > EXTENTS_MAX) throw new VarveError('LIMIT_EXCEEDED', `the disk is in more than ${EXTENTS_MAX} extents`)
  }
  return extents
}

function dataOf(extents: readonly DeviceExtent[]): Ranges {
  const ranges = new RangesBuilder()
  for (const { offset, length, type } of extents) if (type === 'data') ranges.add(offset, length)
  return ranges.build()
}

/** As BlockDevice.extents, of extents that are all known. */
function extentsOf(all: readonly DeviceExtent[], sizeBytes: number): NonNullable<ReadableDisk['extents']> {
  return (offset, length, most = Infinity) => {
    checkRange({ sizeBytes }, offset, length)
    const end = offset + length
    const extents: DeviceExtent[] = []
    let low = 0
    for (let high = all.length; high - low > 1; ) {
      const middle = (low + high) >>> 1
      if (all[middle].offset <= offset) low = middle
      else high = middle
    }
    for (let index = low; index < all.length && all[index].offset < end && extents.length < most; index++) {
      const from = Math.max(offset, all[index].offset)
      const to = Math.min(end, all[index].offset + all[index].length)
      if (from < to) extents.push({ offset: from, length: to - from, type: all[index].type })
    }
    return extents
  }
}
