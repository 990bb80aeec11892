/**
 * Serves a mount until it is unmounted, or whoever serves it is told to end.
 */
import type { Logger } from 'pino'
import { MountPoint } from './mount-point.ts'
import type { MountOptions } from './mount-point.ts'
import type { MountedDirectories, MountedFilesystem } from './mounted-filesystem.ts'
import { Operations } from './operations.ts'
import { Session } from './session.ts'

/** That end a process that does not handle them, besides those that the command handles; a mount is not left behind by any. */
const SIGNALS = ['SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGALRM', 'SIGVTALRM', 'SIGXCPU', 'SIGIO', 'SIGPWR'] as const

export interface ServeMountOptions extends MountOptions {
  root: MountedFilesystem
  directories?: MountedDirectories
  log: Logger
  signal: AbortSignal
  /** Called once it can be used. */
  mounted: () => void
}

/** Resolves when the mount is gone. @throws VarveError MOUNT_FAILED */
export async function serveMount(directory: string, { root, directories, log, signal, mounted, ...options }: ServeMountOptions): Promise<void> {
  signal.throwIfAborted()
  const point = await MountPoint.open(directory, options)
  const session = new Session(point.fd, new Operations(root, directories), log)
  // Whoever still has something open there gets errors, and no signal leaves a mount behind.
  const end = (): void => {
    try {
      point.close()
    } catch (error) {
      log.error({ err: error }, 'unmounting failed')
    }
    session.stop()
  }
  signal.addEventListener('abort', end, { once: true })
  for (const name of SIGNALS) process.on(name, end)
  // Also when something goes wrong that nobody thought of.
  process.on('exit', end)
  if (signal.aborted) end()
  else mounted()
  await session.ended
  signal.removeEventListener('abort', end)
  for (const name of [...SIGNALS, 'exit']) process.off(name, end)
}
