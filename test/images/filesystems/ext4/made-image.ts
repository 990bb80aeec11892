/**
 * MadeImage: an image that mke2fs makes and the kernel or debugfs fills.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { checkRange } from '@varve/images/device/block-device.ts'
import type { ReadableDisk } from '@varve/images/device/block-device.ts'
import { openExt4 } from '@varve/images/filesystems/ext4/filesystem.ts'
import type { Ext4Filesystem } from '@varve/images/filesystems/ext4/filesystem.ts'

export class MadeImage implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'varve-ext4-made-'))
  readonly path = join(this.directory, 'image')
  readonly mountPoint = join(this.directory, 'mnt')

  /** @param options of mke2fs */
  constructor(sizeBytes: number, options: readonly string[]) {
    mkdirSync(this.mountPoint)
    writeFileSync(this.path, '')
    truncateSync(this.path, sizeBytes)
    execFileSync('mke2fs', ['-q', '-F', ...options, this.path], { stdio: ['ignore', 'ignore', 'pipe'] })
  }

  /** @param options of mount, such as `ro` */
  mounted(options: string, act: (directory: string) => void): void {
    execFileSync('mount', ['-o', `loop,${options}`, this.path, this.mountPoint])
    try {
      act(this.mountPoint)
    } finally {
      execFileSync('umount', [this.mountPoint])
    }
  }

  /** Requests that change the image. */
  debugfs(...requests: string[]): void {
    execFileSync('debugfs', ['-w', '-f', '-', this.path], { input: requests.join('\n'), stdio: ['pipe', 'ignore', 'pipe'] })
  }

  /** All of the image in memory, as `change` leaves it. */
  open(change: (bytes: Buffer) => unknown = () => {}): Promise<Ext4Filesystem> {
    const bytes = readFileSync(this.path)
    change(bytes)
    return openExt4(diskOf(bytes))
  }

  [Symbol.dispose](): void {
    spawnSync('umount', ['-l', this.mountPoint], { stdio: 'ignore' })
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** A disk that is all in memory. */
export function diskOf(bytes: Uint8Array): ReadableDisk {
  const disk: ReadableDisk = {
    sizeBytes: bytes.length,
    read: (into, offset) => {
      checkRange(disk, offset, into.length)
      into.set(bytes.subarray(offset, offset + into.length))
    },
  }
  return disk
}

/** Id of a path, names in UTF-8. */
export async function idOf(filesystem: Ext4Filesystem, path: string): Promise<number> {
  let id = filesystem.root
  for (const name of path.split('/')) {
    const found = await filesystem.child(id, Buffer.from(name).toString('latin1'))
    if (found === undefined) throw new Error(`there is no ${path}`)
    id = found
  }
  return id
}

export async function contentOf(filesystem: Ext4Filesystem, path: string): Promise<Buffer> {
  const id = await idOf(filesystem, path)
  const content = Buffer.alloc((await filesystem.node(id)).sizeBytes)
  await filesystem.read(id, content, 0)
  return content
}
