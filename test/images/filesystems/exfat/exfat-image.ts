/**
 * exFAT volumes in files: made by mkfs.exfat, aged by the driver exfat-fuse, judged by fsck.exfat and by what the driver shows.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Kind } from '@varve/images/tree/tree.ts'
import { modelOf } from '../model.ts'
import type { Model } from '../model.ts'

export interface ExfatImageOptions {
  sizeBytes: number
  clusterBytes?: number
  /** Of the loop device that it is formatted and mounted on. */
  sectorBytes?: number
  packBitmap?: boolean
}

export class ExfatImage implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'varve-exfat-'))
  readonly path = join(this.directory, 'image')
  readonly mountPoint = join(this.directory, 'mnt')
  readonly #sectorBytes: number
  #loop: string | undefined

  constructor({ sizeBytes, clusterBytes = 4096, sectorBytes = 512, packBitmap = false }: ExfatImageOptions) {
    this.#sectorBytes = sectorBytes
    mkdirSync(this.mountPoint)
    writeFileSync(this.path, '')
    truncateSync(this.path, sizeBytes)
    this.#attached((device) => execFileSync('mkfs.exfat', ['-c', `${clusterBytes}`, '-L', 'Größe', ...(packBitmap ? ['--pack-bitmap'] : []), device], { stdio: ['ignore', 'ignore', 'pipe'] }))
  }

  /** Mounts it for as long as `use` runs. */
  mounted<T>(use: (directory: string) => T): T {
    return this.#attached((device) => {
      execFileSync('mount.exfat-fuse', ['-o', 'noatime', device, this.mountPoint], { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, TZ: 'UTC' } })
      try {
        return use(this.mountPoint)
      } finally {
        execFileSync('umount', [this.mountPoint])
      }
    })
  }

  /** What the driver shows. It has no attributes of DOS, and makes no difference between files that may be written and others. */
  model(): Model {
    return this.mounted((directory) => modelOf(directory).map(({ path, kind, sizeBytes, contentDigest, modified }) => ({
      path,
      kind,
      sizeBytes,
      contentDigest,
      links: 1,
      modified: path === '' ? undefined : modified,
      mode: kind === Kind.directory ? 0o755 : 0o644,
    })))
  }

  /** fsck.exfat finds nothing wrong. @returns free clusters, of what dump.exfat counts */
  check(): number {
    const report = execFileSync('fsck.exfat', ['-n', this.path], { encoding: 'utf8' })
    assert.match(report, /: clean\. directories \d+, files \d+\n/)
    return Number(/^Free Clusters:\s*(\d+)$/m.exec(execFileSync('dump.exfat', [this.path], { encoding: 'utf8' }))![1])
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true })
  }

  #attached<T>(use: (device: string) => T): T {
    const device = execFileSync('losetup', ['-f', '--show', '-b', `${this.#sectorBytes}`, this.path], { encoding: 'utf8' }).trim()
    this.#loop = device
    try {
      return use(device)
    } finally {
      execFileSync('losetup', ['-d', this.#loop])
    }
  }
}
