/**
 * A home to import disks into, and disks to import: made by the tools that make them anywhere, filled through the kernel.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { importDiskLayer } from '@varve/composer/import/import-disk-layer.ts'
import type { ImportDiskLayerOptions } from '@varve/composer/import/import-disk-layer.ts'
import { BlockMap } from '@varve/images/blockmap/block-map.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import { openImage } from '@varve/images/formats/open-image.ts'
import type { Layer } from '@varve/images/store/catalog.ts'
import { Home } from '@varve/images/store/home.ts'
import { getObject } from '@varve/images/store/object.ts'
import { decodeTree } from '@varve/images/tree/tree-format.ts'
import type { Tree } from '@varve/images/tree/tree.ts'
import { ScratchDirectory } from '../../varve-command.ts'

/** The smallest that filesystems have. */
const BLOCK_BYTES = 512

export class DiskHome implements AsyncDisposable {
  readonly home: Home
  readonly #scratch: ScratchDirectory

  private constructor(scratch: ScratchDirectory, home: Home) {
    this.#scratch = scratch
    this.home = home
  }

  static async open(): Promise<DiskHome> {
    const scratch = new ScratchDirectory('disk-home')
    return new DiskHome(scratch, await Home.open(scratch.join('home')))
  }

  async import(file: string, options: Partial<ImportDiskLayerOptions> = {}) {
    await using image = await openImage(file)
    return await importDiskLayer({ home: this.home, name: 'vm', kind: 'base', disk: image.disk, source: `disk:${file}`, workers: 2, ...options })
  }

  async map(layer: Layer): Promise<BlockMap> {
    return BlockMap.decode(await getObject(this.home.store, layer.map!))
  }

  async tree(layer: Layer): Promise<Tree> {
    return decodeTree(await getObject(this.home.store, layer.digest))
  }

  /** All bytes of the layer's disk. */
  async disk(layer: Layer): Promise<Buffer> {
    await using device = new MapDevice(await this.map(layer), this.home.store, ChunkCache.create({ bytesMax: 32 << 20 }))
    const bytes = Buffer.alloc(device.sizeBytes)
    for (let at = 0; at < bytes.length; at += 1 << 20) await device.read(bytes.subarray(at, at + (1 << 20)), at)
    return bytes
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.home[Symbol.asyncDispose]()
    this.#scratch[Symbol.dispose]()
  }
}

/** The layer's disk is that of a raw file, but for blocks that are zero because nothing uses them. @returns how many those are */
export function assertSameDisk(actual: Buffer, expected: Buffer, message?: string): number {
  assert.equal(actual.length, expected.length)
  let dropped = 0
  for (let at = 0; at < expected.length; at += BLOCK_BYTES) {
    const [is, was] = [actual.subarray(at, at + BLOCK_BYTES), expected.subarray(at, at + BLOCK_BYTES)]
    if (is.equals(was)) continue
    assert.ok(is.every((byte) => byte === 0), `${message ?? ''} block at ${at} differs`)
    dropped++
  }
  return dropped
}

/** A filesystem in a raw file, or a part of one. */
export class RealVolume implements Disposable {
  readonly file: string
  readonly mountPoint: string
  readonly #offset: number
  readonly #type: string
  #loop: string | undefined

  /** @param options.offset where in the file it begins, bytes @param options.sizeBytes of it */
  constructor(file: string, { type = 'ext4', offset = 0, sizeBytes, mkfs = [] }: { type?: string; offset?: number; sizeBytes: number; mkfs?: readonly string[] }) {
    this.file = file
    this.mountPoint = `${file}.${offset}.mnt`
    this.#offset = offset
    this.#type = type
    const loop = execFileSync('losetup', ['-f', '--show', '-o', String(offset), '--sizelimit', String(sizeBytes), file], { encoding: 'utf8' }).trim()
    try {
      execFileSync(type.startsWith('ext') ? 'mke2fs' : `mkfs.${type}`, type.startsWith('ext') ? ['-q', '-t', type, '-E', 'lazy_itable_init=0,lazy_journal_init=0', ...mkfs, loop] : [...mkfs, loop], { stdio: 'pipe' })
    } finally {
      execFileSync('losetup', ['-d', loop])
    }
    mkdirSync(this.mountPoint, { recursive: true })
  }

  /** Mounted while `work` runs. */
  async mounted<Result>(work: (root: string) => Result | Promise<Result>): Promise<Result> {
    this.#loop = execFileSync('losetup', ['-f', '--show', '-o', String(this.#offset), this.file], { encoding: 'utf8' }).trim()
    try {
      execFileSync('mount', ['-t', this.#type, this.#loop, this.mountPoint])
      return await work(this.mountPoint)
    } finally {
      this[Symbol.dispose]()
    }
  }

  [Symbol.dispose](): void {
    if (this.#loop === undefined) return
    spawnSync('umount', [this.mountPoint])
    spawnSync('losetup', ['-d', this.#loop])
    this.#loop = undefined
  }
}

export function bytesOfFile(file: string): Buffer {
  return readFileSync(file)
}
