/**
 * The event loop of this thread as a descriptor: epoll(7) by which it waits, so that poll(2) wakes for what it waits for.
 */
import { readFileSync, readdirSync, readlinkSync } from 'node:fs'

/**
 * @param watchedFd a descriptor that the event loop has been waiting for since its last turn
 * @returns -1 if there is none, or it cannot be told
 */
export function eventLoopOf(watchedFd: number): number {
  try {
    for (const fd of readdirSync('/proc/self/fd')) {
      if (linkOf(fd) === 'anon_inode:[eventpoll]' && watches(fd, watchedFd)) return Number(fd)
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
  }
  return -1
}

function linkOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return ''
  }
}

/** Lines of proc(5), fdinfo of an epoll descriptor: `tfd: 12 events: ...` */
function watches(epollFd: string, fd: number): boolean {
  return new RegExp(`^tfd:\\s+${fd}\\s`, 'm').test(readFileSync(`/proc/self/fdinfo/${epollFd}`, 'utf8'))
}
