/** An NTFS volume in a file, made by mkntfs, mounted by ntfs-3g; and the model of what its driver shows. */
import { execFileSync, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { FileDevice } from '@varve/images/device/file-device.ts'
import { openNtfs } from '@varve/images/filesystems/ntfs/filesystem.ts'
import type { NtfsFilesystem } from '@varve/images/filesystems/ntfs/filesystem.ts'
import { Kind } from '@varve/images/tree/tree.ts'
import type { Xattr } from '@varve/images/tree/tree.ts'
import type { FilesystemSubject } from '../conformance.ts'
import { modelOf } from '../model.ts'
import type { Model } from '../model.ts'

export interface ImageOptions {
  sizeBytes?: number
  sectorBytes?: number
  clusterBytes?: number
}

export class NtfsImage implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'varve-ntfs-'))
  readonly path = join(this.directory, 'image')
  readonly mountPoint = join(this.directory, 'mounted')
  #driver: ChildProcess | undefined

  constructor({ sizeBytes = 48 << 20, sectorBytes = 512, clusterBytes = 4096 }: ImageOptions = {}) {
    mkdirSync(this.mountPoint)
    writeFileSync(this.path, '')
    truncateSync(this.path, sizeBytes)
    execFileSync('mkntfs', ['-F', '-q', '-Q', '-s', `${sectorBytes}`, '-c', `${clusterBytes}`, '-p', '0', '-H', '255', '-S', '63', '-L', 'Prüfung', this.path], { stdio: 'pipe' })
  }

  /** What `work` does through the driver is on the volume when this completes. */
  async mounted<T>(work: (mountPoint: string) => T | Promise<T>, options: readonly string[] = []): Promise<T> {
    await this.#mount(options)
    try {
      return await work(this.mountPoint)
    } finally {
      await this.#unmount()
    }
  }

  async #mount(options: readonly string[]): Promise<void> {
    const all = ['no_detach', 'posix_nlink', 'compression', 'streams_interface=xattr', 'big_writes', ...options]
    // To a file: who works in the mount would not read a pipe meanwhile, and the driver would wait.
    const complaints = join(this.directory, 'complaints')
    const fd = openSync(complaints, 'w')
    const driver = spawn('ntfs-3g', ['-o', all.join(','), this.path, this.mountPoint], { stdio: ['ignore', 'ignore', fd] })
    closeSync(fd)
    this.#driver = driver
    while (!readFileSync('/proc/self/mounts', 'utf8').includes(` ${this.mountPoint} fuse`)) {
      if (driver.exitCode !== null) throw new Error(`ntfs-3g: ${readFileSync(complaints, 'utf8')}`)
      await setTimeout(10)
    }
  }

  /** The driver writes what it still holds after it was unmounted, and ends. */
  async #unmount(): Promise<void> {
    const driver = this.#driver
    this.#driver = undefined
    if (driver === undefined) return
    const ended = driver.exitCode === null ? once(driver, 'exit') : undefined
    execFileSync('umount', [this.mountPoint])
    await ended
  }

  /** @see ../conformance.ts */
  async subject(): Promise<FilesystemSubject & AsyncDisposable & { filesystem: NtfsFilesystem; volume: FileDevice }> {
    const model = await this.model()
    const volume = FileDevice.open({ path: this.path, readOnly: true })
    const filesystem = await openNtfs(volume)
    return { filesystem, model, volume, ignoresCase: true, [Symbol.asyncDispose]: () => volume[Symbol.asyncDispose]() }
  }

  /** What the driver shows, with what it does not list of its attributes, in our words. */
  async model(): Promise<Model> {
    return this.mounted((mountPoint) => {
      const attributes = hiddenXattr(mountPoint, 'system.ntfs_attrib')
      const security = hiddenXattr(mountPoint, 'system.ntfs_acl')
      const model = modelOf(mountPoint, {
        allTimes: true,
        xattrs: (path, mounted) => {
          const found: Xattr[] = [{ name: 'user.ntfs.attributes', value: Buffer.from(`0x${attributes.get(path)!.readUInt32LE(0).toString(16).padStart(8, '0')}`) }]
          const descriptor = security.get(path)
          if (descriptor !== undefined) found.push({ name: 'user.ntfs.security', value: descriptor })
          for (const { name, value } of mounted) found.push({ name: name.replace(/^user\./, 'user.ntfs.streams.'), value })
          return found.sort((one, other) => (one.name < other.name ? -1 : 1))
        },
      })
      for (const entry of model) {
        entry.mode = undefined
        if (entry.kind !== Kind.file && entry.kind !== Kind.directory) entry.xattrs = []
        if (entry.kind === Kind.symlink) {
          entry.target = relativeTarget(entry.path, entry.target!, mountPoint)
          entry.sizeBytes = entry.target.length
        }
      }
      return model
    }, ['ro', 'noatime'])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#unmount()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** The driver writes its mount point before targets on its volume; we lead to the root. */
function relativeTarget(path: string, target: string, mountPoint: string): string {
  return target.startsWith(`${mountPoint}/`) ? '../'.repeat(path.split('/').length - 1) + target.slice(mountPoint.length + 1) : target
}

/** An attribute that the driver has but does not list, of all files; by path. */
function hiddenXattr(mountPoint: string, name: string): Map<string, Buffer> {
  const output = execFileSync('getfattr', ['-R', '-P', '-h', '--absolute-names', '-e', 'hex', '-n', name, mountPoint], { stdio: ['ignore', 'pipe', 'ignore'], encoding: 'latin1', maxBuffer: 1 << 30 })
  const values = new Map<string, Buffer>()
  for (const [, file, value] of output.matchAll(/^# file: (.*)\n.*=0x(.*)$/gm)) {
    const path = file.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)))
    values.set(path.slice(mountPoint.length + 1), Buffer.from(value, 'hex'))
  }
  return values
}
