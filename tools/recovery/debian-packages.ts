/**
 * Debian packages that are downloaded and unpacked, not installed: nothing of the machine is changed.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { VarveError } from '@varve/images/errors.ts'

/** Runs a program. @returns what it printed @throws VarveError LIBRARY_MISSING; SOURCE_INVALID with the last line that it printed on standard error */
export function run(command: string, args: readonly string[], options: { cwd?: string } = {}): string {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20, ...options })
  } catch (cause) {
    const { code, stderr } = cause as { code?: string; stderr?: string }
    if (code === 'ENOENT') throw new VarveError('LIBRARY_MISSING', `the program ${command} is not installed; docs/recovery.md lists the packages that are needed`, { cause })
    throw new VarveError('SOURCE_INVALID', `${command} ${args.join(' ').slice(0, 200)} failed: ${stderr?.trim().split('\n').at(-1) ?? String(cause)}`, { cause })
  }
}

/** Downloads Debian packages with apt into `directory`. @returns the files, in the order of `packages` */
export function downloadPackages(packages: readonly string[], directory: string): string[] {
  mkdirSync(directory, { recursive: true })
  // apt drops its rights to this user, which cannot write into a private directory.
  chmodSync(directory, 0o777)
  return packages.map((name) => {
    run('apt-get', ['download', name], { cwd: directory })
    const file = readdirSync(directory).find((entry) => entry.startsWith(`${name}_`) && entry.endsWith('.deb'))
    if (file === undefined) throw new VarveError('SOURCE_INVALID', `apt-get download ${name} left no package`)
    return path.join(directory, file)
  })
}

/** Unpacks a package over what is in `directory`. */
export function unpackPackage(file: string, directory: string): void {
  mkdirSync(directory, { recursive: true })
  run('sh', ['-c', 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"', 'sh', file, directory])
}

/** Name of the package that holds the kernel which `linux-image-FLAVOUR` stands for today. */
export function kernelPackage(flavour: string): string {
  const depends = (): string | undefined => new RegExp(`linux-image-\\d[\\w.+-]*-${flavour}`).exec(run('apt-cache', ['depends', `linux-image-${flavour}`]))?.[0]
  let name: string | undefined
  try {
    name = depends()
  } catch {
    // The machine has no package lists yet.
  }
  if (name === undefined) {
    run('apt-get', ['update'])
    name = depends()
  }
  if (name === undefined) throw new VarveError('SOURCE_INVALID', `Debian offers no linux-image-${flavour}`)
  return name
}
