/**
 * What the HTTP routes ask of the server that they speak for.
 */
import type { ChunkCacheFigures } from '@varve/images/device/chunk-cache.ts'
import type { BlockDevice } from '@varve/images/device/block-device.ts'
import type { ClientIdentity } from '../nbd/access.ts'
import type { ExportInfo } from '../nbd/export.ts'
import type { ServerSnapshot } from '../nbd/metrics.ts'
import type { StreamFigures } from '../stream/metrics.ts'

export interface EnrolmentRequest {
  /** As it was printed. */
  token: string
  /** Ed25519, raw. */
  publicKey: Uint8Array
  name: string
}

export interface ImageRequest {
  /** As an export. */
  disk: string
  format: string
  client: ClientIdentity
}

export interface ServedImage {
  device: BlockDevice
  /** Quoted, strong. */
  etag: string
  /** It is no longer used; a second call does nothing. */
  release: () => Promise<void>
}

export interface ServiceView {
  exports(): Promise<ExportInfo[]>
  /** Of all threads together. */
  figures(): Promise<{ nbd: ServerSnapshot; cache: ChunkCacheFigures; stream: StreamFigures }>
  /** @returns id of the agent @throws VarveError TOKEN_INVALID, NAME_INVALID, ALREADY_EXISTS */
  enrol(request: EnrolmentRequest): Promise<string>
  /** Unless no images are offered. @throws VarveError EXPORT_NOT_FOUND, also for what the client may not read */
  image?: (request: ImageRequest) => Promise<ServedImage>
  /** True from when the server begins to end. */
  stopping(): boolean
}
