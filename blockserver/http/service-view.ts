/**
 * What the HTTP routes ask of the server that they speak for.
 */
import type { ChunkCacheFigures } from '@varve/images/device/chunk-cache.ts'
import type { ExportInfo } from '../nbd/export.ts'
import type { ServerSnapshot } from '../nbd/metrics.ts'

export interface ServiceView {
  exports(): Promise<ExportInfo[]>
  /** Of all threads together. */
  figures(): Promise<{ nbd: ServerSnapshot; cache: ChunkCacheFigures }>
  /** True from when the server begins to end. */
  stopping(): boolean
}
