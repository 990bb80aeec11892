/**
 * BlockDevice: the contract of everything that can be served as a disk. Servers know only this.
 * One conformance suite holds for all implementations: test/images/device/conformance.ts.
 */

/** `data`: holds content. `zero`: reads as zeroes, and was written so. `hole`: reads as zeroes, nothing is allocated. */
export type ExtentType = 'data' | 'zero' | 'hole'

export interface DeviceExtent {
  /** Bytes from the start of the device. */
  offset: number
  /** Bytes, at least 1. */
  length: number
  type: ExtentType
}

export interface WriteOptions {
  /** Force unit access: durable when the call completes. */
  fua?: boolean
}

export interface WriteZeroesOptions extends WriteOptions {
  /** The range must stay allocated (NBD_CMD_FLAG_NO_HOLE). */
  noHole?: boolean
}

/** Memory that holds a range of a device. Nobody writes to it; it stays as it is until `release`, which is called once, and soon. */
export interface DeviceView {
  /** In order. */
  readonly parts: readonly Uint8Array[]
  release(): void
}

/** What readers of formats need of a disk or file: the part of a BlockDevice that does not change. */
export interface ReadableDisk {
  readonly sizeBytes: number
  /** As BlockDevice. */
  read(into: Uint8Array, offset: number): void | Promise<void>
  /** As BlockDevice; without it, all is data. */
  extents?(offset: number, length: number, most?: number): DeviceExtent[]
}

/**
 * Ranges are bytes; any offset and length inside the device is allowed, aligned or not. A range outside is the caller's bug: RangeError.
 * A call that completes at once returns undefined, otherwise a promise: servers await only promises, so that data at hand costs no turn of the event loop.
 * Completed writes are seen by every later read. They are durable after a completed `flush`, or with `fua`.
 */
export interface BlockDevice extends AsyncDisposable {
  readonly sizeBytes: number
  /** Size at which requests are served best, bytes; a power of two. */
  readonly blockBytes: number
  readonly readOnly: boolean

  /** Fills all of `into` with the bytes at `offset`. @throws VarveError CHUNK_CORRUPT, CHUNK_MISSING */
  read(into: Uint8Array, offset: number): void | Promise<void>
  /**
   * The range in the device's own memory, for readers that need no copy.
   * @returns undefined if it is not there, or in so many parts that `read` is better
   * @throws VarveError as `read`
   */
  view?(offset: number, length: number): DeviceView | undefined
  /** @throws VarveError READ_ONLY */
  write(bytes: Uint8Array, offset: number, options?: WriteOptions): void | Promise<void>
  /** Everything that was written by completed calls is durable when this completes. */
  flush(): void | Promise<void>
  /** The content of the range is no longer needed; here it reads as zeroes afterwards. */
  trim(offset: number, length: number, options?: WriteOptions): void | Promise<void>
  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void | Promise<void>
  /** What the range holds: ordered, disjoint, covering it exactly; neighbours of one type are merged. Stops early after `most` extents. */
  extents(offset: number, length: number, most?: number): DeviceExtent[]
}

/** @throws RangeError if [offset, offset + length) is not inside the device */
export function checkRange(device: { sizeBytes: number }, offset: number, length: number): void {
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || offset + length > device.sizeBytes) {
    throw new RangeError(`range ${offset}+${length} is outside a device of ${device.sizeBytes} bytes`)
  }
}

/** Adds an extent that starts where the last one of the list ends; if they are of one type, they become one. */
export function appendExtent(extents: DeviceExtent[], offset: number, length: number, type: ExtentType): void {
  const last = extents.at(-1)
  if (last !== undefined && last.type === type) last.length += length
  else extents.push({ offset, length, type })
}
