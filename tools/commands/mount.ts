/**
 * `varve mount`: the files of a CVD, snapshot, layer or disk image on a directory; with --disk its disk as files. Unmounting ends it.
 */
import { spawn } from 'node:child_process'
import { realpathSync } from 'node:fs'
import type { Command } from 'commander'
import { openLog } from '@varve/blockserver/log.ts'
import { clearMount, isDead, mountDirectory, mountOn, MOUNT_TYPE } from '@varve/blockserver/fuse/mount-point.ts'
import { VarveError } from '@varve/images/errors.ts'
import { withImageOptions } from '../image-options.ts'
import type { ImageOptions } from '../image-options.ts'
import { action } from '../invocation.ts'
import type { Invocation } from '../invocation.ts'

interface Options extends ImageOptions {
  disk?: boolean
  foreground?: boolean
  allowOther?: boolean
  clear?: boolean
}

export function addMountCommand(program: Command): void {
  withImageOptions(program.command('mount').argument('<what>', 'NAME, NAME@SNAPSHOT, layer:NAME[@N] or disk:FILE; with --clear the directory').argument('[directory]')
    .option('--disk', 'the disk itself as a file in each format; disk.raw of a CVD can be written to')
    .option('--foreground', 'stay until it is unmounted; otherwise the command ends when the files are there, and a process in the background serves them')
    .option('--allow-other', 'other users see it too; who is not root needs user_allow_other in /etc/fuse.conf')
    .option('--clear', 'unmount whatever varve mounted on the directory, also after its process was killed'))
    .description('look at the files of a CVD, snapshot or layer; its snapshots are directories named @SNAPSHOT')
    .action(action(async (invocation, what: string, directory: string | undefined, options: Options) => {
      if (options.clear === true) clear(invocation, directory ?? what)
      else if (directory === undefined) throw new VarveError('NAME_INVALID', 'say where to mount: varve mount NAME DIRECTORY')
      else if (options.foreground === true) await serve(invocation, what, resolved(directory), options)
      else await background(invocation, resolved(directory))
    }))
}

/** @throws VarveError MOUNT_FAILED */
function resolved(directory: string): string {
  let absolute: string
  try {
    absolute = mountDirectory(directory, realpathSync)
  } catch (cause) {
    throw new VarveError('MOUNT_FAILED', `nothing can be mounted on ${directory}: ${(cause as Error).message}`, { cause })
  }
  if (mountOn(absolute)?.type === MOUNT_TYPE) {
    throw new VarveError('MOUNT_FAILED', `${directory} is a mount of varve already${isDead(absolute) ? ', whose process was killed' : ''}; end it with: varve mount --clear ${directory}`)
  }
  return absolute
}

function clear(invocation: Invocation, directory: string): void {
  const absolute = mountDirectory(directory, realpathSync)
  const found = mountOn(absolute)
  if (found !== undefined && found.type !== MOUNT_TYPE) throw new VarveError('MOUNT_FAILED', `what is mounted on ${directory} is not of varve (${found.type})`)
  if (found !== undefined) clearMount(absolute, process.geteuid!() === 0)
  invocation.result({ directory: absolute, cleared: found !== undefined }, found === undefined ? `nothing of varve is mounted on ${directory}` : `unmounted ${directory}`)
}

async function serve(invocation: Invocation, what: string, directory: string, options: Options): Promise<void> {
  const { mountFiles } = await import('../files/mount-files.ts')
  const log = openLog('info', { mount: directory })
  await using home = await invocation.openHome()
  await mountFiles(what, {
    directory, home, log, signal: invocation.signal, disk: options.disk === true, allowOther: options.allowOther === true,
    image: { format: options.format, allow: options.allow, warn: (message) => invocation.note(message) },
    mounted: () => {
      invocation.result({ mounted: what, directory, pid: process.pid }, `${what} is mounted on ${directory}; umount ${directory} ends it`)
    },
  })
}

/** The same command in the foreground, in a session of its own, is the process that serves. Its document or error is ours. */
async function background(invocation: Invocation, directory: string): Promise<void> {
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1), '--foreground', '--json'], { detached: true, stdio: ['ignore', 'pipe', 'ignore'] })
  const abort = (): boolean => child.kill()
  invocation.signal.addEventListener('abort', abort, { once: true })
  let said = ''
  const document = await new Promise<{ error?: { code: VarveError['code']; message: string }; pid: number; mounted: string }>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status, signal) => reject(new Error(`the process in the background ended with ${status ?? signal}: ${said}`)))
    child.stdout.on('data', (bytes: Buffer) => {
      said += bytes.toString()
      try {
        resolve(JSON.parse(said))
      } catch {
        // There is more to come.
      }
    })
  })
  invocation.signal.removeEventListener('abort', abort)
  child.stdout.destroy()
  child.unref()
  if (document.error !== undefined) throw new VarveError(document.error.code, document.error.message)
  invocation.result(document, `${document.mounted} is mounted on ${directory}; umount ${directory} ends it`)
}
