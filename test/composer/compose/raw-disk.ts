/** A composed disk as a sparse file, for the judges that read files, and its root filesystem, mounted by the kernel. */
import { execFileSync } from 'node:child_process'
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmdirSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Composition } from '@varve/composer/compose.ts'
import { ChunkCache } from '@varve/images/device/chunk-cache.ts'
import { MapDevice } from '@varve/images/device/map-device.ts'
import type { ChunkStore } from '@varve/images/store/chunk-store.ts'

const BUFFER_BYTES = 1 << 20

export async function writeRawDisk(composition: Composition, store: ChunkStore, path: string): Promise<void> {
  await using device = new MapDevice(composition.map, store, ChunkCache.create({ bytesMax: 64 << 20 }))
  const file = openSync(path, 'w')
  const buffer = new Uint8Array(BUFFER_BYTES)
  ftruncateSync(file, device.sizeBytes)
  for (const { type, offset, length } of device.extents(0, device.sizeBytes)) {
    if (type !== 'data') continue
    for (let at = offset; at < offset + length; at += BUFFER_BYTES) {
      const part = buffer.subarray(0, Math.min(BUFFER_BYTES, offset + length - at))
      await device.read(part, at)
      writeSync(file, part, 0, part.length, at)
    }
  }
  closeSync(file)
}

/** A partition of a disk in a file, as a loop device of its own: the kernel need not know partitions. */
export class LoopPartition implements Disposable {
  readonly device: string
  #mountPoint: string | undefined

  constructor(disk: string, { firstByte, byteLength }: { firstByte: number; byteLength: number }) {
    this.device = execFileSync('losetup', ['-f', '--show', '-r', '-o', String(firstByte), '--sizelimit', String(byteLength), disk], { encoding: 'utf8' }).trim()
  }

  /** Mounts it read-only. @returns the directory */
  mount(): string {
    const mountPoint = mkdtempSync(join(tmpdir(), 'varve-mount-'))
    execFileSync('mount', ['-o', 'ro,noload', this.device, mountPoint])
    this.#mountPoint = mountPoint
    return mountPoint
  }

  [Symbol.dispose](): void {
    if (this.#mountPoint !== undefined) {
      execFileSync('umount', [this.#mountPoint])
      rmdirSync(this.#mountPoint)
    }
    execFileSync('losetup', ['-d', this.device])
  }
}
