/**
 * The exports of a home as a server thread opens them: each thread has the home, its store and its catalog for itself.
 */
import type { Logger } from 'pino'
import type { ThreadSource } from '@varve/blockserver/nbd/server-thread.ts'
import type { ThreadExports } from '@varve/blockserver/nbd/thread-messages.ts'
import { Home } from '@varve/images/store/home.ts'
import { HomeExports } from './exports.ts'

interface ServedHome {
  directory: string
}

/** What the threads of a server are to be told. @param directory of a home that exists */
export function exportsOfHome(directory: string): ThreadExports {
  return { module: import.meta.url, data: { directory } satisfies ServedHome }
}

/** Called in each thread. */
export async function openExports(data: unknown, log: Logger): Promise<ThreadSource> {
  const home = await Home.open((data as ServedHome).directory)
  return { source: new HomeExports(home, log), [Symbol.asyncDispose]: () => home[Symbol.asyncDispose]() }
}
