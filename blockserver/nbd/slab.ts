/**
 * Memory for payloads and replies: slabs that are cut from the front, and used again when nothing of them is in use.
 * One pool serves all connections of an event loop, so that a slab stays in the processor's cache.
 */

/** Bytes of a slab; what is larger than a quarter of one gets a slab of its own. */
export const SLAB_BYTES = 512 * 1024
const OWN_SLAB_BYTES_MIN = SLAB_BYTES / 4
/** Large slabs are a power of two and this, since payloads often are a power of two and have a header. Sets them apart from common slabs, too. */
const HEADER_BYTES = 4096
/** Slabs of common size that are kept when free. */
const FREE_SLABS_MAX = 16
/** Bytes of large slabs that are kept when free. */
const FREE_LARGE_BYTES_MAX = 64 * 1024 * 1024

export interface Slab {
  readonly bytes: Buffer
  /** Bytes cut so far. */
  used: number
  /** Regions in use. */
  regions: number
}

/** A part of a slab. Whoever holds it releases it, once. */
export interface Region {
  readonly slab: Slab
  readonly from: number
  readonly to: number
}

export class SlabPool {
  #current: Slab = { bytes: Buffer.allocUnsafeSlow(SLAB_BYTES), used: 0, regions: 0 }
  readonly #free: Slab[] = []
  /** By size. */
  readonly #large = new Map<number, Slab[]>()
  #largeFreeBytes = 0

  /** A slab with room for `length` bytes at its `used`; cut them with `cut`. */
  room(length: number): Slab {
    if (length > OWN_SLAB_BYTES_MIN) return this.#takeLarge(length)
    if (this.#current.used + length > SLAB_BYTES) this.#current = this.#free.pop() ?? { bytes: Buffer.allocUnsafeSlow(SLAB_BYTES), used: 0, regions: 0 }
    return this.#current
  }

  cut(length: number): Region {
    const slab = this.room(length)
    const from = slab.used
    slab.used += length
    slab.regions++
    return { slab, from, to: slab.used }
  }

  release(slab: Slab, regions: number): void {
    slab.regions -= regions
    if (slab.regions > 0) return
    slab.used = 0
    if (slab === this.#current) return
    if (slab.bytes.length === SLAB_BYTES) {
      if (this.#free.length < FREE_SLABS_MAX) this.#free.push(slab)
    } else this.#giveLarge(slab)
  }

  #takeLarge(length: number): Slab {
    const bytes = 2 ** Math.ceil(Math.log2(length - HEADER_BYTES)) + HEADER_BYTES
    const slab = this.#large.get(bytes)?.pop()
    if (slab === undefined) return { bytes: Buffer.allocUnsafeSlow(bytes), used: 0, regions: 0 }
    this.#largeFreeBytes -= bytes
    return slab
  }

  #giveLarge(slab: Slab): void {
    const bytes = slab.bytes.length
    if (this.#largeFreeBytes + bytes > FREE_LARGE_BYTES_MAX) return
    this.#largeFreeBytes += bytes
    const slabs = this.#large.get(bytes)
    if (slabs === undefined) this.#large.set(bytes, [slab])
    else slabs.push(slab)
  }
}
