/**
 * The exports of a home as a server thread opens them: each thread has the home, its store and its catalog for itself; all share one cache of chunks.
 */
import type { Logger } from 'pino'
import type { OpenNames, ThreadSource } from '@varve/blockserver/nbd/server-thread.ts'
import type { ThreadExports } from '@varve/blockserver/nbd/thread-messages.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import type { ChunkCacheMemory } from '@varve/images/device/chunk-cache.ts'
import { Home } from '@varve/images/store/home.ts'
import { HomeExportNames, HomeExports } from './exports.ts'

interface ServedHome {
  directory: string
  cacheMemory: ChunkCacheMemory
}

/** What the threads of a server are to be told. @param directory of a home that exists @param cache with room for all threads, by their numbers */
export function exportsOfHome(directory: string, cache: ChunkCache): ThreadExports {
  return { module: import.meta.url, data: { directory, cacheMemory: cache.memory } satisfies ServedHome }
}

/** Called in the thread that negotiates. */
export const openNames: OpenNames = async (data) => {
  const home = await Home.open((data as ServedHome).directory)
  return { source: new HomeExportNames(home), [Symbol.asyncDispose]: () => home[Symbol.asyncDispose]() }
}

/** Called in each thread that serves. */
export async function openExports(data: unknown, log: Logger, thread: number): Promise<ThreadSource> {
  const { directory, cacheMemory } = data as ServedHome
  const home = await Home.open(directory)
  const cache = new ChunkCache(cacheMemory, thread)
  const figures = () => ({ cacheHits: cache.figures.hits, cacheMisses: cache.figures.misses })
  return { source: new HomeExports(home, log, cache), figures, [Symbol.asyncDispose]: () => home[Symbol.asyncDispose]() }
}
