/**
 * What the HTTP routes ask of the server that they speak for.
 */
import type { ChunkCacheFigures } from '@varve/images/device/chunk-cache.ts'
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

export interface ServiceView {
  exports(): Promise<ExportInfo[]>
  /** Of all threads together. */
  figures(): Promise<{ nbd: ServerSnapshot; cache: ChunkCacheFigures; stream: StreamFigures }>
  /** @returns id of the agent @throws VarveError TOKEN_INVALID, NAME_INVALID, ALREADY_EXISTS */
  enrol(request: EnrolmentRequest): Promise<string>
  /** True from when the server begins to end. */
  stopping(): boolean
}
