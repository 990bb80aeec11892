/** Disks and stores that answer late, in another order than they were asked, as one across a network does. */
import type { BlockDevice, DeviceExtent } from '@varve/images/device/block-device.ts'
import type { ChunkStore, ChunkWriter } from '@varve/images/store/chunk-store.ts'
import type { Digest } from '@varve/images/chunk/digest.ts'
import type { Random } from '../../random.ts'

async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise<void>(resolve => { setImmediate(resolve) })
}

/** A read-only disk. */
export class DelayedDevice implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes: number
  readonly readOnly = true
  readonly #inner: BlockDevice
  readonly #random: Random

  constructor(inner: BlockDevice, random: Random) {
    this.sizeBytes = inner.sizeBytes
    this.blockBytes = inner.blockBytes
    this.#inner = inner
    this.#random = random
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    await turns(this.#random.below(4))
    await this.#inner.read(into, offset)
  }

  write(): never {
    throw new Error('nobody writes to what is below')
  }

  trim(): never {
    throw new Error('nobody writes to what is below')
  }

  writeZeroes(): never {
    throw new Error('nobody writes to what is below')
  }

  flush(): void {}

  extents(offset: number, length: number, most?: number): DeviceExtent[] {
    return this.#inner.extents(offset, length, most)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#inner[Symbol.asyncDispose]()
  }
}

export class DelayedStore implements ChunkStore {
  /** Chunks that were asked for. */
  asked = 0
  readonly #inner: ChunkStore
  readonly #random: Random

  constructor(inner: ChunkStore, random: Random) {
    this.#inner = inner
    this.#random = random
  }

  async get(digest: Digest): Promise<Uint8Array> {
    this.asked++
    await turns(this.#random.below(4))
    return this.#inner.get(digest)
  }

  async has(digest: Digest): Promise<boolean> {
    return this.#inner.has(digest)
  }

  writer(): ChunkWriter {
    return this.#inner.writer()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#inner[Symbol.asyncDispose]()
  }
}
