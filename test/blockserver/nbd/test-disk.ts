/**
 * A disk in memory whose requests can be made slow, unordered or failing, and which tells what it was asked.
 * A small real implementation of BlockDevice, not a mock; what is served to people are the devices of images/device/.
 */
import { VarveError } from '@varve/images/errors.ts'
import { type BlockDevice, type DeviceExtent, type ExtentType, type WriteOptions, type WriteZeroesOptions, checkRange } from '@varve/images/device/block-device.ts'

/** Granularity of allocation. */
export const DISK_BLOCK_BYTES = 4096

export interface TestDiskOptions {
  readOnly?: boolean
  /** What a request waits for; if undefined, requests complete at once. */
  delay?: (request: string) => Promise<void> | undefined
  /** Throws, or not, for a request. */
  fault?: (request: string, offset: number, length: number) => void
}

const TYPES: readonly ExtentType[] = ['hole', 'zero', 'data']

export class TestDisk implements BlockDevice {
  readonly sizeBytes: number
  readonly blockBytes = DISK_BLOCK_BYTES
  readonly readOnly: boolean
  readonly bytes: Buffer
  /** What a power cut would leave: the content at the last flush, and writes with FUA. */
  readonly durable: Buffer
  /** Index into TYPES for each block. */
  readonly #blocks: Uint8Array
  readonly #options: TestDiskOptions
  flushes = 0
  closes = 0
  /** Requests that are being carried out. */
  running = 0
  runningMost = 0

  constructor(sizeBytes: number, options: TestDiskOptions = {}) {
    this.sizeBytes = sizeBytes
    this.readOnly = options.readOnly ?? false
    this.bytes = Buffer.alloc(sizeBytes)
    this.durable = Buffer.alloc(sizeBytes)
    this.#blocks = new Uint8Array(Math.ceil(sizeBytes / DISK_BLOCK_BYTES))
    this.#options = options
  }

  read(into: Uint8Array, offset: number): void | Promise<void> {
    return this.#carryOut('read', offset, into.length, () => into.set(this.bytes.subarray(offset, offset + into.length)))
  }

  write(bytes: Uint8Array, offset: number, options: WriteOptions = {}): void | Promise<void> {
    this.#checkWritable()
    return this.#carryOut('write', offset, bytes.length, () => {
      this.bytes.set(bytes, offset)
      this.#mark(offset, bytes.length, 2, true)
      if (options.fua === true) this.#persist(offset, bytes.length)
    })
  }

  flush(): void | Promise<void> {
    return this.#carryOut('flush', 0, 0, () => {
      this.flushes++
      this.#persist(0, this.sizeBytes)
    })
  }

  trim(offset: number, length: number, options: WriteOptions = {}): void | Promise<void> {
    return this.#zero('trim', offset, length, 0, options)
  }

  writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void | Promise<void> {
    return this.#zero('writeZeroes', offset, length, options.noHole === true ? 1 : 0, options)
  }

  extents(offset: number, length: number, most = Infinity): DeviceExtent[] {
    checkRange(this, offset, length)
    const extents: DeviceExtent[] = []
    for (let at = offset; at < offset + length;) {
      const end = Math.min(offset + length, (Math.floor(at / DISK_BLOCK_BYTES) + 1) * DISK_BLOCK_BYTES)
      const type = TYPES[this.#blocks[Math.floor(at / DISK_BLOCK_BYTES)]]
      const last = extents.at(-1)
      if (last?.type === type) last.length += end - at
      else if (extents.length === most) break
      else extents.push({ offset: at, length: end - at, type })
      at = end
    }
    return extents
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.closes++
  }

  #zero(request: string, offset: number, length: number, state: number, options: WriteOptions): void | Promise<void> {
    this.#checkWritable()
    return this.#carryOut(request, offset, length, () => {
      this.bytes.fill(0, offset, offset + length)
      this.#mark(offset, length, state, false)
      if (options.fua === true) this.#persist(offset, length)
    })
  }

  #persist(offset: number, length: number): void {
    this.bytes.copy(this.durable, offset, offset, offset + length)
  }

  /** @param partly also blocks that are covered in part */
  #mark(offset: number, length: number, state: number, partly: boolean): void {
    const end = offset + length
    const from = partly ? Math.floor(offset / DISK_BLOCK_BYTES) : Math.ceil(offset / DISK_BLOCK_BYTES)
    const to = partly || end === this.sizeBytes ? Math.ceil(end / DISK_BLOCK_BYTES) : Math.floor(end / DISK_BLOCK_BYTES)
    if (to > from) this.#blocks.fill(state, from, to)
  }

  #checkWritable(): void {
    if (this.readOnly) throw new VarveError('READ_ONLY', 'this disk cannot be written')
  }

  #carryOut(request: string, offset: number, length: number, action: () => void): void | Promise<void> {
    checkRange(this, offset, length)
    this.#options.fault?.(request, offset, length)
    const delay = this.#options.delay?.(request)
    if (delay === undefined) {
      action()
      return
    }
    this.runningMost = Math.max(this.runningMost, ++this.running)
    return delay.then(() => action()).finally(() => { this.running-- })
  }
}
