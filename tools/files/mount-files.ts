/**
 * What `varve mount` shows: files, with the snapshots of a CVD as directories beside them; or disks.
 */
import type { Logger } from 'pino'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import type { Home } from '@varve/images/store/home.ts'
import { serveMount } from './mount-server.ts'
import { openFiles } from './open-files.ts'

/** Chunks that a mount keeps in memory, bytes: the kernel keeps files that are used. */
export const CACHE_BYTES = 128 << 20

export interface MountFilesOptions {
  directory: string
  home: Home
  log: Logger
  signal: AbortSignal
  disk: boolean
  allowOther: boolean
  mounted(): void
}

export async function mountFiles(what: string, { directory, home, log, signal, allowOther, mounted }: MountFilesOptions): Promise<void> {
  const cache = ChunkCache.create({ bytesMax: CACHE_BYTES })
  await using files = await openFiles(what, { home, cache, log, signal })
  await serveMount(directory, { source: what, readOnly: true, allowOther, root: files, log, signal, mounted })
}
