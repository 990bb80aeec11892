/**
 * A disk of any size in memory that holds the blocks that were written: for lengths that no buffer has.
 */
import { type BlockDevice, type DeviceExtent, appendExtent, checkRange } from '@varve/images/device/block-device.ts'

const BLOCK_BYTES = 4096

/** Requests are whole blocks. */
export class SparseDisk implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = BLOCK_BYTES
  readonly readOnly = false
  readonly #blocks = new Map<number, Buffer>()

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes
  }

  read(into: Uint8Array, offset: number): void {
    for (let at = 0; at < into.length; at += BLOCK_BYTES) into.set(this.#blocks.get((offset + at) / BLOCK_BYTES) ?? Buffer.alloc(BLOCK_BYTES), at)
  }

  write(bytes: Uint8Array, offset: number): void {
    for (let at = 0; at < bytes.length; at += BLOCK_BYTES) this.#blocks.set((offset + at) / BLOCK_BYTES, Buffer.from(bytes.subarray(at, at + BLOCK_BYTES)))
  }

  flush(): void {}

  trim(offset: number, length: number): void {
    checkRange(this, offset, length)
    for (const block of [...this.#blocks.keys()]) if (block * BLOCK_BYTES >= offset && block * BLOCK_BYTES < offset + length) this.#blocks.delete(block)
  }

  writeZeroes(offset: number, length: number): void {
    this.trim(offset, length)
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    const extents: DeviceExtent[] = []
    let at = offset
    for (const block of [...this.#blocks.keys()].sort((one, other) => one - other)) {
      const start = block * BLOCK_BYTES
      if (start < at || start >= offset + length) continue
      if (start > at) appendExtent(extents, at, start - at, 'hole')
      appendExtent(extents, start, BLOCK_BYTES, 'data')
      at = start + BLOCK_BYTES
    }
    if (at < offset + length) appendExtent(extents, at, offset + length - at, 'hole')
    return extents.slice(0, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
