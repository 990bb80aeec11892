/**
 * Mount points: how /dev/fuse comes to be mounted on a directory, and goes. Root, of the machine or of a user namespace, mounts by mount(2);
 * everybody else by fusermount3 of the Debian package fuse3, which passes the descriptor. mount(8), fusermount3(1), proc(5).
 */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { VarveError } from '@varve/images/errors.ts'
import { MountFlag, dontWait, mount, openFuseDevice, receiveDescriptor, unmount } from './device-calls.ts'
import { PAGES_MAX, PAGE_BYTES } from './protocol.ts'
import { socketPair } from '../nbd/socket-calls.ts'

/** Type of our mounts, as /proc/mounts shows it. */
export const MOUNT_TYPE = 'fuse.varve'

export interface MountOptions {
  /** What /proc/mounts shows as the source. */
  source: string
  readOnly: boolean
  /** Other users see it too. */
  allowOther: boolean
}

export class MountPoint {
  /** Absolute, without symlinks. */
  readonly directory: string
  /** Of /dev/fuse, not waiting; whoever serves it closes it. */
  readonly fd: number
  readonly #isPrivileged: boolean

  private constructor(directory: string, fd: number, isPrivileged: boolean) {
    this.directory = directory
    this.fd = fd
    this.#isPrivileged = isPrivileged
  }

  /** @throws VarveError MOUNT_FAILED */
  static async open(directory: string, options: MountOptions): Promise<MountPoint> {
    const source = options.source.replace(/[^\w.@:+-]/g, '_')
    const privileged = process.geteuid!() === 0 ? mountByCall(directory, { ...options, source }) : undefined
    if (privileged !== undefined) return new MountPoint(directory, privileged, true)
    return new MountPoint(directory, await mountByHelper(directory, { ...options, source }), false)
  }

  /** Unmounts; while it is in use, it is detached: gone for all who do not have it open. Nothing if that has been done. */
  close(): void {
    clearMount(this.directory, this.#isPrivileged)
  }
}

/** @returns undefined if this process may not */
function mountByCall(directory: string, { source, readOnly, allowOther }: MountOptions): number | undefined {
  let fd: number
  try {
    fd = openFuseDevice()
  } catch (cause) {
    throw new VarveError('MOUNT_FAILED', `there is no FUSE here: ${(cause as Error).message}; load the kernel module fuse`, { cause })
  }
  const data = [`fd=${fd}`, `rootmode=40000`, `user_id=${process.geteuid!()}`, `group_id=${process.getegid!()}`, 'default_permissions', `max_read=${PAGES_MAX * PAGE_BYTES}`, ...(allowOther ? ['allow_other'] : [])]
  try {
    mount({ source, target: directory, type: MOUNT_TYPE, flags: MountFlag.noSuid | MountFlag.noDevices | (readOnly ? MountFlag.readOnly : 0), data: data.join(',') })
    return fd
  } catch (cause) {
    closeSync(fd)
    if ((cause as NodeJS.ErrnoException).code === 'EPERM') return undefined
    throw new VarveError('MOUNT_FAILED', `nothing can be mounted on ${directory}: ${(cause as Error).message}`, { cause })
  }
}

async function mountByHelper(directory: string, { source, readOnly, allowOther }: MountOptions): Promise<number> {
  const pair = socketPair()
  if (pair === undefined) throw new VarveError('LIMIT_EXCEEDED', 'the process may have no more open files')
  const options = ['nosuid', 'nodev', readOnly ? 'ro' : 'rw', `fsname=${source}`, 'subtype=varve', 'default_permissions', `max_read=${PAGES_MAX * PAGE_BYTES}`, ...(allowOther ? ['allow_other'] : [])]
  const child = spawn('fusermount3', ['-o', options.join(','), '--', directory], { stdio: ['ignore', 'ignore', 'pipe', pair[1]], env: { ...process.env, _FUSE_COMMFD: '3' } })
  let said = ''
  child.stderr!.on('data', (bytes: Buffer) => { said += bytes.toString() })
  try {
    const status = await new Promise<number | null>((resolve, reject) => {
      child.on('error', reject)
      child.on('close', resolve)
    })
    const fd = status === 0 ? receiveDescriptor(pair[0]) : undefined
    if (fd === undefined) throw new VarveError('MOUNT_FAILED', `nothing can be mounted on ${directory}: ${said.trim().split('\n').at(-1) || `fusermount3 ended with ${status}`}`)
    dontWait(fd)
    return fd
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause
    throw new VarveError('MOUNT_FAILED', 'who is not root mounts by fusermount3, which is not installed; it is in the Debian package fuse3', { cause })
  } finally {
    for (const fd of pair) closeSync(fd)
  }
}

/** Ends what is mounted on a directory, in use or not. Nothing if nothing is. @throws VarveError MOUNT_FAILED */
export function clearMount(directory: string, isPrivileged: boolean): void {
  if (mountOn(directory)?.type !== MOUNT_TYPE) return
  if (isPrivileged) {
    try {
      unmountOrDetach(directory)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'EPERM') return clearMount(directory, false)
      throw new VarveError('MOUNT_FAILED', `${directory} cannot be unmounted: ${(cause as Error).message}`, { cause })
    }
    return
  }
  const once = (lazy: boolean) => spawnSync('fusermount3', [lazy ? '-uz' : '-u', '--', directory], { encoding: 'utf8' })
  const { status } = once(false)
  const second = status === 0 ? undefined : once(true)
  if (second !== undefined && second.status !== 0 && mountOn(directory)?.type === MOUNT_TYPE) {
    throw new VarveError('MOUNT_FAILED', `${directory} cannot be unmounted: ${second.stderr?.trim() ?? second.error?.message}`)
  }
}

function unmountOrDetach(directory: string): void {
  try {
    unmount(directory)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // Somebody else was first.
    if (code === 'EINVAL') return
    if (code !== 'EBUSY') throw error
    unmount(directory, { detach: true })
  }
}

export interface MountEntry {
  type: string
  source: string
}

/** What is mounted on a directory, uppermost; also where the directory cannot be looked at because its server is gone. */
export function mountOn(directory: string): MountEntry | undefined {
  for (const line of readFileSync('/proc/self/mountinfo', 'latin1').split('\n').reverse()) {
    const [before, after] = line.split(' - ')
    if (after === undefined) continue
    const target = before.split(' ')[4].replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
    if (Buffer.from(target, 'latin1').toString() !== directory) continue
    const [type, source] = after.split(' ')
    return { type, source }
  }
  return undefined
}

/** True if whoever served the mount is gone. */
export function isDead(directory: string): boolean {
  try {
    statSync(directory)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOTCONN'
  }
}

/** Absolute, without symlinks where that can be told: the last directory may be a mount whose server is gone. @throws Error as of node:fs */
export function mountDirectory(directory: string, realPath: (directory: string) => string): string {
  const absolute = path.resolve(directory)
  try {
    return realPath(absolute)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOTCONN') throw error
    return path.join(realPath(path.dirname(absolute)), path.basename(absolute))
  }
}
